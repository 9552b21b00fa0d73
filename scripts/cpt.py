"""Continue pre-training all weights on the new vocabulary, held to a frozen reference: CE + lambda * KL.

    python scripts/cpt.py --model=checkpoints/demo/init --base=checkpoints/models/smollm2-135m --pack=data/demo/pack \
        --out=checkpoints/demo/cpt --config=configs/demo/cpt.yaml
    python scripts/launch.py --standalone --nproc_per_node=8 scripts/cpt.py ...   (torchrun: several GPUs; DeepSpeed by `deepspeed:`)

Reads:  the initialised model (and what its rows.json says of the rows), the packed rows and held-out documents, the base model
        if it is the reference or kl_target is to be held, prompts if given.
Writes: a Hugging Face model folder, metrics.jsonl, forgetting.svg, audit.json (new rows that the first tenth did not train, rows
        that left the base's range of norms) and, with prompts, samples.jsonl. An interrupted run goes on from its last checkpoint.
"""

from pathlib import Path
from typing import Literal

import torch

from lib import (
    audit,
    budget,
    cli,
    documents,
    generation,
    guard,
    machine,
    mixing,
    models,
    objective,
    packing,
    processes,
    schedules,
    stage,
    storage,
    trackers,
    training,
    vocabulary,
)
from lib import reference as references
from lib.errors import UserError


def main(
    *,
    model: Path,
    pack: Path,
    out: storage.Place,
    base: Path | None = None,
    reference: Literal["init", "first_piece", "chunk", "none"] = "init",
    combine: objective.Combine = "sum",
    kl_weight: float = 1.0,
    kl_target: float | None = None,
    kl_share: float = 0.5,
    kl_on: references.Asked = "all",
    kl_fraction: float = 1.0,
    kl_temperature: float = 1.0,
    reference_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    reference_offload: bool = False,
    z_loss: float = 0.0,
    weights: dict[str, float] | None = None,
    replay_share: float = 0.1,
    learning_rate: float = 1e-3,
    embedding_learning_rate: float | None = None,
    embedding_steps: int = 0,
    adam_beta1: float = 0.99,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 10,
    schedule: schedules.Schedule = "cosine",
    decay_share: float = 0.2,
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
    on_spike: guard.OnSpike = "stop",
    prompts: Path | None = None,
    report_to: list[trackers.Name] = [],  # noqa: B006
    timeout_seconds: int = machine.TIMEOUT_SECONDS,
    seed: int = 0,
) -> None:
    """Train all weights with L = CE + kl_weight * KL(P_new || P_ref) (the paper's equation 1).

    Args:
        model: folder of the initialised model.
        pack: output of the pack stage.
        out: folder or address to write.
        base: folder of the base model, for references first_piece and chunk, and for kl_target.
        reference: what P_ref is: 'init', the initialised model, frozen; 'first_piece' or 'chunk', the base model itself on the same
            text in its own tokens, where both tokenizers have a boundary, by the distribution of its next token or the probability
            of the text up to the next such boundary; or 'none' for plain CE.
        combine: 'sum', equation 1; 'lerp', (1 - kl_share) CE + kl_share KL; 'slerp', the two gradients at the last hidden states
            interpolated on the sphere at kl_share.
        kl_weight: lambda of 'sum'.
        kl_target: per cent of the base's bits per byte on held-out replay text that may be lost; kl_weight, then only the first,
            is adapted to it after each evaluation.
        kl_share: t of 'lerp' and 'slerp'.
        kl_on: rows the reference is asked about: 'all', or those of the 'replay' language.
        kl_fraction: share of these rows, drawn by their number; the KL of the others is not missed for long, its time is saved.
        kl_temperature: T of 'chunk'.
        reference_dtype: of the frozen weights; 'auto' is bfloat16 where training is in it, and on a CPU that multiplies in it.
        reference_offload: keep them in the CPU's memory; layers visit the GPU one by one.
        z_loss: weight of log(sum of exp(logits))^2, which keeps logits from drifting.
        weights: shares of the rows by source, those of the target language and of the replay language each among themselves;
            by size if not given.
        replay_share: share of the rows that are of the replay language, English; 0 for none.
        learning_rate: peak rate.
        embedding_learning_rate: peak rate of embeddings and head; learning_rate if not given.
        embedding_steps: steps at first in which only embeddings and head move; the body warms up after them.
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
        epochs: over the packed rows of the target language, unless max_steps is given.
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
    _check(settings)
    packed = stage.read_manifest(pack)["results"]
    inputs = {"model": model, "pack": pack, "base": base, "prompts": prompts}
    per_step = batch_size * accumulation * machine.count_processes()
    rows = mixing.Mixture(
        pack,
        weights=weights,
        replay_share=replay_share,
        epochs=epochs,
        rows=max_steps * per_step if max_steps else None,
        seed=seed,
    )
    steps = -(-len(rows) // per_step)
    if embedding_steps and not 0 < embedding_steps < steps:
        raise UserError(f"embedding_steps {embedding_steps}: has to be 0 or more, and below the run's {steps} steps")
    models.check_same_tokenizer(models.load_tokenizer(model), packed["tokenizer"], model, pack)
    implementation = machine.choose_attention(attention)
    with stage.output(out, inputs=inputs, settings=settings, resume=True, adjustable=training.ADJUSTABLE) as building:
        torch.manual_seed(seed)
        tokenizer = models.load_tokenizer(model)
        sample = documents.held_out(pack / "held_out" / "documents", eval_characters)
        held = _reference(settings, tokenizer, implementation)
        budgeted = _budget(settings, sample, packed["sequence_length"])
        args = machine.arguments(
            building.folder, **machine.optimiser_settings(settings | {"epochs": 1.0})
        )  # rows have them all
        trained, _ = models.load(model, attention=implementation)
        aim = objective.attach_loss(
            trained,
            torch.tensor(vocabulary.lengths(tokenizer)),
            objective.Objective(kl_weight, combine, kl_share, z_loss, head_chunk),
            held,
        )
        rows_audit = audit.RowAudit(tokenizer, rows, model, building.folder)
        figures = training.run(
            trained,
            tokenizer,
            rows,
            building.folder,
            args,
            flatten=implementation == "flash_attention_2",
            evaluate=training.held_out_probe(trained, tokenizer, sample, window=packed["sequence_length"]),
            eval_steps=eval_steps,
            schedule=schedule,
            decay_share=decay_share,
            embedding_learning_rate=embedding_learning_rate,
            embedding_steps=embedding_steps,
            on_spike=on_spike,
            objective=aim,
            kl_budget=budgeted,
            reference=None if held is None else held.model,
            read=None if held is None else held.inputs,
            languages=(rows.target_language, packing.REPLAY_LANGUAGE),
            prompts=generation.read_prompts(prompts) if prompts else (),
            report_to=report_to,
            callbacks=[rows_audit],
        )
        building.record(**figures, audit=rows_audit.counts, reading=rows.reading(figures["steps"] * per_step))
        building.record(attention=implementation, precision="bf16" if args.bf16 else "fp32")
    if processes.is_main():
        first, last = figures["held_out_first"], figures["held_out_last"]
        print(
            f"{figures['tokens']:,} tokens in {figures['steps']} steps, {figures['tokens_per_second']:,.0f} tok/s | held-out "
            "bits per byte "
            + ", ".join(f"{language} {first[language]:.3f} -> {last[language]:.3f}" for language in first)
        )
    machine.finish_distributed()


def _check(settings: dict) -> None:
    """Refuse settings that contradict each other."""
    for name in ("adam_beta1", "adam_beta2"):
        if settings[name] >= 1:
            raise UserError(f"{name} {settings[name]}: has to be below 1")
    for name in ("kl_share", "kl_fraction"):
        if not 0 <= settings[name] <= 1:
            raise UserError(f"{name} {settings[name]}: is not a share from 0 to 1")
    if settings["kl_temperature"] <= 0:
        raise UserError(f"kl_temperature {settings['kl_temperature']}: has to be above 0")
    needs_base = settings["reference"] in ("first_piece", "chunk") or settings["kl_target"] is not None
    if needs_base and settings["base"] is None:
        why = "kl_target" if settings["reference"] in ("init", "none") else f"reference {settings['reference']}"
        raise UserError(f"{why} needs the base model: name its folder with --base")
    if settings["kl_target"] is not None and (settings["reference"] == "none" or settings["combine"] != "sum"):
        raise UserError("kl_target adapts kl_weight: it needs a reference, and combine: sum")
    schedules.check(settings["schedule"], settings["decay_share"])
    trackers.require(settings["report_to"])


def _reference(
    settings: dict, tokenizer: models.PreTrainedTokenizerFast, attention: str
) -> references.Reference | None:
    """The frozen model. Loaded before anything that DeepSpeed makes, so that it is whole on each process."""
    kind = settings["reference"]
    if kind == "none" or (settings["combine"] == "sum" and not settings["kl_weight"]):
        return None
    dtype = settings["reference_dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if machine.trains_in_bf16(settings["precision"]) or machine.cpu_has_bf16() else "float32"
    frozen, theirs = references.load(
        settings["model"] if kind == "init" else settings["base"],
        attention=attention,
        dtype=getattr(torch, dtype),
        device=machine.device(),
        offload=settings["reference_offload"],
    )
    return references.Reference(
        kind,
        frozen,
        theirs,
        tokenizer,
        on=settings["kl_on"],
        fraction=settings["kl_fraction"],
        temperature=settings["kl_temperature"],
        flatten=attention == "flash_attention_2",
    )


def _budget(settings: dict, texts: dict[str, list[str]], window: int) -> budget.Budget | None:
    """What the replay language may lose, by the base model's bits per byte on the held-out text that training is watched on."""
    if settings["kl_target"] is None:
        return None
    language = packing.REPLAY_LANGUAGE
    budget.check(settings["kl_target"], settings["kl_weight"], language, texts)
    model, tokenizer = models.load(settings["base"], device=machine.device())
    measured = training.held_out_probe(model, tokenizer, {language: texts[language]}, window)()
    return budget.Budget(language, measured[language], settings["kl_target"])


if __name__ == "__main__":
    cli.run(main)
