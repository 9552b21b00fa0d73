"""Preferences: `{"prompt", "chosen", "rejected", "language"}`, which of two answers to a prompt is the better one."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from lib import documents, instructions, progress
from lib.errors import UserError

FILE = "preferences.jsonl"
UNNAMED = "und"  # the language of a record that names none
STEEPEST = 5.0  # nats for an e-fold longer answer; a bound for the search


class Pair(NamedTuple):
    """Two answers to a prompt (all turns before them), one preferred."""

    prompt: str
    chosen: str
    rejected: str
    language: str


def of_records(
    records: Iterable[tuple[str, dict]],
    columns: Mapping[str, str],
    *,
    source: str,
    language: str | None,
    on_error: documents.OnError,
    skipped: Counter[str],
) -> Iterator[dict]:
    """Preferences from a dataset's rows.

    Prompt and answers are texts or lists of messages; where the answers are whole conversations, their last messages are the
    answers and the rest is the prompt. With `answers` among the columns, a list of ranked answers, the best and the worst are taken.

    Args:
        records: (where it stands, record).
        columns: what `prompt`, `chosen` and `rejected`, or `prompt` and `answers`, are called.
        source: its name, for ids.
        language: of records that name none.
        on_error: 'stop' at a row that is no pair, or 'skip' and count it.
        skipped: counts of what was skipped, by reason; two equal answers are, always.

    Raises:
        UserError: a row that is no pair or names no language, unless it is skipped.
    """
    for number, (where, record) in enumerate(progress.bar(records, title=f"read {source}", unit="pairs"), start=1):
        found = normalise(record, columns)
        spoken = documents.language_of(record, language)
        if isinstance(found, str) or spoken is None:
            if on_error == "stop":
                problem = found if isinstance(found, str) else "no 'language', and none given by --language"
                raise UserError(f"{where}: {problem}; correct it, or say --on_error=skip")
            skipped["broken_record"] += 1
        elif found["chosen"] == found["rejected"]:
            skipped["same_answers"] += 1
        else:
            yield {"id": str(record.get("id") or f"{source}-{number:05d}"), **found, "language": spoken}


def normalise(record: Mapping, columns: Mapping[str, str]) -> dict[str, str] | str:
    """`prompt`, `chosen` and `rejected` of a record, or what is wrong with it; see `of_records`."""
    if "answers" in columns:
        given = dict(zip(("chosen", "rejected"), _best_and_worst(record.get(columns["answers"])), strict=True))
    else:
        given = {name: record.get(columns.get(name, name)) for name in ("chosen", "rejected")}
    found = {}
    for name, value in given.items():
        before, answer = _last(value) if isinstance(value, list) else ("", value)
        if not isinstance(answer, str) or not answer.strip():
            return f"no answer in '{columns.get(name, name)}'"
        found[name] = answer.strip()
    prompt = record.get(columns.get("prompt", "prompt")) or before
    if isinstance(prompt, str):
        prompt = instructions.turns_of(prompt)
    prompt = _joined(prompt)
    return {"prompt": prompt, **found} if prompt else f"no text in '{columns.get('prompt', 'prompt')}'"


def read(
    path: Path,
    *,
    tell: Callable[[str], str],
    on_error: documents.OnError = "stop",
    skipped: Counter[str] | None = None,
) -> Iterator[Pair]:
    """Pairs of a file or of all files below a folder, of its `preferences.jsonl` if that is what was fetched.

    Args:
        path: what to read.
        tell: the language of a prompt, for records that name none.
        on_error: 'stop' at broken input, or 'skip' and count it.
        skipped: counts of what was skipped, by reason.

    Raises:
        UserError: broken input (file and line), unless it is skipped.
    """
    skipped = Counter() if skipped is None else skipped
    told = {"language": UNNAMED, "on_error": on_error, "skipped": skipped}
    for file in [path / FILE] if (path / FILE).is_file() else documents.files(path):
        rows = ((f"{file}:{n}", row) for n, row in documents.read_records(file, on_error=on_error, skipped=skipped))
        for found in of_records(rows, {}, source=file.name, **told):
            spoken = tell(found["prompt"]) if found["language"] == UNNAMED else found["language"]
            yield Pair(found["prompt"], found["chosen"], found["rejected"], spoken)


def divide(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(the rest, the pairs of about `share` of the prompts); no prompt is in both."""
    prompts = sorted({_key(pair.prompt) for pair in pairs})
    random.Random(seed).shuffle(prompts)
    taken = set(prompts[: round(share * len(prompts))])
    return [p for p in pairs if _key(p.prompt) not in taken], [p for p in pairs if _key(p.prompt) in taken]


def without_prompts_of(pairs: Sequence[Pair], others: Sequence[Pair]) -> list[Pair]:
    """Those pairs whose prompt is none of the others'."""
    known = {_key(pair.prompt) for pair in others}
    return [pair for pair in pairs if _key(pair.prompt) not in known]


def longer(pair: Pair) -> float:
    """How much longer the chosen answer is than the rejected one: the log of the ratio of their characters."""
    return float(np.log(len(pair.chosen)) - np.log(len(pair.rejected)))


def length_bonus(pairs: Sequence[Pair]) -> float:
    """The slope, in nats for an e-fold longer answer, of a Bradley-Terry model that knows nothing but lengths."""
    gaps = np.array([longer(pair) for pair in pairs])

    def loss(slope: float) -> float:
        return float(np.logaddexp(0, -slope * gaps).mean())

    return float(minimize_scalar(loss, bounds=(-STEEPEST, STEEPEST), method="bounded").x)


def _best_and_worst(answers: object) -> tuple[object, object]:
    """The answers of the lowest and the highest rank."""
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(one, Mapping) for one in answers):
        return None, None
    ranked = sorted(answers, key=lambda one: one.get("rank") or 0)
    return tuple(one.get("answer", one.get("content")) for one in (ranked[0], ranked[-1]))


def _last(messages: Sequence) -> tuple[list, object]:
    """(all before, the last message's text)."""
    last = messages[-1] if messages and isinstance(messages[-1], Mapping) else {}
    return list(messages[:-1]), last.get("content", last.get("value"))


def _joined(messages: object) -> str:
    turns = messages if isinstance(messages, list) else []
    texts = [turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, Mapping)]
    return "\n\n".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _key(prompt: str) -> str:
    return " ".join(prompt.lower().split())
