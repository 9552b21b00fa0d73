"""Measure the scoring of multiple-choice tasks beside lm-evaluation-harness's own model, and hold the answers against its tasks.

    python scripts/bench_eval.py --model=checkpoints/models/smollm2-135m --tasks=configs/eval/hub/ruxnli.yaml \
        --data='{ruxnli: xnli_ru.jsonl}'

Reads:  a model, task files, local files of their items (see eval.py).
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

The peer is HFLM at its defaults (a request at a time), and with padded batches of 8; its `auto` searches for the largest batch that
memory holds, which is meant for GPUs. Where the harness has a task of its own for the data set, the peer runs that one, so the
checks compare the prompts too. Every job runs in a process of its own, in turn over the rounds, with the same threads, in fp32;
a few requests warm up and are not counted; figures are medians.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import cli, progress, training_peers

OURS = "ours"
PEERS = {"HFLM, batch 1": 1, "HFLM, batch 8": 8}
FIGURES = ("requests_per_second", "items_per_second", "requests_per_cpu_second", "peak_mb")


def main(
    *,
    model: Path,
    tasks: list[Path],
    data: dict[str, Path] = {},  # noqa: B006 (never changed)
    items: int = 40,
    num_fewshot: int = 0,
    batch_tokens: int = 2048,
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Score the same items on all sides, round by round.

    Args:
        model: folder of the model.
        tasks: task files.
        data: local files in the place of a task's data set, as eval.py takes them.
        items: of each task.
        num_fewshot: examples before each item.
        batch_tokens: of ours, tokens in one forward pass, padding included.
        rounds: of every job.
        threads: of torch; all cores if not given.
        seed: draws the items.
    """
    from lib import eval_peers

    threads = threads or os.cpu_count()
    work = eval_peers.Work(tasks, data, items, num_fewshot, seed)
    measured: dict[str, list[dict]] = {job: [] for job in (OURS, *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        jobs = {OURS: (eval_peers.ours, batch_tokens)}
        jobs |= {peer: (eval_peers.theirs, size) for peer, size in PEERS.items()}
        for number in range(rounds):
            for job, (score, size) in jobs.items():
                run = training_peers.alone(score, model, work, Path(folder) / f"{job} {number}", size, threads)
                measured[job].append(run)
                progress.say(f"round {number + 1}: {job}: {line(run)}")
    medians = {
        job: {name: round(statistics.median(run[name] for run in runs), 3) for name in FIGURES}
        for job, runs in measured.items()
    }
    for job, figures in medians.items():
        print(f"{job:<16}{line(figures)}")
    checks = {name: compared({job: runs[0]["told"][name] for job, runs in measured.items()}) for name in run["told"]}
    result = {
        "bench": "eval",
        "ratios": ratios(medians, "requests_per_second"),
        "cpu_ratios": ratios(medians, "requests_per_cpu_second"),
        "memory_ratio": {peer: round(medians[peer]["peak_mb"] / medians[OURS]["peak_mb"], 2) for peer in PEERS},
        "ours": medians[OURS],
        "peers": {peer: medians[peer] for peer in PEERS},
        "spread": {job: [round(run["requests_per_second"], 2) for run in runs] for job, runs in measured.items()},
        "checks": {"tasks": checks, "threads": threads},
    }
    print(json.dumps(result, ensure_ascii=False))


def line(run: Mapping[str, float]) -> str:
    """A job's figures for the screen."""
    speed = f"{run['requests_per_second']:8.2f} requests/s ({run['items_per_second']:.2f} items/s)"
    return f"{speed}, {run['requests_per_cpu_second']:.2f} per CPU second, {run['peak_mb']:,.0f} MB"


def ratios(medians: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
    """How many times faster ours is than each peer."""
    return {peer: round(medians[OURS][name] / medians[peer][name], 2) for peer in PEERS}


def compared(told: Mapping[str, Sequence[Mapping]]) -> dict[str, object]:
    """Of one task: items, right answers on each side, and in how many items ours and a peer's differ in what."""
    ours = told[OURS]
    differ = {
        peer: {
            name: sum(one[name] != other[name] for one, other in zip(ours, told[peer], strict=True))
            for name in ("prompts", "target", "prediction", "prediction_bytes")
        }
        for peer in PEERS
    }
    apart = [
        abs(a - b)
        for peer in PEERS
        for one, other in zip(ours, told[peer], strict=True)
        for a, b in zip(one["log_probabilities"], other["log_probabilities"], strict=True)
    ]
    right = {job: sum(item["prediction"] == item["target"] for item in found) for job, found in told.items()}
    by_bytes = {job: sum(item["prediction_bytes"] == item["target"] for item in found) for job, found in told.items()}
    return {
        "items": len(ours),
        "right": right,
        "right_by_bytes": by_bytes,
        "items_that_differ": differ,
        "largest_difference_of_log_p": round(max(apart), 6),
    }


if __name__ == "__main__":
    cli.run(main)
