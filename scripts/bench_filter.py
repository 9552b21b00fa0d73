"""Measure how fast a trained filter scores documents, beside the transformers pipeline on the same model and texts.

    python scripts/bench_filter.py --model=data/demo/filter/model --documents=data/demo/dedup/documents

Reads:  a trained filter, documents.
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

Documents are of mixed length: whole ones of the corpus, cut to lengths drawn evenly on a logarithmic scale. Everything has one
thread. Each scorer has a process of its own in each round, in turn over the rounds; figures are medians of processor time,
tokenisation included. The first texts warm up and are not counted.
"""

import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib import cli, documents, progress, scoring, stage
from lib.errors import UserError

PIPELINES = {"pipeline_batch_1": 1, "pipeline_batch_32": 32}
SHORTEST = 40  # characters
WARM_UP = 32  # texts


def main(
    *,
    model: Path,
    documents: Path,
    texts: int = 400,
    max_chars: int = 4000,
    max_tokens: int = 512,
    rounds: int = 3,
    seed: int = 0,
) -> None:
    """Score texts in each way and compare.

    Args:
        model: a trained filter, the model/ of a filter stage.
        documents: to take texts from.
        texts: how many.
        max_chars: of the longest.
        max_tokens: that all of them read.
        rounds: of every job.
        seed: of the choice of texts and their lengths.
    """
    chosen = _texts(documents, texts + WARM_UP, max_chars, seed)
    ours = [name for name in ("fp32", "bf16", "int8") if scoring.choose(name, "cpu") == name]
    jobs = {name: (_ours, name) for name in ours} | {name: (_pipeline, size) for name, size in PIPELINES.items()}
    measured: dict[str, list[tuple[float, float]]] = {job: [] for job in jobs}
    scores: dict[str, np.ndarray] = {}
    for number in range(rounds):
        for job, (work, how) in jobs.items():
            seconds, memory, scores[job] = _alone(work, how, model, chosen, max_tokens)
            measured[job].append((seconds, memory))
            progress.say(f"round {number + 1}: {job}: {texts / seconds:.1f} documents/s, {memory:,.0f} MB")
    speed = {job: texts / statistics.median(seconds for seconds, _ in runs) for job, runs in measured.items()}
    memory = {job: statistics.median(used for _, used in runs) for job, runs in measured.items()}
    default = scoring.choose("auto", "cpu")
    apart = {name: np.abs(scores[name] - scores["pipeline_batch_1"]) for name in ours}
    decision = scores["pipeline_batch_1"][:, -1]
    result = {
        "bench": "filter",
        "ratios": {name: round(speed[default] / speed[name], 2) for name in PIPELINES},
        "memory_ratio": {name: round(memory[name] / memory[default], 2) for name in PIPELINES},
        "ours": {
            "precision": default,
            "documents_per_second": {job: round(value, 1) for job, value in speed.items()},
            "spread": {
                job: [round(texts / max(runs)[0], 1), round(texts / min(runs)[0], 1)] for job, runs in measured.items()
            },
            "peak_mb": {job: round(value) for job, value in memory.items()},
            "int8_ratios": {name: round(speed["int8"] / speed[name], 2) for name in PIPELINES if "int8" in speed},
        },
        "checks": {
            "max_score_difference": round(float(apart[default].max()), 5),
            "max_score_difference_by_precision": {name: round(float(gap.max()), 5) for name, gap in apart.items()},
            "mean_score_difference_by_precision": {name: round(float(gap.mean()), 6) for name, gap in apart.items()},
            "decided_otherwise": {
                name: int(((scores[name][:, -1] >= np.median(decision)) != (decision >= np.median(decision))).sum())
                for name in ours
            },
            "texts": texts,
        },
    }
    for job, value in speed.items():
        print(f"{job:<18} {value:8.1f} documents/s  {memory[job]:8,.0f} MB")
    print(json.dumps(result))


def _texts(path: Path, count: int, max_chars: int, seed: int) -> list[str]:
    """Beginnings of random documents that are long enough, of lengths drawn log-uniformly, in random order."""
    rng = random.Random(seed)
    known = [document["text"] for document in documents.read(path)]
    lengths = [round(SHORTEST * (max_chars / SHORTEST) ** rng.random()) for _ in range(count)]
    chosen = []
    for length in lengths:
        for _ in range(1000):
            text = rng.choice(known)
            if len(text) >= length:
                break
        else:
            raise UserError(f"{path}: hardly a document has {length:,} characters; lower --max_chars={max_chars}")
        chosen.append(text[:length])
    return chosen


def _alone(work: Callable[..., object], *arguments: object) -> tuple[float, float, np.ndarray]:
    """Seconds, peak memory (MB) and scores of a job in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _ours(precision: scoring.Precision, model: Path, texts: list[str], max_tokens: int) -> tuple[float, float, object]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    score = scoring.load(model, precision, "cpu", max_tokens)
    score(texts[:WARM_UP])
    begun = time.process_time()
    found = score(texts[WARM_UP:])
    return time.process_time() - begun, stage.peak_memory_mb(), found


def _pipeline(size: int, model: Path, texts: list[str], max_tokens: int) -> tuple[float, float, object]:
    """The usual way: batches in the order of arrival, padded to the longest."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    made = transformers.pipeline(
        "text-classification", model=str(model), device="cpu", function_to_apply="none", top_k=None, batch_size=size
    )
    cut = {"truncation": True, "max_length": max_tokens}
    made(texts[:WARM_UP], **cut)
    begun = time.process_time()
    found = made(texts[WARM_UP:], **cut)
    seconds = time.process_time() - begun
    latent = [[{row["label"]: row["score"] for row in rows}[name] for name in scoring.HEADS] for rows in found]
    cuts = np.array(made.model.config.cuts)
    scores = 1 + (1 / (1 + np.exp(cuts - np.array(latent)[..., None]))).sum(-1)
    return seconds, stage.peak_memory_mb(), scores


if __name__ == "__main__":
    cli.run(main)
