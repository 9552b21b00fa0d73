"""How far a trained filter can be trusted: agreement with held-out labels beside baselines, calibration, thresholds."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import mannwhitneyu, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lib import quality
from lib.corruption import CRITERIA
from lib.quality import MIDDLE, Example
from lib.scoring import HEADS

RESAMPLES = 300  # of the bootstrap; its 95 % intervals move in the second digit
TEMPERATURES = (0.2, 5.0)
BINS = 10  # of the calibration error
WORDS = 50_000  # of the bag of words, at most
POINTS = 40  # of a curve
OVERALL = HEADS.index("overall")


def temperatures(latent: np.ndarray, cuts: np.ndarray, labels: np.ndarray) -> list[float]:
    """The temperature of each head that makes its ordinal loss least; latent [texts, heads], cuts [heads, 4]."""
    steps = quality.steps_above(labels)

    def fit(head: int) -> float:
        logits = latent[:, head, None] - cuts[head]

        def loss(log_temperature: float) -> float:
            scaled = logits / math.exp(log_temperature)
            return float((np.logaddexp(0, scaled) - steps[:, head] * scaled).mean())

        return math.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)

    return [fit(head) for head in range(len(HEADS))]


def calibration_error(latent: np.ndarray, cuts: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of all probabilities of being above a cut: mean gap, weighted, of ten equal bins."""
    said, happened = expit(latent[..., None] - cuts).ravel(), quality.steps_above(labels).ravel()
    places = np.minimum((said * BINS).astype(int), BINS - 1)
    gaps = [abs(said[places == b].mean() - happened[places == b].mean()) * (places == b).mean() for b in set(places)]
    return float(sum(gaps))


def evaluate(
    training: Sequence[Example], held_out: Sequence[Example], predicted: np.ndarray, seed: int
) -> dict[str, object]:
    """Agreement with held-out labels: each criterion and overall, beside two baselines, and what each threshold does.

    Args:
        training: what the filter was trained on; the baselines are too.
        held_out: examples of other documents.
        predicted: the filter's scores of the latter [texts, heads].
        seed: of the bootstrap, which draws whole documents with their examples.
    """
    labels = quality.labels(held_out)
    good = np.array([example.good for example in held_out])
    lengths = np.array([len(example.text) for example in held_out])
    systems = {"filter": predicted} | baselines(training, held_out)
    draws = _draws([example.group for example in held_out], seed)
    score = predicted[:, OVERALL]
    kinds = sorted({example.kind for example in held_out if not example.good})
    of_kind = {kind: np.array([example.kind == kind for example in held_out]) for kind in kinds}
    heads = {name: _agreement(labels[:, h], systems, h, draws) for h, name in enumerate(HEADS)}

    def area(scores: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda rows: auc(scores[rows][good[rows]], scores[rows][~good[rows]])

    everything = np.arange(len(held_out))
    return {
        "examples": len(held_out),
        "good": int(good.sum()),
        "criteria": {name: heads[name] for name in CRITERIA},
        "overall": heads["overall"],
        "auc": _rounded(area(score)(everything)),
        "auc_interval": _interval(area(score), draws),
        "auc_by_kind": {kind: _rounded(auc(score[good], score[of_kind[kind]])) for kind in kinds},
        "auc_of_length": _rounded(auc(lengths[good], lengths[~good])),
        "auc_of_bag_of_words": _rounded(area(systems["bag_of_words"][:, OVERALL])(everything)),
        "auc_of_bag_of_words_interval": _interval(area(systems["bag_of_words"][:, OVERALL]), draws),
        "thresholds": [
            {
                "threshold": round(float(step), 2),
                "good_lost": _rounded((score[good] < step).mean() if good.any() else math.nan),
                "bad_found": _rounded((score[~good] < step).mean() if (~good).any() else math.nan),
            }
            for step in np.arange(1.5, 4.51, 0.25)
        ],
        "precision_recall": precision_recall(score, good),
        "precision_recall_by_source": _by_source(held_out, score, good),
    }


def baselines(training: Sequence[Example], held_out: Sequence[Example]) -> dict[str, np.ndarray]:
    """Scores [texts, heads] of the held-out examples by their length alone, and by a bag of words (tf-idf).

    Both are logistic regressions of the same ordinal form as the filter.
    """
    texts = [[example.text for example in part] for part in (training, held_out)]
    steps = quality.steps_above(quality.labels(training))
    length = StandardScaler()
    logs = [np.log([[1 + len(text)] for text in part]) for part in texts]
    powers = [np.hstack([log, log**2]) for log in logs]
    words = TfidfVectorizer(sublinear_tf=True, max_features=WORDS, token_pattern=r"(?u)\w+|[^\w\s]")
    return {
        "length": _ordinal_regression(length.fit_transform(powers[0]), steps, length.transform(powers[1])),
        "bag_of_words": _ordinal_regression(words.fit_transform(texts[0]), steps, words.transform(texts[1])),
    }


def auc(higher: np.ndarray, lower: np.ndarray) -> float:
    """The probability that a member of `higher` exceeds one of `lower` (ties count half); nan if either is empty."""
    if not len(higher) or not len(lower):
        return math.nan
    return float(mannwhitneyu(higher, lower).statistic / (len(higher) * len(lower)))


def precision_recall(scores: np.ndarray, good: np.ndarray) -> list[dict[str, float]]:
    """At thresholds that keep ever fewer examples: the share of the kept that is good, and of the good that is kept."""
    points = []
    for step in np.unique(np.quantile(scores, np.linspace(0, 1, POINTS), method="lower")):
        kept = scores >= step
        recall = good[kept].sum() / max(1, good.sum())
        values = {"threshold": step, "precision": good[kept].mean(), "recall": recall, "kept": kept.mean()}
        points.append({name: round(float(value), 4) for name, value in values.items()})
    return points


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation; nan for fewer than three pairs or where either side is constant."""
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def _ordinal_regression(training: object, steps: np.ndarray, held_out: object) -> np.ndarray:
    """Expected scores [held-out texts, heads]: for each cut a logistic regression, weighted where the target is between."""
    found = np.ones((held_out.shape[0], steps.shape[1]))
    rows = np.arange(len(steps))
    for head, cut in np.ndindex(steps.shape[1:]):
        above = steps[:, head, cut]
        if (above == above[0]).all() and above[0] in (0, 1):
            found[:, head] += above[0]
            continue
        twice, weights = np.concatenate([rows, rows]), np.concatenate([above, 1 - above])
        answers = np.repeat([1, 0], len(rows))
        model = LogisticRegression(C=10, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(training[twice[weights > 0]], answers[weights > 0], sample_weight=weights[weights > 0])
        found[:, head] += model.predict_proba(held_out)[:, 1]
    return found


def _agreement(
    labels: np.ndarray, systems: dict[str, np.ndarray], head: int, draws: Sequence[np.ndarray]
) -> dict[str, object]:
    """Spearman and F1 (of finding the bad) of one head with 95 % intervals, and the same of the baselines."""
    found: dict[str, object] = {}
    for name, predicted in systems.items():
        scores = predicted[:, head]

        def correlation(rows: np.ndarray, scores: np.ndarray = scores) -> float:
            return spearman(labels[rows], scores[rows])

        def f1(rows: np.ndarray, scores: np.ndarray = scores) -> float:
            return _f1(labels[rows] < MIDDLE, scores[rows] < MIDDLE)

        everything = np.arange(len(labels))
        measured = {
            "spearman": _rounded(correlation(everything)),
            "spearman_interval": _interval(correlation, draws),
            "f1": _rounded(f1(everything)),
            "f1_interval": _interval(f1, draws),
        }
        found |= measured if name == "filter" else {name: measured}
    return found


def _f1(actual: np.ndarray, found: np.ndarray) -> float:
    either = actual.sum() + found.sum()
    return float(2 * (actual & found).sum() / either) if either else math.nan


def _draws(groups: Sequence[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    members = list(rows.values())
    return [
        np.concatenate([members[pick] for pick in rng.integers(len(members), size=len(members))])
        for _ in range(RESAMPLES)
    ]


def _interval(measure: Callable[[np.ndarray], float], draws: Sequence[np.ndarray]) -> list[float] | None:
    values = [measure(rows) for rows in draws]
    values = [value for value in values if not math.isnan(value)]
    return [round(float(edge), 4) for edge in np.percentile(values, (2.5, 97.5))] if values else None


def _by_source(held_out: Sequence[Example], score: np.ndarray, good: np.ndarray) -> dict[str, list[dict]]:
    sources = np.array([example.source for example in held_out])
    return {
        source: precision_recall(score[sources == source], good[sources == source])
        for source in sorted(set(sources.tolist()))
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
