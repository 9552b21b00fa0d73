"""A training run of a second: 40 rows, the random two-layer model, its frozen start as reference.

    PYTHONPATH=scripts python tests/tiny_run.py --folder=... '--settings={"steps": 12}'

Settings: `steps`, `batch_size`, `accumulation`, `save_steps`, `log_steps`, `keep`, `evaluate`, `base_bits` (a budget), `poisoned`
(a row of random tokens after rows that are all alike), `on_spike`, `report_to`, `learning_rate`, `die` ([step, pass] at which
`signal` comes, to `only_rank`), `timeout` (seconds that a process waits for the others).
"""

import json
import os
import random
from pathlib import Path

import torch
from tiny_model import LINES
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from transformers import TrainerCallback

from lib import budget, cli, machine, objective, packing, reference, training, vocabulary

LENGTH = 16
DEFAULTS = {
    "steps": 12, "batch_size": 2, "accumulation": 2, "save_steps": 2, "log_steps": 1, "keep": 2, "evaluate": 3, "base_bits": None,
    "poisoned": None, "on_spike": "stop", "report_to": [], "learning_rate": 1e-2, "die": None, "signal": 9, "only_rank": None, "seed": 0, "timeout": 600,
}  # fmt: skip


class Rows(torch.utils.data.Dataset):
    def __init__(self, tokenizer, number, poisoned):
        encoded = packing.encode_documents(LINES * 40, tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)
        document = [(token, place) for ids in encoded for place, token in enumerate(ids)]
        self.rows = [document[begin : begin + LENGTH] for begin in range(0, len(document) - LENGTH, LENGTH)]
        self.number, self.poisoned, self.vocabulary = number, poisoned, len(tokenizer)

    def __len__(self):
        return self.number

    def __getitem__(self, row):
        tokens, positions = torch.tensor(self.rows[row % len(self.rows)]).T
        if self.poisoned is not None:
            tokens, positions = torch.arange(LENGTH) + 30, torch.arange(LENGTH)
        if row == self.poisoned:
            tokens = torch.tensor(random.Random(0).choices(range(60, self.vocabulary), k=LENGTH))
        labels = tokens.masked_fill(positions == 0, -100)
        return {"input_ids": tokens, "position_ids": positions, "labels": labels, "row": row, "replay": False}

    def name(self, row):
        return f"tiny:{row}"


class Dies(TrainerCallback):
    """Sends the process a signal at a pass of a step, both counted from 1."""

    def __init__(self, step, number, signal):
        self.step, self.number, self.signal, self.seen = step, number, signal, 0

    def on_step_begin(self, args, state, control, **_):
        self.seen = 0
        self._pass(state)

    def on_substep_end(self, args, state, control, **_):
        self._pass(state)

    def _pass(self, state):
        self.seen += 1
        if (state.global_step + 1, self.seen) == (self.step, self.number):
            os.kill(os.getpid(), self.signal)


def run(folder, **settings):
    settings = DEFAULTS | settings
    torch.manual_seed(0)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    args = machine.arguments(
        folder, learning_rate=settings["learning_rate"], adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.1,
        warmup_steps=1, max_grad_norm=1.0, batch_size=settings["batch_size"], accumulation=settings["accumulation"], epochs=1.0,
        max_steps=settings["steps"], precision="fp32", gradient_checkpointing=False, deepspeed=None,
        save_steps=settings["save_steps"], log_steps=settings["log_steps"], keep_checkpoints=settings["keep"], seed=0,
        timeout_seconds=settings["timeout"],
    )  # fmt: skip
    trained, frozen = tiny_model(len(tokenizer)), tiny_model(len(tokenizer))
    held = reference.Reference("init", frozen, tokenizer, tokenizer)
    aim = objective.attach_loss(
        trained, torch.tensor(vocabulary.lengths(tokenizer)), objective.Objective(kl_weight=0.1), held
    )
    dies = settings["only_rank"] in (None, args.process_index)
    texts = {"en": [line for line in LINES if line.isascii()], "ru": [line for line in LINES if not line.isascii()]}
    number = settings["steps"] * settings["batch_size"] * settings["accumulation"]
    return training.run(
        trained,
        tokenizer,
        Rows(tokenizer, number * int(os.environ.get("WORLD_SIZE", "1")), settings["poisoned"]),
        folder,
        args,
        flatten=False,
        evaluate=training.held_out_probe(trained, tokenizer, texts, window=LENGTH),
        eval_steps=settings["evaluate"],
        schedule="constant",
        on_spike=settings["on_spike"],
        objective=aim,
        kl_budget=budget.Budget("en", settings["base_bits"], 1.0) if settings["base_bits"] else None,
        reference=frozen,
        read=held.inputs,
        languages=("ru", "en"),
        report_to=settings["report_to"],
        callbacks=[Dies(*settings["die"], settings["signal"])] if settings["die"] and dies else [],
    )


def main(*, folder: Path, settings: str):
    run(folder, **json.loads(settings))
    machine.finish_distributed()


if __name__ == "__main__":
    cli.run(main)
