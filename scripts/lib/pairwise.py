"""What a reward model is worth on held-out pairs: accuracy beside "the longer answer wins", calibration, how it depends on length."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import spearmanr

from lib import preferences
from lib.preferences import Pair

RESAMPLES = 1000
BINS = 10  # of the confidence, from a half to 1
TEMPERATURES = (0.1, 10.0)


def temperature(gaps: np.ndarray) -> float:
    """What the differences of rewards (chosen less rejected) have to be divided by to be honest about their own errors."""

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -gaps / math.exp(log_temperature)).mean())

    return math.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)


def evaluate(pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray, seed: int) -> dict[str, dict]:
    """{language, and `all` if there are several: figures} of held-out pairs by the rewards of their two answers.

    `accuracy` and `longer_wins` are shares of pairs (ties count half), `gain` is their difference; each with its 95 % interval by a
    bootstrap over prompts. `length_correlation` is Spearman's, of rewards and characters. `calibration` compares how sure
    the model is of its choice with how often it is right.
    """
    languages = sorted({pair.language for pair in pairs})
    parts = {code: np.array([pair.language == code for pair in pairs]) for code in languages}
    if len(languages) > 1:
        parts = {"all": np.ones(len(pairs), dtype=bool), **parts}
    return {
        name: _figures(
            [pair for pair, inside in zip(pairs, part, strict=True) if inside], chosen[part], rejected[part], seed
        )
        for name, part in parts.items()
    }


def _figures(pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray, seed: int) -> dict:
    gaps = (chosen - rejected).astype(float)
    longer = np.array([preferences.longer(pair) for pair in pairs])
    right, by_length = _wins(gaps), _wins(longer)
    draw = _draws([pair.prompt for pair in pairs], seed)
    lengths = [len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs]
    of_length = spearmanr(np.concatenate([chosen, rejected]), lengths).statistic if len(pairs) > 1 else math.nan
    return {
        "pairs": len(pairs),
        "accuracy": _interval(right, draw),
        "longer_wins": _interval(by_length, draw),
        "gain": _interval(right - by_length, draw),
        "accuracy_where_the_longer_is_better": _mean(right[longer > 0]),
        "accuracy_where_the_shorter_is_better": _mean(right[longer < 0]),
        "length_correlation": None if math.isnan(of_length) else round(float(of_length), 4),
        "calibration": _calibration(gaps),
    }


def _wins(gaps: np.ndarray) -> np.ndarray:
    return (gaps > 0) + 0.5 * (gaps == 0)


def _calibration(gaps: np.ndarray) -> dict:
    sure, right = expit(np.abs(gaps)), _wins(gaps)
    places = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        {
            "sure": round(float(sure[inside].mean()), 4),
            "right": round(float(right[inside].mean()), 4),
            "pairs": int(inside.sum()),
        }
        for inside in (places == place for place in sorted(set(places.tolist())))
    ]
    error = sum(each["pairs"] * abs(each["sure"] - each["right"]) for each in bins) / len(gaps)
    return {"error": round(error, 4), "bins": bins}


def _draws(prompts: Sequence[str], seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from values by pair to their means in bootstrap samples of whole prompts."""
    _, group = np.unique(np.array(prompts, dtype=object), return_inverse=True)
    count = int(group.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    size = np.bincount(group, minlength=count)
    return lambda values: (times @ np.bincount(group, values, minlength=count)) / (times @ size)


def _interval(values: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    low, high = np.percentile(draw(values), [2.5, 97.5])
    return {"value": round(float(values.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
