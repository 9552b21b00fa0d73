"""The one training loop, for continued pre-training and instruction tuning alike: transformers' Trainer with this
project's loss, optimiser groups, order of data and log.
"""

import functools
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from lib import losses, metrics, models, packing, progress, stage
from lib.errors import UserError

METRICS = "metrics.jsonl"
PROBE_TOKENS = 4096  # a forward pass of the held-out evaluation


def body_factor(step: int, shared: Callable[[int], float], embedding_steps: int, warmup_steps: int) -> float:
    """The body's learning rate at a step, as a factor of its peak: 0 while only embeddings move, then a linear warm-up
    of its own until it meets the schedule that the embeddings follow, `shared`.
    """
    since = step - embedding_steps
    if since < 0:
        return 0.0
    return min(since / warmup_steps, shared(step)) if since < warmup_steps else shared(step)


class LanguageTrainer(Trainer):
    """Trainer over packed rows in their stored order, with the CE and KL parts kept apart for the log."""

    def __init__(
        self,
        *args: object,
        embedding_learning_rate: float | None = None,
        embedding_steps: int = 0,
        **kwargs: object,
    ):
        super().__init__(*args, **kwargs)
        self.embedding_learning_rate = embedding_learning_rate
        self.embedding_steps = embedding_steps
        self.tokens = 0
        self._parts = torch.zeros(3)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over three groups: embeddings and head (own rate, no decay), norms and biases (no decay), the rest."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            of_vocabulary = {id(models.head_weight(self.model)), id(self.model.get_input_embeddings().weight)}
            embeddings, vectors, matrices = [], [], []
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    in_vocabulary = id(parameter) in of_vocabulary
                    (embeddings if in_vocabulary else vectors if parameter.ndim < 2 else matrices).append(parameter)
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
        """Transformers' schedule; the body's groups (all but the first) wait for `embedding_steps`."""
        created = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if created and self.embedding_steps:
            shared = scheduler.lr_lambdas[0]

            def body(step: int) -> float:
                return body_factor(step, shared, self.embedding_steps, self.args.get_warmup_steps(num_training_steps))

            scheduler.lr_lambdas[1:] = [body] * len(scheduler.lr_lambdas[1:])
            for group in scheduler.optimizer.param_groups[1:]:
                group["lr"] = 0.0  # the first step's rate is already set; the other steps' come from `body`
        return scheduler

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A pass; the body's gradients are dropped while only embeddings move.

        Its rate is 0 then anyway. But its gradients would dominate the norm that the embeddings' are clipped by, and
        would leave the body's moments full of a model that is gone (with a first beta above the second, its steps
        would start too large). Dropped after each pass, not turned off: DDP reduces every gradient. DeepSpeed clips
        and steps within the pass, so under it the body does count in the norm and its moments run along.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step < self.embedding_steps and not self.is_deepspeed_enabled:
            for group in self.optimizer.param_groups[1:]:
                for parameter in group["params"]:
                    parameter.grad = None
        return loss

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # shuffled when packed, so that a resumed run sees the same order

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, CausalLMOutputWithPast]:
        """The loss of a batch, refused if it is not a number."""
        self.tokens += int(inputs.pop("tokens")) * self.args.world_size
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate or max_grad_norm "
                f"and start anew (the last checkpoint before it is in {self.args.output_dir})"
            )
        count = (inputs["labels"][:, 1:] != losses.IGNORED).sum()
        self._parts += torch.stack([*outputs.logits, count]).float().cpu()
        return (loss, outputs) if return_outputs else loss

    def take_parts(self) -> tuple[float, float]:
        """Mean CE and KL per position, in nats, since the last call."""
        ce, kl, count = self._parts.tolist()
        self._parts.zero_()
        return ce / max(count, 1), kl / max(count, 1)


class Journal(TrainerCallback):
    """One line per interval and the same record in metrics.jsonl; held-out evaluations; a graceful stop."""

    def __init__(self, path: Path, evaluate: Callable[[], dict[str, float]] | None, eval_steps: int):
        self.path, self.evaluate, self.eval_steps = path, evaluate, eval_steps
        self.trainer: LanguageTrainer
        self.stopped = False
        self._since = time.time()
        self._tokens_logged = 0
        self._bar = None

    def on_train_begin(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Drop records of steps that an interrupted run lost, and measure the starting point."""
        self._keep_until(state.global_step)
        self.trainer.tokens = self._tokens_logged = self._last_tokens()
        self._since = time.time()
        if args.process_index == 0:
            self._bar = progress.bar(total=state.max_steps, title="train", unit="step")
            self._bar.update(state.global_step)
        if not state.global_step:
            self._measure(state)

    def on_step_end(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Evaluate when due; after a signal, save and stop."""
        if self._bar is not None:
            self._bar.update()
        if state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps:
            self._measure(state)
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **_) -> None:  # noqa: ANN001
        """Write one interval's line."""
        if not logs or "loss" not in logs:
            return
        ce, kl = self.trainer.take_parts()
        seconds, tokens = time.time() - self._since, self.trainer.tokens
        speed = (tokens - self._tokens_logged) / max(seconds, 1e-9)
        self._since, self._tokens_logged = time.time(), tokens
        rates = self.trainer.lr_scheduler.get_last_lr()
        record = {
            "step": state.global_step,
            "tokens": tokens,
            "loss": logs["loss"],
            "ce": ce,
            "kl": kl,
            "lr": rates[-1],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": speed,
            "seconds": seconds,
        }
        self._write(state, record)
        if state.is_world_process_zero:
            left = (state.max_steps - state.global_step) * tokens / max(state.global_step, 1) / max(speed, 1e-9)
            progress.say(
                f"step {state.global_step:>5}/{state.max_steps} | loss {logs['loss']:.4f} | ce {ce:.4f} | kl {kl:.4f} | "
                f"lr {rates[-1]:.2e} | grad {logs.get('grad_norm', math.nan):.2f} | {speed:,.0f} tok/s | "
                f"left {left / 60:.1f} min"
            )

    def on_train_end(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def stop(self, *_: object) -> None:
        """Signal handler: finish the step, save, leave; a second signal ends the run at once."""
        self.stopped = True
        progress.say("stopping: saving a checkpoint after this step (once more to stop at once)")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def _measure(self, state) -> None:  # noqa: ANN001
        if self.evaluate is None:
            return
        begun = time.time()
        held_out = self.evaluate()
        self._since += time.time() - begun
        self._write(state, {"step": state.global_step, "tokens": self.trainer.tokens, "held_out": held_out})
        if state.is_world_process_zero:
            listed = " | ".join(f"{language} {value:.4f}" for language, value in held_out.items())
            progress.say(f"step {state.global_step:>5}/{state.max_steps} | held-out bits per byte: {listed}")

    def _write(self, state, record: dict) -> None:  # noqa: ANN001
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill can cut the last line

    def _keep_until(self, step: int) -> None:
        kept = [record for record in self.records() if record["step"] <= step and step]
        if self.trainer.is_world_process_zero():
            self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def _last_tokens(self) -> int:
        return max((record["tokens"] for record in self.records()), default=0)


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
    embedding_learning_rate: float | None = None,
    embedding_steps: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, object]:
    """Train, going on from the newest complete checkpoint in `folder`, and leave the model there.

    Args:
        model: with its loss attached.
        tokenizer: saved beside the model.
        rows: a dataset of packed rows.
        folder: the stage's building folder.
        args: from `arguments`.
        flatten: one long row per batch (flash attention).
        evaluate: held-out bits per byte by language, at step 0, every `eval_steps` and at the end.
        eval_steps: steps between evaluations.
        embedding_learning_rate: of embeddings and head; the body's if not given.
        embedding_steps: steps at first in which only embeddings and head move.
        callbacks: called before the journal.

    Returns:
        Figures for the manifest.
    """
    journal = Journal(folder / METRICS, evaluate, eval_steps)
    trainer = LanguageTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=functools.partial(_collate, flatten=flatten),
        callbacks=[*callbacks, journal],
        embedding_learning_rate=embedding_learning_rate,
        embedding_steps=embedding_steps,
    )
    for quiet in ("PrinterCallback", "ProgressCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == quiet]:
            trainer.remove_callback(callback)
    journal.trainer = trainer
    previous = {number: signal.signal(number, journal.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    begun = time.time()
    try:
        trainer.train(resume_from_checkpoint=newest_checkpoint(Path(args.output_dir)))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if journal.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest holds the settings
        models.save_tokenizer(tokenizer, folder)
        shutil.rmtree(args.output_dir, ignore_errors=True)
    evaluations = [record for record in journal.records() if "held_out" in record]
    return {
        "steps": trainer.state.global_step,
        "tokens": trainer.tokens,
        "train_seconds": round(time.time() - begun, 1),
        "tokens_per_second": round(trainer.tokens / (time.time() - begun), 1),
        "held_out_first": evaluations[0]["held_out"] if evaluations else None,
        "held_out_last": evaluations[-1]["held_out"] if evaluations else None,
        "parameters": model.num_parameters(),
        "processes": args.world_size,
        "peak_memory_mb": stage.peak_memory_mb(),
    }


def held_out_probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, list[str]], window: int
) -> Callable[[], dict[str, float]]:
    """A function that measures held-out bits per byte by language, for the log while training."""

    def probe() -> dict[str, float]:
        return {
            language: metrics.summarise(
                metrics.bits_per_byte(model, tokenizer, held, window=window, batch_tokens=PROBE_TOKENS), resamples=1
            )["value"]
            for language, held in texts.items()
        }

    return probe


def newest_checkpoint(folder: Path) -> str | None:
    """The newest *complete* checkpoint: Trainer does not write them atomically, `trainer_state.json` comes last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if all(any(path.glob(part)) for part in ("trainer_state.json", "scheduler.pt", "rng_state*")):
            found.append((int(path.name.rsplit("-", 1)[1]), path))
        else:
            progress.say(f"leaving out the incomplete checkpoint {path.name}")
            shutil.rmtree(path, ignore_errors=True)
    return str(max(found)[1]) if found else None


def _collate(items: list[dict], *, flatten: bool) -> dict[str, torch.Tensor | int]:
    tokens = sum(item.get("tokens", len(item["input_ids"])) for item in items)
    rows = [{name: part for name, part in item.items() if name != "tokens"} for item in items]
    return {**packing.collate(rows, flatten=flatten), "tokens": tokens}
