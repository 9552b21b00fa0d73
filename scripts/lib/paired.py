"""Two checkpoints on the same texts and items: what differs, item by item, and what of it may be chance.

Intervals of two scores apart say how far each depends on the items drawn; both depend on the same ones, so that the interval of their
difference is much narrower than the two together. It is what tells whether one checkpoint is better.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.stats import binomtest

from lib import documents

DOCUMENTS = "documents.jsonl"
DIALOGUES = "dialogues.jsonl"
SAMPLES = "samples"
GENERATIONS = "generations.jsonl"
SIGNIFICANCE = 0.05


class Spent(Protocol):
    """What a model spends on a text (metrics.Score, or a line of documents.jsonl)."""

    bits: float
    bytes: int


class Document(NamedTuple):
    """A line of documents.jsonl, or of dialogues.jsonl: what its answers cost, and their bytes."""

    id: str
    bits: float
    bytes: int


class Item(NamedTuple):
    """A line of samples/<task>.jsonl: what was asked, and whether the answer was right."""

    id: str
    target: str
    correct: bool


class Answer(NamedTuple):
    """A line of generations.jsonl: what was asked, in which language the answer should be, and its flaws."""

    id: str
    prompt: str
    language: str
    flags: list[str]


Measured = Document | Item | Answer


class Details(NamedTuple):
    """An evaluation document by document, dialogue by dialogue (by language), item by item (by task), answer by answer.

    Empty where that was not written.
    """

    documents: dict[str, list[Document]]
    tasks: dict[str, list[Item]]
    answers: list[Answer]
    dialogues: dict[str, list[Document]]


def read(folder: Path) -> Details:
    """What an evaluation's folder holds; evaluations of before it was written have nothing."""
    tasks = {
        file.stem: [
            Item(str(line["id"]), str(line["target"]), line["correct"]) for _, line in documents.read_json_lines(file)
        ]
        for file in sorted((folder / SAMPLES).glob("*.jsonl"))
    }
    answers = [
        Answer(line["id"], line["prompt"], line["language"], line["flags"])
        for line in generations(folder)
        if "flags" in line
    ]
    return Details(_scored(folder / DOCUMENTS), tasks, answers, _scored(folder / DIALOGUES))


def generations(folder: Path) -> list[dict]:
    """The lines of generations.jsonl; none where there were no prompts."""
    file = folder / GENERATIONS
    return [line for _, line in documents.read_json_lines(file)] if file.is_file() else []


def bits_per_byte(
    scores: Sequence[Spent], others: Sequence[Spent], *, seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """Bits per byte of `scores` less that of `others` on the same documents, with its 95% paired bootstrap interval."""
    size = np.array([score.bytes for score in scores], dtype=float)
    gap = np.array([one.bits - other.bits for one, other in zip(scores, others, strict=True)])
    draws = np.random.default_rng(seed).multinomial(len(gap), np.full(len(gap), 1 / len(gap)), size=resamples)
    low, high = np.percentile((draws @ gap) / (draws @ size), [2.5, 97.5])
    return {"value": gap.sum() / size.sum(), "low": float(low), "high": float(high)}


def share(
    having: Sequence[bool], others: Sequence[bool], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, float | int]:
    """The share of `having` less that of `others` on the same items (accuracy, or how often a flaw occurs).

    `low` and `high` are its 95% paired bootstrap interval; `only_first` and `only_second` the items that one of them has alone;
    `p_value` is McNemar's exact test, a binomial test on those. Resampling items is drawing how many of each kind come.
    """
    pairs = list(zip(having, others, strict=True))
    first, second = sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs)
    kinds = np.array([first, second, len(pairs) - first - second]) / len(pairs)
    draws = np.random.default_rng(seed).multinomial(len(pairs), kinds, size=resamples)
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / len(pairs), [2.5, 97.5])
    return {
        "value": (first - second) / len(pairs),
        "low": float(low),
        "high": float(high),
        "only_first": first,
        "only_second": second,
        "p_value": float(binomtest(first, first + second).pvalue) if first + second else 1.0,
    }


def share_of(having: Sequence[bool]) -> dict[str, float | int]:
    """A share with its 95% Wilson interval and the number of items."""
    interval = binomtest(sum(having), len(having)).proportion_ci(method="wilson")
    ends = {"low": float(interval.low), "high": float(interval.high)}
    return {"value": sum(having) / len(having), **ends, "items": len(having)}


def same(ours: Sequence[Measured], others: Sequence[Measured]) -> bool:
    """Whether both were measured on the same things in the same order: ids, and sizes, right answers or prompts."""
    return bool(ours) and [_identity(each) for each in ours] == [_identity(each) for each in others]


def verdict(difference: Mapping[str, float], better: str) -> str:
    """'better', 'worse' or, where it may be chance, 'overlaps'.

    The interval has to lie beside 0. Where there is an exact test, it has to agree: with a handful of items that differ, the
    bootstrap's interval is too narrow.
    """
    if difference["low"] <= 0 <= difference["high"] or difference.get("p_value", 0) >= SIGNIFICANCE:
        return "overlaps"
    return "better" if (difference["value"] < 0) == (better == "lower") else "worse"


def _scored(file: Path) -> dict[str, list[Document]]:
    """By language."""
    found: dict[str, list[Document]] = {}
    for _, line in documents.read_json_lines(file) if file.is_file() else ():
        found.setdefault(line["language"], []).append(Document(line["id"], line["bits"], line["bytes"]))
    return found


def _identity(each: Measured) -> tuple:
    if isinstance(each, Document):
        return each.id, each.bytes
    return (each.id, each.target) if isinstance(each, Item) else (each.id, each.prompt, each.language)
