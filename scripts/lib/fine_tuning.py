"""Fine-tuning of a small encoder on texts of different lengths: the loop that the filter and the reward model share."""

import random
from collections.abc import Callable, Sequence

import torch

from lib import progress, scoring

WARMUP_SHARE = 0.1


def run(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    lengths: Sequence[int],
    loss: Callable[[list[int]], torch.Tensor],
    *,
    epochs: int,
    batch_tokens: int,
    max_grad_norm: float,
    seed: int,
) -> list[float]:
    """Train for some epochs, the rates rising linearly over the first tenth of the steps and falling to 0 over the others.

    Args:
        model: put into train mode, and into eval mode at the end.
        optimizer: of the weights to train.
        lengths: tokens of each example.
        loss: the mean loss of the examples at some positions.
        epochs: over the examples.
        batch_tokens: padding included.
        max_grad_norm: gradients are scaled down to it.
        seed: of the examples' order.

    Returns:
        Each epoch's mean loss.
    """
    rng = random.Random(seed)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    steps = epochs * len(list(scoring.batches(lengths, batch_tokens)))
    warmup = max(1, round(WARMUP_SHARE * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
    )
    model.train()
    losses = []
    with progress.bar(total=steps, title="train", unit="steps") as bar:
        for _ in range(epochs):
            total = 0.0
            order = list(range(len(lengths)))
            rng.shuffle(order)  # equally long texts fall into other batches in each epoch
            batches = list(scoring.batches(lengths, batch_tokens, order))
            rng.shuffle(batches)
            for batch in batches:
                found = loss(batch)
                found.backward()
                torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                total += found.item() * len(batch)
                bar.update()
            losses.append(round(total / len(lengths), 4))
    model.eval()
    return losses
