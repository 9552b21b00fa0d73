"""The one training loop, for continued pre-training and instruction tuning alike: transformers' Trainer with this
project's loss, optimiser groups, order of data, checkpoints and log.
"""

import functools
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import rotate_checkpoints

from lib import (
    budget,
    disk,
    machine,
    metrics,
    models,
    packing,
    processes,
    progress,
    samples,
    schedules,
    stage,
    trackers,
    utilisation,
)
from lib.errors import UserError
from lib.guard import Guard, OnSpike
from lib.journal import METRICS, Journal, append_lines, mean_losses
from lib.objective import PARTS, Objective

PROBE_TOKENS = 4096  # a forward pass of the held-out evaluation
SAME_SIGNAL = 1.0  # seconds after a signal in which another one is no second wish
ASIDE = "incomplete"  # where a checkpoint is written before it gets its name
SUMS = (*PARTS, "loss", "tokens", "flops", "steps")  # of an interval, over passes and processes

# Settings that an interrupted run may go on under when changed: no weight depends on them but after a spike.
ADJUSTABLE = ("keep_checkpoints", "on_spike", "report_to", "timeout_seconds")

__all__ = ["METRICS", "LanguageTrainer", "held_out_probe", "newest_checkpoint", "run"]


class LanguageTrainer(Trainer):
    """Trainer over packed rows in their stored order, with a guard against spikes and what the log needs to know.

    Args:
        *args, **kwargs: Trainer's.
        folder: where the rows of a spike are written down.
        tokenizer: spells them.
        schedule: of the rate.
        decay_share: of schedule wsd.
        embedding_learning_rate: of embeddings and head; the body's if not given.
        embedding_steps: steps at first in which only these move.
        on_spike: 'stop' at a spike, or 'skip' that step.
        reference: the frozen model, counted in the FLOPs.
    """

    def __init__(
        self,
        *args: object,
        folder: Path | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        schedule: schedules.Schedule = "cosine",
        decay_share: float = 0.2,
        embedding_learning_rate: float | None = None,
        embedding_steps: int = 0,
        on_spike: OnSpike = "stop",
        reference: PreTrainedModel | None = None,
        **kwargs: object,
    ):
        super().__init__(*args, **kwargs)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.folder, self.tokenizer, self.on_spike = folder, tokenizer, on_spike
        self.schedule, self.decay_share = schedule, decay_share
        self.embedding_learning_rate, self.embedding_steps = embedding_learning_rate, embedding_steps
        self.guard = Guard()
        self.tokens = self.tokens_here = 0  # of the whole run; since this process began
        self.idle = 0.0  # seconds spent on evaluating and saving
        self._asked = 0.0
        self.asked_to_stop = self.stopping = False  # this process; all of them, from the end of the step on
        self.shape = utilisation.shape(self.model)
        self.reference_shape = utilisation.shape(reference) if reference is not None else None
        self.peak = 1.0
        self._interval = dict.fromkeys(SUMS, 0.0)
        self._step: torch.Tensor | None = None  # sums of the step's passes so far
        self._passes: list[
            tuple[torch.Tensor | None, torch.Tensor]
        ] = []  # the step's row numbers and sums, a pass each
        self._dropping = False
        self.checkpoint_bytes = disk.checkpoint_bytes(self.model, self.is_deepspeed_enabled)

    # The optimiser

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over three groups: embeddings and head (own rate, no decay), norms and biases (no decay), the rest."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            of_vocabulary = {id(models.head_weight(self.model)), id(self.model.get_input_embeddings().weight)}
            embeddings, vectors, matrices = [], [], []
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    in_vocabulary = id(parameter) in of_vocabulary
                    shape = getattr(
                        parameter, "ds_shape", parameter.shape
                    )  # ZeRO-3 leaves an empty vector in its place
                    (embeddings if in_vocabulary else vectors if len(shape) < 2 else matrices).append(parameter)
            rate = self.embedding_learning_rate or self.args.learning_rate
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = kind(
                [
                    {"params": embeddings, "weight_decay": 0.0, "lr": rate},
                    {"params": vectors, "weight_decay": 0.0},
                    {"params": matrices, "weight_decay": self.args.weight_decay},
                ],
                **options,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule; the body's groups (all but the first) wait for `embedding_steps`."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            shared = functools.partial(
                schedules.factor,
                self.schedule,
                steps=num_training_steps,
                warmup_steps=warmup_steps,
                decay_share=self.decay_share,
            )
            body = shared
            if self.embedding_steps:
                body = functools.partial(
                    schedules.body_factor,
                    shared=shared,
                    embedding_steps=self.embedding_steps,
                    warmup_steps=warmup_steps,
                )
            factors = [shared, *[body] * (len(optimizer.param_groups) - 1)]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # A step

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # shuffled when packed, so that a resumed run sees the same order

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """A step's batches, each told how many positions of the whole step, on all processes, have a KL."""
        batches, positions = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "kl_items" in batches[0]:
            items = processes.total(torch.stack([batch["kl_items"] for batch in batches]).sum().to(device))
            for batch in batches:
                batch["kl_items_in_batch"] = items
        return batches, positions

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A pass; a skipped step's gradients are dropped, and the body's while only embeddings move.

        The body's rate is 0 then anyway. But its gradients would dominate the norm that the embeddings' are clipped by, and
        would leave the body's moments full of a model that is gone (with a first beta above the second, its steps
        would start too large). Dropped after each pass, not turned off: DDP reduces every gradient. DeepSpeed clips
        and steps within the pass, so under it the body does count in the norm and its moments run along.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._dropping:
            self._drop_gradients()
        elif self.state.global_step < self.embedding_steps and not self.is_deepspeed_enabled:
            for group in self.optimizer.param_groups[1:]:
                for parameter in group["params"]:
                    parameter.grad = None
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, CausalLMOutputWithPast]:
        """The loss of a pass. The step's last one first settles, on all processes alike, whether the step is a spike: before
        its backward pass, within which DeepSpeed makes the step.
        """
        rows, tokens = inputs.pop("row", None), inputs.pop("tokens", None) or inputs["input_ids"].numel()
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.state.global_step % self.args.logging_steps == 0:
            machine.return_freed_memory()
        parts = outputs.logits.detach().view(-1, len(PARTS)).sum(0).double()
        flops = self._flops(inputs, tokens, parts)
        sums = torch.stack([*parts, loss.detach().double() / self.args.world_size, parts.new_tensor(tokens), flops])
        if self._step is None:
            self._step, self._passes, self._dropping = torch.zeros_like(sums), [], False
        self._step += sums
        self._passes.append((rows, sums))
        if self.accelerator.sync_gradients:
            self._settle()
        return (loss, outputs) if return_outputs else loss

    def _flops(self, inputs: Mapping[str, torch.Tensor], tokens: int, parts: torch.Tensor) -> torch.Tensor:
        """Of a pass over these inputs, forward and backward, and the reference's forward."""
        part = dict(zip(PARTS, parts, strict=True))
        predicted = part["positions_target"] + part["positions_replay"]
        flops = 3 * self.shape.forward(tokens, predicted, (inputs["position_ids"] + 1).sum())
        if self.reference_shape is not None:
            ids = inputs.get("ref_input_ids", inputs["input_ids"])
            pairs = (inputs.get("ref_position_ids", inputs["position_ids"]) + 1).sum()
            asked = part["kl_positions"] > 0
            flops += asked * self.reference_shape.forward(ids.numel(), part["kl_positions"], pairs)
        return flops

    def _settle(self) -> None:
        """A step's sums over all processes: into the interval's, unless they are a spike's."""
        sums = processes.total(torch.cat([self._step, self._step.new_tensor([1.0, self.asked_to_stop])])).tolist()
        self._step = None
        self.stopping = sums.pop() > 0
        step = dict(zip(SUMS, sums, strict=True)) | {"steps": 1.0}
        self.tokens += int(step["tokens"])
        self.tokens_here += int(step["tokens"])
        reason = self.guard.judge(*mean_losses(step))
        if reason is not None:
            self._refuse(reason)
            step = dict.fromkeys(SUMS, 0.0) | {"tokens": step["tokens"], "flops": step["flops"]}
        for name, value in step.items():
            self._interval[name] += value

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None) -> float | None:
        """The norm of a step's gradient, which has to be a number; by now it is the same on all processes."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.item() if isinstance(norm, torch.Tensor) else norm
        if norm is not None and not math.isfinite(norm):
            if not self._dropping:
                self._refuse(f"the gradient's norm is {norm}")
            self._drop_gradients()
        elif not self._dropping:
            self.guard.passed()
        return norm

    def _drop_gradients(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _refuse(self, reason: str) -> None:
        """Write down the step's rows, then stop or skip it.

        Raises:
            UserError: it is not to be skipped, or too many steps in a row were.
        """
        step = self.state.global_step + 1
        path = self.folder / f"spike-{step}.jsonl"
        rows = [row for of_process in processes.gathered(self._named_rows()) for row in of_process]
        if processes.is_main():
            path.unlink(missing_ok=True)
            append_lines(path, rows)
        worst = sorted(rows, key=lambda row: math.inf if row["ce"] is None else row["ce"], reverse=True)
        named = ", ".join(row["row"] for row in worst[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        what = f"{reason} at step {step}, on rows {named}; their text is in {path}"
        if self.on_spike == "skip" and self.guard.skip():
            self._dropping = True
            if processes.is_main():
                progress.say(f"skipped a step: {what}")
            return
        if self.on_spike == "skip":
            raise UserError(
                f"{what}; {self.guard.in_a_row} steps in a row were skipped, so it is not the text: lower learning_rate"
            )
        last = newest_checkpoint(Path(self.args.output_dir))
        raise UserError(
            f"{what}; the last checkpoint before it is {last or 'none: nothing was saved yet'}. Lower learning_rate or max_grad_norm "
            "and start anew, or set on_spike to skip and go on"
        )

    def _named_rows(self) -> list[dict[str, object]]:
        """The step's rows on this process: names, mean CE of the pass they were in (nats; None for no number), and text."""
        name = getattr(self.train_dataset, "name", str)
        found = []
        for rows, sums in self._passes:
            ce, _ = mean_losses(dict(zip(PARTS, sums.tolist(), strict=False)))
            ce = ce if math.isfinite(ce) else None
            for row in [] if rows is None else rows.tolist():
                ids = self.train_dataset[row]["input_ids"]
                found.append({"row": name(row), "ce": ce, "text": self.tokenizer.decode(ids)})
        return found

    # What a checkpoint holds

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict:  # ZeRO-2's is a copy, in which a tied head would be saved beside the embedding
            tied = self.model.all_tied_weights_keys
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def take_interval(self) -> dict[str, float]:
        """Sums over the passes of all processes since the last call, skipped steps left out but for their tokens and FLOPs."""
        taken, self._interval = self._interval, dict.fromkeys(SUMS, 0.0)
        return taken

    def progress_state(self) -> dict[str, object]:
        """What a resumed run needs for the same records and decisions as this one."""
        return {"tokens": self.tokens, "interval": self._interval, "guard": self.guard.state()}

    def restore_progress(self, noted: Mapping) -> None:
        """Go on from a `progress_state`."""
        self.tokens, self._interval, self.guard = noted["tokens"], dict(noted["interval"]), Guard(**noted["guard"])

    def check_room(self, steps: int) -> None:
        """See that the checkpoints of a run of so many steps will fit on the disk.

        Raises:
            UserError: they won't.
        """
        saves, keep = math.ceil(steps / self.args.save_steps), self.args.save_total_limit
        sizes = self.checkpoint_bytes, disk.model_bytes(self.model)
        processes.on_main(lambda: disk.check_before_run(self.folder, Path(self.args.output_dir), *sizes, keep, saves))

    def _get_output_dir(self, trial: object = None) -> str:
        return str(Path(super()._get_output_dir(trial)) / ASIDE)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Write a checkpoint aside and give it its name when it is complete; then drop the oldest.

        Raises:
            UserError: it will not fit on the disk.
        """
        begun, folder, step = time.time(), Path(self.args.output_dir), self.state.global_step
        processes.on_main(lambda: disk.check_before_checkpoint(folder, self.checkpoint_bytes, step))
        super()._save_checkpoint(model, trial)
        processes.wait()
        if processes.is_main():
            written = folder / ASIDE / f"checkpoint-{step}"
            self.checkpoint_bytes = disk.folder_bytes(written)
            shutil.rmtree(folder / written.name, ignore_errors=True)
            written.rename(folder / written.name)
            written.parent.rmdir()
            rotate_checkpoints(str(folder), save_total_limit=self.args.save_total_limit)
        processes.wait()
        self.idle += time.time() - begun

    def stop(self, *_: object) -> None:
        """Signal handler: finish the step, save, leave; a second signal ends the run at once.

        Unless it comes at the heels of the first: a job system's signal reaches make and torchrun, and make passes it on, too.
        """
        if self.asked_to_stop:
            if time.monotonic() - self._asked > SAME_SIGNAL:
                raise KeyboardInterrupt
            return
        self.asked_to_stop, self._asked = True, time.monotonic()
        progress.say("stopping: saving a checkpoint after this step (once more to stop at once)")


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Dataset,
    folder: Path,
    args: TrainingArguments,
    *,
    flatten: bool,
    evaluate: Callable[[], dict[str, float]] | None,
    eval_steps: int,
    schedule: schedules.Schedule = "cosine",
    decay_share: float = 0.2,
    embedding_learning_rate: float | None = None,
    embedding_steps: int = 0,
    on_spike: OnSpike = "stop",
    objective: Objective | None = None,
    kl_budget: budget.Budget | None = None,
    reference: PreTrainedModel | None = None,
    read: Callable[[Sequence[dict]], dict[str, torch.Tensor]] | None = None,
    languages: tuple[str, str] = ("target", "replay"),
    prompts: Sequence[Mapping[str, str]] = (),
    report_to: Sequence[trackers.Name] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, object]:
    """Train, going on from the newest complete checkpoint in `folder`, and leave the model there.

    Args:
        model: with its loss attached.
        tokenizer: saved beside the model.
        rows: packed rows in the order of training; `rows.name(number)`, if there is one, names a row in messages.
        folder: the stage's building folder.
        args: from `arguments`.
        flatten: one long row per batch (flash attention).
        evaluate: held-out bits per byte by language, at step 0, every `eval_steps` and at the end.
        eval_steps: steps between evaluations.
        schedule: of the learning rate.
        decay_share: of schedule 'wsd', the share of all steps in which it comes down.
        embedding_learning_rate: of embeddings and head; the body's if not given.
        embedding_steps: steps at first in which only embeddings and head move.
        on_spike: 'stop' at a loss that is no number or far above the last ones, or 'skip' that step.
        objective: of the attached loss, whose kl_weight `kl_budget` adapts.
        kl_budget: what the held-out text of a language may lose.
        reference: the frozen model, counted in the utilisation; it reads `ref_input_ids` and `ref_position_ids` of a batch, or
            what the trained model does.
        read: what the reference reads of a batch's rows, put beside what the model does.
        languages: what the log calls rows that are no replay, and those that are.
        prompts: from generation.read_prompts, the first of which are answered at each evaluation.
        report_to: trackers that get the log's figures too.
        callbacks: called before the journal.

    Returns:
        Figures for the manifest.

    Raises:
        UserError: a spike stopped it, there is too little room on the disk, or what is asked for can't be done.
    """
    schedules.check(schedule, decay_share)
    trackers.require(report_to)
    if on_spike == "skip" and args.deepspeed:
        raise UserError(
            "on_spike: skip can't be done under DeepSpeed, which adds gradients up where they can't be dropped; say stop"
        )
    journal = Journal(
        folder,
        evaluate=evaluate,
        sample=functools.partial(samples.answers, model, tokenizer, prompts[: samples.SHOWN]) if prompts else None,
        eval_steps=eval_steps,
        languages=languages,
        objective=objective,
        kl_budget=kl_budget,
        report_to=report_to,
    )
    trainer = LanguageTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=functools.partial(_collate, flatten=flatten, read=read),
        callbacks=[*callbacks, journal],
        folder=folder,
        tokenizer=tokenizer,
        schedule=schedule,
        decay_share=decay_share,
        embedding_learning_rate=embedding_learning_rate,
        embedding_steps=embedding_steps,
        on_spike=on_spike,
        reference=reference,
    )
    journal.trainer = trainer
    figures = _train(trainer, journal, Path(args.output_dir))
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest holds the settings
        models.save_tokenizer(tokenizer, folder)
        shutil.rmtree(args.output_dir, ignore_errors=True)
    evaluations = [record for record in journal.records() if "held_out" in record]
    return figures | {
        "held_out_first": evaluations[0]["held_out"] if evaluations else None,
        "held_out_last": evaluations[-1]["held_out"] if evaluations else None,
        "parameters": model.num_parameters(),
        "processes": args.world_size,
        "peak_memory_mb": stage.peak_memory_mb(),
    }


def _train(trainer: LanguageTrainer, journal: Journal, checkpoints: Path) -> dict[str, object]:
    """The run itself, from the newest checkpoint on, with room on the disk made sure of and signals seen to.

    Raises:
        KeyboardInterrupt: a signal ended it, after a checkpoint.
    """
    args = trainer.args
    newest = processes.from_main(newest_checkpoint(checkpoints) if processes.is_main() else None)
    trainer.peak = utilisation.peak(args.device, torch.bfloat16 if args.bf16 else torch.float32)
    previous = {number: signal.signal(number, trainer.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    begun = time.time()
    try:
        trainer.train(resume_from_checkpoint=newest)
    finally:
        journal.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if trainer.stopping and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    seconds = time.time() - begun
    return {
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens,
        "skipped_steps": trainer.guard.skipped,
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(trainer.tokens_here / seconds, 1),
    }


def held_out_probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, list[str]], window: int
) -> Callable[[], dict[str, float]]:
    """A function that measures held-out bits per byte by language, for the log while training."""

    def probe() -> dict[str, float]:
        machine.return_freed_memory()
        return {
            language: metrics.summarise(
                metrics.bits_per_byte(model, tokenizer, held, window=window, batch_tokens=PROBE_TOKENS), resamples=1
            )["value"]
            for language, held in texts.items()
        }

    return probe


def newest_checkpoint(folder: Path) -> str | None:
    """The newest *complete* checkpoint; what is incomplete is removed.

    A checkpoint gets its name when it is complete; one that was copied here by hand may still lack something.
    """
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    found = []
    for path in folder.glob("checkpoint-*"):
        if all(any(path.glob(part)) for part in ("trainer_state.json", "scheduler.pt", "rng_state*")):
            found.append((int(path.name.rsplit("-", 1)[1]), path))
        else:
            progress.say(f"leaving out the incomplete checkpoint {path.name}")
            shutil.rmtree(path, ignore_errors=True)
    return str(max(found)[1]) if found else None


def _collate(
    items: list[dict], *, flatten: bool, read: Callable[[Sequence[dict]], dict[str, torch.Tensor]] | None
) -> dict[str, torch.Tensor | int]:
    tokens = sum(item.get("tokens", len(item["input_ids"])) for item in items)
    return {**packing.collate(items, flatten=flatten), **(read(items) if read else {}), "tokens": tokens}
