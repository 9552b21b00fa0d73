"""Records to translate, as they are read and as they are written: conversations, benchmark items and the like.

A record's texts are told from its columns. Whatever else it has, answer keys among it, stays as it is.
"""

import copy
import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lib import documents, instructions, placeholders
from lib.errors import UserError
from lib.phrases import Phrases

Answers = Literal["translate", "generate"]
# Columns with text to translate, by the kind of set; the first row whose columns are all there counts.
SHAPES = (
    ("question", "choices.text"),  # ARC, CommonsenseQA: the choices' labels are keys
    ("question", "choices"),  # MMLU
    ("question", "options"),  # MMLU-Pro
    ("instruction", "option_a", "option_b", "option_c", "option_d"),  # MMLU as Okapi lays it out
    ("premise", "hypothesis"),  # XNLI
    ("prompt", "chosen", "rejected"),  # preferences
)
INSTRUCTIONS = "instructions.jsonl"


@dataclasses.dataclass(frozen=True)
class Part:
    """One text of a record: its name in the question, its place in the record, and how it is asked about."""

    name: str
    place: tuple[str | int, ...]
    text: str
    masked: placeholders.Masked

    @property
    def asked(self) -> bool:
        """Whether there is anything to translate: a letter outside the placeholders."""
        return placeholders.letters(self.masked.text) > 0


@dataclasses.dataclass(frozen=True)
class Item:
    """A record on its way.

    Attributes:
        record: as it was read; never changed.
        file: where it was read, relative to what was given.
        conversation: instructions with `messages`; else a benchmark item or the like.
        parts: its texts.
        done: it is in the target language already.
        generate: its last answer is not translated but made anew.
        reason: why it can't be translated, if so.
    """

    record: Mapping
    file: Path
    conversation: bool
    parts: tuple[Part, ...] = ()
    done: bool = False
    generate: bool = False
    reason: str | None = None

    @property
    def asked(self) -> list[Part]:
        """The parts to ask about."""
        return [part for part in self.parts if part.asked]

    @property
    def to_ask(self) -> bool:
        """Whether the model is asked anything about it."""
        return bool(self.asked) or self.generate

    @functools.cached_property
    def key(self) -> str:
        """The same for records with the same texts, which are asked about once."""
        texts = [[part.name, part.text] for part in self.parts]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:20]


def read(
    path: Path,
    source: Phrases,
    target: Phrases,
    *,
    answers: Answers = "translate",
    columns: Sequence[str] | None = None,
    on_error: documents.OnError = "stop",
    skipped: Counter[str],
) -> Iterator[Item]:
    """The items of a Parquet or JSON Lines file, of `instructions.jsonl` in a stage's folder, or of all files below a folder.

    Args:
        path: what to read.
        source: the language to translate from.
        target: the language to translate into; a record that names it is `done`, one of a third language has a `reason`.
        answers: 'generate' leaves a conversation's last answer out.
        columns: with text to translate (`a.b` is b inside a); by default told from the record (`messages` or SHAPES).
        on_error: 'stop' at broken input or a record of no known shape, or 'skip' it.
        skipped: counts of what was skipped, by reason.

    Raises:
        UserError: nothing readable there, or broken input (file and line) unless it is skipped.
    """
    for file in files(path):
        name = Path(file.name) if path.is_file() else file.relative_to(path)
        for number, record in documents.read_records(file, on_error=on_error, skipped=skipped):
            item = item_of(record, name, source, target, answers=answers, columns=columns)
            if isinstance(item, Item):
                yield item
            elif on_error == "skip":
                skipped["broken_record"] += 1
            else:
                raise UserError(f"{file}:{number}: {item}; correct it, or say --on_error=skip")


def files(path: Path) -> list[Path]:
    """The files that `read` reads.

    Raises:
        UserError: there are none.
    """
    whole = path / "instructions.jsonl"
    found = [whole] if whole.is_file() else [file for file in documents.files(path) if file.suffix != ".txt"]
    if not found:
        raise UserError(f"{path}: no Parquet or JSON Lines file in it")
    return found


def item_of(
    record: Mapping,
    file: Path,
    source: Phrases,
    target: Phrases,
    *,
    answers: Answers = "translate",
    columns: Sequence[str] | None = None,
) -> Item | str:
    """A record as an item, or what is wrong with it; see `read`."""
    conversation = columns is None and "messages" in record
    generate = conversation and answers == "generate"
    if conversation:
        found = _messages(record["messages"], generate)
    elif answers == "generate":
        found = "no 'messages', and only a conversation's answer can be made anew (--answers=generate)"
    else:
        found = _texts(record, columns)
    if isinstance(found, str):
        return found
    if not is_unicode(json.dumps(record, ensure_ascii=False, default=str)):
        return "half a character (a lone surrogate), which can't be sent or written"
    spoken = documents.language_of(record, None)
    if spoken == target.language.code:
        return Item(record, file, conversation, done=True)
    if spoken not in (None, source.language.code):
        return Item(record, file, conversation, reason="other_language")
    parts: list[Part] = []
    first = 1
    for name, place, text in found:
        masked = source.mask(text, first)
        first += len(masked.held)
        parts.append(Part(name, place, text, masked))
    return Item(record, file, conversation, tuple(parts), generate=generate)


def _messages(turns: object, generate: bool) -> list[tuple[str, tuple, str]] | str:
    """(name, place, text) of a conversation's messages, without the last answer if that is to be made anew."""
    if not isinstance(turns, list) or not turns:
        return "no list in 'messages'"
    last = turns[-1] if isinstance(turns[-1], Mapping) else {}
    prompted = generate and instructions.ROLES.get(str(last.get("role", last.get("from"))).lower()) == "user"
    whole = [*turns, {"role": "assistant", "content": "-"}] if prompted else turns
    found = instructions.normalise({"messages": whole}, {})
    if isinstance(found, str):
        return found
    places = [("messages", number, "content" if "content" in turn else "value") for number, turn in enumerate(turns)]
    kept = len(turns) - (generate and not prompted)
    named = [(f"{number + 1}_{found[number]['role']}", place) for number, place in enumerate(places[:kept])]
    return [(name, place, turns[number][place[-1]]) for number, (name, place) in enumerate(named)]


def _texts(record: Mapping, columns: Sequence[str] | None) -> list[tuple[str, tuple, str]] | str:
    """(name, place, text) of the columns' texts; empty ones and nulls are left out."""
    if columns is None:
        columns = next((shape for shape in SHAPES if all(_at(record, name) is not None for name in shape)), None)
    if columns is None:
        known = ", ".join("messages" if not shape else " + ".join(shape) for shape in ((), *SHAPES))
        return f"no known columns (known: {known}); name those with text to translate: --columns=..."
    found = []
    for column in columns:
        if _at(record, column, missing := object()) is missing:
            return f"no column '{column}'"
        value, path = _at(record, column), tuple(column.split("."))
        several = isinstance(value, list)
        for number, text in enumerate(value if several else [value]):
            if text is not None and not isinstance(text, str):
                return f"'{column}' holds {type(text).__name__}, not text"
            if text and text.strip():
                name = column.replace(".", "_")
                found.append((f"{name}_{number + 1}", (*path, number), text) if several else (name, path, text))
    return found or f"no text in {', '.join(columns)}"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON can spell halves of characters, which can't."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def _at(record: Mapping, column: str, default: object = None) -> object:
    value: object = record
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def translated(item: Item, texts: Mapping[str, str], code: str, answer: str | None = None) -> dict:
    """The item's record with its translations (by its parts' names), an answer made anew if there is one, and its new language.

    A record that names no language is given none.
    """
    record = copy.deepcopy(dict(item.record))
    for part in item.parts:
        *path, last = part.place
        holder = functools.reduce(lambda inside, key: inside[key], path, record)
        holder[last] = texts.get(part.name, part.text)
    if answer is not None:
        turns = record["messages"]
        if len(turns) == len(item.parts):
            turns.append({"role": "assistant", "content": answer})
        else:
            turns[-1]["content" if "content" in turns[-1] else "value"] = answer
    for key in ("language", "lang"):
        if documents.language_of({key: record.get(key)}, None):
            record[key] = code
    return record


def write(folder: Path, path: Path, accepted: Iterable[tuple[Item, dict]]) -> None:
    """Write records as they came: conversations to `instructions.jsonl`, others to `items/`, one file for each that was read.

    Args:
        folder: where to.
        path: what was read; Parquet files are laid out as there.
        accepted: items and their records in translation.
    """
    files: dict[Path, list[dict]] = {}
    parquet: dict[Path, Path] = {}
    for item, record in accepted:
        name = item.file.name.removesuffix(".gz").removesuffix(".zst")
        file = Path(INSTRUCTIONS) if item.conversation else "items" / item.file.with_name(name)
        files.setdefault(file, []).append(record)
        parquet[file] = path if path.is_file() else path / item.file
    for name, found in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            table = pa.Table.from_pylist(found, schema=pq.read_schema(parquet[name]))
            pq.write_table(table, file, compression="zstd")
        else:
            write_json_lines(file, found)


def write_json_lines(file: Path, found: Iterable[Mapping]) -> None:
    """One record a line; what JSON has no form for (a date) as text."""
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in found)
