"""Continue pre-training all weights on the new vocabulary, held to where it started: CE + lambda * KL.

    python scripts/cpt.py --model=checkpoints/demo/init --pack=data/demo/pack --out=checkpoints/demo/cpt \
        --config=configs/demo/cpt.yaml
    torchrun --nproc_per_node=8 scripts/cpt.py ...        (several GPUs; DeepSpeed by `deepspeed:` in the YAML)

Reads:  the initialised model (also the frozen reference; what its rows.json says of the rows), the packed rows and
        held-out documents.
Writes: a Hugging Face model folder, metrics.jsonl and audit.json (new rows that the first tenth did not train, rows
        that left the base's range of norms). An interrupted run goes on from its last checkpoint.
"""

from pathlib import Path
from typing import Literal

import torch

from lib import audit, cli, documents, machine, models, objective, packing, stage, training
from lib.errors import UserError


def main(
    *,
    model: Path,
    pack: Path,
    out: Path,
    reference: Literal["init", "none"] = "init",
    kl_weight: float = 1.0,
    learning_rate: float = 1e-3,
    embedding_learning_rate: float | None = None,
    embedding_steps: int = 0,
    adam_beta1: float = 0.99,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 10,
    schedule: machine.Schedule = "cosine",
    max_grad_norm: float = 1.0,
    batch_size: int = 3,
    accumulation: int = 128,
    epochs: float = 1.0,
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
    seed: int = 0,
) -> None:
    """Train all weights with L = CE + kl_weight * KL(P_new || P_ref) (the paper's equation 1).

    Args:
        model: folder of the initialised model.
        pack: output of the pack stage.
        out: folder to write.
        reference: 'init', the initialised model itself, frozen; or 'none' for plain CE.
        kl_weight: lambda.
        learning_rate: peak rate.
        embedding_learning_rate: peak rate of embeddings and head; learning_rate if not given.
        embedding_steps: steps at first in which only embeddings and head move; the body warms up after them.
        adam_beta1: AdamW's first beta.
        adam_beta2: AdamW's second beta.
        adam_epsilon: AdamW's epsilon.
        weight_decay: of matrices; never of norms and embeddings.
        warmup_steps: linear warm-up.
        schedule: after it, 'cosine' or 'linear' to zero, or 'constant'.
        max_grad_norm: gradients are clipped to it.
        batch_size: rows per device and pass.
        accumulation: passes per step.
        epochs: over the packed rows, unless max_steps is given.
        max_steps: optimiser steps.
        head_chunk: positions at a time in the head; memory against speed.
        precision: 'bf16' is mixed precision; 'auto' takes it on a GPU that has it, else fp32.
        attention: 'auto' is flash attention where there is a GPU and the package, else sdpa.
        gradient_checkpointing: recompute activations; less memory, a third more time.
        deepspeed: DeepSpeed's JSON file.
        eval_steps: steps between held-out evaluations.
        eval_characters: held-out text per language for these, at most.
        save_steps: steps between checkpoints.
        log_steps: steps between lines of the log.
        keep_checkpoints: how many are kept while training.
        seed: of everything random.
    """
    settings = dict(locals())
    packed = stage.read_manifest(pack)["results"]
    inputs = {"model": model, "pack": pack}
    if adam_beta1 >= 1 or adam_beta2 >= 1:
        raise UserError(f"adam_beta1 {adam_beta1}, adam_beta2 {adam_beta2}: both have to be below 1")
    if embedding_steps:
        steps = machine.count_steps(packed["rows"], batch_size, accumulation, epochs, max_steps)
        if not 0 < embedding_steps < steps:
            raise UserError(
                f"embedding_steps {embedding_steps}: has to be 0 or more, and below the run's {steps} steps"
            )
    models.check_same_tokenizer(models.load_tokenizer(model), packed["tokenizer"], model, pack)
    implementation = machine.choose_attention(attention)
    with stage.output(out, inputs=inputs, settings=settings, resume=True) as building:
        torch.manual_seed(seed)
        frozen = None
        if reference == "init" and kl_weight:
            frozen, _ = models.load(model, attention=implementation)
        args = machine.arguments(building.folder, **machine.optimiser_settings(settings))
        trained, tokenizer = models.load(model, attention=implementation)
        if frozen is not None:
            frozen.to(args.device, dtype=torch.bfloat16 if args.bf16 else torch.float32)
        objective.attach_loss(trained, len(tokenizer), reference=frozen, kl_weight=kl_weight, chunk=head_chunk)
        sample = documents.held_out(pack / "held_out" / "documents", eval_characters)
        rows = packing.PackedRows(pack / "train", packed["sequence_length"], packed["vocabulary"])
        rows_audit = audit.RowAudit(tokenizer, rows.tokens, model, building.folder)
        figures = training.run(
            trained,
            tokenizer,
            rows,
            building.folder,
            args,
            flatten=implementation == "flash_attention_2",
            evaluate=training.held_out_probe(trained, tokenizer, sample, window=packed["sequence_length"]),
            eval_steps=eval_steps,
            embedding_learning_rate=embedding_learning_rate,
            embedding_steps=embedding_steps,
            callbacks=[rows_audit],
        )
        building.record(**figures, audit=rows_audit.counts)
        building.record(attention=implementation, precision="bf16" if args.bf16 else "fp32")
    first, last = figures["held_out_first"], figures["held_out_last"]
    print(
        f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['tokens_per_second']:,.0f} tok/s | held-out "
        "bits per byte " + ", ".join(f"{language} {first[language]:.3f} -> {last[language]:.3f}" for language in first)
    )
    machine.finish_distributed()


if __name__ == "__main__":
    cli.run(main)
