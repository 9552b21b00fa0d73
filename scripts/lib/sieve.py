"""A corpus through the filter, in memory that does not grow with it: sampled, judged part by part, written.

Judging is the long step. Its results go to a small file for every `PART` documents, renamed into place, so that an
interrupted run goes on from the last one (`judge_by_daft` writes them in any order). Parts say how it went: a reason
or none, a score, the length.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import heapq
import itertools
import multiprocessing
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib import documents, languages, masking, rules, scoring, storage
from lib.corruption import CRITERIA

PART = 20_000  # documents between two points from which an interrupted run can go on
BLOCK = 1_000  # documents that a process judges at a time: enough to sort by length
SPARE = 3  # times as many documents are sampled as are wanted, because some will break the rules
HELD_OUT_SHARE = 5  # at most one in five of a language's documents is held out
LOW_QUALITY = "low_quality"
GRID = np.round(np.arange(1, 5.0005, 0.001), 3)  # the scores at which counts are kept
SHOWN = 20  # samples of what each reason removed
SHOWN_CHARACTERS = 300
VERDICTS = pa.schema(
    [
        ("reason", pa.string()),
        ("score", pa.float32()),
        *((criterion, pa.float32()) for criterion in CRITERIA),
        ("characters", pa.int64()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("hash", pa.uint64()),
    ]
)
Batches = Callable[[Path, Counter[str]], Iterator[pa.RecordBatch]]
known = functools.lru_cache(maxsize=None)(languages.load)  # (code, folder): read once a process


def sample(
    stream: Iterable[dict],
    count: int,
    limits: Mapping[str, float],
    folder: Path | None,
    seed: int,
    broken: Counter[str] | None = None,
) -> list[tuple[str, str, str]]:
    """(text, language, source) of up to `count` documents that keep the rules, drawn in turn from each language's sources.

    A reservoir for each of them, so that small sources are heard too and a big corpus is read once. `broken` counts the
    rules that kept documents of the reservoirs out.
    """
    rng = random.Random(seed)
    reservoirs: dict[tuple[str, str], list[str]] = defaultdict(list)
    seen: Counter[tuple[str, str]] = Counter()
    for document in stream:
        group = (document["language"], document["source"])
        seen[group] += 1
        if len(reservoirs[group]) < SPARE * count:
            reservoirs[group].append(document["text"])
        elif (place := rng.randrange(seen[group])) < SPARE * count:
            reservoirs[group][place] = document["text"]
    queues = []
    for (code, source), texts in reservoirs.items():
        rng.shuffle(texts)
        queues.append(_passing(texts, code, source, limits, folder, Counter() if broken is None else broken))
    chosen: list[tuple[str, str, str]] = []
    while queues and len(chosen) < count:
        drawn = [(queue, next(queue, None)) for queue in queues]
        queues = [queue for queue, found in drawn if found is not None]
        chosen += [found for _, found in drawn if found is not None]
    return chosen[:count]


def _passing(
    texts: Sequence[str],
    code: str,
    source: str,
    limits: Mapping[str, float],
    folder: Path | None,
    broken: Counter[str],
) -> Iterator[tuple[str, str, str]]:
    for text in texts:
        reason = rules.broken(text, known(code, folder), limits)
        if reason is None:
            yield text, code, source
        else:
            broken[reason] += 1


def judge(
    stream: Iterable[dict],
    folder: Path,
    model: Path,
    *,
    limits: Mapping[str, float],
    language_folder: Path | None,
    precision: scoring.Precision,
    devices: Sequence[str],
    processes: int,
) -> None:
    """Write the parts of a corpus to `folder`: rules first, then scores of what keeps them; finished parts stay.

    Args:
        stream: the documents, the same and in the same order in every run.
        folder: of the parts.
        model: the trained filter.
        limits: of the rules.
        language_folder: the languages' YAML files.
        precision: of the scores (lib/scoring.py).
        devices: that the processes take in turn.
        processes: each with one thread and a filter of its own; 1 is this process.
    """
    folder.mkdir(exist_ok=True)
    finished = len(parts(folder))
    stream = iter(stream)
    collections.deque(itertools.islice(stream, finished * PART), maxlen=0)
    how = {"model": model, "precision": precision, "devices": tuple(devices)}
    work = functools.partial(verdicts, limits=dict(limits), language_folder=language_folder, **how)
    rows: list[pa.Table] = []
    with _pool(processes) as submit:
        for table in _in_order(submit, work, _blocks(stream), ahead=2 * processes):
            rows.append(table)
            if sum(table.num_rows for table in rows) >= PART:
                finished = _write_part(folder, finished, rows)
    if rows or not finished:
        _write_part(folder, finished, rows)


def judge_by_daft(
    files: Sequence[Path],
    batches: Batches,
    folder: Path,
    model: Path,
    *,
    limits: Mapping[str, float],
    language_folder: Path | None,
    precision: scoring.Precision,
    processes: int,
) -> None:
    """`judge` on many machines (lib/distributed.py): the same parts and blocks, so the same scores.

    Files are counted side by side, then each part is read and judged by one of the processes that Daft keeps. To reach a
    part a process reads its file from the beginning: one of many million lines is better cut before.

    Args:
        files: of the documents.
        batches: the documents of a file; what is skipped is counted in the counter.
        folder: see `judge`.
        model: see `judge`.
        limits: see `judge`.
        language_folder: see `judge`.
        precision: see `judge`.
        processes: of all machines together; 0 is one a core or GPU.

    Raises:
        UserError: broken input, as `batches` says, or a language that has no settings.
    """
    from lib import distributed  # the scoring processes do without

    folder.mkdir(exist_ok=True)
    there, names = folder.resolve(), [str(file.resolve()) for file in files]
    how = {
        "limits": dict(limits),
        "language_folder": language_folder and language_folder.resolve(),
        "model": model.resolve(),
        "precision": precision,
    }

    def count(_: int, name: str) -> int:
        return sum(map(len, batches(storage.named(name), Counter())))

    counts = distributed.each({"number": list(range(len(names))), "name": names}, count, "count", "files")
    wanted = spans([counts[number] for number in range(len(names))])
    waiting = [number for number in range(len(wanted)) if not part_file(there, number).exists()]

    def judge_part(number: int) -> None:
        _one_thread()
        pieces = (records(batches(storage.named(names[file]), Counter()), *span) for file, *span in wanted[number])
        blocks = _blocks(itertools.chain.from_iterable(pieces))
        _write_part(there, number, [verdicts(block, devices=scoring.devices(), **how) for block in blocks])

    distributed.each({"number": waiting}, judge_part, "judge", "parts", processes)


def verdicts(
    block: Sequence[dict],
    *,
    limits: Mapping[str, float],
    language_folder: Path | None,
    model: Path,
    precision: scoring.Precision,
    devices: Sequence[str],
) -> pa.Table:
    """The judgement of some documents, in their order, as `VERDICTS`: a rule's reason, or a score."""
    reasons = [rules.broken(d["text"], known(d["language"], language_folder), limits) for d in block]
    passing = [place for place, reason in enumerate(reasons) if reason is None]
    scored = np.full((len(block), len(scoring.HEADS)), np.nan, dtype=np.float32)
    if passing:
        score = scoring.load(model, precision, _ours(devices))
        scored[passing] = score([block[place]["text"] for place in passing])
    columns = {
        name: pa.array(column, from_pandas=True)  # nan is none
        for name, column in zip(scoring.HEADS, scored.T, strict=True)
    }
    return pa.table(
        {
            "reason": pa.array(reasons, pa.string()),
            "score": columns.pop("overall"),
            **columns,
            "characters": [len(document["text"]) for document in block],
            "source": [document["source"] for document in block],
            "language": [document["language"] for document in block],
            "hash": pa.array([_hash(document["id"]) for document in block], pa.uint64()),
        },
        schema=VERDICTS,
    )


def parts(folder: Path) -> list[Path]:
    """The finished parts, in the order of the documents."""
    return sorted(folder.glob("[0-9]*.parquet"))


def part_file(folder: Path, number: int) -> Path:
    """The file of a part, finished or not."""
    return folder / f"{number:06d}.parquet"


def spans(counts: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """Of each part, (file, its first document there, the one after its last), for files of so many documents.

    An empty corpus has one empty part.
    """
    ends = np.cumsum([0, *counts]).tolist()
    found: list[list[tuple[int, int, int]]] = []
    for start in range(0, max(1, ends[-1]), PART):
        cut = [(max(start - begin, 0), min(start + PART, end) - begin) for begin, end in itertools.pairwise(ends)]
        found.append([(file, *pair) for file, pair in enumerate(cut) if pair[0] < pair[1]])
    return found


def records(batches: Iterable[pa.RecordBatch], first: int = 0, stop: int | None = None) -> Iterator[dict]:
    """Documents of batches as records, from `first` to before `stop`; the others become no objects."""
    place = 0
    for batch in batches:
        if stop is not None and place >= stop:
            return
        begin, end = max(first - place, 0), len(batch) if stop is None else min(stop - place, len(batch))
        if begin < end:
            yield from batch.slice(begin, end - begin).to_pylist()
        place += len(batch)


class Tally:
    """Counts over a corpus' verdicts: the rules' reasons, and the scores by source on a grid."""

    def __init__(self, folder: Path):
        self.documents = self.characters = 0
        self.by_rule: Counter[str] = Counter()
        self._criteria = np.zeros(len(CRITERIA))
        self._documents: dict[str, np.ndarray] = {}
        self._characters: dict[str, np.ndarray] = {}
        for part in parts(folder):
            table = pq.read_table(part)
            self.documents += table.num_rows
            scored = np.array(table["score"].to_numpy(), dtype=np.float64)
            lengths, sources = table["characters"].to_numpy(), np.array(table["source"].to_pylist(), dtype=object)
            self.characters += int(lengths.sum())
            for source in sorted(set(sources.tolist())):
                ours = (sources == source) & ~np.isnan(scored)
                places = _place(scored[ours])
                for counts, weights in ((self._documents, None), (self._characters, lengths[ours])):
                    added = np.bincount(places, weights=weights, minlength=len(GRID))
                    counts[source] = counts.get(source, 0) + added.astype(np.int64)
            self.by_rule.update(reason for reason in table["reason"].to_pylist() if reason is not None)
            self._criteria += [pc.sum(table[name]).as_py() or 0.0 for name in CRITERIA]

    @property
    def scored(self) -> int:
        """Documents that kept the rules."""
        return int(sum(counts.sum() for counts in self._documents.values()))

    def criteria(self) -> dict[str, float]:
        """The mean score of each criterion."""
        return {name: round(float(m), 3) for name, m in zip(CRITERIA, self._criteria / self.scored, strict=True)}

    def keeping(self, share: float) -> float:
        """The highest score on the grid at which that share of all characters, the rules' victims included, is kept."""
        left = _from_above(sum(self._characters.values()))
        reached = GRID[left >= share * self.characters]
        return float(reached.max(initial=0.0))

    def kept_shares(self) -> dict[str, list[dict[str, float]]]:
        """By source, the share of the documents and characters with a score that thresholds in steps of 0.1 would keep."""
        curves = {}
        for source in sorted(self._documents):
            left = [_from_above(counts[source]) for counts in (self._documents, self._characters)]
            if left[0][0]:
                curves[source] = [
                    {"threshold": float(GRID[at])}
                    | {n: round(float(c[at] / c[0]), 4) for n, c in zip(("documents", "characters"), left, strict=True)}
                    for at in range(0, len(GRID), 100)
                ]
        return curves

    def percentiles(self, wanted: Sequence[int] = (0, 1, 5, 25, 50, 75, 95, 100)) -> dict[str, float]:
        """Percentiles of the scores, to 0.001."""
        total = np.cumsum(sum(self._documents.values()))
        places = np.searchsorted(total, np.maximum(1, np.ceil(np.array(wanted) / 100 * total[-1])))
        return {f"p{p}": float(GRID[place]) for p, place in zip(wanted, places, strict=True)}


def hold_out(folder: Path, threshold: float, count: int) -> tuple[int, dict[str, set[int]]]:
    """(number of documents kept, positions by language of those to hold out).

    Those are a language's kept documents with the smallest hashes of their ids, at most one in five.
    """
    smallest: dict[str, list[tuple[int, int]]] = defaultdict(list)  # heaps of (-hash, -position)
    kept: Counter[str] = Counter()
    position = 0
    for part in parts(folder):
        for row in pq.read_table(part, columns=["reason", "score", "language", "hash"]).to_pylist():
            if row["reason"] is None and row["score"] >= threshold:
                kept[row["language"]] += 1
                heap = smallest[row["language"]]
                heapq.heappush(heap, (-row["hash"], -position))
                if len(heap) > count:
                    heapq.heappop(heap)
            position += 1
    return kept.total(), {
        language: {-place for _, place in sorted(heap, reverse=True)[: kept[language] // HELD_OUT_SHARE]}
        for language, heap in smallest.items()
    }


def write(
    stream: Iterable[dict],
    folder: Path,
    verdict_folder: Path,
    *,
    threshold: float,
    held: set[int],
    language_folder: Path | None,
    mask_personal_data: bool,
) -> dict[str, object]:
    """Write documents and removed; return counts and samples of what each reason removed."""
    by_source: dict[str, Counter[str]] = defaultdict(Counter)
    characters: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    samples: dict[str, list[dict]] = defaultdict(list)
    score_field = ("score", pa.float32())
    with (
        documents.writing(folder / "documents", extra=[score_field, ("split", pa.string())]) as keep,
        documents.writing(folder / "removed", extra=[("reason", pa.string()), score_field]) as remove,
    ):
        for place, (document, (reason, score)) in enumerate(zip(stream, _verdicts(verdict_folder), strict=True)):
            reason = LOW_QUALITY if reason is None and score < threshold else reason
            fields = {name: document[name] for name in ("id", "text", "source", "language")} | {"score": score}
            by_source[document["source"]][reason or "kept"] += 1
            if reason is None:
                if mask_personal_data:
                    fields["text"], found = masking.mask(fields["text"], known(document["language"], language_folder))
                    masked += found
                split = "held_out" if place in held else "train"
                keep.write(fields | {"split": split})
                characters[split] += len(fields["text"])
            else:
                remove.write(fields | {"reason": reason})
                characters["removed"] += len(document["text"])
                _draw(samples[reason], fields, sum(counts[reason] for counts in by_source.values()), place)
        return {
            "kept": keep.rows,
            "removed": remove.rows,
            "by_source": {source: dict(counts.most_common()) for source, counts in sorted(by_source.items())},
            "characters": dict(characters),
            "masked": dict(masked),
            "samples": dict(samples),
        }


def _draw(samples: list[dict], fields: dict, seen: int, seed: int) -> None:
    """A reservoir of `SHOWN` beginnings; the same run shows the same."""
    shown = fields | {"text": fields["text"][:SHOWN_CHARACTERS]}
    if len(samples) < SHOWN:
        samples.append(shown)
    elif (place := random.Random(seed).randrange(seen)) < SHOWN:
        samples[place] = shown


def _verdicts(folder: Path) -> Iterator[tuple[str | None, float | None]]:
    for part in parts(folder):
        table = pq.read_table(part, columns=["reason", "score"])
        yield from zip(table["reason"].to_pylist(), table["score"].to_pylist(), strict=True)


def _write_part(folder: Path, number: int, rows: list[pa.Table]) -> int:
    """Write the rows as one part and forget them; the number of the next."""
    path = part_file(folder, number)
    aside = path.with_suffix(f".{os.getpid()}")  # what a killed run left running must not write to the same file
    pq.write_table(pa.concat_tables([VERDICTS.empty_table(), *rows]), aside, compression="zstd")
    aside.replace(path)
    rows.clear()
    return number + 1


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[Callable[..., concurrent.futures.Future]]:
    """A function that has work done: by so many fresh processes, or at once by this one."""
    if processes == 1:
        _one_thread()
        yield _at_once
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would carry over locks of torch's threads
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn, initializer=_one_thread)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _at_once(work: Callable[..., pa.Table], block: Sequence[dict]) -> concurrent.futures.Future:
    done: concurrent.futures.Future = concurrent.futures.Future()
    done.set_result(work(block))
    return done


def _in_order(
    submit: Callable[..., concurrent.futures.Future], work: Callable[..., pa.Table], blocks: Iterable, ahead: int
) -> Iterator[pa.Table]:
    """Results in the blocks' order; no more than `ahead` blocks wait, however long the corpus."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for block in blocks:
        waiting.append(submit(work, block))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _blocks(stream: Iterator[dict]) -> Iterator[list[dict]]:
    while block := list(itertools.islice(stream, BLOCK)):
        yield block


def _ours(devices: Sequence[str]) -> str:
    """The device of the running process: the pool's are numbered and take them in turn."""
    number = multiprocessing.current_process().name.rpartition("-")[2]
    return devices[int(number) % len(devices) if number.isdigit() else 0]


def _hash(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")


def _place(scores: np.ndarray) -> np.ndarray:
    """The last place on the grid that is no higher than the score."""
    return np.maximum(np.searchsorted(GRID, scores, side="right") - 1, 0)


def _from_above(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts[::-1])[::-1]
