"""MinHash over Arrow buffers: normal form, shingles, registers, band keys and a bit sketch of each paragraph in one pass.

No Python object is made per shingle, and the GIL is released. A paragraph's *registers* are those of fast similarity
sketching (Dahlgaard, Knudsen and Thorup, FOCS 2017): every shingle is thrown at a random register with a random value,
the least value stays, and rounds go on until no register is empty. That takes about k ln k throws for k registers where
k permutations take k times the shingles, with MinHash's expectation and no more than its variance. Bands are runs of
registers, chosen by datasketch's optimiser; the *sketch* is 256 bits, two of each of 128 registers (b-bit minwise hashing, Li
and König 2010), enough to throw out most false candidates before the exact Jaccard similarity is computed.
"""

import dataclasses
import functools
import sys
import unicodedata

import datasketch
import numpy as np
import pyarrow as pa

from lib import kernels, paragraphs
from lib.kernels import DROPPED, EXPANDS, HARD, SKETCH_BITS, SPACE, STRESS

# Candidates are checked and a missed pair is lost, hence the uneven weights: at 128 registers and threshold 0.8 that gives
# 18 bands of 7.
BAND_WEIGHTS = (0.01, 0.99)
STEEPEST = 0.99  # beyond, datasketch wants fewer than two bands; candidates are verified by their exact similarity all the same
LAST_TO_CHANGE = 0x2FFFF  # no code point above has another normal form, or is combining
BLOCK = 1 << 20  # bytes looked at for line breaks at a time
ROUNDS = 24  # the number of a round is the upper byte of a register


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How paragraphs are compared.

    Attributes:
        threshold: exact Jaccard similarity from which two paragraphs are near duplicates.
        num_perm: registers that the bands may use.
        bands, rows: of the index; at most `num_perm` together.
        size: characters or words in a shingle.
        words: whether shingles are of words.
        min_chars: shorter paragraphs (in normal form) are not compared.
    """

    threshold: float
    num_perm: int
    bands: int
    rows: int
    size: int
    words: bool
    min_chars: int

    @property
    def registers(self) -> int:
        """The least power of two that has `num_perm`."""
        return 1 << (self.num_perm - 1).bit_length()

    @property
    def sketch_bits(self) -> int:
        """Bits that each register gives to the sketch."""
        return max(1, SKETCH_BITS // self.registers)

    @property
    def least_agreement(self) -> int:
        """Equal bits of two sketches from which a pair is worth the exact check.

        Two standard errors below what the threshold leads one to expect: 97.7 % of the pairs at the threshold pass.
        """
        bits, apart = self.sketch_bits, 1 - self.threshold
        mean = apart * bits / 2  # differing bits of a register: each with 1/2 where the registers differ
        variance = apart * bits * (bits + 1) / 4 - mean**2
        registers = SKETCH_BITS // bits
        return int(np.floor(SKETCH_BITS - registers * mean - 2 * np.sqrt(registers * variance)))


def scheme(threshold: float, num_perm: int, size: int, words: bool, min_chars: int) -> Scheme:
    """The scheme whose bands datasketch's optimiser chooses, weighted by `BAND_WEIGHTS`."""
    index = datasketch.MinHashLSH(threshold=min(threshold, STEEPEST), num_perm=num_perm, weights=BAND_WEIGHTS)
    return Scheme(threshold, num_perm, index.b, index.r, size, words, min_chars)


@dataclasses.dataclass
class Signed:
    """Signatures of the paragraphs of some documents, those long enough to be compared.

    Attributes:
        document: int32 [n], the row of the document.
        paragraph: int32 [n], the paragraph's number in the document.
        keys: uint64 [bands, n].
        sketch: uint64 [n, SKETCH_BITS / 64].
        digest: uint64 [n, 2], of the normal form.
        paragraphs: all paragraphs there were, the short ones too.
    """

    document: np.ndarray
    paragraph: np.ndarray
    keys: np.ndarray
    sketch: np.ndarray
    digest: np.ndarray
    paragraphs: int


def sign(texts: pa.Array, how: Scheme) -> Signed:
    """Signatures of all paragraphs of some documents (a large_string array)."""
    offsets, data = buffers(texts)
    table, expansions = folding()
    document, paragraph, starts, ends = split(texts)
    keys = np.empty((how.bands, len(starts)), dtype=np.uint64)
    sketch = np.empty((len(starts), SKETCH_BITS // 64), dtype=np.uint64)
    digest = np.empty((len(starts), 2), dtype=np.uint64)
    lengths = np.empty(len(starts), dtype=np.int32)
    factors, addends = _rounds()
    fixed = (how.min_chars, how.size, how.words, how.rows, factors, addends, how.registers, how.sketch_bits)
    kernels.sign(data, starts, ends, table, expansions, *fixed, lengths, keys, sketch, digest)
    hard = np.flatnonzero(lengths == -1)
    if len(hard):  # what only Unicode's full rules normalise: a few in a thousand
        normal = pa.array([normal_form(data, starts[row], ends[row]) for row in hard], pa.large_string())
        offsets, data = buffers(normal)
        parts = (np.empty(len(hard), np.int32), np.take(keys, hard, axis=1), sketch[hard], digest[hard])
        kernels.sign(data, offsets[:-1], offsets[1:], _identity(), expansions, *fixed, *parts)
        lengths[hard], keys[:, hard], sketch[hard], digest[hard] = parts
    long = lengths >= how.min_chars
    if long.all():
        return Signed(document, paragraph, keys, sketch, digest, len(starts))
    keys = np.take(keys, np.flatnonzero(long), axis=1)  # keys[:, long] would lie in memory the other way round
    return Signed(document[long], paragraph[long], keys, sketch[long], digest[long], len(starts))


def split(texts: pa.Array, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Paragraphs as `paragraphs.split` finds them: int32 document rows and paragraph numbers, int64 first and last bytes.

    The bytes are places in the array's data buffer, the last one not included. Of some `rows` only, a document is named by
    its place among these.
    """
    offsets, data = buffers(texts)
    firsts, lasts = offsets[:-1], offsets[1:]
    if rows is not None:
        firsts, lasts = firsts[rows], lasts[rows]
    table, _ = folding()
    inside = data[offsets[0] : offsets[-1]]
    breaks = (np.count_nonzero(inside[place : place + BLOCK] == 10) for place in range(0, len(inside), BLOCK))
    room = sum(breaks) + len(texts)
    parts = (np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int64), np.empty(room, np.int64))
    found = kernels.split(data, firsts, lasts, table, *parts)
    return tuple(part[:found] for part in parts)


def paragraph_counts(texts: pa.Array) -> np.ndarray:
    """int64 [n]: how many paragraphs each text has."""
    document, *_ = split(texts)
    return np.bincount(document, minlength=len(texts))


def buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n + 1] offsets, uint8 data) of a large_string array, without a copy."""
    if not pa.types.is_large_string(texts.type):
        raise TypeError(f"expected large_string, got {texts.type}")
    _, offsets, data = texts.buffers()
    first = texts.offset
    starts = np.frombuffer(offsets, np.int64)[first : first + len(texts) + 1] if len(texts) else np.zeros(1, np.int64)
    return starts, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Paragraphs to compare exactly.

    Attributes:
        data: uint8, UTF-8 of all.
        starts, ends: int64 [n], first and last bytes (the last one not included).
        normal: bool [n], whether a paragraph is in normal form already, because the kernel can't normalise it.
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    normal: np.ndarray


def similarities(texts: Texts, left: np.ndarray, right: np.ndarray, how: Scheme) -> np.ndarray:
    """float32 [pairs]: exact Jaccard similarities of normalised paragraphs, by their int64 rows in `texts`."""
    found = np.empty(len(left), dtype=np.float32)
    kernels.similarities(*_given(texts), how.size, how.words, left, right, found)
    return found


def choose(
    texts: Texts, how: Scheme, order: np.ndarray, first: np.ndarray, neighbours: np.ndarray, similarity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which texts go, walking through them in an order of preference: those similar enough to one that *stays*.

    Clusters are not transitive in similarity: in manual pages, chains of similar lines ended in "duplicates" of similarity
    0.4. So a text that is similar to removed ones only is compared with those that stay instead of them, and spared if it
    is not similar to any.

    Args:
        texts: [n] texts.
        how: the scheme, for its threshold.
        order: int64 [n], the texts, better ones first.
        first: int64 [n + 1], where each text's neighbours begin.
        neighbours: int64, texts similar enough to each (both of a pair have the other).
        similarity: float32, to the neighbours.

    Returns:
        (int64 [n]: the text kept instead or -1, float32 [n]: the similarity to it, how many were spared).
    """
    instead, alike = np.full(len(order), -1, dtype=np.int64), np.ones(len(order), dtype=np.float32)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    given = (*_given(texts), how.size, how.words, np.float32(how.threshold))
    spared = kernels.choose(*given, order, rank, first, neighbours, similarity, instead, alike)
    return instead, alike, spared


def clusters(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 [count]: the least member of the cluster that pairs (int64) join each of `count` items to, by union-find."""
    parents = np.arange(count, dtype=np.int64)
    kernels.join(parents, left, right)
    return parents


def _given(texts: Texts) -> tuple[np.ndarray, ...]:
    table, expansions = folding()
    return texts.data, texts.starts, texts.ends, texts.normal, table, _identity(), expansions


def joined(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """uint8: pieces of `data` one after another."""
    found = np.empty(int((ends - starts).sum()), dtype=np.uint8)
    kernels.copy(data, starts, ends, found)
    return found


def normal_form(data: np.ndarray, start: int, end: int) -> str:
    """`paragraphs.normalise` of some bytes."""
    return paragraphs.normalise(data[start:end].tobytes().decode())


def normal_forms(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[list[str], np.ndarray]:
    """([m] normal forms of the paragraphs that the kernel does not normalise itself, [m] their rows)."""
    table, _ = folding()
    hard = np.flatnonzero(kernels.hard(data, starts, ends, table))
    return [normal_form(data, starts[row], ends[row]) for row in hard], hard


@functools.cache
def folding() -> tuple[np.ndarray, np.ndarray]:
    """(uint32 [0x110000]: what each code point becomes in normal form, uint32: the expansions it refers to).

    A text of code points none of which is HARD is normalised by looking them up one by one: they neither compose with a
    neighbour, nor are put in another order, nor depend on their context.
    """
    maybe = _second_of_compositions()
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    expansions: list[int] = []
    for code in range(LAST_TO_CHANGE + 1):
        character = chr(code)
        if character.isspace():
            table[code] = SPACE
            continue
        if character.isascii():
            table[code] = ord(character.lower())
            continue
        composed = unicodedata.normalize("NFKC", character)
        normal = paragraphs.normalise(character)
        if code == 0x301:
            table[code] = STRESS
        elif "\u03a3" in composed or any(c in maybe or unicodedata.combining(c) for c in character + composed + normal):
            table[code] = HARD  # a capital sigma's lower case depends on what follows
        elif not normal and composed == character:
            table[code] = DROPPED
        elif not normal or " " in composed or " " in normal:
            table[code] = HARD
        elif len(normal) == 1:
            table[code] = ord(normal)
        else:
            table[code] = EXPANDS | len(expansions) << 5 | len(normal)
            expansions += map(ord, normal)
    return table, np.array(expansions, dtype=np.uint32)


def _second_of_compositions() -> frozenset[str]:
    """Characters that may compose with the one before them (Unicode's NFC_Quick_Check is not 'yes')."""
    found = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A7, 0x11C3))}
    for code in range(LAST_TO_CHANGE + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


@functools.cache
def _identity() -> np.ndarray:
    """The table for text that is in normal form already."""
    return np.arange(sys.maxunicode + 1, dtype=np.uint32)


@functools.cache
def _rounds(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [ROUNDS] each: odd factors and addends of the hash functions."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1 << 64, size=(2, ROUNDS), dtype=np.uint64, endpoint=False)
    return drawn[0] | np.uint64(1), drawn[1]
