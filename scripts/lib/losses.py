"""The language-model head and its losses, chunk by chunk: logits for all positions never exist.

L = CE + lambda * KL(P_new || P_ref), the paper's equation 1, with the reference frozen and sharing the vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

IGNORED = -100


class HeadLoss(NamedTuple):
    """Sums over counted positions: `loss` carries the gradient; `ce` and `kl` (nats) are for the log."""

    loss: torch.Tensor
    ce: torch.Tensor
    kl: torch.Tensor


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    ref_hidden: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    kl_weight: float = 0.0,
    chunk: int = 512,
) -> HeadLoss:
    """Sum over positions of CE + kl_weight * KL(P || P_ref), with P = softmax(hidden @ weight.T).

    Peak memory is a few times chunk x rows; both gradients are computed in the forward pass.

    Args:
        hidden: last hidden states, positions x d.
        weight: the head, rows x d, without padded rows.
        targets: the next token of each position; positions with -100 count for nothing.
        ref_hidden: the reference model's hidden states, positions x d_ref.
        ref_weight: the reference's head, rows x d_ref.
        kl_weight: lambda; the KL is computed only if a reference is given.
        chunk: positions at a time.
    """
    counted = targets != IGNORED
    return HeadLoss(
        *_HeadLoss.apply(
            hidden[counted],
            weight,
            targets[counted],
            None if ref_hidden is None else ref_hidden[counted],
            ref_weight,
            kl_weight,
            chunk,
        )
    )


def plain_head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ref_hidden: torch.Tensor | None = None,
    ref_weight: torch.Tensor | None = None,
    kl_weight: float = 0.0,
) -> HeadLoss:
    """The same by the textbook formula and autograd, all logits at once: what the tests and benchmarks compare with."""
    counted = targets != IGNORED
    log_p = F.log_softmax((hidden[counted] @ weight.T).float(), dim=-1)
    ce = F.nll_loss(log_p, targets[counted], reduction="sum")
    if ref_hidden is None:
        return HeadLoss(ce, ce.detach(), torch.zeros_like(ce.detach()))
    log_r = F.log_softmax((ref_hidden[counted] @ ref_weight.T).float(), dim=-1)
    kl = (log_p.exp() * (log_p - log_r)).sum()
    return HeadLoss(ce + kl_weight * kl, ce.detach(), kl.detach())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        ref_hidden: torch.Tensor | None,
        ref_weight: torch.Tensor | None,
        kl_weight: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ce = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kl = torch.zeros_like(ce)
        weight_used = weight.to(hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Accumulated in fp32 over the chunks, whatever the weights are kept in.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_weight else None
        for begin in range(0, hidden.shape[0], chunk):
            rows = slice(begin, begin + chunk)
            log_p = torch.log_softmax((hidden[rows] @ weight_used.T).float(), dim=-1)
            at_target = targets[rows, None]
            ce -= log_p.gather(1, at_target).sum()
            if ref_hidden is None:
                grad = log_p.exp_()
            else:
                ref_logits = (ref_hidden[rows] @ ref_weight.to(ref_hidden.dtype).T).float()
                # log(p / r), with r's normaliser; d KL / d logits = p * (log(p / r) - KL).
                ratio = log_p - ref_logits
                ratio += torch.logsumexp(ref_logits, dim=-1, keepdim=True)
                del ref_logits
                probabilities = log_p.exp_()
                kl_each = torch.linalg.vecdot(probabilities, ratio).unsqueeze(1)
                kl += kl_each.sum()
                grad = ratio.sub_(kl_each).mul_(kl_weight).add_(1.0).mul_(probabilities)
                del probabilities
            grad.scatter_add_(1, at_target, torch.full_like(at_target, -1, dtype=grad.dtype))
            grad = grad.to(hidden.dtype)
            if needs_hidden:
                torch.mm(grad, weight_used, out=grad_hidden[rows])
            if needs_weight:
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.T, hidden[rows])
                else:
                    grad_weight += grad.T @ hidden[rows]
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(ce, kl)
        return ce + kl_weight * kl, ce, kl

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_loss: torch.Tensor, *_: object) -> tuple:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_loss).to(ctx.weight_dtype),
            *[None] * 5,
        )
