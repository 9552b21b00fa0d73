"""Measure instruction tuning beside TRL's SFTTrainer with packing, on the same model and dialogues.

    python scripts/bench_sft.py --model=checkpoints/models/smollm2-135m --instructions=data/builtin/demo/instruct.jsonl

Reads:  a model with a chat template, instructions (JSON Lines with `messages`).
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

Both get the same tokens and labels, the answers' only, and pack them by themselves. TRL flattens a pass's rows into one, over all
of which torch's attention goes; so both are measured twice, with the step's rows in one pass and with a pass for each. TRL can be
told to find the answers by itself where they are the last turn; what it would count then is among the checks. Every job runs in a
process of its own, in turn over the rounds, with the same threads, optimiser and batch, in fp32; the first step warms up and
is not counted; figures are medians.
"""

import inspect
import json
import os
import tempfile
from pathlib import Path

import torch

import sft
from lib import cli, dialogues, machine, models, packing, training_peers
from lib.errors import UserError
from lib.losses import IGNORED

WHOLE, BY_ROW = "one pass a step", "one row a pass"
CHECKED = 3  # dialogues


def main(
    *,
    model: Path,
    instructions: list[Path],
    sequence_length: int = 512,
    batch_size: int = 3,
    steps: int = 2,
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Time both sides, round by round.

    Args:
        model: folder of the model; its chat template is used.
        instructions: files of dialogues.
        sequence_length: tokens a row; longer dialogues are left out.
        batch_size: rows a step.
        steps: timed in each round.
        rounds: of every job.
        threads: of torch; all cores if not given.
        seed: of the order of rows.
    """
    if not training_peers.installed("trl"):
        raise UserError("trl is not installed; `make bench-sft` has an environment with it (requirements/bench.txt)")
    threads = threads or os.cpu_count()
    tokenizer = models.load_tokenizer(model)
    read = [dialogue["messages"] for path in instructions for dialogue in dialogues.read(path)]
    encoded = [dialogues.encode(messages, tokenizer) for messages in read]
    fitting = [number for number, (ids, _) in enumerate(encoded) if len(ids) <= sequence_length]
    read, encoded = ([given[number] for number in fitting] for given in (read, encoded))
    rows = packing.pack_dialogues(encoded, sequence_length, tokenizer.eos_token_id)
    if len(rows) < batch_size * (steps + 1):
        raise UserError(f"too few dialogues: {len(rows)} rows, {batch_size * (steps + 1)} are needed")
    order = torch.randperm(len(rows), generator=torch.manual_seed(seed)).tolist()
    settings = {name: parameter.default for name, parameter in inspect.signature(sft.main).parameters.items()} | {
        "batch_size": batch_size,
        "accumulation": 1,
        "max_steps": steps + 1,
        "log_steps": 1,
        "precision": "fp32",
        "seed": seed,
    }
    mixed = [rows[number] for number in order]
    by_row = settings | {"batch_size": 1, "accumulation": batch_size}
    common = model, encoded, settings, sequence_length
    jobs = {
        f"ours, {WHOLE}": (training_peers.ours, model, mixed, settings, None, threads),
        f"TRL, {WHOLE}": (training_peers.trl_trainer, *common, False, threads),
        f"ours, {BY_ROW}": (training_peers.ours, model, mixed, by_row, None, threads),
        f"TRL, {BY_ROW}": (training_peers.trl_trainer, *common, True, threads),
    }
    measured = training_peers.in_turn(jobs, rounds)
    checks = training_peers.alone(compared, model, read, encoded, settings, sequence_length, threads)
    checks |= {
        "filled": round(sum(row["tokens"] for row in rows) / (len(rows) * sequence_length), 4),
        "threads": threads,
    }
    medians = training_peers.table(measured)
    result = {
        "bench": "sft",
        **training_peers.ratios(medians, {f"TRL, {how}": f"ours, {how}" for how in (WHOLE, BY_ROW)}),
        "ours": {job: figures for job, figures in medians.items() if job.startswith("ours")},
        "peers": {job: figures for job, figures in medians.items() if job.startswith("TRL")},
        "checks": checks,
        "tokens_per_second": training_peers.spread(measured, "tokens_per_second"),
    }
    print(json.dumps(result, ensure_ascii=False))


def compared(
    model: Path,
    read: list[list[dict]],
    encoded: list[training_peers.Encoded],
    settings: dict,
    length: int,
    threads: int,
) -> dict[str, float]:
    """The loss of the same dialogues in one packed row on both sides, and how many tokens each would count by itself."""
    torch.set_num_threads(threads)
    few = encoded[:CHECKED]
    size = sum(len(ids) for ids, _ in few)
    with tempfile.TemporaryDirectory() as name:
        trainer = training_peers.made_sft_trainer(model, few, settings, size, Path(name), one_row=True)
        (row,) = trainer.train_dataset
        trl = trainer.compute_loss(trainer.model, trainer.data_collator([row])).item()
        single = [
            number for number, turns in enumerate(read) if sum(turn["role"] == "assistant" for turn in turns) == 1
        ]
        parted = [{"prompt": read[number][:-1], "completion": read[number][-1:]} for number in single]
        by_itself = training_peers.made_sft_trainer(model, parted, settings, length, Path(name), one_row=True)
        counted = sum(label != IGNORED for packed in by_itself.train_dataset for label in packed["labels"])
    trained, tokenizer = models.load(model, attention=machine.choose_attention("auto"))
    training_peers.attach(trained, tokenizer, None, settings)
    packed = packing.pack_dialogues(few, size, tokenizer.eos_token_id)
    ours = trained(**packing.collate(packed, flatten=False)).loss.item()
    return {
        "loss_ours": ours,
        "loss_trl": trl,
        "loss_difference": abs(ours - trl),
        "answer_tokens_ours": sum(label != IGNORED for number in single for label in encoded[number][1]),
        "answer_tokens_trl_by_itself": counted,
        "dialogues_of_one_turn": len(single),
    }


if __name__ == "__main__":
    cli.run(main)
