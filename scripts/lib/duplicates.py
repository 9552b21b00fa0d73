"""Duplicate paragraphs of a corpus that need not fit in memory: signatures on disk, grouped band by band, checked exactly.

A paragraph's *number* counts those long enough to be compared, over all files in order. In the working folder lie

    signatures/<file>.parquet  band keys, sketch and digest; a row group for each batch of documents
    places/<file>.parquet      document row, paragraph number in it, rank of its source; the same row groups
    exact.npz                  paragraphs that repeat another in normal form, and which
    candidates.npz             pairs that share a band and whose sketches agree; signatures are removed then
    nodes/                     texts of the paragraphs in pairs or repeated
    similarity.npz             the exact similarity of each pair

each complete or absent, so that an interrupted run goes on.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from lib import documents, kernels, minhash, progress
from lib.minhash import Scheme

RANGES = 256  # of hashes: the parts of a band that are sorted at a time are made of them
KEYS_PER_PART = 2000  # fit the second-level cache with their hash table
BYTES_PER_KEY = 48  # of memory while keys are grouped: keys and numbers, twice, and pairs
BYTES_PER_PAIR = 120  # of memory while candidates are checked: codes, their sorted copies, two sketches
PLACE = pa.schema([("document", pa.int32()), ("paragraph", pa.int32()), ("rank", pa.uint8())])

Batches = Callable[[Path, collections.Counter[str]], Iterator[pa.RecordBatch]]


@dataclasses.dataclass(frozen=True)
class Index:
    """The corpus's files and what was counted when they were signed.

    Attributes:
        files: in order.
        work: the working folder.
        offsets: int64 [files + 1], the number of each file's first paragraph.
        documents, paragraphs: how many there are, short ones included.
        skipped: broken records by reason.
    """

    files: list[Path]
    work: Path
    offsets: np.ndarray
    documents: int
    paragraphs: int
    skipped: dict[str, int]

    @property
    def count(self) -> int:
        """Paragraphs long enough to be compared."""
        return int(self.offsets[-1])

    def column(self, folder: str, *names: str) -> Iterator[tuple[int, list[pa.Array]]]:
        """(number of the first row, the columns) of each row group of all files of a working folder."""
        for position, first in enumerate(self.offsets[:-1].tolist()):
            with pq.ParquetFile(file_of(self.work / folder, position)) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=list(names), use_threads=False)
                    yield first, [flat(table[name]) for name in names]
                    first += len(table)


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Paragraphs with their texts.

    Attributes:
        numbers: int64 [n], sorted.
        starts, ends: int64 [n], bytes of the text as it stands in its document (the last one not included).
        texts: the same to be compared; its data, where the others lie too, is a memory map.
        names: `document`, `source` and `rank` of each, a mapped Arrow table.
    """

    numbers: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    texts: minhash.Texts
    names: pa.Table

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of some numbers, all of which have to be there."""
        return np.searchsorted(self.numbers, numbers)

    def text(self, row: int) -> str:
        """The paragraph as it stands in its document."""
        return self.texts.data[self.starts[row] : self.ends[row]].tobytes().decode()


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What goes, and why; arrays of equal length, sorted by `removed`.

    Attributes:
        removed: int64, numbers of the paragraphs that go.
        twins: int64, rows in `nodes` of the ones kept instead.
        similarity: float32, exact, of the two.
        exact: bool, whether the two are equal in normal form.
        nodes: texts of the twins, among others.
        figures: for the manifest.
    """

    removed: np.ndarray
    twins: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray
    nodes: Nodes
    figures: dict[str, object]


Candidates = Callable[[Index, Scheme, np.ndarray, float], np.ndarray]


def sign(files: Sequence[Path], batches: Batches, how: Scheme, work: Path, priority: Sequence[str]) -> Index:
    """Signatures and places of each file that has none yet.

    Args:
        files: the corpus.
        batches: the documents of a file, the same ones every time; the second argument counts broken records by reason.
        how: how paragraphs are compared.
        work: the working folder.
        priority: names of sources, the best first; others rank after them.
    """
    ranks = {name: rank for rank, name in enumerate(priority)}
    for folder in ("signatures", "places"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, file in enumerate(progress.bar(files, title="sign", unit="files")):
            if not file_of(work / "places", position).exists():
                sign_file(batches, file, how, work, position, ranks, pool)
    counted = [_counts(file_of(work / "places", position)) for position in range(len(files))]
    skipped = collections.Counter()
    for counts in counted:
        skipped.update(counts["skipped"])
    sizes = [counts["compared"] for counts in counted]
    totals = (sum(counts[name] for counts in counted) for name in ("documents", "paragraphs"))
    return Index(list(files), work, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), *totals, dict(skipped))


def exact(index: Index, memory_gb: float) -> tuple[np.ndarray, np.ndarray]:
    """(int64 repeats, sorted; int64 what each repeats): equal in normal form; the best-ranked, then first one stays."""
    repeats, firsts = [], []
    digests = lambda: ((first, words(parts[0], 2)) for first, parts in index.column("signatures", "digest"))  # noqa: E731
    ranks = np.empty(index.count, np.uint8)
    for first, (part,) in index.column("places", "rank"):
        ranks[first : first + len(part)] = part
    sizes = np.zeros(RANGES, dtype=np.int64)
    for _, part in digests():
        kernels.count_ranges(part[:, 0], np.zeros(0, np.uint8), 0, sizes)
    for low, high in _shares(sizes, memory_gb):
        room = int(sizes[low:high].sum())
        upper, lower, numbers = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.int64)
        filled = 0
        for first, part in digests():
            filled = kernels.select_digests(part, first, low, high, upper, lower, numbers, filled)
        order = np.argsort(upper)
        found = kernels.repeats(upper[order], lower[order], numbers[order], ranks)
        repeats.append(found[0])
        firsts.append(found[1])
    repeated, kept = (np.concatenate(parts or [np.empty(0, np.int64)]) for parts in (repeats, firsts))
    order = np.argsort(repeated)
    return repeated[order], kept[order]


def banded(index: Index, how: Scheme, alive: np.ndarray, memory_gb: float) -> np.ndarray:
    """int64, sorted: codes (lesser number * count + greater one) of the pairs in a common bucket whose sketches agree.

    Args:
        index: the signed corpus.
        how: the scheme.
        alive: bits, by paragraph number, of those to look at.
        memory_gb: the budget.
    """
    return agreeing(index, how, _pairs_by_band(index, how, alive, memory_gb), memory_gb)


def agreeing(index: Index, how: Scheme, found: Iterator[np.ndarray], memory_gb: float) -> np.ndarray:
    """int64, sorted: the distinct ones of the codes that come in arrays, with sketches that agree in enough bits."""
    limit = int(memory_gb * 1e9 / 2 / BYTES_PER_PAIR)
    agreed, waiting, held = np.empty(0, np.int64), [], 0
    for codes in found:
        waiting.append(codes)
        held += len(codes)
        if held > limit:
            agreed, waiting, held = _distinct(agreed, _agreeing(index, how, waiting, limit)), [], 0
    return _distinct(agreed, _agreeing(index, how, waiting, limit))


def _pairs_by_band(index: Index, how: Scheme, alive: np.ndarray, memory_gb: float) -> Iterator[np.ndarray]:
    """int64 codes of the pairs in a common bucket, a share of a band at a time."""
    for band in progress.bar(range(how.bands), title="group", unit="bands"):
        name = f"band_{band}"
        keys = lambda name=name: ((f, np.asarray(parts[0])) for f, parts in index.column("signatures", name))  # noqa: E731
        sizes = np.zeros(RANGES, dtype=np.int64)
        for first, part in keys():
            kernels.count_ranges(part, alive, first, sizes)
        for low, high in _shares(sizes, memory_gb):
            room = int(sizes[low:high].sum())
            chosen, numbers = np.empty(room, np.uint64), np.empty(room, np.int64)
            filled = 0
            for first, part in keys():
                filled = kernels.select_keys(part, alive, first, low, high, chosen, numbers, filled)
            found = pairs_of_buckets(chosen, numbers, index.count)
            del chosen, numbers  # not held while the pairs are looked at
            yield found


def pairs_of_buckets(keys: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """int64 codes of the pairs of equal keys (uint64), given their ascending numbers (int64), all below `count`."""
    bits = max(1, (len(keys) // KEYS_PER_PART).bit_length())
    ends = np.empty(1 << bits, dtype=np.int64)
    scattered = np.empty_like(keys), np.empty_like(numbers)
    kernels.scatter(keys, numbers, bits, ends, *scattered)
    codes, found = kernels.pair_up(*scattered, ends, count, np.empty(len(keys) // 4 + kernels.FULL_BUCKET, np.int64))
    return codes[:found].copy()


def gather(index: Index, batches: Batches, numbers: np.ndarray, name: str = "nodes") -> Nodes:
    """Nodes of the paragraphs with some sorted numbers: the corpus is read once more, and their texts are put on disk."""
    folder = index.work / name
    if not folder.exists():
        building = index.work / f"{name}.partial"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        _write_nodes(index, batches, numbers, building)
        building.rename(folder)
    mapped = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r" if len(numbers) else None)  # noqa: E731
    size = (folder / "texts.bin").stat().st_size
    data = np.memmap(folder / "texts.bin", np.uint8, "r") if size else np.zeros(0, np.uint8)
    names = pa.ipc.open_file(pa.memory_map(str(folder / "names.arrow"))).read_all()
    texts = minhash.Texts(data, mapped("compare_starts"), mapped("compare_ends"), mapped("normal"))
    return Nodes(mapped("numbers"), mapped("starts"), mapped("ends"), texts, names)


def verified(nodes: Nodes, codes: np.ndarray, count: int, how: Scheme) -> np.ndarray:
    """float32: the exact similarities of pairs, by their codes."""
    parts = np.array_split(codes, max(1, min(4 * os.cpu_count(), len(codes) // 1000)))

    def measure(part: np.ndarray) -> np.ndarray:
        return minhash.similarities(nodes.texts, *map(nodes.rows, np.divmod(part, count)), how)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(progress.bar(pool.map(measure, parts), total=len(parts), title="verify")))


def find(
    index: Index,
    batches: Batches,
    how: Scheme,
    *,
    keep: str,
    memory_gb: float,
    repeated: Callable[[Index, float], tuple[np.ndarray, np.ndarray]] = exact,
    candidates: Candidates = banded,
) -> Duplicates:
    """Which paragraphs of a signed corpus go.

    Args:
        index: the signed corpus.
        batches: see `sign`.
        how: the scheme.
        keep: of similar ones, the 'first', the 'longest' or that of the best 'source'.
        memory_gb: the budget.
        repeated: finds exact repeats.
        candidates: finds the pairs that are checked.
    """
    repeats, firsts = _saved(index.work / "exact.npz", lambda: repeated(index, memory_gb))
    alive = lambda: _all_but(index.count, repeats)  # noqa: E731
    (codes,) = _saved(index.work / "candidates.npz", lambda: (candidates(index, how, alive(), memory_gb),))
    shutil.rmtree(index.work / "signatures", ignore_errors=True)
    count = max(index.count, 1)
    nodes = gather(index, batches, _distinct(*np.divmod(codes, count), firsts))
    (similarity,) = _saved(index.work / "similarity.npz", lambda: (verified(nodes, codes, count, how),))
    good = similarity >= np.float32(how.threshold)
    left, right = (nodes.rows(part) for part in np.divmod(codes[good], count))
    order = _preference(nodes, keep)
    instead, alike, spared = chosen(nodes, left, right, similarity[good], order, how)
    figures = {
        "bands": how.bands,
        "rows": how.rows,
        "candidates": len(codes),
        "verified": int(good.sum()),
        "spared": spared,
        "clusters_by_size": _cluster_sizes(nodes, left, right, firsts),
        "thresholds": _sweep(nodes, left, right, similarity[good], order, how),
    }
    # An exact copy of a near duplicate goes with it: its twin is what the near duplicate's twin is.
    rows = nodes.rows(firsts)
    gone = np.flatnonzero(instead != -1)
    removed = np.concatenate([repeats, nodes.numbers[gone]])
    twins = np.concatenate([np.where(instead[rows] == -1, rows, instead[rows]), instead[gone]])
    likeness = np.concatenate([alike[rows], alike[gone]])
    is_exact = np.concatenate([instead[rows] == -1, np.zeros(len(gone), bool)])
    by_number = np.argsort(removed)
    return Duplicates(*(part[by_number] for part in (removed, twins, likeness, is_exact)), nodes, figures)


def among(texts: Sequence[str], how: Scheme, *, keep: str = "first") -> dict[int, tuple[int, float]]:
    """{row of a text that goes: (row of the one kept instead, similarity)} among texts taken as wholes, such as prompts.

    Args:
        texts: the texts; line breaks count as spaces.
        how: the scheme; texts with fewer than its `min_chars` stay.
        keep: 'first' or 'longest'.
    """
    lines = pa.array([" ".join(text.splitlines()) for text in texts], pa.large_string())
    blank = pa.array([""] * len(texts), pa.string())
    columns = {"id": blank, "text": lines, "source": blank, "language": blank}
    given = pa.RecordBatch.from_pydict(columns, schema=documents.SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        index = sign([Path("texts")], lambda *_: iter([given]), how, Path(folder), [])
        rows = np.concatenate([np.asarray(column) for _, (column,) in index.column("places", "document")])
        found = find(index, lambda *_: iter([given]), how, keep=keep, memory_gb=4.0)
        twins = rows[found.nodes.numbers[found.twins]]
        pairs = zip(twins.tolist(), found.similarity.tolist(), strict=True)
        return dict(zip(rows[found.removed].tolist(), pairs, strict=True))


def chosen(
    nodes: Nodes, left: np.ndarray, right: np.ndarray, similarity: np.ndarray, order: np.ndarray, how: Scheme
) -> tuple[np.ndarray, np.ndarray, int]:
    """`minhash.choose` among the nodes, given their pairs by rows."""
    first = np.empty(len(nodes.numbers) + 1, dtype=np.int64)
    neighbours, alike = np.empty(2 * len(left), dtype=np.int32), np.empty(2 * len(left), dtype=np.float32)
    kernels.adjacency(left, right, similarity, first, neighbours, alike)
    return minhash.choose(nodes.texts, how, order, first, neighbours, alike)


def sign_file(
    batches: Batches,
    file: Path,
    how: Scheme,
    work: Path,
    position: int,
    ranks: Mapping[str, int],
    pool: concurrent.futures.Executor,
) -> None:
    """Sign a file's batches side by side and write them in order."""
    columns = [(f"band_{band}", pa.uint64()) for band in range(how.bands)]
    schema = pa.schema([*columns, ("sketch", pa.binary(minhash.SKETCH_BITS // 8)), ("digest", pa.binary(16))])
    targets = [file_of(work / folder, position) for folder in ("signatures", "places")]
    aside = [target.with_suffix(".partial") for target in targets]
    counts = collections.Counter(documents=0, paragraphs=0, compared=0)
    skipped: collections.Counter[str] = collections.Counter()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(aside[0], schema, **plain) as signatures, pq.ParquetWriter(aside[1], PLACE) as places:
        work_on = lambda batch: (batch, minhash.sign(batch["text"], how))  # noqa: E731
        for batch, signed in _in_order(pool, work_on, batches(file, skipped)):
            keys = [pa.Array.from_buffers(pa.uint64(), len(key), [None, pa.py_buffer(key)]) for key in signed.keys]
            arrays = [*keys, _fixed(signed.sketch), _fixed(signed.digest)]
            signatures.write_table(pa.table(arrays, schema=schema), row_group_size=max(1, len(signed.document)))
            rank = np.array([ranks.get(name, len(ranks)) for name in batch["source"].to_pylist()], dtype=np.uint8)
            rows = pa.table([signed.document, signed.paragraph, rank[signed.document]], schema=PLACE)
            places.write_table(rows, row_group_size=max(1, len(rows)))
            counts.update(documents=len(batch), paragraphs=signed.paragraphs, compared=len(rows))
        places.add_key_value_metadata({"counts": json.dumps({**counts, "skipped": skipped})})
    for written, target in zip(aside, targets, strict=True):
        written.rename(target)


def _in_order(pool: concurrent.futures.Executor, work: Callable, items: Iterator) -> Iterator:
    """`pool.map` that reads no more than a few items ahead."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * os.cpu_count():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def walk(index: Index, batches: Batches) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray, int]]:
    """Each batch of documents with its compared paragraphs: int32 document rows, paragraph numbers; the first one's number."""
    places = index.column("places", "document", "paragraph")
    for file in index.files:
        for batch in batches(file, collections.Counter()):
            first, (document, paragraph) = next(places)
            yield batch, np.asarray(document), np.asarray(paragraph), first


def _write_nodes(index: Index, batches: Batches, numbers: np.ndarray, folder: Path) -> None:
    lengths, forms, hard_rows = [np.zeros(0, np.int64)], [], []
    size, row = 0, 0
    names = pa.schema([("document", pa.string()), ("source", pa.string()), ("rank", pa.uint8())])
    ranks = index.column("places", "rank")
    with (
        (folder / "texts.bin").open("wb") as texts,
        pa.ipc.new_file(str(folder / "names.arrow"), names) as written,
    ):
        for batch, document, paragraph, first in progress.bar(walk(index, batches), title="gather", unit="batches"):
            _, (rank,) = next(ranks)
            low, high = np.searchsorted(numbers, [first, first + len(document)])
            here = numbers[low:high] - first
            if not len(here):
                continue
            wanted, place = np.unique(document[here], return_inverse=True)
            owner, number, starts, ends = minhash.split(batch["text"], wanted)
            rows = np.searchsorted(owner, place) + paragraph[here]
            assert (number[rows] == paragraph[here]).all()
            _, data = minhash.buffers(batch["text"])
            starts, ends = starts[rows], ends[rows]
            found, hard = minhash.normal_forms(data, starts, ends)
            forms += [form.encode() for form in found]
            hard_rows.append(row + hard)
            texts.write(minhash.joined(data, starts, ends))
            lengths.append(ends - starts)
            of = pa.array(document[here])
            columns = [batch["id"].take(of), batch["source"].take(of), rank.take(pa.array(here))]
            written.write_batch(pa.record_batch(columns, schema=names))
            row += len(here)
            size += int((ends - starts).sum())
        texts.write(b"".join(forms))
    sizes = np.concatenate(lengths)
    form_sizes = np.array([len(form) for form in forms], dtype=np.int64)
    hard = np.concatenate(hard_rows) if hard_rows else np.empty(0, np.int64)
    ends = np.cumsum(sizes)
    compare_ends, compare_sizes = ends.copy(), sizes.copy()
    compare_ends[hard], compare_sizes[hard] = size + np.cumsum(form_sizes), form_sizes
    normal = np.zeros(len(ends), bool)
    normal[hard] = True
    spans = {"numbers": numbers, "normal": normal, "starts": ends - sizes, "ends": ends}
    spans |= {"compare_starts": compare_ends - compare_sizes, "compare_ends": compare_ends}
    for name, values in spans.items():
        np.save(folder / f"{name}.npy", values)


def _agreeing(index: Index, how: Scheme, codes: list[np.ndarray], limit: int) -> np.ndarray:
    """The distinct ones of some pairs whose sketches agree in enough bits, sorted."""
    distinct = _distinct(*codes)
    codes.clear()
    kept = [np.empty(0, np.int64)]
    for part in np.array_split(distinct, len(distinct) // limit + 1):
        left, right = np.divmod(part, max(index.count, 1))
        numbers = _distinct(left, right)
        sketches = np.empty((len(numbers), minhash.SKETCH_BITS // 64), dtype=np.uint64)
        for first, (column,) in index.column("signatures", "sketch"):
            low, high = np.searchsorted(numbers, [first, first + len(column)])
            sketches[low:high] = words(column, 4)[numbers[low:high] - first]
        rows = (np.searchsorted(numbers, side) for side in (left, right))
        kept.append(part[kernels.agreement(sketches, *rows) >= how.least_agreement])
    return np.concatenate(kept)


def _preference(nodes: Nodes, keep: str) -> np.ndarray:
    """int64: the nodes' rows, those to keep rather than others first."""
    if keep == "longest":
        return np.argsort(nodes.starts - nodes.ends, kind="stable")
    if keep == "source":
        return np.argsort(nodes.names["rank"].to_numpy(), kind="stable")
    return np.arange(len(nodes.numbers))


def _cluster_sizes(nodes: Nodes, left: np.ndarray, right: np.ndarray, firsts: np.ndarray) -> dict[str, int]:
    """How many clusters of similar or equal paragraphs there are of each size, by union-find."""
    sizes = np.ones(len(nodes.numbers), dtype=np.int64)
    np.add.at(sizes, nodes.rows(firsts), 1)
    members = np.bincount(minhash.clusters(len(sizes), left, right), weights=sizes, minlength=len(sizes))
    values, counts = np.unique(members[members > 1].astype(np.int64), return_counts=True)
    return {str(value): count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def _sweep(
    nodes: Nodes, left: np.ndarray, right: np.ndarray, similarity: np.ndarray, order: np.ndarray, how: Scheme
) -> list[dict[str, float]]:
    """How many near duplicates higher thresholds would remove."""
    steps = (step / 100 for step in range(5, 100, 5))
    thresholds = [how.threshold, *(step for step in steps if step > how.threshold + 0.001)]
    found = []
    for threshold in thresholds:
        good = similarity >= np.float32(threshold)
        stricter = dataclasses.replace(how, threshold=threshold)
        instead, _, spared = chosen(nodes, left[good], right[good], similarity[good], order, stricter)
        found.append({"threshold": threshold, "removed": int((instead != -1).sum()), "spared": spared})
    return found


def _distinct(*parts: np.ndarray) -> np.ndarray:
    """The distinct ones of some int64, sorted; np.unique hashes them, in several times their memory."""
    values = np.concatenate([np.empty(0, np.int64), *parts])
    values.sort()
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def _saved(path: Path, compute: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Arrays from a file, written first if it is not there."""
    if not path.exists():
        aside = path.with_suffix(".partial.npz")
        np.savez(aside, *compute())
        aside.rename(path)
    with np.load(path) as saved:
        return [saved[name] for name in saved.files]


def _all_but(count: int, numbers: np.ndarray) -> np.ndarray:
    """uint8: bits by number, all set but those."""
    alive = np.full(count // 8 + 1, 255, dtype=np.uint8)
    np.bitwise_and.at(alive, numbers >> 3, ~(np.uint8(1) << (numbers & 7).astype(np.uint8)))
    return alive


def _shares(sizes: np.ndarray, memory_gb: float) -> Iterator[tuple[int, int]]:
    """(first range, end) of the runs of ranges to be sorted at a time."""
    limit = memory_gb * 1e9 / 2 / BYTES_PER_KEY
    low = 0
    for high in range(1, RANGES + 1):
        if high == RANGES or sizes[low : high + 1].sum() > limit:
            yield low, high
            low = high


def file_of(folder: Path, position: int) -> Path:
    return folder / f"{position:06d}.parquet"


def _counts(path: Path) -> dict:
    with pq.ParquetFile(path) as file:
        return json.loads(file.metadata.metadata[b"counts"])


def flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _fixed(values: np.ndarray) -> pa.Array:
    """A fixed-size binary array of a matrix's rows."""
    kind = pa.binary(values.shape[1] * values.itemsize)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def words(column: pa.Array, width: int) -> np.ndarray:
    """uint64 [n, width] of a fixed-size binary array."""
    _, data = column.buffers()
    words = np.frombuffer(data, np.uint64) if len(column) else np.empty(0, np.uint64)
    return words[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
