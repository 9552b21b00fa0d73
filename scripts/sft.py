"""Instruction tuning of all weights; only the answers' tokens count.

    python scripts/sft.py --model=checkpoints/demo/cpt --instructions=data/raw/builtin-instruct \
        --out=checkpoints/demo/sft --config=configs/demo/sft.yaml

Reads:  a model folder with a chat template, instructions (JSON Lines with `messages`), held-out documents, prompts if given.
Writes: a Hugging Face model folder, metrics.jsonl, forgetting.svg and, with prompts, samples.jsonl. An interrupted run goes on from
        its last checkpoint.
"""

import random
from collections import Counter
from pathlib import Path

import torch

from lib import (
    cli,
    dialogues,
    documents,
    generation,
    guard,
    machine,
    models,
    objective,
    packing,
    processes,
    progress,
    schedules,
    stage,
    storage,
    trackers,
    training,
    vocabulary,
)
from lib.errors import UserError


def main(
    *,
    model: Path,
    instructions: list[Path],
    held_out: Path,
    out: storage.Place,
    sequence_length: int = 1024,
    max_dialogues: int | None = None,
    on_error: documents.OnError = "stop",
    learning_rate: float = 1e-5,
    embedding_learning_rate: float | None = None,
    adam_beta1: float = 0.99,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 10,
    schedule: schedules.Schedule = "cosine",
    decay_share: float = 0.2,
    max_grad_norm: float = 1.0,
    batch_size: int = 3,
    accumulation: int = 64,
    epochs: float = 3.0,
    max_steps: int | None = None,
    head_chunk: int = 512,
    precision: machine.Precision = "auto",
    attention: machine.Attention = "auto",
    gradient_checkpointing: bool = False,
    deepspeed: Path | None = None,
    eval_steps: int = 100,
    eval_characters: int = 20_000,
    save_steps: int = 100,
    log_steps: int = 10,
    keep_checkpoints: int = 2,
    on_spike: guard.OnSpike = "stop",
    prompts: Path | None = None,
    report_to: list[trackers.Name] = [],  # noqa: B006
    timeout_seconds: int = machine.TIMEOUT_SECONDS,
    seed: int = 0,
) -> None:
    """Fine-tune on dialogues, packed, with the loss on answers only (the paper's section 3.3).

    Args:
        model: folder of the model to tune; its chat template is used.
        instructions: files or fetched folders of dialogues.
        held_out: held-out documents, to watch what tuning costs.
        out: folder or address to write.
        sequence_length: tokens a row; longer dialogues are left out and counted, never cut.
        max_dialogues: a random subset of so many.
        on_error: 'stop' at a broken line, or 'skip' it and count it.
        learning_rate: peak rate.
        embedding_learning_rate: peak rate of embeddings and head; learning_rate if not given.
        adam_beta1: AdamW's first beta.
        adam_beta2: AdamW's second beta.
        adam_epsilon: AdamW's epsilon.
        weight_decay: of matrices; never of norms and embeddings.
        warmup_steps: linear warm-up.
        schedule: after it, 'cosine' or 'linear' to zero, 'constant', or 'wsd', constant and at last to zero along 1 - sqrt(x).
        decay_share: of wsd, the share of all steps in which it comes down.
        max_grad_norm: gradients are clipped to it.
        batch_size: rows per device and pass.
        accumulation: passes per step.
        epochs: over the rows, unless max_steps is given.
        max_steps: optimiser steps.
        head_chunk: positions at a time in the head; memory against speed.
        precision: 'bf16' is mixed precision; 'auto' takes it on a GPU that has it, else fp32.
        attention: 'auto' is flash attention where there is a GPU and the package, else sdpa, on a CPU document by document.
        gradient_checkpointing: recompute activations; less memory, a third more time.
        deepspeed: DeepSpeed's JSON file.
        eval_steps: steps between held-out evaluations.
        eval_characters: held-out text per language for these, at most.
        save_steps: steps between checkpoints.
        log_steps: steps between lines of the log.
        keep_checkpoints: how many are kept while training.
        on_spike: 'stop' where the loss is no number or far above the last steps' (lib/guard.py), or 'skip' that step; either
            way its rows are written down in spike-<step>.jsonl.
        prompts: as eval.py's; the first four are answered at each evaluation.
        report_to: trackers beside metrics.jsonl: tensorboard, trackio, wandb.
        timeout_seconds: of several processes, how long one waits for the others before it counts them as lost; longer than the first
            one takes to write a checkpoint.
        seed: of everything random.
    """
    settings = dict(locals())
    trackers.require(report_to)
    schedules.check(schedule, decay_share)
    inputs = {
        "model": model,
        "held_out": held_out,
        "prompts": prompts,
        **{f"instructions[{n}]": p for n, p in enumerate(instructions)},
    }
    implementation = machine.choose_attention(attention)
    with stage.output(out, inputs=inputs, settings=settings, resume=True, adjustable=training.ADJUSTABLE) as building:
        torch.manual_seed(seed)
        args = machine.arguments(building.folder, **machine.optimiser_settings(settings))
        trained, tokenizer = models.load(model, attention=implementation)
        if tokenizer.chat_template is None:
            raise UserError(f"{model}: its tokenizer has no chat template; the tokenizer stage gives it one")
        rows, counts = _rows(instructions, tokenizer, sequence_length, max_dialogues, on_error, seed)
        token_bytes = torch.tensor(vocabulary.lengths(tokenizer))
        objective.attach_loss(trained, token_bytes, objective.Objective(chunk=head_chunk))
        sample = documents.held_out(held_out / "documents", eval_characters)
        figures = training.run(
            trained,
            tokenizer,
            rows,
            building.folder,
            args,
            flatten=implementation == "flash_attention_2",
            evaluate=training.held_out_probe(trained, tokenizer, sample, window=sequence_length),
            eval_steps=eval_steps,
            schedule=schedule,
            decay_share=decay_share,
            embedding_learning_rate=embedding_learning_rate,
            on_spike=on_spike,
            languages=("answers", "replay"),
            prompts=generation.read_prompts(prompts) if prompts else (),
            report_to=report_to,
        )
        building.record(
            **figures, dialogues=counts, attention=implementation, precision="bf16" if args.bf16 else "fp32"
        )
    if processes.is_main():
        dropped = counts - Counter(kept=counts["kept"])
        print(progress.funnel(counts["kept"], sum(counts.values()), dropped, "dialogues"))
    machine.finish_distributed()


def _rows(
    paths: list[Path],
    tokenizer: models.PreTrainedTokenizerFast,
    length: int,
    limit: int | None,
    on_error: documents.OnError,
    seed: int,
) -> tuple[list[dict], Counter[str]]:
    """Packed rows in random order, and counts of dialogues kept and left out by reason."""
    counts: Counter[str] = Counter()
    read = [dialogue for path in paths for dialogue in dialogues.read(path, on_error=on_error, skipped=counts)]
    rng = random.Random(seed)
    if limit is not None and len(read) > limit:
        counts["not_sampled"] = len(read) - limit
        read = rng.sample(read, limit)
    encoded = []
    for dialogue in progress.bar(read, title="sft: dialogues", unit="dialogue"):
        ids, labels = dialogues.encode(dialogue["messages"], tokenizer)
        if len(ids) > length:
            counts["too_long"] += 1
        else:
            encoded.append((ids, labels))
    counts["kept"] = len(encoded)
    if not encoded:
        raise UserError(
            f"no dialogue left to train on: {', '.join(f'{name} {n}' for name, n in counts.items() if n) or 'no input'}"
        )
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows = packing.pack_dialogues(encoded, length, filler)
    rng.shuffle(rows)
    return [{**row, "row": number} for number, row in enumerate(rows)], counts


if __name__ == "__main__":
    cli.run(main)
