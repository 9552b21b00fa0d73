"""How much there is to train on: rows, steps and tokens of a stage, from its settings and from what lies on the disk already.

Where the pack or instruct stage has run, rows are counted; else they follow from numbers given, and documents are taken to fill their rows.
"""

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import attention, cli, dialogues, mixing, models, packing
from lib.errors import UserError

SCRIPTS = {"tokenizer": "train_spm", "init": "init_embeddings"}
SAMPLED_ROWS, SAMPLED_DIALOGUES = 256, 2000
ANSWERS = 0.5  # of a dialogue's tokens; a guess, on which only the head's arithmetic depends
OTHER_TOKENS = (
    2.5  # of the base's for one of the adapted model's: 3.0 of Russian and 1 of English, four to one (docs/LOG.md)
)


Made = Mapping[str, Path | None]  # by stage


@dataclasses.dataclass(frozen=True)
class Workload:
    """A stage's training.

    Attributes:
        length: tokens a row.
        rows: of a pass, on each process.
        accumulation: passes a step.
        processes: that share a step.
        steps: of the optimiser.
        tokens: read in all, filler left out.
        predicted: share of them with a loss.
        pairs: of a token and one that it may look at, for each token.
        asked: share of the rows that a reference is asked about.
        reference_tokens: of the reference's for each of these rows' tokens.
        documents: where documents end in the rows of a pass laid end to end.
    """

    length: int
    rows: int
    accumulation: int
    processes: int
    steps: int
    tokens: float
    predicted: float
    pairs: float
    asked: float
    reference_tokens: float
    documents: Sequence[int]

    @property
    def positions(self) -> int:
        """Predicted in a pass, at most."""
        return round(self.rows * self.length * self.predicted)


def settings(stage: str, files: Sequence[Path]) -> dict[str, object]:
    """A stage's settings as its script will resolve them: the file of that name among these, over the script's defaults."""
    main = importlib.import_module(SCRIPTS.get(stage, stage)).main
    config = next((file for file in files if file.stem == stage), None)
    given = {} if config is None else cli.load_yaml(config)
    parameters = inspect.signature(main).parameters
    needed = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    return cli.resolve(main, {**({} if config is None else {"config": str(config)}), **dict.fromkeys(needed, "unused")})


def vocabulary_rows(tokenizer: Mapping, init: Mapping, made: Path | None) -> int:
    """Of the adapted model, padded: by the tokenizer where it is made, else by its settings."""
    tokens = tokenizer["vocab_size"] if made is None else len(models.load_tokenizer(made))
    return -(-tokens // init["pad_to_multiple"]) * init["pad_to_multiple"]


def of_cpt(
    cpt: Mapping, packing_settings: Mapping, processes: int, base: str, made: Made, tokens: int | None
) -> Workload:
    """Continued pre-training's.

    Args:
        cpt: its settings.
        packing_settings: the pack stage's.
        processes: that share a step.
        base: the base model's name in the tokenizer stage's report.
        made: outputs of the pack and tokenizer stages, where there are some.
        tokens: of the target language, where nothing is packed; the pack stage's limit if not given.

    Raises:
        UserError: nothing says how much text there is.
    """
    per_step = cpt["batch_size"] * cpt["accumulation"] * processes
    rows = cpt["max_steps"] * per_step if cpt["max_steps"] else None
    length, tokens = packing_settings["sequence_length"], tokens or packing_settings["max_train_tokens"]
    predicted, positions = 1.0, []
    if pack := made["pack"]:
        chosen = {name: cpt[name] for name in ("weights", "replay_share", "epochs", "seed")}
        mixture = mixing.Mixture(pack, rows=rows, **chosen)
        rows, length = len(mixture), mixture.length
        sample = [mixture[number] for number in range(min(rows, SAMPLED_ROWS))]
        positions = [row["position_ids"] for row in sample]
        predicted = _mean([(row["labels"] != packing.IGNORED).float().mean().item() for row in sample])
    elif rows is None and tokens is None:
        raise UserError("no packed text and no max_train_tokens in pack.yaml: say --train_tokens, or run `make pack`")
    elif rows is None:
        rows = math.floor(tokens * cpt["epochs"] / (1 - cpt["replay_share"]) / length)
    pairs, documents = _packed(positions, cpt["batch_size"], length)
    replayed = cpt["replay_share"] if cpt["kl_on"] == "replay" else 1.0
    silent = cpt["reference"] == "none" or (cpt["combine"] == "sum" and not cpt["kl_weight"])
    return Workload(
        length,
        cpt["batch_size"],
        cpt["accumulation"],
        processes,
        math.ceil(rows / per_step),
        rows * length,
        predicted,
        pairs,
        0.0 if silent else replayed * cpt["kl_fraction"],
        1.0 if cpt["reference"] == "init" else _other_tokens(made["tokenizer"], base, cpt["replay_share"]),
        documents,
    )


def of_sft(sft: Mapping, processes: int, made: Made, number: int | None, each: float) -> Workload:
    """Instruction tuning's.

    Args:
        sft: its settings.
        processes: that share a step.
        made: outputs of the tokenizer and instruct stages, where there are some.
        number: of dialogues, where there is none.
        each: tokens of a dialogue, where there is none.

    Raises:
        UserError: nothing says how many dialogues there are.
    """
    length, per_pass = sft["sequence_length"], sft["batch_size"] * processes
    predicted, positions = ANSWERS, []
    instruct = made["instruct"]
    if made["tokenizer"] and instruct:
        fast = models.load_tokenizer(made["tokenizer"])
        read = list(dialogues.read(instruct, on_error="skip"))
        number = min(len(read), sft["max_dialogues"] or len(read))
        sample = random.Random(sft["seed"]).sample(read, min(number, SAMPLED_DIALOGUES))
        encoded = [dialogues.encode(dialogue["messages"], fast) for dialogue in sample]
        kept = [dialogue for dialogue in encoded if len(dialogue[0]) <= length]
        if not kept:
            raise UserError(f"{instruct}: no dialogue fits into {length} tokens")
        packed = packing.pack_dialogues(kept, length, 0)
        scale = number / len(sample)
        rows, tokens = len(packed) * scale, sum(row["tokens"] for row in packed) * scale
        predicted = sum((row["labels"] != packing.IGNORED).sum().item() for row in packed) * scale / tokens
        positions = [row["position_ids"] for row in packed]
    elif sft["max_steps"]:
        rows = 1.0
        tokens = float(length)
    elif number is None:
        raise UserError("no instruction set yet: say --dialogues, how many there will be, or run `make instruct`")
    else:
        tokens = min(number, sft["max_dialogues"] or number) * each
        rows = tokens / length
    steps = sft["max_steps"] or math.ceil(sft["epochs"] * math.ceil(math.ceil(rows / per_pass) / sft["accumulation"]))
    read_rows = steps * per_pass * sft["accumulation"] if sft["max_steps"] else rows * sft["epochs"]
    pairs, documents = _packed(positions, sft["batch_size"], length)
    return Workload(
        length,
        sft["batch_size"],
        sft["accumulation"],
        processes,
        steps,
        tokens / rows * read_rows,
        predicted,
        pairs,
        0.0,
        0.0,
        documents,
    )


def _packed(positions: Sequence, rows: int, length: int) -> tuple[float, list[int]]:
    """(pairs for each token, ends of documents in the pass whose attention keeps most) of rows' positions."""
    if not positions:
        return (length + 1) / 2, list(range(0, rows * length + 1, length))
    pairs = _mean([(row + 1).float().mean().item() for row in positions])
    passes = [positions[begin : begin + rows] for begin in range(0, len(positions) - rows + 1, rows)] or [
        [positions[0]] * rows
    ]
    ends = [
        sorted(
            {place + at for place, row in zip(itertools.count(0, length), each) for at in _begins(row)}
            | {rows * length}
        )
        for each in passes
    ]
    return pairs, max(ends, key=_squares)


def _begins(row: object) -> list[int]:
    return [0, *(row == 0).nonzero()[:, 0].tolist()]


def _squares(ends: Sequence[int]) -> int:
    """What documents short enough for plain products keep of their scores, in any unit."""
    sizes = [b - a for a, b in itertools.pairwise(ends)]
    return sum(size**2 for size in sizes if size <= attention.SHORT)


def _other_tokens(tokenizer: Path | None, base: str, replay_share: float) -> float:
    """The base's tokens for one of the new tokenizer's, in the mixture of training."""
    if tokenizer is None:
        return OTHER_TOKENS
    spent = json.loads((tokenizer / "fertility.json").read_text(encoding="utf-8"))["tokenizers"]
    new, old = (spent[name]["languages"] for name in ("new", base))
    ratios = {language: old[language]["tokens_per_word"] / new[language]["tokens_per_word"] for language in new}
    replayed = ratios.pop(packing.REPLAY_LANGUAGE, 1.0)
    target = _mean(list(ratios.values())) if ratios else replayed
    return (1 - replay_share) * target + replay_share * replayed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
