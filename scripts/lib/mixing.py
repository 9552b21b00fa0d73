"""The order of training: rows of several sources mixed by weight, with a share of replay against forgetting.

Nothing is shuffled and nothing is stored: row n of a run is a function of n, the packed sources and the seed. So memory
does not grow with the corpus, every process finds its own rows, and a run resumed anywhere reads what the undisturbed
one would have.

A balanced binary tree of the sources deals the places out. Of the first n places that reach a node, floor(n * share) go
left, in exact fractions; so after any number of places each source has had its share of them to within one place per
level, and where the shares are the sources' sizes an epoch reads every row exactly once. A source's rows come in
passes, each in an order of its own.
"""

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np
import torch

from lib import cli, packing, stage
from lib.errors import UserError
from lib.packing import REPLAY_LANGUAGE

ROUNDS = 8  # more make the orders of five rows no more evenly likely
WORD = (1 << 64) - 1


class Fork(NamedTuple):
    """A node of the tree: `share` of its places go to `left`. A leaf is a source's name."""

    share: Fraction
    left: Union["Fork", str]
    right: Union["Fork", str]


class Mixture(torch.utils.data.Dataset):
    """The rows of a run in the order of training.

    An item holds a row's `input_ids`, `position_ids` and `labels` ([length]; labels are -100 where a document starts),
    whether it is `replay` (of the replay language), and its index in the run, `row`.

    Args:
        pack: output of the pack stage.
        weights: shares of the rows by source, in any unit, those of the target language and those of the replay
            language each among themselves. Sources that are not named are not read. Where none of a language is named,
            or no weights are given, its sources are read by their size.
        replay_share: share of all rows that are of the replay language.
        epochs: length of the run. An epoch is as many rows of the target language as its sources that are read have,
            and the replay that goes with them.
        rows: length of the run instead of `epochs`.
        seed: of the order.

    Raises:
        UserError: the settings contradict each other or what was packed, or its files are damaged.
    """

    def __init__(
        self,
        pack: Path,
        *,
        weights: Mapping[str, float] | None = None,
        replay_share: float = 0.0,
        epochs: float = 1.0,
        rows: int | None = None,
        seed: int = 0,
    ):
        packed = stage.read_manifest(pack)["results"]
        sources = packed["sources"]
        self.length, self.seed = packed["sequence_length"], seed
        self.shares = shares({name: (s["language"], s["rows"]) for name, s in sources.items()}, weights, replay_share)
        self.sources = {
            name: packing.SourceRows(pack / "train" / sources[name]["folder"], self.length, packed["vocabulary"])
            for name in self.shares
        }
        for name, read in self.sources.items():
            if len(read) != sources[name]["rows"]:
                raise UserError(
                    f"{pack}: source '{name}' has {len(read):,} rows, not {sources[name]['rows']:,}; pack anew"
                )
        self.replayed = {name for name in self.shares if sources[name]["language"] == REPLAY_LANGUAGE}
        target = {name: share for name, share in self.shares.items() if name not in self.replayed}
        self.target_language = sources[max(target, key=target.__getitem__)]["language"]  # of several, the chief one's
        replay = {name: share for name, share in self.shares.items() if name in self.replayed}
        self._tree = fork(target)
        if replay:
            self._tree = Fork(sum(replay.values()), fork(replay), self._tree)
        # The most places of which no more than that many are of the target language.
        epoch = sum(sources[name]["rows"] for name in target) / sum(target.values())
        self.epoch_rows = math.floor(epoch)
        self.rows = math.floor(Fraction(str(epochs)) * epoch) if rows is None else rows
        if self.rows < 1:
            raise UserError(f"epochs {epochs}: less than one row of the epoch's {self.epoch_rows:,}")

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | bool | int]:
        index = range(self.rows)[index]
        source, row = self.place(index)
        return {**self.sources[source][row], "replay": source in self.replayed, "row": index}

    def tokens(self, index: int) -> np.ndarray:
        """A row's ids ([length]), as they lie on disk."""
        source, row = self.place(index)
        return self.sources[source].tokens(row)

    def place(self, index: int) -> tuple[str, int]:
        """The source of a row of the run, and its number among the source's rows."""
        source, number = leaf(self._tree, index)
        done, within = divmod(number, len(self.sources[source]))
        return source, permuted(within, len(self.sources[source]), pass_key(self.seed, source, done))

    def name(self, index: int) -> str:
        """`source:row`, for messages."""
        source, row = self.place(index)
        return f"{source}:{row}"

    def reading(self, rows: int | None = None) -> dict[str, dict[str, float]]:
        """By source, how many `rows` of it the first `rows` of the run are (all of them if not given), and how many
        `passes` over it that makes.
        """
        counted = counts(self._tree, self.rows if rows is None else min(rows, self.rows))
        return {
            name: {"rows": counted[name], "passes": round(counted[name] / len(self.sources[name]), 4)}
            for name in self.sources
        }


def shares(
    sources: Mapping[str, tuple[str, int]], weights: Mapping[str, float] | None, replay_share: float
) -> dict[str, Fraction]:
    """The exact share of all rows that comes from each source that is read; they add up to 1.

    Args:
        sources: (language, rows) by name.
        weights: see Mixture.
        replay_share: see Mixture.

    Raises:
        UserError: a contradiction.
    """
    if not 0 <= replay_share < 1:
        raise UserError(f"replay_share: {replay_share} is not a share from 0 to below 1")
    weights = weights or {}
    for name, weight in weights.items():
        if name not in sources:
            known = ", ".join(sorted(sources))
            raise UserError(f"weights: unknown source '{name}'{cli.closest(name, sources)} (packed: {known})")
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"weights: {name}: {weight} is not above 0; leave a source out by not naming it")
    found: dict[str, Fraction] = {}
    replay = Fraction(str(replay_share))
    for is_replay, share in ((False, 1 - replay), (True, replay)):
        sizes = {name: rows for name, (language, rows) in sources.items() if (language == REPLAY_LANGUAGE) == is_replay}
        named = {name: Fraction(str(weights[name])) for name in sizes if name in weights}
        if is_replay and named and not replay:
            raise UserError(
                f"weights: {', '.join(sorted(named))} is of the replay language ({REPLAY_LANGUAGE}), of which "
                f"replay_share {replay_share} reads nothing; set it above 0 or take the weight away"
            )
        if not is_replay and sizes and weights and not named:
            raise UserError(
                f"weights: all are of sources of the replay language ({REPLAY_LANGUAGE}); name some of the target "
                f"language: {', '.join(sorted(sizes))}"
            )
        chosen = named or {name: Fraction(rows) for name, rows in sizes.items()}
        if share and not chosen:
            what = f"of the replay language ({REPLAY_LANGUAGE}), for a replay_share of {replay_share}"
            raise UserError(f"no packed source is {what if is_replay else 'of a target language'}")
        found |= {name: share * part / sum(chosen.values()) for name, part in chosen.items() if share}
    return found


def fork(shares: Mapping[str, Fraction]) -> Fork | str:
    """A tree over sources, of the depth of the logarithm of their number, the same in whatever order they are given."""
    names = sorted(shares)
    if len(names) == 1:
        return names[0]
    left, right = (
        {name: shares[name] for name in half} for half in (names[: len(names) // 2], names[len(names) // 2 :])
    )
    return Fork(sum(left.values()) / sum(shares.values()), fork(left), fork(right))


def leaf(tree: Fork | str, index: int) -> tuple[str, int]:
    """The source that gets place `index`, and how many of the places before it got."""
    while not isinstance(tree, str):
        (part, whole), left, right = tree.share.as_integer_ratio(), tree.left, tree.right
        before = index * part // whole
        went_left = (index + 1) * part // whole > before
        tree, index = (left, before) if went_left else (right, index - before)
    return tree, index


def counts(tree: Fork | str, places: int) -> dict[str, int]:
    """How many of the first `places` each source gets."""
    if isinstance(tree, str):
        return {tree: places}
    left = math.floor(places * tree.share)
    return counts(tree.left, left) | counts(tree.right, places - left)


def pass_key(seed: int, source: str, done: int) -> int:
    """64 bits for the order of a pass over a source, the one after `done` others; other sources play no part in it."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {done} {source}".encode(), digest_size=8).digest(), "little")


def permuted(index: int, size: int, key: int) -> int:
    """What a random permutation of range(size), drawn by a key of 64 bits, makes of an index.

    A Feistel network over the next power of four, walked on until it lands inside (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"): fewer than four steps on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (_scrambled(right + key + number * 0x9E3779B97F4A7C15) & mask)
        index = left << half | right
        if index < size:
            return index


def _scrambled(value: int) -> int:
    """64 bits, each of them depending on all of the value's: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value &= WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & WORD
    return value ^ value >> 31
