"""Token sequences of a fixed length, documents one after another, each with positions of its own.

Positions restart at 0 with each document; that is what keeps attention inside a document (transformers reads it off
`position_ids` as long as there is no attention mask and no cache). On disk a source's rows are shards of bounded size,
`tokens-00000.bin` and `positions-00000.bin` (rows x length, no header), `-00001` and so on, read memory-mapped.
"""

import bisect
import hashlib
import heapq
import itertools
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lib.errors import UserError
from lib.losses import IGNORED

REPLAY_LANGUAGE = "en"
ENCODED_AT_ONCE = 256
ENCODED_CHARACTERS = 1 << 20  # the tokenizer takes some hundred bytes a token while it works
ROWS_PER_SHARD = 1 << 18  # 512 MB a file at 1,024 tokens of two bytes
POSITION_TYPE = np.uint16
# For an estimate of a source's tokens per character; documents differ in that far less than in length.
SAMPLED_DOCUMENTS = 64
SAMPLED_CHARACTERS = 10_000
# So that a limit is reached although lots and estimates are off a little.
DRAWN_IN_EXCESS = 0.05
Key = tuple[str, str]  # source, language


class Row(NamedTuple):
    """One packed sequence: token ids and positions, both of the same length."""

    tokens: np.ndarray
    positions: np.ndarray


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, start: int | None, end: int
) -> Iterator[list[int]]:
    """Each text's ids between `start` (if any) and `end`."""
    batch: list[str] = []

    def flush() -> Iterator[list[int]]:
        if batch:
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                yield [*([] if start is None else [start]), *ids, end]
            batch.clear()

    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == ENCODED_AT_ONCE or characters >= ENCODED_CHARACTERS:
            yield from flush()
            characters = 0
    yield from flush()


class Filler:
    """Fills rows with documents; one cut by a row's end goes on in the next as if it began there.

    What does not fill a row at the end never becomes one.
    """

    def __init__(self, length: int):
        self._row = Row(np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64))
        self._filled = 0

    def add(self, document: Sequence[int]) -> Iterator[Row]:
        """The rows that a document's ids fill; a row is overwritten when the next one is asked for."""
        ids, length = np.asarray(document), len(self._row.tokens)
        while len(ids):
            taken = min(length - self._filled, len(ids))
            place = slice(self._filled, self._filled + taken)
            self._row.tokens[place], self._row.positions[place] = ids[:taken], np.arange(taken)
            ids, self._filled = ids[taken:], (self._filled + taken) % length
            if not self._filled:
                yield self._row


def fill_rows(documents: Iterable[list[int]], length: int) -> Iterator[Row]:
    """Rows filled from the stream of documents; see Filler."""
    filler = Filler(length)
    for document in documents:
        for row in filler.add(document):
            yield Row(row.tokens.copy(), row.positions.copy())


def token_type(vocabulary: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned type that holds the ids."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


class Surveyed(NamedTuple):
    """A source's documents of one language: how many they are, and an estimate of their tokens."""

    documents: int
    tokens: float


class Portion(NamedTuple):
    """What is packed of a source: documents whose lot is below `share`, up to `rows` (None: any number)."""

    share: float
    rows: int | None


def survey(documents: Iterable[dict], tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[Key, Surveyed]:
    """The sources of documents, their tokens estimated from the tokens per character of a few drawn by lot."""
    sizes: dict[Key, list[int]] = {}
    samples: dict[Key, list[tuple[float, str]]] = {}  # heaps, the highest lot first
    for document in documents:
        key = document["source"], document["language"]
        size, sample = sizes.setdefault(key, [0, 0]), samples.setdefault(key, [])
        size[0] += 1
        size[1] += len(document["text"])
        ticket = -lot(document["id"], seed)
        if len(sample) < SAMPLED_DOCUMENTS or ticket > sample[0][0]:
            push = heapq.heappush if len(sample) < SAMPLED_DOCUMENTS else heapq.heappushpop
            push(sample, (ticket, document["text"][:SAMPLED_CHARACTERS]))
    found = {}
    for key, (number, characters) in sorted(sizes.items()):
        texts = [text for _, text in samples[key]]
        tokens = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
        found[key] = Surveyed(number, 2 * number + characters * tokens / max(sum(map(len, texts)), 1))
    return found


def lot(document_id: str, seed: int) -> float:
    """A random number from 0 to below 1 that a document draws, whatever documents there are besides it."""
    digest = hashlib.blake2b(f"{seed} {document_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def allot(sources: Mapping[Key, Surveyed], limit: int | None, length: int) -> dict[Key, Portion]:
    """The same share of each source, so that all their rows together hold at most `limit` tokens.

    Args:
        sources: what shares the limit.
        limit: tokens, or None for everything.
        length: tokens a row.
    """
    if limit is None:
        return dict.fromkeys(sources, Portion(1.0, None))
    whole = sum(source.tokens for source in sources.values())
    share = min(1.0, limit / whole * (1 + DRAWN_IN_EXCESS)) if whole else 1.0
    ends = [int(limit // length * part / whole) for part in itertools.accumulate(s.tokens for s in sources.values())]
    return {key: Portion(share, end - before) for key, before, end in zip(sources, [0, *ends], ends, strict=False)}


def names(keys: Iterable[Key]) -> dict[Key, str]:
    """A name for each: the source's, or `source.language` where it has several languages."""
    keys = list(keys)
    languages = Counter(source for source, _ in keys)
    return {key: key[0] if languages[key[0]] == 1 else ".".join(key) for key in keys}


def folder_name(source: str) -> str:
    """A folder's name for a source: its own where any file system takes that, else what is left of it and a digest."""
    safe = re.sub(r"[^a-z0-9._-]+", "_", source.lower()).lstrip(".")[:60]
    return safe if safe == source != "" else f"{safe}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


class ShardWriter:
    """Fills rows with a source's documents, see Filler, and appends them to the shards of its folder.

    No file is held open, so that there may be any number of writers.

    Args:
        folder: made with the first row.
        length: tokens a row.
        vocabulary: its size, which decides the type of the ids.
        most: rows after which everything is passed over; None for any number.
    """

    def __init__(self, folder: Path, length: int, vocabulary: int, most: int | None = None):
        self.folder, self.most = folder, most
        self.rows = self.documents = 0  # documents of which at least the beginning is in these rows
        self._filler, self._kind = Filler(length), token_type(vocabulary)
        self._begun = 0

    @property
    def full(self) -> bool:
        """Whether it has `most` rows."""
        return self.rows == self.most

    def add(self, document: Sequence[int]) -> None:
        """Append one document's ids, of which there is at least one."""
        if self.full:
            return
        self._begun += 1
        for row in self._filler.add(document):
            self._write("tokens", row.tokens.astype(self._kind))
            self._write("positions", row.positions.astype(POSITION_TYPE))
            self.rows += 1
            self.documents += self._begun
            self._begun = 0
            if self.full:
                return

    def _write(self, name: str, row: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}-{self.rows // ROWS_PER_SHARD:05d}.bin").open("ab") as shard:
            shard.write(row.tobytes())


class SourceRows:
    """The rows of one source, memory-mapped; an item holds `input_ids`, `position_ids` and `labels` (-100 where a
    document starts).

    Args:
        folder: what a ShardWriter wrote.
        length: tokens a row.
        vocabulary: its size.

    Raises:
        UserError: a shard is missing its partner or ends within a row.
    """

    def __init__(self, folder: Path, length: int, vocabulary: int):
        self._made_of = folder, length, vocabulary
        self._tokens = _shards(folder, "tokens", token_type(vocabulary), length)
        self._positions = _shards(folder, "positions", POSITION_TYPE, length)
        self._ends = list(itertools.accumulate(map(len, self._tokens)))
        if list(map(len, self._tokens)) != list(map(len, self._positions)):
            raise UserError(f"{folder}: the shards of tokens and of positions do not match; pack anew")

    def __reduce__(self):
        return SourceRows, self._made_of  # for a worker process: a memory map would travel as a copy of the file

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        shard, row = self._place(index)
        tokens = torch.from_numpy(self._tokens[shard][row].astype(np.int64))
        positions = torch.from_numpy(self._positions[shard][row].astype(np.int64))
        return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, IGNORED)}

    def tokens(self, index: int) -> np.ndarray:
        """A row's ids as they lie on disk."""
        shard, row = self._place(index)
        return self._tokens[shard][row]

    def _place(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]  # an IndexError where there is no such row
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def collate(items: list[dict], *, flatten: bool) -> dict[str, torch.Tensor]:
    """A batch of equally long rows; with `flatten` one long row, which is how flash attention finds the documents.

    Returns:
        `input_ids`, `position_ids` and `labels` ([rows, length], flattened [1, rows * length]); of rows of a mixture
        also `replay`, flags, and `row`, their indices in the run (both [rows]).
    """
    join = torch.cat if flatten else torch.stack
    batch = {name: join([item[name] for item in items]) for name in ("input_ids", "position_ids", "labels")}
    if flatten:
        batch = {name: part.unsqueeze(0) for name, part in batch.items()}
    return batch | {
        name: torch.tensor([item[name] for item in items]) for name in ("replay", "row") if name in items[0]
    }


def pack_dialogues(dialogues: list[tuple[list[int], list[int]]], length: int, filler: int) -> list[dict]:
    """Whole dialogues, (ids, labels) each at most `length` long, into rows of `length`, longest first into the fullest
    row that has room; the rest of a row is `filler` that no loss counts and no dialogue sees.
    """
    rows = best_fit([len(ids) for ids, _ in dialogues], length)
    return [_dialogue_row([dialogues[number] for number in row], length, filler) for row in rows]


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Numbers of the things of these sizes by row of `length`: longest first into the fullest row that has room, of
    equally full ones into the first.

    Raises:
        UserError: one is longer than a row.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []  # that some row has, ascending; at most `length` different ones
    waiting: dict[int, list[int]] = {}  # heaps of rows by their room
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        if sizes[number] > length:
            raise UserError(f"{sizes[number]:,} tokens do not fit into a row of {length:,}")
        place = bisect.bisect_left(rooms, sizes[number])
        if place == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = heapq.heappop(waiting[room])
            if not waiting[room]:
                del rooms[place]
        rows[row].append(number)
        room -= sizes[number]
        heap = waiting.setdefault(room, [])
        if not heap:
            bisect.insort(rooms, room)
        heapq.heappush(heap, row)
    return rows


def _shards(folder: Path, name: str, kind: type[np.unsignedinteger], length: int) -> list[np.ndarray]:
    """Memory maps (rows x length) of a folder's shards of one name, in order."""
    maps = []
    for path in sorted(folder.glob(f"{name}-*.bin")):
        if path.stat().st_size % (length * np.dtype(kind).itemsize):
            raise UserError(f"{path}: it ends within a row of {length:,}; pack anew")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows are read in random order. Reading ahead would fetch megabytes for each, and throw them away where the
        # corpus is larger than memory.
        mapped.madvise(mmap.MADV_RANDOM)
        maps.append(np.frombuffer(mapped, dtype=kind).reshape(-1, length))
    return maps


def _dialogue_row(dialogues: list[tuple[list[int], list[int]]], length: int, filler: int) -> dict:
    ids, labels, positions = [], [], []
    for dialogue_ids, dialogue_labels in dialogues:
        ids += dialogue_ids
        labels += [IGNORED, *dialogue_labels[1:]]
        positions += range(len(dialogue_ids))
    rest = length - len(ids)
    return {
        "input_ids": torch.tensor(ids + [filler] * rest),
        "labels": torch.tensor(labels + [IGNORED] * rest),
        "position_ids": torch.tensor([*positions, *range(rest)]),
        "tokens": len(ids),
    }
