"""The language-model head and its losses, chunk by chunk: logits for all positions never exist.

L = CE + lambda * KL(P_new || P_ref), the paper's equation 1, with the reference frozen. Under a new vocabulary the KL has to be
made well defined first; a `Distribution` or `Spans` says how (docs of each). One walk over the positions computes logits, losses
and their gradients with respect to hidden states and head; the backward pass only hands them on.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

IGNORED = -100
ROUNDED = 8  # up to so many parts of a chunk the matrices of the head stay the same
_ALMOST_PARALLEL = 1e-6  # sine of the angle below which slerp is lerp


class Distribution(NamedTuple):
    """A reference that is asked for its whole distribution, at some positions.

    The loss at such a position is sum over u of Q(u) log(Q(u) / P_ref(u)), Q being the trained model's distribution P, or,
    with `pieces`, P pushed forward to the reference's vocabulary: Q(u) = sum of P(v) over all v with pieces[v] = u. It is never
    negative, zero where both agree, and at most the KL over anything finer.
    """

    hidden: torch.Tensor  # the reference's last hidden states, k x d_ref
    weight: torch.Tensor  # its head, rows_ref x d_ref, without padded rows
    at: torch.Tensor | None = None  # which of the trained model's positions they belong to, k, ascending; None: all
    pieces: torch.Tensor | None = (
        None  # each token's first piece in the reference's vocabulary, rows; None: the same vocabulary
    )


class Spans(NamedTuple):
    """A reference that is asked how likely stretches of text are, whatever their tokens (approximate likelihood matching).

    The loss of a span c is the binary KL q log(q / p) + (1 - q) log((1 - q) / (1 - p)) of q = P(c)^(1/T) from p = P_ref(c)^(1/T).
    """

    of: torch.Tensor  # the span that each position's next token belongs to, positions, ascending; -1 for none
    log_p: torch.Tensor  # the reference's log probability of each span, in nats
    temperature: float = 1.0  # T


class HeadLoss(NamedTuple):
    """`loss` carries the gradient; the rest, in nats, is for the log."""

    loss: torch.Tensor
    ce: torch.Tensor  # of each counted position, in their order
    kl: torch.Tensor  # summed over the reference's positions or spans


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    reference: Distribution | Spans | None = None,
    ce_weight: float | torch.Tensor = 1.0,
    kl_weight: float | torch.Tensor = 1.0,
    z_weight: float = 0.0,
    slerp: float | None = None,
    chunk: int = 512,
) -> HeadLoss:
    """ce_weight * sum of CE + kl_weight * sum of KL, with P = softmax(hidden @ weight.T).

    Peak memory is a few times chunk x rows; both gradients are computed in the forward pass.

    Args:
        hidden: last hidden states, positions x d.
        weight: the head, rows x d, without padded rows.
        targets: the next token of each position; positions with -100 count for nothing.
        reference: what the KL is taken from, its positions counted among all of `hidden`'s; none for plain CE. At positions with
            target -100 there is none.
        ce_weight: before the sum of CE; 1 / positions for a mean.
        kl_weight: before the sum of KL.
        z_weight: z-loss: z_weight * log(sum of exp(logits))^2 is added to each position's CE in `loss`.
        slerp: in place of the sum, interpolate the two terms' gradients at the hidden states on the sphere, at this t from 0 (CE)
            to 1 (KL): direction slerp(g_ce, g_kl; t), length (1 - t) |g_ce| + t |g_kl|. That is a sum with other weights, which the
            head's gradient gets too; `loss` is that sum.
        chunk: positions at a time.
    """
    counted = targets != IGNORED
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(
            torch.get_autocast_dtype(kind)
        )  # which a function of our own has to see to; softmax and sums stay fp32
    return HeadLoss(
        *_HeadLoss.apply(
            hidden[counted],
            weight,
            targets[counted],
            _among(reference, counted),
            (ce_weight, kl_weight, z_weight, slerp),
            chunk,
        )
    )


def plain_head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    reference: Distribution | Spans | None = None,
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    z_weight: float = 0.0,
) -> HeadLoss:
    """The same by the textbook formula and autograd, all logits at once: what the tests and benchmarks compare with."""
    counted = targets != IGNORED
    reference = _among(reference, counted)
    logits = (hidden[counted] @ weight.T).float()
    log_p = F.log_softmax(logits, dim=-1)
    ce = F.nll_loss(log_p, targets[counted], reduction="none")
    kl = torch.zeros((), device=hidden.device)
    if isinstance(reference, Distribution):
        q = log_p.exp() if reference.at is None else log_p[reference.at].exp()
        if reference.pieces is not None:
            q = q.new_zeros(len(q), len(reference.weight)).index_add(1, reference.pieces, q)
        log_r = F.log_softmax((reference.hidden @ reference.weight.T).float(), dim=-1)
        kl = torch.where(q > 0, q * (q.clamp_min(torch.finfo(q.dtype).tiny).log() - log_r), 0.0).sum()
    elif isinstance(reference, Spans):
        inside = reference.of >= 0
        log_q = -ce.new_zeros(len(reference.log_p)).index_add(0, reference.of[inside], ce[inside])
        kl = _binary_kl(log_q / reference.temperature, reference.log_p / reference.temperature).sum()
    z = (torch.logsumexp(logits, dim=-1) ** 2).sum()
    return HeadLoss(ce_weight * (ce.sum() + z_weight * z) + kl_weight * kl, ce.detach(), kl.detach())


@torch.no_grad()
def token_log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int = 512
) -> torch.Tensor:
    """Log P of each position's target, in nats, the logits never whole; of what `head_loss` takes."""
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    weight = weight.to(hidden.dtype)
    for begin in range(0, len(targets), chunk):
        rows = slice(begin, begin + chunk)
        logits = (hidden[rows] @ weight.T).float()
        found[rows] = logits.gather(1, targets[rows, None])[:, 0] - torch.logsumexp(logits, dim=-1)
    return found


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        reference: Distribution | Spans | None,
        weights: tuple[float | torch.Tensor, float | torch.Tensor, float, float | None],
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ce_weight, kl_weight, z_weight, slerp = weights
        head = weight.to(hidden.dtype)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        of_kl = _Gradients(hidden, weight, ctx.needs_input_grad) if slerp is not None and reference else None
        ce = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        z, kl = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        stretches = list(_stretches(len(targets), chunk, reference))
        longest = max((rows.stop - rows.start for rows in stretches), default=0)
        part = max(chunk // ROUNDED, 1)
        logits_of, p_of = _matrices(-(-longest // part) * part, len(head), hidden.device)
        for rows in stretches:
            logits, p = (whole[: rows.stop - rows.start] for whole in (logits_of, p_of))
            if hidden.dtype == logits.dtype:
                torch.mm(hidden[rows], head.T, out=logits)
            else:
                logits.copy_(hidden[rows] @ head.T)
            torch.softmax(logits, dim=-1, out=p)
            # By the largest, whose probability is not rounded to 0.
            log_z = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log_()
            at_target = targets[rows, None]
            ce[rows] = (log_z - logits.gather(1, at_target))[:, 0]
            z += (log_z**2).sum()
            # d CE / d logits is p - onehot, and d log_z^2 / d logits is 2 log_z p.
            of_target = torch.ones_like(log_z) * ce_weight
            of_p = of_target * (1 + 2 * z_weight * log_z)
            slope = torch.zeros_like(log_z)
            if isinstance(reference, Spans):
                each, found = _span_kl(ce[rows], reference, rows)
                kl += each
                slope = found[:, None] * kl_weight
            if of_kl is None:
                grad, each = _by_logits(p, of_p + slope, of_target + slope, at_target, reference, rows, kl_weight)
            else:
                grad, each = _by_logits(p.clone(), slope, slope, at_target, reference, rows, kl_weight)
                of_kl.add(rows, grad, head)
                grad, _ = _by_logits(p, of_p, of_target, at_target, None, rows, 0.0)
            kl += each
            gradients.add(rows, grad, head)
        if of_kl is not None:
            by_ce, by_kl = _slerp_factors(gradients.of_hidden, of_kl.of_hidden, slerp)
            gradients.combine(by_ce, of_kl, by_kl)
            ce_weight, kl_weight = by_ce * ce_weight, by_kl * kl_weight
        ctx.gradients = gradients
        ctx.mark_non_differentiable(ce, kl)
        return ce_weight * (ce.sum() + z_weight * z) + kl_weight * kl, ce, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_loss: torch.Tensor, *_: object) -> tuple:
        gradients = ctx.gradients
        del ctx.gradients  # large, and scaled in place: there is no second backward pass
        return *gradients.times(grad_loss), *[None] * 4


class _Gradients:
    """Sums of gradients over the walk, each None if nobody needs it; the head's in fp32, whatever it is kept in."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, ...]):
        self.hidden, self.weight_type = hidden.detach(), weight.dtype
        self.of_hidden = torch.empty_like(hidden) if needed[0] else None
        self.of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needed[1] else None

    def add(self, rows: slice, by_logits: torch.Tensor, head: torch.Tensor) -> None:
        by_logits = by_logits.to(self.hidden.dtype)
        if self.of_hidden is not None:
            torch.mm(by_logits, head, out=self.of_hidden[rows])
        if self.of_weight is None:
            return
        if by_logits.dtype == self.of_weight.dtype:
            self.of_weight.addmm_(by_logits.T, self.hidden[rows])
        else:
            self.of_weight += by_logits.T @ self.hidden[rows]

    def combine(self, factor: torch.Tensor, other: "_Gradients", other_factor: torch.Tensor) -> None:
        for mine, theirs in ((self.of_hidden, other.of_hidden), (self.of_weight, other.of_weight)):
            if mine is not None:
                mine.mul_(factor.to(mine.dtype)).add_(theirs.mul_(other_factor.to(theirs.dtype)))

    def times(self, factor: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        of_hidden, of_weight = self.of_hidden, self.of_weight
        return (
            None if of_hidden is None else of_hidden.mul_(factor.to(of_hidden.dtype)),
            None if of_weight is None else of_weight.mul_(factor).to(self.weight_type),
        )


def _among(reference: Distribution | Spans | None, counted: torch.Tensor) -> Distribution | Spans | None:
    """The same reference, its positions counted among the counted ones."""
    if isinstance(reference, Spans):
        return reference._replace(of=reference.of[counted])
    if reference is None:
        return None
    if reference.at is None:
        return reference._replace(hidden=reference.hidden[counted])
    kept = counted[reference.at]
    if kept.all() and len(kept) == counted.sum():
        return reference._replace(at=None)
    places = counted.cumsum(0) - 1
    return reference._replace(hidden=reference.hidden[kept], at=places[reference.at[kept]])


@functools.lru_cache(maxsize=1)
def _matrices(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two fp32 matrices to work in, the same ones for all stretches and passes.

    On a CPU the system's zeroing of new ones took a seventh of a step; and what a pass left free the next one's did not fit into
    again, so that a run's memory grew by a matrix a step (docs/LOG.md).
    """
    return tuple(torch.empty(rows, columns, dtype=torch.float32, device=device) for _ in range(2))


def _stretches(positions: int, chunk: int, reference: Distribution | Spans | None) -> Iterator[slice]:
    """Slices of `chunk` positions, longer where they would cut a span."""
    of = reference.of.tolist() if isinstance(reference, Spans) else None
    begin = 0
    while begin < positions:
        end = min(begin + chunk, positions)
        while of and end < positions and of[end] == of[end - 1] >= 0:
            end += 1
        yield slice(begin, end)
        begin = end


def _by_logits(
    p: torch.Tensor,
    of_p: torch.Tensor,
    of_target: torch.Tensor,
    at_target: torch.Tensor,
    reference: Distribution | Spans | None,
    rows: slice,
    kl_weight: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """of_p * p - of_target * onehot + kl_weight * d KL / d logits, and the KL; `p` is overwritten."""
    kl = 0.0
    if not isinstance(reference, Distribution):
        grad = p.mul_(of_p)
    elif reference.at is None:
        slope, kl = _kl_slope(p, reference, rows)
        grad = p.mul_(slope.mul_(kl_weight).add_(of_p))
    else:
        first, last = torch.searchsorted(reference.at, torch.tensor([rows.start, rows.stop], device=p.device)).tolist()
        at = reference.at[first:last] - rows.start
        p_there = p[at]
        slope, kl = _kl_slope(p_there, reference, slice(first, last))
        grad = p.mul_(of_p).index_add_(0, at, slope.mul_(kl_weight).mul_(p_there))
    return grad.scatter_add_(1, at_target, -of_target), kl


def _kl_slope(p: torch.Tensor, reference: Distribution, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """What d KL / d logits is p times, and the KL."""
    log_r = (reference.hidden[rows] @ reference.weight.to(reference.hidden.dtype).T).float()
    log_r -= torch.logsumexp(log_r, dim=-1, keepdim=True)
    q = p if reference.pieces is None else torch.zeros_like(log_r).index_add_(1, reference.pieces, p)
    log_ratio = q.clamp_min(torch.finfo(q.dtype).tiny).log_().sub_(log_r)
    del log_r
    # d / d logits_v of sum over u of Q(u) log(Q(u) / R(u)) is p_v (log(Q / R) at v's piece - KL).
    each = torch.linalg.vecdot(q, log_ratio)[:, None]
    slope = log_ratio.sub_(each)
    if reference.pieces is not None:
        slope = slope.index_select(1, reference.pieces)
    return slope, each.sum()


def _span_kl(ce: torch.Tensor, reference: Spans, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The KL of the spans in these positions, and what d KL / d logits is (p - onehot) times, by position."""
    of = reference.of[rows]
    inside = of >= 0
    spans, local = torch.unique(of[inside], return_inverse=True)
    log_q = -torch.zeros(len(spans), device=ce.device).index_add_(0, local, ce[inside]) / reference.temperature
    log_p = reference.log_p[spans] / reference.temperature
    slope = torch.zeros_like(ce)
    by_log_q = _log_q(log_q).exp() * (_log_odds(log_q) - _log_odds(log_p))
    slope[inside] = -by_log_q[local] / reference.temperature
    return _binary_kl(log_q, log_p).sum(), slope


def _log_q(log_q: torch.Tensor) -> torch.Tensor:
    """A log probability kept below 0 by what single precision can tell: 1 - q is divided by."""
    return log_q.clamp_max(-1e-6)


def _log_odds(log_q: torch.Tensor) -> torch.Tensor:
    log_q = _log_q(log_q)
    return log_q - torch.log(-torch.expm1(log_q))


def _binary_kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """KL of one coin from another, by the logs of their probabilities."""
    log_q, log_p = _log_q(log_q), _log_q(log_p)
    log_rest_q, log_rest_p = torch.log(-torch.expm1(log_q)), torch.log(-torch.expm1(log_p))
    return log_q.exp() * (log_q - log_p) + log_rest_q.exp() * (log_rest_q - log_rest_p)


def _slerp_factors(one: torch.Tensor, other: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and b for which a * one + b * other has the direction slerp(one, other; t) and length (1 - t) |one| + t |other|."""
    lengths = torch.stack([one.float().norm(), other.float().norm()])
    shares = torch.tensor([1 - t, t], device=one.device)
    if lengths.min() > 0:
        cosine = torch.dot(one.flatten().float(), other.flatten().float()) / lengths.prod()
        angle = torch.arccos(cosine.clamp(-1, 1))
        length = (shares * lengths).sum()
        if torch.sin(angle) > _ALMOST_PARALLEL:
            shares = torch.sin(shares * angle) / torch.sin(angle)
        shares = shares * length / lengths
    return shares[0], shares[1]
