"""Documents on disk: Parquet (zstd) with `id`, `text`, `source`, `language`, one or more further columns allowed.

Inputs may also be JSON Lines (plain, .gz, .zst) or plain text, so that a script takes a user's own files by hand.

Input is not trusted. What is wrong with it stops the run with the file and the line or row, or is skipped and counted by
reason: `no_text`, `wrong_type`, `lone_surrogate`, `invalid_utf8`, `no_language`, `invalid_json`, `line_too_long`;
`damaged_row` for the rows of a Parquet row group that can't be read, whose number the file's footer tells, and
`damaged_file` for a file that breaks off where nothing tells how much is missing. So documents in a file = read + skipped.
"""

import codecs
import contextlib
import functools
import gzip
import io
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib import progress, storage
from lib.errors import UserError

OnError = Literal["stop", "skip"]
FIELDS = [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("language", pa.string())]
SCHEMA = pa.schema(FIELDS)
ROWS_PER_FILE = 500_000
ROWS_PER_GROUP = 5_000
BYTES_PER_GROUP = 64 << 20  # of text; a longer document stands alone
# No document is so long. A file without line breaks, or a bomb of a few packed kilobytes, must not fill the memory.
MAX_LINE = 256 << 20
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
READABLE = (".parquet", *JSON_LINES, ".txt")
Refuse = Callable[..., None]  # see _refusing


def read(
    path: Path, *, on_error: OnError = "stop", skipped: Counter[str] | None = None, language: str | None = None
) -> Iterator[dict]:
    """Documents of a file, or of all readable files below a folder in the order of their names.

    A document holds the four fields as text and whatever else its record has. A missing id is made of the file's name and
    the line or row, a missing source is the file's name; a whole number will do as an id. Ids need not differ.

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
        refuse = _refusing(file, on_error, skipped)
        if file.suffix != ".parquet":
            yield from _line_documents(file, language, on_error, skipped)
            continue
        for first, batch in _parquet_batches(file, None, refuse):
            rows, good = _checked(batch, file, first, language, refuse)
            others = batch.select([name for name in batch.schema.names if name not in SCHEMA.names])
            places = (np.flatnonzero(good) + first).tolist()
            records = _records(others.filter(pa.array(good)), places, refuse)
            for row, (_, record) in zip(rows.to_pylist(), records, strict=True):
                if record is not None:
                    yield record | row


def read_batches(
    path: Path,
    *,
    on_error: OnError = "stop",
    skipped: Counter[str] | None = None,
    language: str | None = None,
    columns: Sequence[tuple[str, pa.DataType]] = (),
) -> Iterator[pa.RecordBatch]:
    """The documents of `read` in the same order, as batches of the four fields; for Parquet no row becomes an object.

    A batch has at most ROWS_PER_GROUP rows and BYTES_PER_GROUP bytes of text, or is one longer document.

    Args:
        path: see `read`.
        on_error: see `read`.
        skipped: see `read`.
        language: see `read`.
        columns: further columns to read; null where a file has none of that name.

    Raises:
        UserError: as `read`; also for one of `columns` that is of another type.
    """
    skipped = Counter() if skipped is None else skipped
    schema = pa.schema([*FIELDS, *columns])
    for file in files(path):
        refuse = _refusing(file, on_error, skipped)
        if file.suffix != ".parquet":
            for rows in _gathered(_line_documents(file, language, on_error, skipped)):
                with _other_type(file):
                    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
                yield batch
            continue
        for first, batch in _parquet_batches(file, schema.names, refuse):
            rows, good = _checked(batch, file, first, language, refuse)
            for name, kind in columns:
                with _other_type(file):
                    known = name in batch.schema.names
                    column = batch[name].filter(pa.array(good)).cast(kind) if known else pa.nulls(len(rows), kind)
                    column.validate(full=True)
                    rows = rows.append_column(pa.field(name, kind), column)
            yield from _pieces(rows)


def shuffled(path: Path, seed: int, buffer: int = 50_000) -> Iterator[dict]:
    """Documents of a Parquet folder in a random order that depends on `seed` alone.

    Row groups in random order through a shuffling buffer of `buffer` documents, so memory does not grow with the corpus.

    Raises:
        UserError: a file is damaged.
    """
    rng = random.Random(seed)
    groups = [(file, group) for file in files(path) for group in range(_parquet(file).num_row_groups)]
    rng.shuffle(groups)
    waiting: list[dict] = []
    for file, group in groups:
        try:
            rows = _parquet(file).read_row_group(group).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{file}: row group {group} is damaged ({_first_line(error)})") from None
        for document in rows:
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
        UserError: there is no such path, its kind is not known, or none of a folder's files is readable.
    """
    if storage.is_remote(path):
        there = storage.files(path)
    elif path.is_file():
        there = [path]
    elif path.exists():
        there = [file for file in path.rglob("*") if file.is_file()]
    else:
        raise UserError(f"{path}: no such file or folder")
    if there == [path] and not path.name.endswith(READABLE):
        raise UserError(f"{path}: not one of {', '.join(READABLE)}")
    found = sorted(file for file in there if file.name.endswith(READABLE))
    if not found and any(file.name != "manifest.json" for file in there):
        raise UserError(f"{path}: no file in it is one of {', '.join(READABLE)}")
    return found


def count(path: Path) -> int | None:
    """The number of documents, where Parquet metadata tells it at no cost; else None."""
    rows = 0
    for file in files(path):
        opened = _open_parquet(file) if file.suffix == ".parquet" else ""
        if isinstance(opened, str):
            return None
        rows += opened.metadata.num_rows
    return rows


def read_json_lines(
    path: Path, *, on_error: OnError = "stop", skipped: Counter[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """(line number, object) for each line of a JSON Lines file, blank lines left out.

    Raises:
        UserError: a line is not a JSON object or not UTF-8 (file and line named), unless `on_error` is 'skip'.
    """
    refuse = _refusing(path, on_error, Counter() if skipped is None else skipped)
    number = 0
    try:
        with _open(path) as lines:
            while line := lines.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    refuse("line_too_long", f"more than {MAX_LINE >> 20} MB without a line break", number)
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(MAX_LINE)
                    continue
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    reason, problem, record = _parse_line(line)
                    if problem is None:
                        yield number, record
                    else:
                        refuse(reason, problem, number)
    except (EOFError, OSError, zlib.error) as error:
        if getattr(error, "errno", None):
            raise UserError(f"{path}: {error.strerror}") from None
        refuse("damaged_file", f"the compressed file is damaged after line {number:,} ({error})")


@contextlib.contextmanager
def writing(folder: Path, extra: Iterable[tuple[str, pa.DataType]] = ()) -> Iterator["Writer"]:
    """A writer of documents into `folder/00000.parquet`, `00001.parquet`, ...; at least one file is written."""
    writer = Writer(folder, pa.schema([*FIELDS, *extra]))
    try:
        yield writer
        writer.flush(always=True)
    finally:
        writer.close()


def characters(texts: pa.Array) -> int:
    """Characters of all texts of a column."""
    return pc.sum(pc.utf8_length(texts)).as_py() or 0


class Writer:
    """Buffers documents and writes them in row groups, a new file every `ROWS_PER_FILE`."""

    def __init__(self, folder: Path, schema: pa.Schema):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.schema = folder, schema
        self.rows = 0
        self.characters = 0
        self._buffer: list[dict] = []
        self._buffered = 0  # bytes of text, or nearly: two per character
        self._files = self._in_file = 0
        self._file: pq.ParquetWriter | None = None

    def write(self, document: dict) -> None:
        """Add one document: the schema's fields, missing ones null."""
        self._turn_over()
        self._buffer.append(document)
        self.rows += 1
        self._in_file += 1
        self.characters += len(document["text"])
        self._buffered += 2 * len(document["text"])
        if len(self._buffer) >= ROWS_PER_GROUP or self._buffered >= BYTES_PER_GROUP:
            self.flush()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add documents at once: the schema's fields, absent ones null."""
        self._turn_over()
        self.flush()
        given = batch.schema.names
        columns = [batch[f.name] if f.name in given else pa.nulls(len(batch), f.type) for f in self.schema]
        if len(batch):
            self._opened().write_batch(pa.record_batch(columns, schema=self.schema))
        self.rows += len(batch)
        self._in_file += len(batch)
        self.characters += characters(batch["text"])

    def _turn_over(self) -> None:
        if self._in_file >= ROWS_PER_FILE:
            self.flush()
            self.close()
            self._in_file = 0

    def flush(self, always: bool = False) -> None:
        """Write the buffered rows; with `always`, a file even if there are none."""
        if not self._buffer and not (always and self._file is None):
            return
        self._opened().write_table(pa.Table.from_pylist(self._buffer, schema=self.schema))
        self._buffer.clear()
        self._buffered = 0

    def _opened(self) -> pq.ParquetWriter:
        if self._file is None:
            path = self.folder / f"{self._files:05d}.parquet"
            self._files += 1
            self._file = pq.ParquetWriter(path, self.schema, compression="zstd", write_page_checksum=True)
        return self._file

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
    refuse = _refusing(file, on_error, skipped)
    if file.suffix == ".parquet":
        for first, batch in _parquet_batches(file, None, refuse):
            for place, record in _records(batch, range(first, first + len(batch)), refuse):
                if record is not None:
                    yield place, record
    elif file.suffix == ".txt":
        try:
            with storage.opened(file) as opened:
                yield 1, {"text": io.TextIOWrapper(opened, encoding="utf-8-sig").read(), "id": file.stem}
        except UnicodeDecodeError as error:
            refuse("invalid_utf8", f"not UTF-8 at byte {error.start}")
    else:
        yield from read_json_lines(file, on_error=on_error, skipped=skipped)


def language_of(record: Mapping, default: str | None) -> str | None:
    """The ISO code in a record's `language` or `lang`, where also the language's English name may stand, else the default."""
    spoken = record.get("language") or record.get("lang")
    if not isinstance(spoken, str):
        return default
    return spoken if re.fullmatch("[a-z]{2,3}", spoken) else _code_of(spoken) or default


@functools.cache
def _code_of(name: str) -> str | None:
    """The ISO 639 code of a language's English name, the two-letter one if there is one."""
    import pycountry  # few data sets name languages so

    found = pycountry.languages.get(name=name)
    return found and getattr(found, "alpha_2", found.alpha_3)


def _refusing(file: Path, on_error: OnError, skipped: Counter[str]) -> Refuse:
    """What is done with broken input: `refuse(reason, problem, line or row, how many)` stops at it or counts it."""

    def refuse(reason: str, problem: str, place: int | None = None, number: int = 1) -> None:
        where = file if place is None else f"{file}:{place}"
        if on_error == "stop":
            raise UserError(f"{where}: {problem}; correct it, or say --on_error=skip")
        if reason in ("damaged_file", "damaged_row"):
            _warn(f"{where}: {problem}: skipped")
        skipped[reason] += number

    return refuse


@functools.cache
def _warn(message: str) -> None:
    """Say it once, however often the file is read."""
    progress.say(message)


@contextlib.contextmanager
def _other_type(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"{file}: a column of another type than expected ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _line_documents(file: Path, language: str | None, on_error: OnError, skipped: Counter[str]) -> Iterator[dict]:
    """The documents of a JSON Lines or text file."""
    refuse = _refusing(file, on_error, skipped)
    for place, record in read_records(file, on_error=on_error, skipped=skipped):
        document = _document(record, file, place, language)
        if isinstance(document, dict):
            yield document
        else:
            refuse(*document, place)


def _document(record: dict, file: Path, place: int, language: str | None) -> dict | tuple[str, str]:
    """The record with the four fields, or (reason, what is wrong with it)."""
    document = dict(record)
    defaults = {"id": f"{_stem(file)}-{place}", "text": None, "source": _stem(file), "language": language}
    for name, default in defaults.items():
        value = record.get(name)
        if name == "id" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None or (value == "" and name != "text"):
            value = default
        if value is None:
            return f"no_{name}", f"no field '{name}'"
        if not isinstance(value, str):
            return "wrong_type", f"'{name}' is {type(value).__name__}, not a string"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "lone_surrogate", f"'{name}' holds a lone surrogate, which is not valid Unicode"
        document[name] = value
    return document


def _stem(file: Path) -> str:
    return file.name.split(".")[0]


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
    except ValueError:
        return "invalid_json", "a number of thousands of digits", {}
    if not isinstance(record, dict):
        return "invalid_json", f"a JSON {type(record).__name__}, not an object", {}
    return "", None, record


def _open(path: Path) -> io.BufferedIOBase:
    if not storage.is_remote(path) and not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in (".gz", ".zst") and not path.stat().st_size:
        raise EOFError("it is empty")
    if path.suffix == ".gz":
        return gzip.open(storage.source(path), "rb")
    if path.suffix == ".zst":
        # Arrow's reader, because zstandard's takes a file that breaks off for one that ends.
        return io.BufferedReader(pa.input_stream(storage.source(path), compression="zstd"))
    return storage.opened(path)


def _parquet(file: Path) -> pq.ParquetFile:
    opened = _open_parquet(file)
    if isinstance(opened, str):
        raise UserError(f"{file}: {opened}")
    return opened


def _open_parquet(file: Path) -> pq.ParquetFile | str:
    """The open file, or what is wrong with it."""
    try:
        # Of an object all columns of a row group are asked for at once.
        how = {"page_checksum_verification": True, "pre_buffer": storage.is_remote(file)}
        opened = pq.ParquetFile(storage.source(file), **how)
        names = Counter(opened.schema_arrow.names)
        groups = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return f"not a readable Parquet file ({_first_line(error)})"
    if sum(groups) != opened.metadata.num_rows or min(groups, default=0) < 0:
        return "not a readable Parquet file (its footer contradicts itself)"
    name, number = names.most_common(1)[0] if names else ("", 1)
    return f"{number} columns named '{name}'" if number > 1 else opened


def _parquet_batches(file: Path, columns: Sequence[str] | None, refuse: Refuse) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of the first row, rows) with those of the columns that the file has, or all of its columns."""
    opened = _open_parquet(file)
    if isinstance(opened, str):
        refuse("damaged_file", opened)
        return
    if columns is not None:
        columns = [name for name in columns if name in opened.schema_arrow.names]
    place = 1
    for group in range(opened.num_row_groups):
        described = opened.metadata.row_group(group)
        end = place + described.num_rows
        problem = "shorter than its footer tells"
        try:
            if columns == []:
                yield place, pa.RecordBatch.from_struct_array(pa.nulls(end - place, pa.struct([])))
                place = end
                continue
            size = _fitting_rows(described)
            for batch in opened.iter_batches(batch_size=size, row_groups=[group], columns=columns):
                batch = _decoded(batch)
                yield place, batch
                place += len(batch)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            problem = f"damaged ({_first_line(error)})"
        if place < end:
            refuse("damaged_row", f"row group {group} is {problem}", place, end - place)
        place = max(place, end)


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Dictionaries as what they stand for; a damaged one raises here and not later."""
    for number, field in enumerate(batch.schema):
        if pa.types.is_dictionary(field.type):
            batch = batch.set_column(number, field.name, batch.column(number).dictionary_decode())
    return batch


def _fitting_rows(described: pq.RowGroupMetaData) -> int:
    """Rows of a row group that make a batch of a bearable size.

    By the size of the whole group: to ask a damaged one for its columns' sizes aborts the process (pyarrow 26.0.1).
    """
    return min(ROWS_PER_GROUP, max(1, BYTES_PER_GROUP * described.num_rows // max(1, described.total_byte_size)))


def _records(batch: pa.RecordBatch, places: Sequence[int], refuse: Refuse) -> Iterator[tuple[int, dict | None]]:
    """(row number, its record); None for a record that Python has no values for, and that is refused."""
    try:
        yield from zip(places, batch.to_pylist(), strict=True)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if len(batch) > 1:
            for number, place in enumerate(places):
                yield from _records(batch.slice(number, 1), [place], refuse)
            return
        undecodable = isinstance(error, UnicodeDecodeError)
        problem = f"not UTF-8 ({error})" if undecodable else f"a value that can't be read ({_first_line(error)})"
        refuse("invalid_utf8" if undecodable else "wrong_type", problem, places[0])
        yield places[0], None


def _checked(
    batch: pa.RecordBatch, file: Path, first: int, language: str | None, refuse: Refuse
) -> tuple[pa.RecordBatch, np.ndarray]:
    """The four fields of the rows that are documents, and which of the rows these are (a mask).

    The same conditions as `_document`, on columns.
    """
    faults: list[tuple[np.ndarray, str, str]] = []
    columns = []
    for name, kind in FIELDS:
        column = _strings(batch, name, faults)
        if name == "id" and column.null_count:
            places = pa.array(np.arange(first, first + len(batch))).cast(pa.large_string())
            prefix, nothing = (pa.scalar(text, pa.large_string()) for text in (f"{_stem(file)}-", ""))
            column = pc.coalesce(column, pc.binary_join_element_wise(prefix, places, nothing))
        elif name == "source":
            column = column.fill_null(_stem(file))
        elif name == "language" and language is not None:
            column = column.fill_null(language)
        if column.null_count:
            faults.append((np.asarray(column.is_null()), f"no_{name}", f"no field '{name}'"))
        columns.append(column.cast(kind))
    rows = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    # The first fault of a row counts; from the last to the first, so that the first is what stays.
    found = np.zeros(len(batch), np.int64)
    for number in range(len(faults), 0, -1):
        found[faults[number - 1][0]] = number
    if not found.any():
        return rows, found == 0
    for number in dict.fromkeys(found[found > 0].tolist()):
        _, reason, problem = faults[number - 1]
        at_fault = np.flatnonzero(found == number)
        refuse(reason, problem, first + int(at_fault[0]), len(at_fault))
    return rows.filter(pa.array(found == 0)), found == 0


def _strings(batch: pa.RecordBatch, name: str, faults: list[tuple[np.ndarray, str, str]]) -> pa.LargeStringArray:
    """A column as strings, null where there is none; what is something else, or not UTF-8, goes to the faults."""
    nothing = pa.nulls(len(batch), pa.large_string())
    if name not in batch.schema.names:
        return nothing
    column = batch[name]
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)) and not (
        name == "id" and pa.types.is_integer(kind)
    ):
        if column.null_count < len(column):
            faults.append((np.asarray(column.is_valid()), "wrong_type", f"'{name}' is {kind}, not a string"))
        return nothing
    column = column.cast(pa.large_string())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        invalid = np.array([not _is_utf8(value) for value in column.cast(pa.large_binary()).to_pylist()])
        faults.append((invalid, "invalid_utf8", f"'{name}' is not UTF-8"))
        column = pc.if_else(pa.array(invalid), nothing, column)
    return column if name == "text" else pc.if_else(pc.equal(column, ""), nothing, column)


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _pieces(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most BYTES_PER_GROUP of text, or one row."""
    ends = np.cumsum(pc.binary_length(rows["text"]).to_numpy())
    start = 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BYTES_PER_GROUP, side="right")))
        yield rows.slice(start, stop - start)
        start = stop


def _gathered(documents: Iterable[dict]) -> Iterator[list[dict]]:
    """Documents in lists of at most ROWS_PER_GROUP and BYTES_PER_GROUP of text, or one."""
    rows: list[dict] = []
    size = 0
    for document in documents:
        added = len(document["text"].encode())
        if rows and (len(rows) == ROWS_PER_GROUP or size + added > BYTES_PER_GROUP):
            yield rows
            rows, size = [], 0
        rows.append(document)
        size += added
    if rows:
        yield rows
