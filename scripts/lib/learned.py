"""Candidate pairs of paragraphs by a learned hash (lib/mihash.py) instead of MinHash's bands."""

import dataclasses

import numpy as np

from lib import duplicates, mihash, minhash, paragraphs, progress
from lib.errors import UserError

WIDTH = 2048  # columns of hashed n-grams; 16,384 learnt the few hundred pairs there are by heart
TRAINING_ROWS = 20_000  # paragraphs to train on, those in similar pairs first
HELD_OUT_SHARE = 0.2  # of the clusters, to choose the radius by
RECALL = 0.99  # of the held-out pairs that the radius has to find
BYTES_PER_PARAGRAPH = 2_000  # of memory: text, some 150 n-grams, code


@dataclasses.dataclass(frozen=True)
class Search:
    """How to hash: bits of a code, seed of the training, and where the corpus is read from."""

    batches: duplicates.Batches
    bits: int
    seed: int = 0

    def candidates(
        self, index: duplicates.Index, how: minhash.Scheme, alive: np.ndarray, memory_gb: float
    ) -> np.ndarray:
        """int64 codes of pairs within a Hamming radius, as `duplicates.banded` gives them.

        The hash learns from what MinHash finds: similar pairs, and those of its candidates that the exact check refused.

        Raises:
            UserError: too many paragraphs for the memory, or too few similar pairs to learn from.
        """
        numbers = np.flatnonzero(np.unpackbits(alive, bitorder="little")[: index.count])
        if len(numbers) * BYTES_PER_PARAGRAPH > memory_gb * 1e9:
            raise UserError(
                f"--method=mihash holds all {len(numbers):,} paragraphs in memory, about "
                f"{len(numbers) * BYTES_PER_PARAGRAPH / 1e9:.1f} GB: raise --memory_gb={memory_gb}, or use --method=minhash"
            )
        codes = duplicates.banded(index, how, alive, memory_gb)
        nodes = duplicates.gather(index, self.batches, numbers, "everything")
        true = duplicates.verified(nodes, codes, max(index.count, 1), how) >= np.float32(how.threshold)
        pairs = np.stack([nodes.rows(part) for part in np.divmod(codes, max(index.count, 1))], axis=1)
        texts = [paragraphs.normalise(nodes.text(row)) for row in progress.bar(range(len(numbers)), title="read")]
        features = mihash.features(texts, size=how.size, width=WIDTH)

        fit, held = _divided(pairs[true], len(numbers), self.seed)
        rows = _training_rows(pairs, fit, held, len(numbers), self.seed)
        places = np.full(len(numbers), -1)
        places[rows] = np.arange(len(rows))
        refused = places[pairs[~true]]
        refused = refused[(refused >= 0).all(axis=1)]
        learned = mihash.train(features[rows], places[fit], refused, bits=self.bits, seed=self.seed)
        radius = mihash.radius(learned, features, held, recall=RECALL)
        progress.say(f"mihash: {len(fit):,} pairs to learn from, radius {radius} of {self.bits} bits")
        left, right = numbers[mihash.candidates(mihash.codes(learned, features), radius)].T
        return np.sort(left * index.count + right)


def _divided(pairs: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(pairs to train on, held-out pairs), no cluster in both."""
    clusters = minhash.clusters(count, pairs[:, 0].copy(), pairs[:, 1].copy())[pairs[:, 0]]
    distinct = np.unique(clusters)
    if len(distinct) < 10:
        raise UserError(
            f"--method=mihash: {len(distinct)} clusters of similar paragraphs are too few to learn from, 10 at least; "
            "use --method=minhash"
        )
    chosen = np.random.default_rng(seed).permutation(distinct)[: max(1, round(HELD_OUT_SHARE * len(distinct)))]
    held = np.isin(clusters, chosen)
    return pairs[~held], pairs[held]


def _training_rows(pairs: np.ndarray, fit: np.ndarray, held: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows in pairs to train on, then others, none of a held-out pair."""
    rng = np.random.default_rng(seed)
    first = np.setdiff1d(fit, held)
    others = np.setdiff1d(pairs, np.concatenate([first, held.ravel()]))
    rest = np.setdiff1d(np.arange(count), np.concatenate([first, others, held.ravel()]))
    wanted = max(0, TRAINING_ROWS - len(first) - len(others))
    return np.sort(np.concatenate([first, others, rng.permutation(rest)[:wanted]]))
