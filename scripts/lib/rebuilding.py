"""A corpus written anew without its duplicate paragraphs, and what was removed beside the reasons."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib import documents, duplicates, minhash, paragraphs, progress

REMOVED_FIELDS = [
    ("paragraph", pa.int32()),
    ("reason", pa.string()),
    ("twin_id", pa.string()),
    ("twin_text", pa.large_string()),
    ("similarity", pa.float32()),
]


def write(
    index: duplicates.Index,
    batches: duplicates.Batches,
    found: duplicates.Duplicates,
    folder: Path,
    min_document_chars: int,
) -> dict[str, object]:
    """Write folder/documents and folder/removed.

    Args:
        index: the signed corpus.
        batches: reads it.
        found: what goes.
        folder: where to write.
        min_document_chars: a document that lost text and has fewer characters left goes too, unless it holds a twin.

    Returns:
        The tally for the manifest: documents and paragraphs in = kept + removed by reason.
    """
    twin_numbers = np.unique(found.nodes.numbers[found.twins])
    tally = Tally()
    with (
        documents.writing(folder / "documents") as keep,
        documents.writing(folder / "removed", extra=REMOVED_FIELDS) as remove,
    ):
        for batch, document, paragraph, first in progress.bar(
            duplicates.walk(index, batches), title="write", unit="batches"
        ):
            low, high = np.searchsorted(found.removed, [first, first + len(document)])
            here = found.removed[low:high] - first
            twins = twin_numbers[slice(*np.searchsorted(twin_numbers, [first, first + len(document)]))] - first
            with_twin = np.zeros(len(batch), bool)
            with_twin[document[twins]] = True
            owners = document[here]
            touched, starts = np.unique(owners, return_index=True)
            texts = {}
            ends = [*starts[1:], len(here)]
            for row, start, end in zip(touched.tolist(), starts, ends, strict=False):
                places = np.arange(low + start, low + end)
                gone = dict(zip(paragraph[found.removed[places] - first].tolist(), places.tolist(), strict=True))
                texts[row] = _without(batch.slice(row, 1).to_pylist()[0], gone, found, remove, tally)
            _write_batch(batch, texts, with_twin, min_document_chars, keep, remove, tally)
    return tally.checked(index, len(found.removed))


class Tally:
    """Counts of what was written."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.paragraphs: Counter[str] = Counter(exact_duplicate=0, near_duplicate=0, too_short=0)
        self.characters: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()

    def checked(self, index: duplicates.Index, removed: int) -> dict[str, object]:
        """The tally as the manifest has it; nothing was lost on the way."""
        dropped = {name: number for name, number in self.documents.items() if name != "kept"}
        reasons = {name: number for name, number in self.paragraphs.items() if name != "kept"}
        assert index.documents == self.documents["kept"] + sum(dropped.values())
        assert index.paragraphs == self.paragraphs["kept"] + sum(reasons.values())
        assert removed == reasons["exact_duplicate"] + reasons["near_duplicate"]
        return {
            "documents_in": index.documents,
            "documents_kept": self.documents["kept"],
            "documents_dropped": sum(dropped.values()),
            "documents_removed": dropped,
            "paragraphs_in": index.paragraphs,
            "paragraphs_kept": self.paragraphs["kept"],
            "paragraphs_removed": reasons,
            "duplicates_by_sources": dict(self.sources.most_common()),
            "characters": dict(self.characters),
        }


def _without(
    document: dict,
    gone: dict[int, int],
    found: duplicates.Duplicates,
    remove: documents.Writer,
    tally: Tally,
) -> tuple[str, int]:
    """(a document's text without the paragraphs in `gone`, how many are left); those are written where they belong."""
    texts, gaps = paragraphs.split(document["text"])
    fields = {name: document[name] for name in ("id", "source", "language")}
    for number, place in gone.items():
        twin = int(found.twins[place])
        names = found.nodes.names.slice(twin, 1).to_pylist()[0]
        reason = "exact_duplicate" if found.exact[place] else "near_duplicate"
        twin_text = found.nodes.text(twin)
        similarity = float(found.similarity[place])
        row = {"paragraph": number, "text": texts[number], "reason": reason, "similarity": similarity}
        remove.write(fields | row | {"twin_id": names["document"], "twin_text": twin_text})
        tally.paragraphs[reason] += 1
        tally.sources[f"{document['source']} ~ {names['source']}"] += 1
    stays = [number not in gone for number in range(len(texts))]
    return paragraphs.join(texts, gaps, stays), sum(stays)


def _write_batch(
    batch: pa.RecordBatch,
    texts: dict[int, tuple[str, int]],
    with_twin: np.ndarray,
    min_document_chars: int,
    keep: documents.Writer,
    remove: documents.Writer,
    tally: Tally,
) -> None:
    """Write what is left of a batch's documents, those in `texts` with their new text."""
    counts = minhash.paragraph_counts(batch["text"])
    stays = counts > 0
    tally.documents["empty"] += int((~stays).sum())
    for row, (text, left) in texts.items():
        counts[row] = left
        stays[row] = with_twin[row] or len(text) >= min_document_chars
        if not stays[row]:
            tally.documents["too_short" if text else "all_duplicates"] += 1
            tally.paragraphs["too_short"] += left
            if text:
                document = batch.slice(row, 1).to_pylist()[0]
                remove.write(document | {"text": text, "reason": "too_short"})
    changed = {row: text for row, (text, _) in texts.items() if stays[row]}
    kept = _replaced(batch, changed).filter(pa.array(stays))
    keep.write_batch(kept)
    tally.documents["kept"] += len(kept)
    tally.paragraphs["kept"] += int(counts[stays].sum())
    tally.characters["in"] += documents.characters(batch["text"])
    tally.characters["kept"] += documents.characters(kept["text"])


def _replaced(batch: pa.RecordBatch, texts: dict[int, str]) -> pa.RecordBatch:
    """The batch with other texts in some rows."""
    if not texts:
        return batch
    mask = np.zeros(len(batch), bool)
    mask[list(texts)] = True
    others = pa.array([texts[row] for row in sorted(texts)], pa.large_string())
    column = pc.replace_with_mask(batch["text"], pa.array(mask), others)
    return batch.set_column(batch.schema.get_field_index("text"), "text", column)
