"""The chunked head against the plain formula, and the identities of the KL."""

import pytest
import torch

from lib import losses

POSITIONS, ROWS, WIDTH = 37, 50, 16


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(0, ROWS, (POSITIONS,), generator=generator)
    targets[[3, 17]] = losses.IGNORED
    reference = {
        "ref_hidden": torch.randn(POSITIONS, 8, generator=generator),
        "ref_weight": torch.randn(ROWS, 8, generator=generator),
    }
    return hidden, weight, targets, reference


@pytest.mark.parametrize("chunk", [1, 7, 37, 1000])
@pytest.mark.parametrize("kl_weight", [None, 0.0, 0.7, 1.0])
def test_values_and_gradients_equal_the_plain_formula(case, chunk, kl_weight):
    hidden, weight, targets, reference = case
    options = {} if kl_weight is None else {**reference, "kl_weight": kl_weight}
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


def test_gradient_by_finite_differences(case):
    hidden, weight, targets, reference = (
        value.detach().double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in case
    )
    reference = {name: value.double() for name, value in reference.items()}

    def loss(value):
        return losses.plain_head_loss(value, weight, targets, **reference, kl_weight=0.5).loss

    small = hidden[:3].clone().requires_grad_()
    targets, reference["ref_hidden"] = targets[:3], reference["ref_hidden"][:3]
    ours = torch.autograd.grad(
        losses.head_loss(small, weight, targets, **reference, kl_weight=0.5, chunk=2).loss, small
    )[0]
    for row in range(3):
        if targets[row] == losses.IGNORED:
            continue
        step = torch.zeros_like(small)
        step[row, 0] = 1e-2
        slope = (loss(small + step) - loss(small - step)) / 2e-2
        assert slope.item() == pytest.approx(ours[row, 0].item(), rel=2e-3, abs=2e-3)


def test_kl_is_zero_when_the_models_agree(case):
    hidden, weight, targets, _ = case
    same = losses.head_loss(
        hidden, weight, targets, ref_hidden=hidden.detach(), ref_weight=weight.detach(), kl_weight=1.0
    )
    assert same.kl.item() == pytest.approx(0, abs=1e-4)
    assert same.loss.item() == pytest.approx(same.ce.item(), rel=1e-6)


def test_kl_by_hand_in_the_papers_direction():
    # P = (0.8, 0.2), P_ref = (0.5, 0.5): KL(P || P_ref) = 0.8 ln 1.6 + 0.2 ln 0.4, and not the other way round.
    one = torch.ones(1, 1)
    p, r = torch.tensor([[0.8], [0.2]]).log(), torch.tensor([[0.5], [0.5]]).log()
    found = losses.head_loss(one, p, torch.tensor([0]), ref_hidden=one, ref_weight=r, kl_weight=1.0)
    expected = 0.8 * torch.tensor(1.6).log() + 0.2 * torch.tensor(0.4).log()
    assert found.kl.item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.ce.item() == pytest.approx(-torch.tensor(0.8).log().item(), abs=1e-6)


def test_kl_is_never_negative(case):
    hidden, weight, targets, reference = case
    for scale in (0.01, 1.0, 30.0):
        found = losses.head_loss(hidden * scale, weight, targets, **reference, kl_weight=1.0)
        assert found.kl.item() >= 0


def test_tied_weights_collect_both_gradients(case):
    _, weight, targets, _ = case
    ids = torch.arange(POSITIONS) % ROWS
    grads = []
    for loss in (losses.head_loss, losses.plain_head_loss):
        grads.append(torch.autograd.grad(loss(torch.tanh(weight[ids]), weight, targets).loss, weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_no_logit_matrix_is_ever_held(case):
    """The largest tensor that the forward pass makes is chunk x rows, not positions x rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in [out] if isinstance(out, torch.Tensor) else []:
                largest = max(largest, tensor.numel())
            return out

    hidden, weight, targets, reference = case
    with Watch():
        losses.head_loss(hidden, weight, targets, **reference, kl_weight=1.0, chunk=5)
    assert largest <= max(5 * ROWS, ROWS * WIDTH, POSITIONS * WIDTH)
