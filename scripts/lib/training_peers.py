"""What `make bench-cpt` and `make bench-sft` time this project's training loop beside, and the clock that all of them have.

The peers are what one would write or install instead: transformers' Trainer with padded batches and a loss of all logits,
and TRL's SFTTrainer with packing. A timed function runs in a process of its own and returns tokens (real ones, no padding),
wall and CPU seconds of all steps but the first, which warms up.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback

from lib import machine, models, objective, progress, reference, training, vocabulary
from lib.losses import IGNORED

Figures = dict[str, float]
Encoded = tuple[list[int], list[int]]  # ids, labels
# Of Trainer's arguments those that decide what a step computes; TRL has other defaults for some.
SHARED_ARGUMENTS = (
    *("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "optim", "max_grad_norm", "bf16"),
    *("warmup_steps", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("logging_steps", "save_steps", "save_strategy", "seed", "data_seed", "use_cpu", "disable_tqdm", "report_to"),
)


class Clock(TrainerCallback):
    """Wall and CPU time at the end of every step: what lies between two ends is all that a step costs."""

    def __init__(self):
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Read both clocks."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def figures(self, tokens: float) -> Figures:
        """Of the steps after the first, in which there were so many tokens."""
        return speed(tokens, *(last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True)))


class PlainTrainer(Trainer):
    """Trainer with `plain_loss`."""

    def __init__(self, *args: object, reference: PreTrainedModel, kl_weight: float, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.reference, self.kl_weight = reference, kl_weight

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of a batch."""
        return plain_loss(model, self.reference, inputs, self.kl_weight)


def plain_loss(
    model: PreTrainedModel, reference: PreTrainedModel, batch: Mapping[str, torch.Tensor], kl_weight: float
) -> torch.Tensor:
    """CE + kl_weight * KL(P || P_ref), means over the targets, as one writes it down: the logits of both models, whole."""
    context = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["labels"][:, 1:].flatten()
    log_p = F.log_softmax(model(**context, use_cache=False).logits[:, :-1].flatten(0, 1), dim=-1)
    with torch.no_grad():
        log_r = F.log_softmax(reference(**context, use_cache=False).logits[:, :-1].flatten(0, 1), dim=-1)
    ce = F.nll_loss(log_p, targets, ignore_index=IGNORED)
    kl = F.kl_div(log_r, log_p, log_target=True, reduction="none").sum(dim=-1)
    return ce + kl_weight * kl[targets != IGNORED].mean()


def padded(documents: Sequence[list[int]], filler: int) -> dict[str, torch.Tensor]:
    """A batch of one document a row, as long as the longest; a document's first token is nobody's target."""
    ids = [torch.tensor(document) for document in documents]
    shape = {"batch_first": True, "padding_value": 0}
    mask = pad_sequence([torch.ones_like(row) for row in ids], **shape)
    starts = pad_sequence([torch.arange(len(row)) == 0 for row in ids], **shape | {"padding_value": True})
    tokens = pad_sequence(ids, **shape | {"padding_value": filler})
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(starts, IGNORED)}


def ours(
    model: Path, rows: list[dict], settings: Mapping[str, object], kl: torch.dtype | None, threads: int
) -> Figures:
    """The loop over packed rows as cpt.py (with the KL to `init`) and sft.py run it, with its log's line for each step.

    Args:
        model: folder of the model, which is the frozen reference too.
        rows: items of input_ids, position_ids, labels, and tokens where a row is not full.
        settings: those of cpt.py or sft.py.
        kl: what the reference is kept in; None for no reference.
        threads: of torch.
    """
    _prepare(threads)
    with tempfile.TemporaryDirectory() as name:
        folder, clock = Path(name), Clock()
        args = machine.arguments(folder, **machine.optimiser_settings(settings))
        trained, tokenizer = models.load(model, attention=machine.choose_attention("auto"))
        frozen = frozen_reference(model, kl) if kl else None
        attached = attach(trained, tokenizer, frozen, settings)
        training.run(
            trained,
            tokenizer,
            rows,
            folder,
            args,
            flatten=False,
            evaluate=None,
            eval_steps=1,
            objective=attached,
            reference=frozen.model if frozen else None,
            read=frozen.inputs if frozen else None,
            callbacks=[clock],
        )
        log = [json.loads(line) for line in (folder / training.METRICS).read_text(encoding="utf-8").splitlines()]
    return clock.figures(log[-1]["tokens"] - log[0]["tokens"])


def frozen_reference(model: Path, dtype: torch.dtype = torch.float32) -> reference.Reference:
    """The model itself, frozen."""
    frozen, tokenizer = models.load(model, dtype=dtype, attention=machine.choose_attention("auto"))
    return reference.Reference("init", frozen, tokenizer, tokenizer)


def attach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    frozen: reference.Reference | None,
    settings: Mapping[str, object],
) -> objective.Objective:
    """Put the loss of cpt.py and sft.py into the model's forward pass."""
    token_bytes = torch.tensor(vocabulary.lengths(tokenizer))
    how = objective.Objective(kl_weight=settings.get("kl_weight", 0.0), chunk=settings["head_chunk"])
    return objective.attach_loss(model, token_bytes, how, frozen)


def plain_trainer(model: Path, documents: list[list[int]], settings: Mapping[str, object], threads: int) -> Figures:
    """Trainer with the plain loss over documents, one a row, in its own random order."""
    _prepare(threads)
    trained, tokenizer = models.load(model)
    frozen, _ = models.load(model)
    filler = tokenizer.eos_token_id
    seen: list[tuple[int, int]] = []

    def collate(items: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = padded(items, filler)
        seen.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    with tempfile.TemporaryDirectory() as name:
        args, clock = machine.arguments(Path(name), **machine.optimiser_settings(settings)), Clock()
        trainer = PlainTrainer(
            model=trained,
            args=args,
            train_dataset=documents,
            data_collator=collate,
            callbacks=[clock],
            reference=frozen.requires_grad_(False),
            kl_weight=settings["kl_weight"],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    passes = args.gradient_accumulation_steps
    counted = seen[passes : passes * args.max_steps]  # batches are fetched ahead
    tokens, places = (sum(part) for part in zip(*counted, strict=True))
    return {**clock.figures(tokens), "padding": 1 - tokens / places}


def trl_trainer(
    model: Path, dialogues: list[Encoded], settings: Mapping[str, object], length: int, one_row: bool, threads: int
) -> Figures:
    """TRL's SFTTrainer over the same tokens and labels, packed by itself (its default, best fit decreasing)."""
    _prepare(threads)
    with tempfile.TemporaryDirectory() as name:
        clock = Clock()
        trainer = made_sft_trainer(model, dialogues, settings, length, Path(name), one_row=one_row)
        trainer.add_callback(clock)
        collate = trainer.data_collator
        seen: list[int] = []

        def counting(items: list[dict]) -> dict[str, torch.Tensor]:
            seen.append(sum(len(item["input_ids"]) for item in items))
            return collate(items)

        trainer.data_collator = counting
        trainer.train()
    passes = trainer.args.gradient_accumulation_steps
    return clock.figures(sum(seen[passes : passes * trainer.args.max_steps]))


def made_sft_trainer(
    model: Path,
    rows: Sequence[Encoded | dict],
    settings: Mapping[str, object],
    length: int,
    folder: Path,
    *,
    one_row: bool,
) -> Trainer:
    """TRL's trainer with this project's arguments, its dataset packed.

    Args:
        model: folder of the model.
        rows: ids and labels of dialogues, or what else TRL takes.
        settings: those of sft.py.
        length: tokens a row.
        folder: for TRL's output.
        one_row: a step's rows are passes of their own, not one long row.
    """
    import datasets
    import trl

    datasets.disable_progress_bars()
    trained, tokenizer = models.load(model)
    args = machine.arguments(folder, **machine.optimiser_settings(settings))
    shared = {name: getattr(args, name) for name in SHARED_ARGUMENTS}
    if one_row:
        shared["gradient_accumulation_steps"] *= shared["per_device_train_batch_size"]
        shared["per_device_train_batch_size"] = 1
    config = trl.SFTConfig(
        output_dir=args.output_dir, max_length=length, packing=True, gradient_checkpointing=False, **shared
    )
    rows = [row if isinstance(row, dict) else dict(zip(("input_ids", "labels"), row, strict=True)) for row in rows]
    trainer = trl.SFTTrainer(
        model=trained, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def alone(work: Callable[..., object], *arguments: object) -> object:
    """What a function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def in_turn(jobs: Mapping[str, tuple], rounds: int) -> dict[str, list[Figures]]:
    """Runs of every job, (function, its arguments ...), by name: one after another, round by round."""
    measured: dict[str, list[Figures]] = {job: [] for job in jobs}
    for number in range(rounds):
        for job, (work, *arguments) in jobs.items():
            load = os.getloadavg()[0]
            run = alone(work, *arguments) | {"load_before": load}
            measured[job].append(run)
            progress.say(
                f"round {number + 1}: {job}: {run['tokens_per_second']:,.1f} tokens/s, {run['tokens_per_cpu_second']:,.1f} "
                f"per CPU second, {run['peak_mb']:,.0f} MB (load {load:.1f})"
            )
    return measured


def speed(tokens: float, wall: float, cpu: float) -> Figures:
    """What a job reports, at its end: its speed and the memory it took."""
    return {
        "tokens": tokens,
        "seconds": wall,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "peak_mb": peak_mb(),
    }


def table(measured: Mapping[str, Sequence[Figures]]) -> dict[str, Figures]:
    """Each figure's median over the runs, by job; printed as a table."""
    medians = {
        job: {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
        for job, runs in measured.items()
    }
    print(f"{'':<26}{'tokens/s':>10}{'per CPU second':>16}{'peak MB':>10}")
    for job, run in medians.items():
        print(
            f"{job:<26}{run['tokens_per_second']:>10.1f}{run['tokens_per_cpu_second']:>16.1f}{run['peak_mb']:>10,.0f}"
        )
    return medians


def ratios(medians: Mapping[str, Figures], beside: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """How many times better ours is than each peer, by wall time, CPU time and peak memory; `beside` names ours by peer."""
    kinds = {"ratios": "tokens_per_second", "cpu_ratios": "tokens_per_cpu_second"}
    found = {
        kind: {peer: round(medians[mine][name] / medians[peer][name], 2) for peer, mine in beside.items()}
        for kind, name in kinds.items()
    }
    memory = {peer: round(medians[peer]["peak_mb"] / medians[mine]["peak_mb"], 2) for peer, mine in beside.items()}
    return found | {"memory_ratio": memory}


def spread(measured: Mapping[str, Sequence[Figures]], name: str) -> dict[str, list[float]]:
    """A figure in all rounds, by job."""
    return {job: [round(run[name], 3) for run in runs] for job, runs in measured.items()}


def peak_mb() -> float:
    """The largest resident memory since this process began; what getrusage says begins with the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def installed(package: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(package) is not None


def _prepare(threads: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
