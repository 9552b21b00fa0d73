"""When a step's loss is no loss to learn from.

A spike is a cross-entropy more than 6 standard deviations above the mean of the last 128 steps, and more than 0.1 nats above it;
there is none in the first 64 steps. Window and deviations are those of OLMo-core's SkipStepOptimizer. The 0.1 nats keep a run
whose loss hardly varies any more from stopping over nothing. Spikes enter the window too, so that text that is harder from now
on is taken for what it is after about four steps.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Literal

OnSpike = Literal["stop", "skip"]

WINDOW = 128
FEWEST = 64
DEVIATIONS = 6.0
SMALLEST = 0.1  # nats
MOST_IN_A_ROW = 8  # skipped steps: more of them are not the batches' fault


class Guard:
    """The cross-entropies of the last steps, and what they say of the next."""

    def __init__(self, recent: Sequence[float] = (), skipped: int = 0, in_a_row: int = 0):
        self.recent = deque(recent, WINDOW)
        self.skipped, self.in_a_row = skipped, in_a_row

    def judge(self, ce: float, kl: float = 0.0) -> str | None:
        """What is wrong with a step's mean CE and KL, in nats, or None."""
        if not math.isfinite(ce + kl):
            return f"the loss is {ce + kl}"
        found = None
        if len(self.recent) >= FEWEST:
            mean = statistics.fmean(self.recent)
            deviation = statistics.pstdev(self.recent, mean)
            if ce > mean + max(DEVIATIONS * deviation, SMALLEST):
                found = f"the cross-entropy is {ce:.3f}, and {mean:.3f} ± {deviation:.3f} over the {len(self.recent)} steps before"
        self.recent.append(ce)
        return found

    def skip(self) -> bool:
        """Count a step that is skipped; False where too many in a row have been."""
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row < MOST_IN_A_ROW

    def passed(self) -> None:
        """A step was made."""
        self.in_a_row = 0

    def state(self) -> dict[str, object]:
        """What a resumed run needs to judge as this one would have: the arguments of another Guard."""
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}
