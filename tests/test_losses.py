"""The chunked head against the plain formula, and the identities of the KLs."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib import losses

POSITIONS, ROWS, REF_ROWS, WIDTH = 37, 50, 23, 16


@pytest.fixture
def case():
    """Hidden states, head, targets with two ignored positions, and a reference of each kind."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    hidden, weight = random(POSITIONS, WIDTH).requires_grad_(), random(ROWS, WIDTH).requires_grad_()
    targets = torch.randint(0, ROWS, (POSITIONS,), generator=generator)
    targets[[3, 17]] = losses.IGNORED
    at = torch.tensor([0, 2, 3, 4, 9, 10, 11, 20, 30, 36])  # 3 has no target, and so no KL
    spans = torch.tensor([-1, 0, 0, 0, 0, 1, 1, 1, 2, *[3] * 8, -1, -1, -1, 4, *range(5, 21)])
    references = {
        "none": None,
        "same": losses.Distribution(random(POSITIONS, 8), random(ROWS, 8)),
        "same_at": losses.Distribution(random(len(at), 8), random(ROWS, 8), at=at),
        "pieces": losses.Distribution(
            random(len(at), 8), random(REF_ROWS, 8), at, torch.randint(0, REF_ROWS, (ROWS,), generator=generator)
        ),
        "pieces_all": losses.Distribution(
            random(POSITIONS, 8), random(REF_ROWS, 8), None, torch.randint(0, REF_ROWS, (ROWS,), generator=generator)
        ),
        "spans": losses.Spans(spans, -5 * torch.rand(21, generator=generator), temperature=1.0),
        "spans_warm": losses.Spans(spans, -5 * torch.rand(21, generator=generator), temperature=3.0),
    }
    return hidden, weight, targets, references


KINDS = ["none", "same", "same_at", "pieces", "pieces_all", "spans", "spans_warm"]


@pytest.mark.parametrize("chunk", [1, 7, 37, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_values_and_gradients_equal_the_plain_formula(case, chunk, kind, z_weight):
    hidden, weight, targets, references = case
    options = {"reference": references[kind], "ce_weight": 0.3, "kl_weight": 0.7, "z_weight": z_weight}
    ours = losses.head_loss(hidden, weight, targets, chunk=chunk, **options)
    plain = losses.plain_head_loss(hidden, weight, targets, **options)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(
        torch.autograd.grad(0.3 * ours.loss, [hidden, weight]),
        torch.autograd.grad(0.3 * plain.loss, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_gradient_by_finite_differences(case, kind):
    hidden, weight, targets, references = case
    reference = references[kind]
    ours = torch.autograd.grad(losses.head_loss(hidden, weight, targets, reference=reference, chunk=5).loss, hidden)[0]

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    precise = type(reference)(*map(double, reference))

    def loss(value):
        with torch.no_grad():
            return losses.plain_head_loss(value, weight.double(), targets, reference=precise).loss.item()

    for row, column in ((0, 0), (2, 5), (9, 3), (30, 15)):
        step = torch.zeros(POSITIONS, WIDTH, dtype=torch.float64)
        step[row, column] = 1e-2
        slope = (loss(hidden.double() + step) - loss(hidden.double() - step)) / 2e-2
        assert slope == pytest.approx(ours[row, column].item(), rel=3e-3, abs=3e-3)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_turns_the_gradient_on_the_sphere(case, kind, t):
    hidden, weight, targets, references = case
    options = {"reference": references[kind], "chunk": 6}
    parts = [(0.1, 0.0), (0.0, 0.5)]
    ce, kl = [
        torch.autograd.grad(
            losses.plain_head_loss(hidden, weight, targets, reference=references[kind], ce_weight=a, kl_weight=b).loss,
            [hidden, weight],
        )
        for a, b in parts
    ]
    found = losses.head_loss(hidden, weight, targets, ce_weight=0.1, kl_weight=0.5, slerp=t, **options)
    mixed = torch.autograd.grad(found.loss, [hidden, weight])
    lengths = ce[0].norm(), kl[0].norm()
    directions = ce[0] / lengths[0], kl[0] / lengths[1]
    angle = math.acos((directions[0] * directions[1]).sum())
    a, b = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    expected = a * directions[0] + b * directions[1]
    assert expected.norm().item() == pytest.approx(1, abs=1e-4)
    length = (1 - t) * lengths[0] + t * lengths[1]
    torch.testing.assert_close(mixed[0], length * expected, rtol=1e-4, atol=1e-5)
    # The head gets the same sum of its two gradients, and the loss is that sum.
    a, b = a * length / lengths[0], b * length / lengths[1]
    torch.testing.assert_close(mixed[1], a * ce[1] + b * kl[1], rtol=1e-4, atol=1e-4)
    assert found.loss.item() == pytest.approx((a * 0.1 * found.ce.sum() + b * 0.5 * found.kl).item(), rel=1e-4)


def test_slerp_of_parallel_gradients_is_lerp():
    one = torch.tensor([[1.0, 2.0]])
    a, b = losses._slerp_factors(one, 3 * one, 0.25)
    torch.testing.assert_close(a * one + b * 3 * one, 0.75 * one + 0.25 * 3 * one)
    a, b = losses._slerp_factors(one, 0 * one, 0.25)
    assert (a.item(), b.item()) == (0.75, 0.25)


def test_kl_is_zero_when_the_models_agree(case):
    hidden, weight, targets, _ = case
    same = losses.Distribution(hidden.detach(), weight.detach())
    spans = torch.arange(POSITIONS) // 3
    log_p = torch.zeros(13).index_add(
        0, spans, losses.token_log_probabilities(hidden, weight, targets.clamp_min(0)) * (targets != losses.IGNORED)
    )
    for reference in (
        same,
        same._replace(pieces=torch.arange(ROWS)),
        losses.Spans(spans, log_p),
        losses.Spans(spans, log_p, temperature=5.0),
    ):
        found = losses.head_loss(hidden, weight, targets, reference=reference)
        assert found.kl.item() == pytest.approx(0, abs=1e-4)
        plain = losses.head_loss(hidden, weight, targets)
        for mine, theirs in zip(
            torch.autograd.grad(found.loss, [hidden, weight]),
            torch.autograd.grad(plain.loss, [hidden, weight]),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_pushing_forward_by_the_identity_is_the_plain_kl(case):
    hidden, weight, targets, references = case
    plain = references["same"]
    pushed = plain._replace(pieces=torch.arange(ROWS))
    results = []
    for reference in (plain, pushed):
        found = losses.head_loss(hidden, weight, targets, reference=reference)
        results.append([found.kl, *torch.autograd.grad(found.loss, [hidden, weight])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_kl_by_hand_in_the_papers_direction():
    # P = (0.8, 0.2), P_ref = (0.5, 0.5): KL(P || P_ref) = 0.8 ln 1.6 + 0.2 ln 0.4, and not the other way round.
    one = torch.ones(1, 1)
    p, r = torch.tensor([[0.8], [0.2]]).log(), torch.tensor([[0.5], [0.5]]).log()
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    found = losses.head_loss(one, p, torch.tensor([0]), reference=losses.Distribution(one, r))
    assert found.kl.item() == pytest.approx(expected, abs=1e-6)
    assert found.ce.item() == pytest.approx(-math.log(0.8), abs=1e-6)
    # Three tokens of which the last two begin with the reference's second: Q = (0.8, 0.2) again.
    fine = torch.tensor([[0.8], [0.15], [0.05]]).log()
    pushed = losses.Distribution(one, r, pieces=torch.tensor([0, 1, 1]))
    found = losses.head_loss(one, fine, torch.tensor([2]), reference=pushed)
    assert found.kl.item() == pytest.approx(expected, abs=1e-6)
    assert found.ce.item() == pytest.approx(-math.log(0.05), abs=1e-6)


def test_span_kl_by_hand():
    # Tokens of probability 0.8 and 0.5 spell what the reference gives 0.25 in all: the coins are 0.4 and 0.25.
    hidden, weight = torch.eye(2), torch.tensor([[0.8, 0.5], [0.2, 0.5]]).log()
    spans = losses.Spans(torch.tensor([0, 0]), torch.tensor([0.25]).log())
    found = losses.head_loss(hidden, weight, torch.tensor([0, 1]), reference=spans)
    assert found.kl.item() == pytest.approx(0.4 * math.log(0.4 / 0.25) + 0.6 * math.log(0.6 / 0.75), abs=1e-6)
    q, p = 0.4**0.5, 0.25**0.5
    found = losses.head_loss(hidden, weight, torch.tensor([0, 1]), reference=spans._replace(temperature=2.0))
    assert found.kl.item() == pytest.approx(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)), abs=1e-6)


def test_a_certain_span_stays_finite():
    hidden, weight = torch.ones(1, 1), torch.tensor([[60.0], [0.0]])
    for log_p in (0.0, -50.0):
        for target in (0, 1):
            leaf = hidden.clone().requires_grad_()
            spans = losses.Spans(torch.tensor([0]), torch.tensor([log_p]))
            found = losses.head_loss(leaf, weight, torch.tensor([target]), reference=spans)
            assert math.isfinite(found.kl.item())
            assert torch.autograd.grad(found.loss, leaf)[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_kl_is_never_negative(case, kind):
    hidden, weight, targets, references = case
    for scale in (0.01, 1.0, 30.0):
        assert losses.head_loss(hidden * scale, weight, targets, reference=references[kind]).kl.item() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_tied_weights_collect_both_gradients(case, kind):
    _, weight, targets, references = case
    ids = torch.arange(POSITIONS) % ROWS
    grads = []
    for loss in (losses.head_loss, losses.plain_head_loss):
        found = loss(torch.tanh(weight[ids]), weight, targets, reference=references[kind])
        grads.append(torch.autograd.grad(found.loss, weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_frozen_hidden_states_or_head_cost_no_gradient(case):
    hidden, weight, targets, _ = case
    for leaves in ((hidden, weight.detach()), (hidden.detach(), weight)):
        (leaf,) = [value for value in leaves if value.requires_grad]
        mine = torch.autograd.grad(losses.head_loss(*leaves, targets).loss, leaf)[0]
        torch.testing.assert_close(mine, torch.autograd.grad(losses.plain_head_loss(*leaves, targets).loss, leaf)[0])


def test_token_log_probabilities(case):
    hidden, weight, targets, _ = case
    targets = targets.clamp_min(0)
    found = losses.token_log_probabilities(hidden, weight, targets, chunk=7)
    torch.testing.assert_close(found, (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0].detach())


def test_bf16_hidden_states_keep_the_losses_in_fp32(case):
    hidden, weight, targets, references = case
    low = hidden.detach().bfloat16().requires_grad_()
    found = losses.head_loss(low, weight, targets, reference=references["pieces"])
    plain = losses.plain_head_loss(low.float(), weight, targets, reference=references["pieces"])
    assert found.ce.dtype == found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(plain.loss.item(), rel=2e-2)
    grads = torch.autograd.grad(found.loss, [low, weight])
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("kind", ["none", "pieces", "same"])
def test_in_mixed_precision_every_product_is_in_bf16_and_the_loss_in_fp32(case, kind):
    """Hidden states come in fp32 then: a residual stream is."""
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                products.append({value.dtype for value in args[-2:]})
            return func(*args, **(kwargs or {}))

    hidden, weight, targets, references = case
    plain = losses.plain_head_loss(hidden, weight, targets, reference=references[kind])
    with Watch(), torch.autocast("cpu", torch.bfloat16):
        found = losses.head_loss(hidden, weight, targets, reference=references[kind], chunk=20)
    grads = torch.autograd.grad(found.loss, [hidden, weight])
    assert len(products) >= 6
    assert all(kinds == {torch.bfloat16} for kinds in products)
    assert {found.loss.dtype, *(grad.dtype for grad in grads)} == {torch.float32}
    assert found.loss.item() == pytest.approx(plain.loss.item(), rel=2e-2)
    for grad, expected in zip(grads, torch.autograd.grad(plain.loss, [hidden, weight]), strict=True):
        assert (grad - expected).norm() < 0.03 * expected.norm()


def test_targets_all_but_impossible_stay_finite():
    """Whose probability rounds to 0: their loss is the distance of the logits all the same."""
    hidden, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    found = losses.head_loss(hidden, weight, torch.tensor([1]))
    assert found.loss.item() == 400.0
    assert [grad.tolist() for grad in torch.autograd.grad(found.loss, [hidden, weight])] == [
        [[2.0]],
        [[200.0], [-200.0]],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_matrix_is_ever_held(case, kind):
    """The largest tensor that the forward pass makes is chunk x rows, not positions x rows."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in [out] if isinstance(out, torch.Tensor) else []:
                largest = max(largest, tensor.numel())
            return out

    hidden, weight, targets, references = case
    longest_span = 8
    with Watch():
        losses.head_loss(hidden, weight, targets, reference=references[kind], chunk=5)
    assert largest <= max((5 + longest_span * ("spans" in kind)) * ROWS, ROWS * WIDTH, POSITIONS * WIDTH)
