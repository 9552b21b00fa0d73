"""Which rows of the vocabulary training reaches at first, and whether their lengths stay among the base model's.

A row is trained in two ways. As input it gets a gradient only when its token occurs; in the softmax (the head, or the
same row where they are tied) it gets one at every position, but one that only pushes it down until its token occurs.
A token that occurs and has no gradient as input was seen only at the ends of rows and documents, where nothing is
predicted; or something is broken.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from lib import mixing, models, progress, stage, vocabulary

ROWS = "rows.json"  # what the init stage says about its rows
AUDIT = "audit.json"
REACHED = "reached_rows.pt"  # in a checkpoint
SHARE = 10  # a tenth of an epoch, or of a run shorter than that
SHOWN = 20
# Beyond the base's range by less than this is rounding, as of bf16.
ROUNDING = 1e-3
MATRICES = {"input": "input embedding", "head": "head"}


class RowAudit(TrainerCallback):
    """Watches the rows' gradients over the first tenth of an epoch, then warns and writes audit.json.

    Args:
        tokenizer: of the model.
        rows: the run's, in the order of training.
        model: folder the training starts from, with rows.json if the init stage made it.
        folder: where audit.json goes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: mixing.Mixture, model: Path, folder: Path):
        self.rows, self.folder = rows, folder
        self.spellings = spell(tokenizer)
        self.new, self.ranges = read_rows(model, len(tokenizer))
        self.counts: dict[str, object] = {}
        self._reached: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_begin(self, args, state, control, model, **_) -> None:  # noqa: ANN001
        """Start watching, or go on with what the checkpoint has noted."""
        self.last_step = first_tenth(state.max_steps, math.ceil(self.rows.epoch_rows / rows_per_step(args)))
        if state.global_step >= self.last_step:
            if state.is_world_process_zero:
                self.counts = count(json.loads((self.folder / AUDIT).read_text(encoding="utf-8")))
            return
        self.watched_after, self._reached = state.global_step, {}
        noted = Path(args.output_dir) / f"checkpoint-{state.global_step}" / REACHED
        if noted.is_file():  # a kill can come between a checkpoint and this file
            self.watched_after, self._reached = torch.load(noted, map_location=args.device, weights_only=True)
        for name, weight in matrices(model).items():
            self._reached.setdefault(name, torch.zeros(len(self.new), dtype=torch.uint8, device=args.device))
            # Every pass and not just before the optimiser's step: DeepSpeed has taken that step, and dropped the
            # gradients, before Trainer's callback. One read of them is nothing beside the head's matrix products.
            self._hooks.append(weight.register_hook(functools.partial(self._note, name)))

    def on_step_end(self, args, state, control, model, **_) -> None:  # noqa: ANN001
        """At the end of the tenth, report."""
        if not self._hooks or state.global_step < self.last_step:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._merge()
        norms = {name: row_norms(weight, len(self.new)) for name, weight in matrices(model).items()}
        if not state.is_world_process_zero:
            return
        read = min(state.global_step * rows_per_step(args), len(self.rows))
        findings = audit(
            new=self.new,
            occurred=occurring(map(self.rows.tokens, range(read)), len(self.new)),
            reached={name: flags.bool().cpu().numpy() for name, flags in self._reached.items()},
            norms=norms,
            ranges=self.ranges,
            spellings=self.spellings,
        )
        findings = {
            "step": state.global_step,
            "tokens": read * self.rows.length,
            "gradients_watched_after_step": self.watched_after,
            **findings,
        }
        stage.write_json(self.folder / AUDIT, findings)
        self.counts = count(findings)
        for line in report(findings):
            progress.say(line)

    def on_save(self, args, state, control, **_) -> None:  # noqa: ANN001
        """Note in the checkpoint what has been seen up to it."""
        if not self._hooks:
            return
        self._merge()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save((self.watched_after, self._reached), folder / REACHED)

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        largest = torch.linalg.vector_norm(gradient[: len(self.new)], ord=torch.inf, dim=1)  # no copy, as abs() makes
        self._reached[name] |= largest != 0

    def _merge(self) -> None:
        """A row is reached if it is on any process."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for flags in self._reached.values():
                torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)


def rows_per_step(args: TrainingArguments) -> int:
    """Rows that an optimiser step reads on all devices together."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def first_tenth(total_steps: int, epoch_steps: int) -> int:
    """The first tenth of an epoch in steps, or of the run where that is shorter; at least one step."""
    return max(1, min(total_steps, epoch_steps) // SHARE)


def matrices(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The matrices with a row per token: `input`, and `head` where it is another."""
    embedding, head = model.get_input_embeddings().weight, models.head_weight(model)
    return {"input": embedding} if head is embedding else {"input": embedding, "head": head}


def read_rows(model: Path, rows: int) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Which of the first `rows` rows are new, and the base's [smallest, largest] norm by matrix.

    Of a model that the init stage did not make all rows are new and nothing is known of the base.
    """
    path = model / ROWS
    if not path.is_file():
        return np.ones(rows, dtype=bool), {}
    facts = json.loads(path.read_text(encoding="utf-8"))
    return np.isin(np.arange(rows), facts["new"]), facts["norms"]


def spell(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Each token as it stands in text, by id; special tokens by their name, cut characters as escaped bytes."""
    surfaces = vocabulary.surfaces(tokenizer)
    return [
        str(tokenizer.convert_ids_to_tokens(token)) if surface is None else surface.decode(errors="backslashreplace")
        for token, surface in enumerate(surfaces)
    ]


def occurring(rows: Iterable[np.ndarray], vocabulary: int) -> np.ndarray:
    """Which ids below `vocabulary` occur in packed rows; no more than one is in memory."""
    found = np.zeros(vocabulary, dtype=bool)
    for tokens in rows:
        found[tokens] = True
    return found


def row_norms(weight: torch.nn.Parameter, rows: int) -> np.ndarray:
    """L2 norms of the first `rows` rows."""
    whole = contextlib.nullcontext()
    if hasattr(weight, "ds_id"):  # ZeRO-3: each process holds a part
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([weight])
    with whole:
        return torch.linalg.vector_norm(weight.detach()[:rows], dim=1, dtype=torch.float32).cpu().numpy()


def outside(norms: np.ndarray, low: float, high: float) -> np.ndarray:
    """Ids of the rows whose norm is not in [low, high], farthest first (by the factor it is off)."""
    factor = np.maximum(norms / high, low / np.maximum(norms, np.finfo(norms.dtype).tiny))
    found = np.flatnonzero(~(factor <= 1 + ROUNDING))  # so that NaN is found
    return found[np.argsort(-factor[found], kind="stable")]


def audit(
    *,
    new: np.ndarray,
    occurred: np.ndarray,
    reached: Mapping[str, np.ndarray],
    norms: Mapping[str, np.ndarray],
    ranges: Mapping[str, list[float]],
    spellings: list[str],
) -> dict[str, object]:
    """What is wrong with which rows.

    Args:
        new: flags by id: rows that are no copies of a base row.
        occurred: flags by id: the token was in the batches.
        reached: by matrix, flags by id: the gradient was not zero at least once.
        norms: by matrix, by id.
        ranges: by matrix, [low, high] of the base's rows; a matrix without is not checked.
        spellings: by id.

    Returns:
        As audit.json holds it, what tells most first: tokens that occurred and got no gradient all the same, words
        before bytes and signs, and of these the lower ids, which vocabularies give to the more frequent.
    """

    def named(ids: Iterable[int]) -> list[dict[str, object]]:
        return [{"id": int(token), "token": spellings[token]} for token in ids]

    def words_first(flags: np.ndarray) -> list[int]:
        return sorted(np.flatnonzero(flags), key=lambda token: not _is_word(spellings[token]))

    no_gradient = {}
    for name, flags in reached.items():
        missed = new & ~flags
        no_gradient[name] = {
            "though_occurred": int((missed & occurred).sum()),
            "rows": named([*words_first(missed & occurred), *words_first(missed & ~occurred)]),
        }
    norm_outside = {}
    for name in norms:
        if name in ranges:
            rows = outside(norms[name], *ranges[name])
            each = [
                facts | {"new": bool(new[facts["id"]]), "norm": float(norms[name][facts["id"]])}
                for facts in named(rows)
            ]
            norm_outside[name] = {"range": list(ranges[name]), "rows": each}
    return {
        "new_rows": int(new.sum()),
        "never_occurred": named(words_first(new & ~occurred)),
        "no_gradient": no_gradient,
        "norm_outside": norm_outside,
    }


def count(findings: Mapping) -> dict[str, object]:
    """The manifest's figures."""
    return {
        "step": findings["step"],
        "new_rows": findings["new_rows"],
        "never_occurred": len(findings["never_occurred"]),
        "no_gradient": {name: len(found["rows"]) for name, found in findings["no_gradient"].items()},
        "norm_outside": {name: len(found["rows"]) for name, found in findings["norm_outside"].items()},
    }


def report(findings: Mapping) -> list[str]:
    """A line for each kind of finding, or one that says there is none."""
    lines = []
    new = f"{findings['new_rows']:,} new"
    for name, found in findings["no_gradient"].items():
        rows, surprising = found["rows"], found["though_occurred"]
        if rows:
            line = f"{len(rows):,} of {new} rows of the {MATRICES[name]} never got a gradient"
            if watched := findings["gradients_watched_after_step"]:
                line += f" (watched only after step {watched})"
            if surprising:
                line += f", {surprising:,} of them though the token occurred: {_listed(rows[:surprising], _quoted)}"
            else:
                line += ", all because the token did not occur"
            lines.append(line)
    if rows := findings["never_occurred"]:
        names = _listed(rows, _quoted)
        lines.append(f"{len(rows):,} of {new} tokens never occurred, the softmax only pushes their rows down: {names}")
    for name, found in findings["norm_outside"].items():
        if rows := found["rows"]:
            low, high = found["range"]
            names = _listed(rows, lambda row: f"{_quoted(row)} ({'new' if row['new'] else 'base'}) {row['norm']:.3g}")
            some = "1 row" if len(rows) == 1 else f"{len(rows):,} rows"
            lines.append(
                f"{some} of the {MATRICES[name]} with a norm outside the base's {low:.3g} to {high:.3g}: {names}"
            )
    head = f"row audit, step {findings['step']}, {findings['tokens']:,} tokens read: "
    return [head + line for line in lines or [f"nothing to report of {new} rows"]]


def _listed(rows: list[dict], spelt: Callable[[dict], str]) -> str:
    more = len(rows) - SHOWN
    return ", ".join(map(spelt, rows[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def _is_word(token: str) -> bool:
    return "\\x" not in token and any(map(str.isalpha, token))


def _quoted(row: dict) -> str:
    return repr(row["token"]).replace("\\\\", "\\")  # `spell` has escaped bytes already
