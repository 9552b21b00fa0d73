"""lib/duplicates.py's engine on many machines: the same three functions, `sign`, `exact` and `banded`, run by Daft; and
`each`, by which lib/sieve.py does the same.

Daft runs in this process, or on the Ray cluster that RAY_ADDRESS names ('local' starts one here). All machines need this
code and the corpus and the working folder at the same paths: signatures are the same files as the local engine's, and
what it finds is the same, pair by pair.

Files are signed side by side. To group, each row group of signatures is split into *parts* by band and range of hashes;
Daft brings the pieces of a part together, as bytes rather than as rows, and the local engine's kernels look for equal
keys in it. The driver checks sketches and pairs, chooses what stays and writes the documents; it holds what the local
engine holds.
"""

import concurrent.futures
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib import duplicates, kernels, progress, storage
from lib.duplicates import Batches, Index
from lib.errors import UserError
from lib.minhash import Scheme

ROWS_PER_PART = 4_000_000  # of a band, at most about: a part is grouped by one thread
COPIES = 4  # of a row, where Daft brings rows together: sent, gathered, joined and sorted
OBJECT_STORE = 1 << 30  # bytes of shared memory for a Ray of this machine; it spills to disk

Split = Callable[[int, int, int, range], Iterator[tuple[int, np.ndarray]]]
Settle = Callable[[np.ndarray], np.ndarray]


@functools.cache
def connect() -> ModuleType:
    """Daft, connected to what is to run it.

    Raises:
        UserError: Daft or Ray is not installed, or no cluster answers.
    """
    # Neither reports its use to anybody: the pipeline also runs where there is no network.
    os.environ |= {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the processes that it starts
    address = os.environ.get("RAY_ADDRESS")
    try:
        import daft

        if address:
            import ray
    except ImportError as error:
        raise UserError(
            f"--engine=daft: {error.name} is not installed; pip install -r requirements/distributed.txt"
        ) from None
    if not address:
        daft.set_runner_native()
        progress.say(f"Daft {daft.__version__} in this process")
        return daft
    variables = {
        name: os.environ[name]
        for name in ("DO_NOT_TRACK", "DAFT_PROGRESS_BAR", "NUMBA_CACHE_DIR", "PYTHONPATH")
        if name in os.environ
    }
    # A cluster that exists has its own dashboard and memory, and refuses to be told.
    here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == "local" else {}
    try:
        if ":" in address:  # where nothing answers, Ray goes on trying for more than four minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(runtime_env={"env_vars": variables}, logging_level="error", log_to_driver=False, **here)
    except (OSError, ValueError) as error:
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers ({error})") from None
    daft.set_runner_ray(noop_if_initialized=True)
    machines = sum(node["Alive"] for node in ray.nodes())
    progress.say(f"Daft {daft.__version__} on {daft.get_or_infer_runner_type()}, machines: {machines}")
    return daft


def each(
    rows: dict[str, list], work: Callable[..., int | None], title: str, unit: str, processes: int | None = None
) -> dict[int, int | None]:
    """What `work` counts in each task, by the tasks' numbers.

    Args:
        rows: the columns that `work` gets, one row a task; the first is `number`.
        work: returns a count or nothing; what it refers to has to be on every machine.
        title: of the progress bar.
        unit: what it counts.
        processes: of their own that tasks share on all machines, 0 for one a core or GPU; None: threads will do.

    Raises:
        UserError: of `work`, the first that is heard of.
    """
    daft = connect()
    waiting = rows["number"]
    answer = daft.DataType.struct({"count": daft.DataType.int64(), "problem": daft.DataType.string()})
    if processes is None:

        @daft.func.batch(return_dtype=answer, batch_size=1)
        def answered(*columns: object) -> list[dict]:
            return _answers(work, *columns)

    else:
        cores, gpus = _cores_and_gpus()
        processes = min(processes or gpus or cores, max(1, len(waiting)))

        # Only for a class does Daft keep processes from task to task, and with them what they have loaded.
        @daft.cls(max_concurrency=processes, gpus=int(gpus > 0), use_process=True)
        class Kept:
            @daft.method.batch(return_dtype=answer, batch_size=1)
            def answered(self, *columns: object) -> list[dict]:
                return _answers(work, *columns)

        answered = Kept().answered

    found = {}
    with progress.bar(total=len(waiting), title=title, unit=unit) as bar:
        tasks = _tasks(daft, rows).select(daft.col("number"), answered(*map(daft.col, rows)).alias("answer"))
        batches = tasks.to_arrow_iter() if waiting else iter(())
        for batch in batches:
            bar.update(len(batch))
            for row in batch.to_pylist():
                if row["answer"]["problem"]:
                    sys.unraisablehook = lambda _: None  # Daft, left halfway, prints a traceback of its own
                    batches.close()
                    sys.unraisablehook = sys.__unraisablehook__
                    raise UserError(row["answer"]["problem"])
                found[row["number"]] = row["answer"]["count"]
    return found


def sign(files: Sequence[Path], batches: Batches, how: Scheme, work: Path, priority: Sequence[str]) -> Index:
    """`duplicates.sign`, a file a task.

    Raises:
        UserError: broken input, as `batches` says.
    """
    there = work.resolve()
    for folder in ("signatures", "places"):
        (there / folder).mkdir(parents=True, exist_ok=True)
    ranks = {name: rank for rank, name in enumerate(priority)}
    waiting = [number for number in range(len(files)) if not duplicates.file_of(there / "places", number).exists()]

    def sign_file(number: int, name: str) -> None:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            duplicates.sign_file(batches, storage.named(name), how, there, number, ranks, pool)

    rows = {"number": waiting, "name": [str(files[number].resolve()) for number in waiting]}
    each(rows, sign_file, "sign", "files")
    return duplicates.sign(files, batches, how, work, priority)


def exact(index: Index, memory_gb: float) -> tuple[np.ndarray, np.ndarray]:
    """`duplicates.exact`."""
    ranges = -(-index.count // ROWS_PER_PART)
    work = index.work.resolve()

    def split(file: int, group: int, first: int, _: range) -> Iterator[tuple[int, np.ndarray]]:
        digest = duplicates.words(_column(work / "signatures", file, group, "digest"), 2)
        rank = np.asarray(_column(work / "places", file, group, "rank")).astype(np.uint64)
        numbers = np.arange(first, first + len(digest), dtype=np.uint64)
        yield from _ranges(digest[:, 0], ranges, np.column_stack([digest, numbers, rank]))

    def settle(rows: np.ndarray) -> np.ndarray:
        rows = rows[np.argsort(rows[:, 2])]
        # The kernel looks ranks up by number: those of a part are numbered among themselves, in the same order.
        order = np.argsort(rows[:, 0])
        found = kernels.repeats(rows[order, 0], rows[order, 1], order, rows[:, 3].astype(np.uint8))
        return np.stack([rows[part, 2] for part in found]).astype(np.int64).T

    found = [np.empty((0, 2), np.int64)]
    for piece in _grouped(index, ranges, 4, memory_gb, split, settle, "exact"):
        found.append(piece.reshape(-1, 2))
    repeated, kept = np.concatenate(found).T
    order = np.argsort(repeated)
    return repeated[order], kept[order]


def banded(index: Index, how: Scheme, alive: np.ndarray, memory_gb: float) -> np.ndarray:
    """`duplicates.banded`."""
    ranges = -(-index.count // ROWS_PER_PART)
    count, work = index.count, index.work.resolve()
    np.save(work / "alive.npy", alive)

    def split(file: int, group: int, first: int, parts: range) -> Iterator[tuple[int, np.ndarray]]:
        alive = np.load(work / "alive.npy", mmap_mode="r")
        for band in range(parts.start // ranges, -(-parts.stop // ranges)):
            keys = np.asarray(_column(work / "signatures", file, group, f"band_{band}"))
            chosen, numbers = np.empty(len(keys), np.uint64), np.empty(len(keys), np.int64)
            filled = kernels.select_keys(keys, alive, first, 0, duplicates.RANGES, chosen, numbers, 0)
            rows = np.column_stack([chosen[:filled], numbers[:filled].view(np.uint64)])
            for place, members in _ranges(rows[:, 0], ranges, rows):
                yield band * ranges + place, members

    def settle(rows: np.ndarray) -> np.ndarray:
        rows = rows[np.argsort(rows[:, 1])]
        keys, numbers = (np.ascontiguousarray(column) for column in rows.T)
        return duplicates.pairs_of_buckets(keys, numbers.view(np.int64), count)

    found = _grouped(index, how.bands * ranges, 2, memory_gb, split, settle, "group")
    return duplicates.agreeing(index, how, found, memory_gb)


def _grouped(
    index: Index, parts: int, width: int, memory_gb: float, split: Split, settle: Settle, title: str
) -> Iterator[np.ndarray]:
    """What `settle` finds in each part that has rows.

    Args:
        index: the signed corpus.
        parts: how many there are.
        width: words in a row.
        memory_gb: of each machine; as many parts are brought together at a time as it has room for.
        split: (part, uint64 [n, width] rows) of a row group, given the file's number, its own in the file, that of its
            first paragraph, and the parts that are wanted.
        settle: int64, from all rows of a part, in any order.
        title: of the progress bar.
    """
    daft = connect()
    column, kind = daft.col, daft.DataType
    piece = kind.struct({"part": kind.int64(), "rows": kind.binary()})

    @daft.func.batch(return_dtype=kind.list(piece), batch_size=1)
    def pieces(file: object, group: object, first: object, start: int, stop: int) -> list[list[dict]]:
        found = []
        for row in zip(file.to_pylist(), group.to_pylist(), first.to_pylist(), strict=True):
            wanted = split(*row, range(start, stop))
            found.append([{"part": part, "rows": rows.tobytes()} for part, rows in wanted if start <= part < stop])
        return found

    @daft.func.batch(return_dtype=kind.binary(), batch_size=1)
    def settled(parts: object) -> list[bytes]:
        joined = (np.frombuffer(b"".join(rows), np.uint64).reshape(-1, width) for rows in parts.to_pylist())
        return [settle(rows).tobytes() for rows in joined]

    tasks = _tasks(daft, _row_groups(index))
    machines = len(_machines())
    room = memory_gb * 1e9 * machines / 2 / COPIES / 8 / width
    # `exact` has one hash to split, `banded` one for each band: a part has about as many rows either way.
    step = max(1, int(room / max(1, min(index.count, ROWS_PER_PART))))
    with progress.bar(total=parts, title=title, unit="parts") as bar:
        for start in range(0, parts, step):
            stop = min(start + step, parts)
            given = (column("file"), column("group"), column("first"), start, stop)
            rows = tasks.select(pieces(*given).alias("piece")).explode("piece").where(column("piece").not_null())
            rows = rows.select(column("piece")["part"].alias("part"), column("piece")["rows"].alias("rows"))
            found = rows.groupby("part").list_agg("rows").select(settled(column("rows")).alias("found"))
            for batch in found.to_arrow_iter():
                for value in batch["found"]:
                    yield np.frombuffer(value.as_buffer(), np.int64)
            bar.update(stop - start)


def _row_groups(index: Index) -> dict[str, list[int]]:
    """Of each row group of the signatures: the file's number, its own in the file, and the number of its first paragraph."""
    found: dict[str, list[int]] = {"file": [], "group": [], "first": []}
    for number, first in enumerate(index.offsets[:-1].tolist()):
        described = pq.read_metadata(duplicates.file_of(index.work / "signatures", number))
        for group in range(described.num_row_groups):
            for name, value in (("file", number), ("group", group), ("first", first)):
                found[name].append(value)
            first += described.row_group(group).num_rows
    return found


def _tasks(daft: ModuleType, rows: dict[str, list]) -> object:
    """A data frame of which each row can run on another machine."""
    frame = daft.from_pydict(rows)
    return frame.into_partitions(max(1, len(next(iter(rows.values()))))) if _machines() != [None] else frame


def _answers(work: Callable[..., int | None], *columns: object) -> list[dict]:
    """`work` done for each row of a batch; Ray would wrap its errors, with a traceback."""
    found = []
    for row in zip(*(column.to_pylist() for column in columns), strict=True):
        try:
            found.append({"count": work(*row), "problem": None})
        except UserError as error:
            found.append({"count": None, "problem": str(error)})
    return found


def _cores_and_gpus() -> tuple[int, int]:
    """Of all machines."""
    if not os.environ.get("RAY_ADDRESS"):
        import torch

        return len(os.sched_getaffinity(0)), torch.cuda.device_count()
    import ray

    there = ray.cluster_resources()
    return int(there.get("CPU", 1)), int(there.get("GPU", 0))


def _machines() -> list:
    """The nodes of the cluster, or a None for this process."""
    if not os.environ.get("RAY_ADDRESS"):
        return [None]
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _column(folder: Path, file: int, group: int, name: str) -> pa.Array:
    with pq.ParquetFile(duplicates.file_of(folder, file)) as opened:
        return duplicates.flat(opened.read_row_group(group, columns=[name], use_threads=False)[name])


def _ranges(hashes: np.ndarray, ranges: int, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(range, its rows) of those ranges of hashes (uint64) that have any."""
    if not len(hashes):
        return
    places = ((hashes >> np.uint64(32)) * np.uint64(ranges)) >> np.uint64(32)
    order = np.argsort(places, kind="stable") if ranges > 1 else slice(None)
    values, firsts = np.unique(places[order], return_index=True)
    yield from zip(values.tolist(), np.split(rows[order], firsts[1:]), strict=True)
