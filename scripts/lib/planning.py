"""What a deduplication will take, said before it starts: paragraphs, memory, disk.

Paragraphs are counted in a small sample of the text. Memory and disk follow from their number by what each phase of
lib/duplicates.py and lib/rebuilding.py holds and writes; how many duplicates there will be is an assumption, and said.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib import documents, duplicates, minhash, storage
from lib.minhash import Scheme

FOOTERS = 64  # files whose row groups are looked at
SAMPLED_GROUPS, DECODED_BYTES, SIGNED_BYTES = 32, 256 << 20, 12 << 20  # of text, about
WINDOWS, WINDOW = 8, 1 << 20  # of a row group
BYTES_PER_PARAGRAPH = 270  # of text, short paragraphs with it: where nothing could be sampled
PACKED = 3.5  # times that compressed text becomes larger

# Assumed shares of the compared paragraphs: equal to an earlier one, pairs to check, pairs found to be similar, texts in pairs
# or repeated. Books, manuals and an encyclopaedia, enlarged to 5.3 M paragraphs, had 0.02, 0.09, 0.02 and 0.06.
REPEATED, PAIRED, SIMILAR, NODES = 0.05, 0.10, 0.05, 0.10

# Bytes in memory. The first two are measured: the libraries' own, half of them mapped files; what allocators keep of what
# went through.
STARTED, KEPT = 280e6, 300e6
READING, WRITING = 4, 8  # copies of the text of a batch that is being decoded; rewritten, encoded and compressed
QUEUE = 0.5  # of the places for batches on their way to a thread and back are taken on average
DIGEST = 56  # both halves and the number, twice, and their order
KEY = 34  # key and number, twice, and codes of pairs for one key in four
REPEAT = 56  # number and first of its kind, of the shares and joined, and their order
JOINING = 24  # codes of pairs: those found before, the new ones, both sorted
PAIR, GOOD_PAIR = (
    13,
    48,
)  # code, similarity, whether it is good; code, ends, rows, neighbours both ways with similarities
NODE = 44  # order, rank, first neighbour, substitute, similarity, cluster

# Bytes on disk.
PLACE = 1.5  # document, paragraph and rank, encoded and compressed
SAVED_REPEAT, SAVED_PAIR, NODE_FIELDS = 16, 12, 80  # of a node: spans and names


@dataclasses.dataclass(frozen=True)
class Shape:
    """A corpus as far as it matters here.

    Attributes:
        paragraphs: compared ones.
        text_bytes: of text that is read, uncompressed.
        batches: of documents, that is how many.
        largest: bytes of text in the largest batch.
    """

    paragraphs: float
    text_bytes: float
    batches: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        paragraphs: to be compared.
        memory_gb: by phase, resident and without the texts of duplicates that are mapped from disk, whose memory the system
            takes back when it needs it.
        disk_gb: by phase, in the working folder.
    """

    paragraphs: int
    memory_gb: dict[str, float]
    disk_gb: dict[str, float]

    def __str__(self) -> str:
        memory, disk = (max(phases.items(), key=lambda item: item[1]) for phases in (self.memory_gb, self.disk_gb))
        return (
            f"about {_rounded(self.paragraphs)} paragraphs to compare\n"
            f"memory {memory[1]:.1f} GB (to {memory[0]}), working folder {disk[1]:.1f} GB (to {disk[0]}), "
            f"if {REPEATED:.0%} of them repeat others and as many pairs are near"
        )


def plan(files: Sequence[Path], how: Scheme, memory_gb: float) -> Plan:
    """The plan for a corpus; takes about a second, and reads no more than a sample.

    Args:
        files: the corpus.
        how: the scheme.
        memory_gb: the budget.
    """
    return of_shape(shape(files, how), how, memory_gb, os.cpu_count() or 1)


def of_shape(corpus: Shape, how: Scheme, memory_gb: float, threads: int) -> Plan:
    """The plan for a corpus of some shape, with paragraphs signed by some threads."""
    count = corpus.paragraphs
    repeats, pairs, good, nodes = (share * count for share in (REPEATED, PAIRED, SIMILAR, NODES))
    signature = 8 * how.bands + minhash.SKETCH_BITS // 8 + 16
    share = min(count, memory_gb * 1e9 / 2 / duplicates.BYTES_PER_KEY)
    waiting = min(pairs, memory_gb * 1e9 / 2 / duplicates.BYTES_PER_PAIR)
    queued = QUEUE * (2 * threads + 1) * (corpus.text_bytes + signature * count) / max(corpus.batches, 1)
    held = 2 * 8 * repeats
    memory = {
        "sign": queued + READING * corpus.largest,
        "find repeats": count + max(DIGEST * share + held, REPEAT * repeats),
        "group": held + count / 8 + max(KEY * share, duplicates.BYTES_PER_PAIR * waiting) + JOINING * pairs,
        "choose": held + PAIR * pairs + GOOD_PAIR * good + NODE * nodes,
        "write": held + NODE * nodes + WRITING * corpus.largest,
    }
    places = PLACE * count
    text = BYTES_PER_PARAGRAPH if not count else corpus.text_bytes / count
    found = SAVED_REPEAT * repeats + SAVED_PAIR * pairs
    disk = {
        "group": places + signature * count + SAVED_REPEAT * repeats,
        "write": places + found + (text + NODE_FIELDS) * nodes,
    }
    gigabytes = lambda phases, fixed: {name: (fixed + size) / 1e9 for name, size in phases.items()}  # noqa: E731
    return Plan(round(count), gigabytes(memory, STARTED + KEPT), gigabytes(disk, 0))


def shape(files: Sequence[Path], how: Scheme) -> Shape:
    """Estimated from the footers of some files and a sample of their text; other formats than Parquet by their size."""
    columnar = [file for file in files if file.suffix == ".parquet"]
    looked_at = [columnar[place] for place in _spread(len(columnar), FOOTERS)]
    groups = [group for file in looked_at for group in _groups(file)]
    sizes = np.array([size for *_, size in groups])
    seen_on_disk = sum(file.stat().st_size for file in looked_at)
    scale = sum(file.stat().st_size for file in columnar) / seen_on_disk if seen_on_disk else 0
    others = sum(_unpacked(file) for file in files if file.suffix != ".parquet")
    text_bytes = scale * sizes.sum() + others
    density = _density(groups, sizes, how)
    limit = documents.BYTES_PER_GROUP
    batches = scale * np.ceil(sizes / limit).sum() + np.ceil(others / limit)
    largest = max(min(sizes.max(initial=0), limit), min(others, limit))
    return Shape(text_bytes * density, text_bytes, batches, largest)


def _groups(file: Path) -> list[tuple[Path, int, int]]:
    """(file, number, bytes of text) of each row group; none if the file is broken or has no text, which is reported later."""
    try:
        with pq.ParquetFile(storage.source(file)) as opened:
            metadata = opened.metadata
            column = opened.schema_arrow.names.index("text")
            return [
                (file, number, metadata.row_group(number).column(column).total_uncompressed_size)
                for number in range(metadata.num_row_groups)
            ]
    except (pa.ArrowException, OSError, ValueError):
        return []


def _density(groups: Sequence[tuple[Path, int, int]], sizes: np.ndarray, how: Scheme) -> float:
    """Compared paragraphs for each byte of text: windows from all over some row groups spread over the text."""
    found = seen = 0
    spots = int(np.clip(DECODED_BYTES // max(1, sizes.mean()), 12, SAMPLED_GROUPS)) if len(groups) else 0
    ends = np.cumsum(sizes)
    # One anywhere in each stretch: at equal distances they could all meet the same part of files that are alike.
    for spot in (np.arange(spots) + np.random.default_rng(0).random(spots)) * (sizes.sum() / max(spots, 1)):
        file, number, _ = groups[np.searchsorted(ends, spot)]
        try:
            with pq.ParquetFile(storage.source(file)) as opened:
                texts = opened.read_row_group(number, columns=["text"])["text"]
            texts = texts.cast(pa.large_string()).combine_chunks().drop_null()
        except (pa.ArrowException, OSError):
            continue
        offsets, _ = minhash.buffers(texts)
        size = min(WINDOW, SIGNED_BYTES // spots // WINDOWS)
        for first in np.linspace(offsets[0], max(offsets[0], offsets[-1] - size), WINDOWS).astype(int).tolist():
            window = _window(texts, first, min(first + size, int(offsets[-1])))
            found += len(minhash.sign(window, how).document)
            seen += size
    return found / seen if found else 1 / BYTES_PER_PARAGRAPH


def _window(texts: pa.Array, first: int, last: int) -> pa.Array:
    """The texts, and parts of texts, that lie between two bytes of the array's data."""
    offsets, data = minhash.buffers(texts)
    while first < last and data[first] & 0xC0 == 0x80:  # not within a character
        first += 1
    while first < last and last < len(data) and data[last] & 0xC0 == 0x80:
        last -= 1
    low, high = np.searchsorted(offsets, [first, last])
    inside = np.concatenate([[first], offsets[low:high], [last]]) - first
    buffers = [None, pa.py_buffer(inside.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(data[first:last]))]
    return pa.Array.from_buffers(pa.large_string(), len(inside) - 1, buffers)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spaced."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist()))


def _unpacked(file: Path) -> float:
    return file.stat().st_size * (PACKED if file.suffix in (".gz", ".zst") else 1)


def _rounded(count: int) -> str:
    """Three figures, for it is an estimate."""
    digits = max(0, len(str(count)) - 3)
    return f"{round(count, -digits):,}"
