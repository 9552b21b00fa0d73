"""Documents on disk: Parquet (zstd) with `id`, `text`, `source`, `language`, one or more further columns allowed.

Inputs may also be JSON Lines (plain, .gz, .zst) or plain text, so that a script takes a user's own files by hand.
"""

import contextlib
import gzip
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lib.errors import UserError

OnError = Literal["stop", "skip"]
FIELDS = [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("language", pa.string())]
SCHEMA = pa.schema(FIELDS)
ROWS_PER_FILE = 500_000
ROWS_PER_GROUP = 5_000
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
READABLE = (".parquet", *JSON_LINES, ".txt")


def read(
    path: Path, *, on_error: OnError = "stop", skipped: Counter[str] | None = None, language: str | None = None
) -> Iterator[dict]:
    """Documents of a file, or of all readable files below a folder in the order of their names.

    Args:
        path: a Parquet, JSON Lines or text file, or a folder of them (a text file is one document).
        on_error: 'stop' at a broken line or row, or 'skip' it and count it in `skipped`.
        skipped: counts of what was skipped, by reason.
        language: given to documents that name none.

    Raises:
        UserError: nothing readable there, or broken input (file and line) unless it is skipped.
    """
    skipped = Counter() if skipped is None else skipped
    for file in files(path):
        for place, record in read_records(file, on_error=on_error, skipped=skipped):
            document = _document(record, file, place, language)
            if isinstance(document, dict):
                yield document
            elif on_error == "skip":
                skipped["broken_record"] += 1
            else:
                raise UserError(f"{file}:{place}: {document}; correct it, or say --on_error=skip")


def shuffled(path: Path, seed: int, buffer: int = 50_000) -> Iterator[dict]:
    """Documents of a Parquet folder in a random order that depends on `seed` alone.

    Row groups in random order through a shuffling buffer of `buffer` documents, so memory does not grow with the corpus.
    """
    rng = random.Random(seed)
    groups = [(file, group) for file in files(path) for group in range(_open_parquet(file).num_row_groups)]
    rng.shuffle(groups)
    waiting: list[dict] = []
    for file, group in groups:
        for document in _open_parquet(file).read_row_group(group).to_pylist():
            waiting.append(document)
            if len(waiting) > buffer:
                yield _take_random(waiting, rng)
    while waiting:
        yield _take_random(waiting, rng)


def held_out(path: Path, limit: int, seed: int = 0) -> dict[str, list[str]]:
    """Held-out texts by language, those of `held_out_by_source`."""
    found = held_out_by_source(path, limit, seed)
    return {language: [text for texts in sources.values() for text in texts] for language, sources in found.items()}


def held_out_by_source(path: Path, limit: int, seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Held-out texts by language and source; what has none is absent.

    The sources of a language share `limit` characters evenly, as far as they have them: the one with least text so far
    gives its next document, drawn by `seed`, until a language's last one crosses the limit.
    """
    waiting: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for document in read(path):
        if document.get("split") == "held_out":
            sources = waiting.setdefault(document["language"], {})
            sources.setdefault(document["source"], []).append((document["id"], document["text"]))
    return {language: _shared_out(sources, limit, random.Random(seed)) for language, sources in waiting.items()}


def _shared_out(sources: Mapping[str, list[tuple[str, str]]], limit: int, rng: random.Random) -> dict[str, list[str]]:
    """`limit` characters of the sources' (id, text) pairs, in a random order that does not depend on theirs."""
    waiting = {source: rng.sample(sorted(pairs), len(pairs)) for source, pairs in sorted(sources.items())}
    taken: dict[str, list[str]] = {source: [] for source in waiting}
    sizes = dict.fromkeys(waiting, 0)
    while sum(sizes.values()) < limit and any(waiting.values()):
        source = min((source for source in waiting if waiting[source]), key=sizes.__getitem__)
        taken[source].append(waiting[source].pop()[1])
        sizes[source] += len(taken[source][-1])
    return {source: texts for source, texts in taken.items() if texts}


def files(path: Path) -> list[Path]:
    """The readable files at or below `path`, sorted.

    Raises:
        UserError: there is no such path, or its kind is not known.
    """
    if path.is_file():
        if not path.name.endswith(READABLE):
            raise UserError(f"{path}: not one of {', '.join(READABLE)}")
        return [path]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return sorted(file for file in path.rglob("*") if file.name.endswith(READABLE))


def count(path: Path) -> int | None:
    """The number of documents, where Parquet metadata tells it at no cost; else None."""
    found = files(path)
    if any(file.suffix != ".parquet" for file in found):
        return None
    return sum(_open_parquet(file).metadata.num_rows for file in found)


def read_json_lines(
    path: Path, *, on_error: OnError = "stop", skipped: Counter[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """(line number, object) for each line of a JSON Lines file, blank lines left out.

    Raises:
        UserError: a line is not a JSON object or not UTF-8 (file and line named), unless `on_error` is 'skip'.
    """
    skipped = Counter() if skipped is None else skipped
    with _open(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                reason, problem, record = _parse_line(line)
                if problem is None:
                    yield number, record
                elif on_error == "skip":
                    skipped[reason] += 1
                else:
                    raise UserError(f"{path}:{number}: {problem}; correct the line, or say --on_error=skip")
        except (EOFError, gzip.BadGzipFile, zstandard.ZstdError, OSError) as error:
            raise UserError(f"{path}: the compressed file is damaged ({error})") from None


@contextlib.contextmanager
def writing(folder: Path, extra: Iterable[tuple[str, pa.DataType]] = ()) -> Iterator["Writer"]:
    """A writer of documents into `folder/00000.parquet`, `00001.parquet`, ...; at least one file is written."""
    writer = Writer(folder, pa.schema([*FIELDS, *extra]))
    try:
        yield writer
        writer.flush(always=True)
    finally:
        writer.close()


class Writer:
    """Buffers documents and writes them in row groups, a new file every `ROWS_PER_FILE`."""

    def __init__(self, folder: Path, schema: pa.Schema):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.schema = folder, schema
        self.rows = 0
        self.characters = 0
        self._buffer: list[dict] = []
        self._file: pq.ParquetWriter | None = None

    def write(self, document: dict) -> None:
        """Add one document: the schema's fields, missing ones null."""
        if self.rows and self.rows % ROWS_PER_FILE == 0:
            self.flush()
            self.close()
        self._buffer.append(document)
        self.rows += 1
        self.characters += len(document["text"])
        if len(self._buffer) >= ROWS_PER_GROUP:
            self.flush()

    def flush(self, always: bool = False) -> None:
        """Write the buffered rows; with `always`, a file even if there are none."""
        if not self._buffer and not (always and self._file is None):
            return
        if self._file is None:
            path = self.folder / f"{(max(self.rows, 1) - 1) // ROWS_PER_FILE:05d}.parquet"
            self._file = pq.ParquetWriter(path, self.schema, compression="zstd")
        self._file.write_table(pa.Table.from_pylist(self._buffer, schema=self.schema))
        self._buffer.clear()

    def close(self) -> None:
        """Finish the open file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _take_random(waiting: list[dict], rng: random.Random) -> dict:
    place = rng.randrange(len(waiting))
    waiting[place], waiting[-1] = waiting[-1], waiting[place]
    return waiting.pop()


def read_records(file: Path, *, on_error: OnError, skipped: Counter[str]) -> Iterator[tuple[int, dict]]:
    """(line or row number, record as it stands) of a Parquet, JSON Lines or text file."""
    if file.suffix == ".parquet":
        place = 0
        for batch in _open_parquet(file).iter_batches(batch_size=ROWS_PER_GROUP):
            for record in batch.to_pylist():
                place += 1
                yield place, record
    elif file.suffix == ".txt":
        try:
            yield 1, {"text": file.read_text(encoding="utf-8"), "id": file.stem}
        except UnicodeDecodeError as error:
            if on_error == "stop":
                raise UserError(
                    f"{file}: not UTF-8 at byte {error.start}; convert it, or say --on_error=skip"
                ) from None
            skipped["invalid_utf8"] += 1
    else:
        yield from read_json_lines(file, on_error=on_error, skipped=skipped)


def language_of(record: Mapping, default: str | None) -> str | None:
    """The ISO code in a record's `language` or `lang` (or the English name of ours), else the default."""
    spoken = record.get("language") or record.get("lang")
    if not isinstance(spoken, str):
        return default
    spoken = {"russian": "ru", "english": "en"}.get(spoken.lower(), spoken)
    return spoken if re.fullmatch("[a-z]{2,3}", spoken) else default


def _document(record: dict, file: Path, place: int, language: str | None) -> dict | str:
    """The record with the four fields, or what is wrong with it."""
    text = record.get("text")
    if not isinstance(text, str):
        return "no field 'text'" if text is None else f"'text' is {type(text).__name__}, not a string"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "'text' holds a lone surrogate, which is not valid Unicode"
    document = dict(record)
    document["id"] = str(record.get("id") or f"{file.name.split('.')[0]}-{place}")
    document["source"] = record.get("source") or file.name.split(".")[0]
    document["language"] = record.get("language") or language
    if document["language"] is None:
        return "no field 'language'"
    return document


def _parse_line(line: bytes) -> tuple[str, str | None, dict]:
    """(reason, what is wrong or None, the object) of one line."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return "invalid_utf8", f"not UTF-8 at byte {error.start} of the line", {}
    except json.JSONDecodeError as error:
        return "invalid_json", f"not valid JSON ({error.msg} at column {error.colno})", {}
    except RecursionError:
        return "invalid_json", "not valid JSON (nested too deeply)", {}
    if not isinstance(record, dict):
        return "invalid_json", f"a JSON {type(record).__name__}, not an object", {}
    return "", None, record


def _open(path: Path) -> io.BufferedIOBase:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True))
    return path.open("rb")


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
