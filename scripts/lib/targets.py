"""What a filter's threshold is to reach, stated as one setting, and the threshold that reaches it."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lib.errors import UserError

TARGETS = ("score", "keep_share", "precision", "lose_good")


def parse(target: str) -> tuple[str, float]:
    """(name, number) of a target such as 'keep_share=0.65'.

    Raises:
        UserError: an unknown name, or a number out of range.
    """
    name, _, number = target.partition("=")
    if name not in TARGETS:
        raise UserError(f"--target={target}: expected one of {', '.join(f'{known}=NUMBER' for known in TARGETS)}")
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"--target={target}: '{number}' is not a number") from None
    low, high = (0, 5) if name == "score" else (0, 1)
    if not low <= value <= high:
        raise UserError(f"--target={target}: expected a number from {low} to {high}")
    return name, value


def threshold(
    target: str, calibration: Mapping[str, Sequence[float | bool]], keeping: Callable[[float], float]
) -> float:
    """The overall score below which a text is removed.

    Args:
        target: `score=` is the threshold itself; `keep_share=` is the corpus' to answer; `precision=` gives the lowest
            threshold at which that share of the kept examples is good, or the most precise one if none is; `lose_good=`
            the highest that loses no more than that share of the good ones.
        calibration: `scores` of examples that were not trained on, and whether each is `good`.
        keeping: the highest threshold that keeps a share of the corpus.
    """
    name, value = parse(target)
    if name == "score":
        return value
    if name == "keep_share":
        return keeping(value)
    scores, good = np.array(calibration["scores"], dtype=float), np.array(calibration["good"], dtype=bool)
    candidates = np.unique(scores)
    if name == "lose_good":
        lost = np.array([(scores[good] < candidate).mean() for candidate in candidates])
        return float(candidates[lost <= value].max(initial=0.0)) if good.any() else 0.0
    precise = np.array([good[scores >= candidate].mean() for candidate in candidates])
    reached = candidates[precise >= value]
    return float(reached.min() if len(reached) else candidates[precise.argmax()])
