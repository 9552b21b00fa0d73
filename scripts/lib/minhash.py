"""MinHash signatures, banded candidate pairs, exact verification, the choice of what goes.

The permutations are those of datasketch 2.0 (scheme affine32) and so are the signatures, number by number; only the
loop is ours: a block of texts at a time in numpy, about a hundred times faster than a MinHash object a text.
"""

from collections.abc import Iterable, Iterator, Sequence

import datasketch
import numpy as np

from lib import progress

# Verification throws false candidates out at little cost, while a missed pair is lost, hence the uneven weights:
# at 128 permutations and threshold 0.8 that gives 18 bands of 7 and finds 98.6 % of the pairs at exactly 0.8.
BAND_WEIGHTS = (0.01, 0.99)
# All pairs of a bucket up to this size; in a larger one each member with the first and with its neighbours.
FULL_BUCKET = 200
# A pair whose estimated similarity lies this many standard errors below the threshold is not verified exactly.
STANDARD_ERRORS = 4
SETS = 10_000  # n-gram sets held during verification; about 15 kB each
BLOCK_CHARACTERS = 1 << 16  # fits the second-level cache with its working copy


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows in a band) by datasketch's optimiser, weighted by `BAND_WEIGHTS`."""
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=num_perm, weights=BAND_WEIGHTS)
    return index.b, index.r


def permutations(num_perm: int, seed: int = 1) -> np.ndarray:
    """uint32 [2, num_perm]: factors and offsets, as datasketch draws them."""
    return np.asarray(datasketch.MinHash(num_perm=num_perm, seed=seed, scheme="affine32").permutations)


def shingles(text: str, size: int) -> frozenset[str]:
    """The set of the text's character n-grams; a text shorter than `size` is its own only one."""
    return frozenset(text[i : i + size] for i in range(max(1, len(text) - size + 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared members over all members."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def shingle_hashes(text: str, size: int) -> np.ndarray:
    """uint32 [characters - size + 1]: one hash for each character n-gram of a text (or of several joined ones)."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = len(codes) - size + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(size):  # a polynomial in an odd base modulo 2^64
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += codes[offset : offset + count] + np.uint64(1)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def signatures(texts: Sequence[str], size: int, permuted: np.ndarray) -> np.ndarray:
    """uint32 [texts, num_perm]: MinHash signatures over character n-grams.

    Args:
        texts: normalised texts of at least `size` characters each.
        size: characters in an n-gram.
        permuted: the result of `permutations`.
    """
    if any(len(text) < size for text in texts):
        raise ValueError(f"a text is shorter than {size} characters")
    found = np.empty((len(texts), permuted.shape[1]), dtype=np.uint32)
    for start, block in _blocks(texts):
        lengths = np.fromiter(map(len, block), dtype=np.int64, count=len(block))
        ends = np.cumsum(lengths)
        edges = np.empty(2 * len(block), dtype=np.int64)
        edges[0::2] = ends - lengths
        edges[1::2] = ends - size + 1  # from here on n-grams reach into the next text
        edges = edges[:-1]
        hashes = _mix(shingle_hashes("".join(block), size))
        permuted_hashes = np.empty_like(hashes)
        for column, (factor, offset) in enumerate(permuted.T):
            np.multiply(hashes, factor, out=permuted_hashes)
            permuted_hashes += offset
            least = np.minimum.reduceat(permuted_hashes, edges)
            found[start : start + len(block), column] = least[::2]
    return found


def candidates(signed: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """int64 [pairs, 2]: distinct pairs (i < j) of signatures that agree on all rows of a band, sorted."""
    count = len(signed)
    codes = [np.empty(0, dtype=np.int64)]
    odd = np.random.default_rng(0).integers(1, 1 << 63, size=rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for band in range(bands):
        columns = signed[:, band * rows : (band + 1) * rows]
        keys = np.zeros(count, dtype=np.uint64)
        for row in range(rows):
            keys = (keys ^ columns[:, row]) * odd[row]
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")  # stable: members of a bucket stay in corpus order
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        starts = np.concatenate([[0], edges]) if count else edges
        sizes = np.diff(np.concatenate([starts, [count]])) if count else edges
        for start, bucket in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            members = order[start : start + bucket]
            left, right = _bucket_pairs(int(bucket))
            codes.append(members[left] * count + members[right])
        codes = [np.unique(np.concatenate(codes))]
    return np.stack(np.divmod(codes[0], max(count, 1)), axis=1)


def verified(
    texts: Sequence[str], signed: np.ndarray, pairs: np.ndarray, *, size: int, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """(i, j, similarity) of the candidate pairs whose exact Jaccard similarity reaches the threshold."""
    num_perm = signed.shape[1]
    floor = threshold - STANDARD_ERRORS * np.sqrt(threshold * (1 - threshold) / num_perm)
    likely = [
        part[(signed[part[:, 0]] == signed[part[:, 1]]).mean(axis=1) >= floor]
        for part in np.array_split(pairs, len(pairs) // 20_000 + 1)
    ]
    likely = np.concatenate(likely)
    sets: dict[int, frozenset[str]] = {}
    done = -1
    for left, right in progress.bar(likely.tolist(), title="verify", unit="pairs"):
        if left != done:  # pairs are sorted by their first member
            sets.pop(done, None)
            done = left
            if len(sets) > SETS:
                sets.clear()
        for one in (left, right):
            if one not in sets:
                sets[one] = shingles(texts[one], size)
        similarity = jaccard(sets[left], sets[right])
        if similarity >= threshold:
            yield left, right, similarity


def twins(
    texts: Sequence[str], pairs: Iterable[tuple[int, int]], *, size: int, threshold: float
) -> tuple[dict[int, int], int]:
    """({removed text: the earlier text kept instead}, texts spared), by walking through the texts in order.

    A text goes only if it is similar enough to one that *stays*. Joining pairs transitively would not do: in manual
    pages, chains of similar lines ended in "duplicates" of similarity 0.4. A text that is similar to removed ones only
    is spared.

    Args:
        texts: all texts, the better one of two first.
        pairs: (i < j) of similar texts, in any order.
        size: characters in an n-gram.
        threshold: the exact Jaccard similarity that a text has to have to the one kept instead.
    """
    earlier: dict[int, list[int]] = {}
    for left, right in pairs:
        earlier.setdefault(right, []).append(left)
    instead: dict[int, int] = {}
    spared = 0
    for text in sorted(earlier):
        similar = set(earlier[text])
        staying = sorted({instead.get(other, other) for other in similar})
        for other in staying:
            if other in similar or jaccard(shingles(texts[text], size), shingles(texts[other], size)) >= threshold:
                instead[text] = other
                break
        else:
            spared += 1
    return instead, spared


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    block, characters, start = [], 0, 0
    for position, text in enumerate(progress.bar(texts, title="minhash", unit="paragraphs")):
        block.append(text)
        characters += len(text)
        if characters >= BLOCK_CHARACTERS:
            yield start, block
            block, characters, start = [], 0, position + 1
    if block:
        yield start, block


def _bucket_pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the pairs to compare in a bucket."""
    if size <= FULL_BUCKET:
        return np.triu_indices(size, 1)
    later = np.arange(1, size)
    return np.concatenate([np.zeros(size - 1, dtype=np.int64), later[1:] - 1]), np.concatenate([later, later[1:]])


def _mix(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser, which datasketch applies before its permutations."""
    hashes = hashes ^ (hashes >> np.uint32(16))
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
