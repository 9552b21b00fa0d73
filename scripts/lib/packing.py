"""Token sequences of a fixed length, documents one after another, each with positions of its own.

Positions restart at 0 with each document; that is what keeps attention inside a document (transformers reads it off
`position_ids` as long as there is no attention mask and no cache). On disk: `tokens.bin`, `positions.bin` (rows x
length) and `replay.bin` (one byte a row, 1 for the replay language), read memory-mapped.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lib.losses import IGNORED

ENCODED_AT_ONCE = 256


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

    for text in texts:
        batch.append(text)
        if len(batch) == ENCODED_AT_ONCE:
            yield from flush()
    yield from flush()


def fill_rows(documents: Iterable[list[int]], length: int) -> Iterator[Row]:
    """Rows filled from the stream of documents; a document cut by a row's end goes on in the next as if it began there.

    What is left at the end and does not fill a row is dropped.
    """
    row, filled = _empty_row(length), 0
    for document in documents:
        ids = np.asarray(document)
        while len(ids):
            taken = min(length - filled, len(ids))
            row.tokens[filled : filled + taken] = ids[:taken]
            row.positions[filled : filled + taken] = np.arange(taken)
            ids, filled = ids[taken:], filled + taken
            if filled == length:
                yield row
                row, filled = _empty_row(length), 0


def interleave(main: Iterator[Row], replay: Iterator[Row], replay_share: float) -> Iterator[tuple[Row, bool]]:
    """(row, whether it is replay), `replay_share` of the rows being replay, spread evenly; ends with either stream."""
    due = 0.0
    while True:
        due += replay_share
        is_replay = due >= 1.0
        row = next(replay if is_replay else main, None)
        if row is None:
            return
        due -= is_replay
        yield row, is_replay


class PackedWriter:
    """Appends rows to the three files of a folder."""

    def __init__(self, folder: Path, vocabulary: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self.token_type = token_type(vocabulary)
        self._files = [(folder / f"{name}.bin").open("wb") for name in ("tokens", "positions", "replay")]

    def write(self, row: Row, replay: bool) -> None:
        """Append one row."""
        tokens, positions, flags = self._files
        tokens.write(row.tokens.astype(self.token_type).tobytes())
        positions.write(row.positions.astype(np.uint16).tobytes())
        flags.write(bytes([replay]))
        self.rows += 1

    def close(self) -> None:
        """Finish the files."""
        for file in self._files:
            file.close()


def token_type(vocabulary: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned type that holds the ids."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


class PackedRows(torch.utils.data.Dataset):
    """Memory-mapped packed rows; an item holds `input_ids`, `position_ids` and `labels` (-100 where a document starts)."""

    def __init__(self, folder: Path, length: int, vocabulary: int):
        self.tokens = np.memmap(folder / "tokens.bin", dtype=token_type(vocabulary), mode="r").reshape(-1, length)
        self.positions = np.memmap(folder / "positions.bin", dtype=np.uint16, mode="r").reshape(-1, length)
        self.replay = np.fromfile(folder / "replay.bin", dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.tokens[index].astype(np.int64))
        positions = torch.from_numpy(self.positions[index].astype(np.int64))
        return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, IGNORED)}


def collate(items: list[dict[str, torch.Tensor]], *, flatten: bool) -> dict[str, torch.Tensor]:
    """A batch of equally long rows; with `flatten` one long row, which is how flash attention finds the documents."""
    join = torch.cat if flatten else torch.stack
    batch = {name: join([item[name] for item in items]) for name in items[0]}
    return {name: part.unsqueeze(0) for name, part in batch.items()} if flatten else batch


def pack_dialogues(dialogues: list[tuple[list[int], list[int]]], length: int, filler: int) -> list[dict]:
    """Whole dialogues, (ids, labels) each at most `length` long, into rows of `length`, longest first into the fullest
    row that has room; the rest of a row is `filler` that no loss counts and no dialogue sees.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(dialogues)), key=lambda n: (-len(dialogues[n][0]), n)):
        need = len(dialogues[number][0])
        fitting = [row for row in range(len(rows)) if room[row] >= need]
        if fitting:
            chosen = min(fitting, key=lambda row: (room[row], row))
        else:
            chosen = len(rows)
            rows.append([])
            room.append(length)
        rows[chosen].append(number)
        room[chosen] -= need
    return [_dialogue_row([dialogues[number] for number in row], length, filler) for row in rows]


def _empty_row(length: int) -> Row:
    return Row(np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64))


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
