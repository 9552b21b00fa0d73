"""Measure deduplication beside peers on the same paragraphs: CPU time, memory, and what is found against brute force.

    python scripts/bench_dedup.py --documents=data/raw [--text=my/corpus.jsonl.gz]

Reads:  documents that were fetched, and more text.
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

Text is enlarged by copies in which words are replaced, so that few of the new paragraphs are duplicates. Ours is timed from
documents in an Arrow table to the choice of what goes, with its files on disk; peers are given the paragraphs split and in
normal form already, and are not charged for that. Every job runs in a process of its own, in turn over the rounds, and is
run on a few paragraphs first; CPU time is the user's and the system's, of all threads; figures are medians.
"""

import itertools
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from scipy import sparse

from lib import cli, dedup_peers, documents, duplicates, minhash, paragraphs, progress
from lib.dedup_peers import PERMUTATIONS, SIZE, THRESHOLD
from lib.errors import UserError

MIN_CHARS = 40
SLOW = 5_000  # paragraphs are enough for datasketch's loop
WARM_UP = 500
MEMORY_GB = 4.0
DOCUMENTS_PER_BATCH = documents.ROWS_PER_GROUP


def main(
    *,
    documents: Path,
    text: list[Path] = [],  # noqa: B006
    language: str = "ru",
    count: int = 1_000_000,
    peer_count: int = 240_000,
    sample: int = 8_000,
    rounds: int = 3,
    seed: int = 0,
) -> None:
    """Time deduplication and check it.

    Args:
        documents: folder of what was fetched; the bundled texts (builtin-*) are left out.
        text: more text (Parquet, JSON Lines, text).
        language: of documents in `text` that name none.
        count: paragraphs for ours.
        peer_count: paragraphs for peers, and for ours beside them.
        sample: paragraphs compared pair by pair, half as many of them spoilt copies.
        rounds: of every job.
        seed: of all random choices.
    """
    rng = random.Random(seed)
    originals = _texts(documents, text, language)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress.say(f"{len(originals):,} documents; making {count:,} paragraphs of them")
        large, pieces = enlarged(originals, count, rng)
        checked = planted(rng.sample(_compared(originals), sample * 2 // 3), sample // 3, rng)
        some = rng.sample(pieces, min(peer_count, len(pieces)))
        sets = {"million": large, "peers": some, "slow": some[:SLOW], "sample": checked}
        for kind, texts in sets.items():
            normal = [paragraphs.normalise(piece) for piece in texts] if kind != "million" else texts
            table = pa.table(
                {"text": pa.array(texts, pa.large_string()), "normal": pa.array(normal, pa.large_string())}
            )
            feather.write_feather(table, folder / f"{kind}.arrow", compression="uncompressed")
        del large, pieces, some
        peers = {
            shingles: {name: peer for name, peer in found.items() if _available(name)}
            for shingles, found in {"characters": dedup_peers.CHARACTERS, "words": dedup_peers.WORDS}.items()
        }
        measured = _measure(folder, peers, rounds)
        checks = {shingles: _checks(folder, peers[shingles], shingles == "words") for shingles in peers}
    print(json.dumps(_summary(measured, checks), ensure_ascii=False))


def enlarged(texts: Sequence[str], count: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """(documents with `count` paragraphs that are compared, these paragraphs): the texts, then copies with 30 % other words."""
    words = [word for text in texts for word in text.split()]
    made, pieces = [], []
    for copy in itertools.count():
        for text in texts:
            if copy:
                text = "\n".join(_respoken(line, words, 0.3, rng) for line in text.split("\n"))
            made.append(text)
            pieces += _compared([text])
            if len(pieces) >= count:
                return made, pieces
    raise AssertionError


def planted(pieces: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """The pieces and spoilt copies of some, in random order: typos in 1 % of the letters, an edited word, an end cut off."""
    words = [word for piece in pieces for word in piece.split()]
    alphabet = sorted(set("".join(words)))
    spoilt = []
    for number in range(count):
        piece = rng.choice(pieces)
        if number % 4 == 0:
            piece = "".join(rng.choice(alphabet) if rng.random() < 0.01 else letter for letter in piece)
        elif number % 4 == 1:
            piece = _respoken(piece, words, 0.05, rng)
        elif number % 4 == 2:
            piece = piece[: int(len(piece) * rng.uniform(0.75, 1))]
        spoilt.append(piece)
    found = [piece for piece in (*pieces, *spoilt) if len(paragraphs.normalise(piece)) >= MIN_CHARS]
    rng.shuffle(found)
    return found


def similar_pairs(texts: Sequence[str], words: bool) -> dict[tuple[int, int], float]:
    """All pairs (the lesser number first) of normalised texts of at least THRESHOLD, and their exact similarity."""
    shingles = dedup_peers.word_shingles if words else dedup_peers.character_shingles
    sets = [set(shingles(text)) for text in texts]
    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(shingle, len(numbers)) for found in sets for shingle in found]
    sizes = np.array([len(found) for found in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    matrix = sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), (len(sets), len(numbers)))
    transposed = matrix.T.tocsr()
    pairs = {}
    for first in range(0, len(sets), 500):
        common = (matrix[first : first + 500] @ transposed).tocoo()
        left, right = common.row + first, common.col
        similarity = common.data / (sizes[left] + sizes[right] - common.data)
        good = (left < right) & (similarity >= THRESHOLD)
        ends = zip(left[good].tolist(), right[good].tolist(), strict=True)
        pairs |= dict(zip(ends, similarity[good].tolist(), strict=True))
    return pairs


def redundant(pairs: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Which texts (bool [count]) are similar to an earlier one that stays."""
    gone = np.zeros(count, bool)
    for left, right in sorted(pairs, key=lambda pair: pair[::-1]):
        gone[right] |= not gone[left]
    return gone


def judged(removed: np.ndarray, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """How much redundancy went, how much of what went has a similar text left, and clusters of which nothing is left.

    Which member of a cluster stays is up to a tool: recall counts the redundant texts that are left among those that stay.
    """
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    justified = np.zeros(len(removed), bool)
    justified[left[~removed[right]]] = True
    justified[right[~removed[left]]] = True
    cluster = minhash.clusters(len(removed), left, right)
    sizes, kept = np.bincount(cluster), np.bincount(cluster, weights=~removed)
    wanted = redundant(pairs, len(removed)).sum()
    spared = redundant([pair for pair in pairs if not removed[list(pair)].any()], len(removed)).sum()
    return {
        "removed": int(removed.sum()),
        "recall": round(1 - float(spared / wanted), 4),
        "precision": round(float(justified[removed].mean()), 4),
        "clusters_without_a_copy": int(((sizes > 1) & (kept == 0)).sum()),
    }


def _texts(folder: Path, more: Sequence[Path], language: str) -> list[str]:
    """Texts of documents, those of the sources first."""
    sources = sorted(path for path in folder.glob("*/documents") if not path.parent.name.startswith("builtin"))
    found = [document["text"] for path in sources for document in documents.read(path)]
    found += [document["text"] for path in more for document in documents.read(path, language=language)]
    if not found:
        raise UserError(f"{folder}: no */documents there; make the fetch stage")
    return found


def _compared(texts: Sequence[str]) -> list[str]:
    """Paragraphs long enough to be compared."""
    pieces = (piece for text in texts for piece in text.split("\n") if len(piece) >= MIN_CHARS)
    return [piece for piece in pieces if len(paragraphs.normalise(piece)) >= MIN_CHARS]


def _respoken(line: str, words: Sequence[str], share: float, rng: random.Random) -> str:
    drawn = rng.random
    return " ".join(words[int(drawn() * len(words))] if drawn() < share else word for word in line.split(" "))


def _available(peer: str) -> bool:
    if not dedup_peers.installed(peer):
        progress.say(f"{peer}: not installed, left out (requirements/bench.txt)")
        return False
    return True


def _measure(folder: Path, peers: dict[str, dict], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Runs of each job, by name."""
    jobs = {}
    for shingles, found in peers.items():
        words = shingles == "words"
        suffix = ", words" if words else ""
        jobs |= {f"ours{suffix}": (ours, "million", words), f"ours beside peers{suffix}": (ours, "peers", words)}
        jobs |= {name: (peer, "slow" if name == "datasketch loop" else "peers", None) for name, peer in found.items()}
    measured: dict[str, list[dict[str, float]]] = {job: [] for job in jobs}
    for number in range(rounds):
        for job, (work, kind, words) in jobs.items():
            run = _alone(_timed, folder / f"{kind}.arrow", work, words)
            measured[job].append(run)
            micros, memory = run["cpu_us"], run["peak_mb"]
            progress.say(
                f"round {number + 1}: {job}: {micros:.2f} us a paragraph, {memory:,.0f} MB, {run['removed']:,} removed"
            )
    return measured


def _alone(work: Callable, *arguments: object) -> dict:
    """What a job returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _timed(path: Path, work: Callable, words: bool | None) -> dict[str, float]:
    """CPU microseconds for each compared paragraph, peak memory; `words` is for ours only."""
    column = "text" if words is not None else "normal"
    table = feather.read_table(path, columns=[column], memory_map=False)
    texts = table[column] if words is not None else table[column].to_pylist()
    given = () if words is None else (words,)
    work(texts[:WARM_UP], *given)
    loaded = _peak_mb()
    begun, clock = os.times(), time.perf_counter()
    result = work(texts, *given)
    ended = os.times()
    seconds = sum(ended[:4]) - sum(begun[:4])  # of finished child processes too
    count, removed = (
        (result["count"], len(result["removed"])) if words is not None else (len(texts), int(np.sum(result)))
    )
    return {
        "count": count,
        "removed": removed,
        "cpu_us": seconds / count * 1e6,
        "wall_seconds": time.perf_counter() - clock,
        "peak_mb": _peak_mb(),
        "loaded_mb": loaded,
    }


def _peak_mb() -> float:
    """The largest resident memory since this process began; what getrusage says begins with the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def ours(texts: pa.ChunkedArray, words: bool) -> dict[str, object]:
    """The whole engine on documents in memory: what it removes, and the pairs it verified."""
    size = len(texts)
    ids = pa.array(map(str, range(size)), pa.string())
    constant = pa.array(["bench"] * size, pa.string())
    table = pa.table([ids, texts, constant, constant], schema=documents.SCHEMA)

    def batches(file: Path, skipped: dict[str, int]) -> Iterator[pa.RecordBatch]:
        yield from table.to_batches(DOCUMENTS_PER_BATCH)

    how = minhash.scheme(THRESHOLD, PERMUTATIONS, SIZE, words, MIN_CHARS)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        index = duplicates.sign([Path("memory")], batches, how, work, [])
        found = duplicates.find(index, batches, how, keep="first", memory_gb=MEMORY_GB)
        with np.load(work / "candidates.npz") as codes, np.load(work / "similarity.npz") as similarity:
            good = codes["arr_0"][similarity["arr_0"] >= np.float32(THRESHOLD)]
        return {
            "count": index.count,
            "removed": found.removed,
            "twins": found.nodes.numbers[found.twins],
            "pairs": np.stack(np.divmod(good, index.count), axis=1),
        }


def _checks(folder: Path, peers: dict[str, Callable], words: bool) -> dict[str, object]:
    """Everyone's removals of the sample against all pairs of it."""
    path = folder / "sample.arrow"
    normal = feather.read_table(path, columns=["normal"])["normal"].to_pylist()
    pairs = similar_pairs(normal, words)
    found = _alone(_ours_of, path, words)
    assert found["count"] == len(normal)
    removed = np.zeros(len(normal), bool)
    removed[found["removed"]] = True
    first = {text: number for number, text in reversed(list(enumerate(normal)))}
    unlike = {pair for pair in pairs if all(first[normal[number]] == number for number in pair)}
    twins = zip(found["removed"].tolist(), found["twins"].tolist(), strict=True)
    return {
        "ours": {
            **judged(removed, list(pairs)),
            "pairs_recall": round(len(unlike & set(map(tuple, found["pairs"].tolist()))) / len(unlike), 4),
            "twins_unlike": sum(tuple(sorted(twin)) not in pairs or bool(removed[twin[1]]) for twin in twins),
        },
        **{name: judged(np.asarray(_alone(peer, normal), bool), list(pairs)) for name, peer in peers.items()},
        "sample": {
            "paragraphs": len(normal),
            "pairs": len(pairs),
            "redundant": int(redundant(list(pairs), len(normal)).sum()),
        },
    }


def _ours_of(path: Path, words: bool) -> dict[str, object]:
    return ours(feather.read_table(path, columns=["text"])["text"], words)


def _summary(measured: dict[str, list[dict]], checks: dict[str, dict]) -> dict[str, object]:
    """A table on screen, and the figures."""
    medians = {
        job: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for job, runs in measured.items()
    }
    spread = {job: [round(run["cpu_us"], 2) for run in runs] for job, runs in measured.items()}
    print(
        f"{'':<26}{'paragraphs':>12}{'CPU us each':>13}{'peak MB':>10}{'recall':>9}{'precision':>11}{'lost clusters':>15}"
    )
    ratios: dict[str, float] = {}
    memory: dict[str, float] = {}
    for job, figures in medians.items():
        words = job in dedup_peers.WORDS or job.endswith("words")
        mine = "ours, words" if words else "ours"
        name = "ours" if job.startswith("ours") else job
        checked = checks["words" if words else "characters"][name]
        print(
            f"{job:<26}{figures['count']:>12,.0f}{figures['cpu_us']:>13.2f}{figures['peak_mb']:>10,.0f}"
            f"{checked['recall']:>9.4f}{checked['precision']:>11.4f}{checked['clusters_without_a_copy']:>15}"
        )
        if name != "ours":
            ratios[job] = round(figures["cpu_us"] / medians[mine]["cpu_us"], 1)
            beside = medians[mine.replace("ours", "ours beside peers")]
            memory[job] = round(figures["peak_mb"] / beside["peak_mb"], 2)
    mine = checks["characters"]["ours"]
    return {
        "bench": "dedup",
        "ratios": ratios,
        "memory_ratio": {name: ratio for name, ratio in memory.items() if name != "datasketch loop"},
        "ours": {
            job: {name: round(value, 2) for name, value in figures.items()}
            for job, figures in medians.items()
            if job.startswith("ours")
        },
        "checks": {"recall": mine["recall"], "precision": mine["precision"], "by_shingles": checks},
        "cpu_us": spread,
    }


if __name__ == "__main__":
    cli.run(main)
