"""What is seen of a run while it goes on: a line an interval, held-out evaluations, samples, the forgetting plot, trackers; and
what they decide, the KL term's weight under a budget.
"""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from lib import budget, packing, plots, processes, progress, trackers
from lib.objective import Objective

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
FORGETTING = "forgetting.svg"


class Journal(TrainerCallback, ExportableState):
    """Keeps a run's records. Its state lies in every checkpoint, so that a resumed run's records are an undisturbed one's.

    Args:
        folder: the stage's building folder.
        evaluate: held-out bits per byte by language, at step 0, every `eval_steps` and at the end; nothing if not given.
        sample: answers to prompts, at the same steps.
        eval_steps: steps between evaluations.
        languages: what the rows that are no replay are called in the log, and those that are.
        objective: whose kl_weight is logged and, under a budget, adapted.
        kl_budget: what the replay language may lose.
        report_to: trackers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        evaluate: Callable[[], dict[str, float]] | None,
        sample: Callable[[], list[dict]] | None,
        eval_steps: int,
        languages: tuple[str, str],
        objective: Objective | None,
        kl_budget: budget.Budget | None,
        report_to: Sequence[trackers.Name],
    ):
        self.folder, self.path = folder, folder / METRICS
        self.evaluate, self.sample, self.eval_steps = evaluate, sample, eval_steps
        self.languages, self.objective, self.kl_budget = languages, objective, kl_budget
        self.first_kl_weight = objective.kl_weight if objective else 0.0
        self.report_to, self.run_id = report_to, uuid.uuid4().hex[:8]
        self.trainer: object = None  # the LanguageTrainer whose callback this is
        self._trackers: list[trackers.Tracker] = []
        self._bar = None

    def state(self) -> dict[str, dict]:
        """For a checkpoint; Trainer asks for it once before there is anything to say."""
        if self.trainer is None:
            return {"args": {}, "attributes": {}}
        attributes = {"run_id": self.run_id, "trainer": self.trainer.progress_state()}
        if self.objective:
            attributes["kl_weight"] = self.objective.kl_weight
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Go on from the checkpoint's state, drop records of steps that came after it, and measure the starting point."""
        self.trainer.check_room(state.max_steps)
        if state.global_step:
            noted = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.run_id = noted["run_id"]
            self.trainer.restore_progress(noted["trainer"])
            if self.objective:
                self.objective.kl_weight = noted["kl_weight"]
        self.run_id = processes.from_main(self.run_id)
        self._begun, self._first_step, self._since, self._idle = time.time(), state.global_step, time.time(), 0.0
        if state.is_world_process_zero:
            for path in (self.path, self.folder / SAMPLES):
                keep_until(path, state.global_step)
            out = self.folder.with_suffix("") if self.folder.suffix == ".partial" else self.folder
            name = "-".join(out.absolute().parts[-2:])
            self._trackers = trackers.open_all(self.report_to, self.folder, name, self.run_id, state.global_step)
            self._bar = progress.bar(total=state.max_steps, title="train", unit="step")
            self._bar.update(state.global_step)
        if not state.global_step:
            self._measure(state)

    def on_step_end(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Evaluate when due; after a signal to any process, save and stop."""
        if self._bar is not None:
            self._bar.update()
        if state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps:
            self._measure(state)
        if self.trainer.stopping:
            control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **_) -> None:  # noqa: ANN001
        """Write one interval's line."""
        if not logs or "loss" not in logs:
            return
        now, idle = time.time(), self.trainer.idle
        seconds = max(now - self._since - (idle - self._idle), 1e-9)
        self._since, self._idle = now, idle
        record = {"step": state.global_step, "tokens": self.trainer.tokens}
        record |= interval(self.trainer.take_interval(), self.languages, seconds)
        rates = self.trainer.lr_scheduler.get_last_lr()
        record |= {"lr": rates[-1], "lr_embeddings": rates[0], "grad_norm": logs.get("grad_norm")}
        flops = record.pop("flops")
        record["utilisation"] = flops / seconds / (self.trainer.peak * args.world_size)
        if self.objective:
            record["kl_weight"] = self.objective.kl_weight
        if self.trainer.guard.skipped:
            record["skipped"] = self.trainer.guard.skipped
        self._write(record)
        if self._bar is not None:
            left = (now - self._begun) / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
            progress.say(line(record, state.max_steps, left))

    def on_train_end(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Close bar and trackers."""
        self.close()

    def close(self) -> None:
        """End what is open; also after an error, any number of times."""
        if self._bar is not None:
            self._bar.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    def records(self) -> list[dict]:
        """Those written so far."""
        return read_lines(self.path)

    def _measure(self, state) -> None:  # noqa: ANN001
        if self.evaluate is None and self.sample is None:
            return
        begun = time.time()
        record = {"step": state.global_step, "tokens": self.trainer.tokens}
        with self.trainer.accelerator.autocast():
            if self.evaluate is not None:
                record["held_out"] = processes.from_main(self.evaluate())
            answers = self.sample() if self.sample is not None else []
        if self.kl_budget and "held_out" in record:
            record |= self._adapt(state, record["held_out"][self.kl_budget.language])
        if "held_out" in record:
            self._write(record)
        if state.is_world_process_zero:
            append_lines(self.folder / SAMPLES, [{"step": state.global_step, **answer} for answer in answers])
            if picture := plots.forgetting(self.records(), replay=packing.REPLAY_LANGUAGE):
                (self.folder / FORGETTING).write_text(picture, encoding="utf-8")
            listed = " | ".join(f"{language} {value:.4f}" for language, value in record.get("held_out", {}).items())
            weight = f" | kl weight {record['kl_weight']:.4g}" if "kl_weight" in record else ""
            progress.say(f"step {state.global_step:>5}/{state.max_steps} | held-out bits per byte: {listed}{weight}")
        self.trainer.idle += time.time() - begun

    def _adapt(self, state, bits: float) -> dict[str, float]:  # noqa: ANN001
        """The weight from here on. At step 0 nothing is lost or kept yet by training."""
        if state.global_step:
            weight = self.objective.kl_weight
            self.objective.kl_weight = budget.next_weight(weight, self.kl_budget, bits, self.first_kl_weight)
        return {"kl_weight": self.objective.kl_weight, "budget": self.kl_budget.limit}

    def _write(self, record: dict) -> None:
        if processes.is_main():
            append_lines(self.path, [record])
            numbers = dict(trackers.flat(record))
            for tracker in self._trackers:
                tracker.log(numbers, record["step"])


def mean_losses(sums: Mapping[str, float]) -> tuple[float, float]:
    """CE and KL per position, in nats."""
    positions = sums["positions_target"] + sums["positions_replay"]
    return (sums["ce_target"] + sums["ce_replay"]) / max(positions, 1), sums["kl"] / max(sums["kl_positions"], 1)


def interval(sums: Mapping[str, float], languages: Sequence[str], seconds: float) -> dict[str, object]:
    """An interval's figures from its sums over passes and processes (nats, positions, bytes, tokens, FLOPs).

    Bits per byte are those of the training text that the model has just been asked to predict, by language where its bytes are
    known.
    """
    bits = {
        language: sums[f"ce_{part}"] / math.log(2) / sums[f"bytes_{part}"]
        for language, part in zip(languages, ("target", "replay"), strict=True)
        if sums[f"bytes_{part}"]
    }
    ce, kl = mean_losses(sums)
    return {
        "loss": sums["loss"] / max(sums["steps"], 1),
        "ce": ce,
        "kl": kl,
        "bits_per_byte": bits,
        "tokens_per_second": sums["tokens"] / seconds,
        "flops": sums["flops"],
        "seconds": seconds,
    }


def line(record: Mapping, steps: int, seconds_left: float) -> str:
    """A record of an interval, for people: always in the same order and units."""
    bits = " ".join(f"{language} {value:.3f}" for language, value in record["bits_per_byte"].items())
    return " | ".join(
        [
            f"step {record['step']:>5}/{steps}",
            f"ce {record['ce']:.4f}",
            *([f"kl {record['kl']:.4f}"] if "kl_weight" in record else []),
            *([f"bits/byte {bits}"] if bits else []),
            f"lr {record['lr']:.2e}",
            f"grad {math.nan if record['grad_norm'] is None else record['grad_norm']:.2f}",
            f"{record['tokens_per_second']:,.0f} tok/s",
            f"{record['utilisation']:.1%} of peak",
            *([f"{record['skipped']} skipped"] if "skipped" in record else []),
            f"left {remaining(seconds_left)}",
        ]
    )


def remaining(seconds: float) -> str:
    """`2 d 3 h`, `3 h 20 min` or `4.5 min`."""
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def read_lines(path: Path) -> list[dict]:
    """A JSON Lines file's records; a kill can cut the last line, which is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_lines(path: Path, records: Sequence[Mapping]) -> None:
    """Write records at a JSON Lines file's end."""
    if records:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def keep_until(path: Path, step: int) -> None:
    """Drop a file's records of later steps; all of them before the first."""
    kept = [record for record in read_lines(path) if record["step"] <= step and step]
    path.unlink(missing_ok=True)
    append_lines(path, kept)
