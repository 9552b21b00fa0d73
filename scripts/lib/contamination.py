"""Evaluation items that occur in training text: the same run of words in both.

An item is looked for by the n-grams of words of each of its texts (question, options, premise, ...), a shorter text as a whole if it
is not too short to mean anything. What several items share, as the wording of a task, tells nothing and is not looked for.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lib import languages

SIZE = 8  # words
SHORTEST = 5  # words of a text that is looked for as a whole
SHARED = 3  # items; a run of words that more of one task have is its wording


class Found(NamedTuple):
    """An evaluation item's words in a text."""

    task: str
    item: int
    words: str


class Index:
    """The runs of words that give evaluation items away.

    Args:
        items: (task, number of the item, its texts).
        size: words of an n-gram.
    """

    def __init__(self, items: Iterable[tuple[str, int, Iterable[str]]], size: int = SIZE):
        self.size = size
        self.items: Counter[str] = Counter()
        self.too_short: Counter[str] = Counter()
        owners: dict[str, dict[tuple[str, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
        for task, number, texts in items:
            runs = {run for text in texts for run in self._of_item(text)}
            self.items[task] += 1
            self.too_short[task] += not runs
            for run in runs:
                owners[task][run].add(number)
        self.runs: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
        for task, found in owners.items():
            for run, numbers in found.items():
                if len(numbers) <= SHARED:
                    self.runs[run] += [(task, number) for number in sorted(numbers)]
        self.lengths = sorted({len(run) for run in self.runs})
        # Almost no place in a text begins like an item, so that one look there is enough.
        self.beginnings = {run[:SHORTEST] for run in self.runs}

    def find(self, text: str) -> Found | None:
        """The first item whose words a text has."""
        for run in self._runs_in(text):
            return Found(*self.runs[run][0], " ".join(run))
        return None

    def find_all(self, text: str) -> dict[tuple[str, int], str]:
        """By (task, number) of each item that a text has words of, the first of these."""
        found: dict[tuple[str, int], str] = {}
        for run in self._runs_in(text):
            for item in self.runs[run]:
                found.setdefault(item, " ".join(run))
        return found

    def _runs_in(self, text: str) -> Iterator[tuple[str, ...]]:
        words = languages.words(text)
        for begin in range(len(words) - SHORTEST + 1):
            if tuple(words[begin : begin + SHORTEST]) in self.beginnings:
                for length in self.lengths:
                    if (run := tuple(words[begin : begin + length])) in self.runs:
                        yield run

    def _of_item(self, text: str) -> Iterator[tuple[str, ...]]:
        words = languages.words(text)
        if SHORTEST <= len(words) <= self.size:
            yield tuple(words)
        for begin in range(len(words) - self.size + 1):
            yield tuple(words[begin : begin + self.size])


def texts_of(record: Mapping) -> Iterator[str]:
    """All texts of an evaluation item, those inside lists and mappings too."""
    for value in record.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from texts_of(value)
        elif isinstance(value, list):
            yield from texts_of(dict(enumerate(value)))
