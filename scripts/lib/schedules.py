"""Learning rates over a run, as factors of their peaks.

`wsd` (warm-up, stable, decay) holds the peak and comes down at the end along 1 - sqrt(x), the shape that Hägele et al. (2024,
"Scaling laws and compute-optimal training beyond fixed training durations") found below a linear decay's loss, over a fifth of
the run by default, from where it is level with cosine. Unlike cosine's, its checkpoints before the decay belong to no length of
run.
"""

import math
from collections.abc import Callable
from typing import Literal

from lib.errors import UserError

Schedule = Literal["cosine", "linear", "constant", "wsd"]


def factor(schedule: Schedule, step: int, *, steps: int, warmup_steps: int, decay_share: float) -> float:
    """The rate of a step, counted from 0, as a factor of the peak, from 0 to 1.

    Args:
        schedule: after a linear warm-up, 'cosine' or 'linear' down to zero at `steps`, 'constant', or 'wsd'.
        step: so many have been made.
        steps: of the run.
        warmup_steps: of the linear warm-up.
        decay_share: of wsd, the share of `steps` in which the rate comes down.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    begin = max(warmup_steps, steps - round(decay_share * steps)) if schedule == "wsd" else warmup_steps
    if step < begin:
        return 1.0
    done = min((step - begin) / max(steps - begin, 1), 1.0)
    if schedule == "wsd":
        return 1.0 - math.sqrt(done)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def body_factor(step: int, shared: Callable[[int], float], embedding_steps: int, warmup_steps: int) -> float:
    """The body's rate at a step, as a factor of its peak: 0 while only embeddings move, then a linear warm-up of its own until
    it meets the schedule that the embeddings follow, `shared`.
    """
    since = step - embedding_steps
    if since < 0:
        return 0.0
    return min(since / warmup_steps, shared(step)) if since < warmup_steps else shared(step)


def check(schedule: Schedule, decay_share: float) -> None:
    """Refuse a decay that is none.

    Raises:
        UserError: a share that is not above 0 and at most 1.
    """
    if schedule == "wsd" and not 0 < decay_share <= 1:
        raise UserError(f"decay_share {decay_share}: has to be above 0 and at most 1, a share of the run's steps")
