"""Remove paragraphs that repeat or nearly repeat an earlier one (the paper's section 3.1).

    python scripts/dedup.py --config=configs/demo/dedup.yaml --corpus=data/raw/books,data/raw/web --out=data/demo/dedup

Paragraphs are compared in a normal form (lib/paragraphs.py). Equal ones are found by a hash; among the rest, candidates
come from MinHash over character n-grams and banding, and each is verified by the exact Jaccard similarity. Of similar
paragraphs the first in corpus order stays (name the better sources first), and another goes only if it is similar
enough to one that stays; pairs do not join transitively.
A document that loses text and ends up too short goes as a whole, unless another's copy was removed in its favour.

Reads:  corpus: documents (Parquet, JSON Lines, text) in files or folders, several joined by commas.
Writes: documents/*.parquet: what is left, untouched where nothing was removed.
        removed/*.parquet: id, paragraph (its number in the document; null for a whole document), text, source, language,
        reason, twin_id, twin_text (the paragraph kept instead) and the similarity to it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lib import cli, documents, minhash, paragraphs, progress, stage
from lib.errors import UserError

REMOVED_FIELDS = [
    ("paragraph", pa.int32()),
    ("reason", pa.string()),
    ("twin_id", pa.string()),
    ("twin_text", pa.large_string()),
    ("similarity", pa.float32()),
]


def main(
    *,
    corpus: list[Path],
    out: Path,
    num_perm: int = 128,
    threshold: float = 0.8,
    shingle_chars: int = 5,
    min_chars: int = 40,
    min_document_chars: int = 200,
    language: str | None = None,
    on_error: documents.OnError = "stop",
) -> None:
    """Deduplicate a corpus by paragraph.

    Args:
        corpus: files or folders of documents, in the order in which the first of equals is kept.
        out: the folder to write.
        num_perm: MinHash permutations.
        threshold: Jaccard similarity (0 to 1) from which two paragraphs count as near duplicates.
        shingle_chars: characters in the n-grams that are compared.
        min_chars: paragraphs with fewer characters in normal form (headings) are never removed.
        min_document_chars: a document left with fewer characters by removals is dropped.
        language: given to documents that name none (ISO code).
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold={threshold}: a similarity above 0 and at most 1")
    if not 1 <= shingle_chars <= min_chars:
        raise UserError(f"--shingle_chars={shingle_chars}: from 1 to --min_chars={min_chars}")
    if not 16 <= num_perm <= 4096:
        raise UserError(f"--num_perm={num_perm}: from 16 to 4096")
    inputs = {f"corpus[{number}]": path for number, path in enumerate(corpus)}
    with stage.output(out, inputs=inputs, settings=settings) as building:

        def read(title: str, skipped: Counter[str]) -> Iterator[dict]:
            counts = [documents.count(path) for path in corpus]
            total = None if None in counts else sum(counts)
            streams = (documents.read(path, on_error=on_error, skipped=skipped, language=language) for path in corpus)
            return progress.bar((d for stream in streams for d in stream), total=total, title=title, unit="documents")

        # One pass to find out which paragraphs go, and instead of which.
        skipped: Counter[str] = Counter()
        total, exact, texts, positions = _exact_duplicates(read("read", skipped), min_chars)
        if not total:
            names = ", ".join(map(str, corpus))
            raise UserError(f"{names}: no paragraph of text in the whole corpus; check the paths and the fetch stage")
        near, figures = _near_duplicates(texts, positions, num_perm, threshold, shingle_chars)
        del texts
        # An exact copy of a near duplicate goes with it: its twin is what the near duplicate's twin is.
        twins = {paragraph: near.get(twin, twin) for paragraph, twin in exact.items()} | near

        # A second pass to write.
        tally = _write(read("write", Counter()), building.folder, twins, exact, shingle_chars, min_document_chars)
        if not tally["documents_kept"]:
            raise UserError(f"no document is left of {tally['documents_in']:,}: --min_document_chars is too high")
        assert tally["paragraphs_in"] == total == tally["paragraphs_kept"] + sum(tally["paragraphs_removed"].values())
        sizes = Counter(Counter(twins.values()).values())
        building.record(
            **tally,
            clusters_by_size={str(size + 1): number for size, number in sorted(sizes.items())},
            near=figures,
            skipped=dict(skipped),
        )
    print(progress.funnel(tally["paragraphs_kept"], total, tally["paragraphs_removed"], "paragraphs"))


def _exact_duplicates(corpus: Iterator[dict], min_chars: int) -> tuple[int, dict[int, int], list[str], list[int]]:
    """(number of paragraphs, {repeat: its first occurrence}, distinct normal forms, their paragraph numbers)."""
    first: dict[bytes, int] = {}
    repeats: dict[int, int] = {}
    texts: list[str] = []
    positions: list[int] = []
    total = 0
    for document in corpus:
        pieces = paragraphs.split(document["text"])[0]
        for number, paragraph in enumerate(pieces, start=total):
            text = paragraphs.normalise(paragraph)
            if len(text) < min_chars:
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            earlier = first.setdefault(digest, number)
            if earlier != number:
                repeats[number] = earlier
            else:
                texts.append(text)
                positions.append(number)
        total += len(pieces)
    return total, repeats, texts, positions


def _near_duplicates(
    texts: list[str], positions: list[int], num_perm: int, threshold: float, size: int
) -> tuple[dict[int, int], dict[str, int]]:
    """({paragraph number: the number of the one kept instead}, figures for the manifest)."""
    bands, rows = minhash.bands(threshold, num_perm)
    signed = minhash.signatures(texts, size, minhash.permutations(num_perm))
    pairs = minhash.candidates(signed, bands, rows)
    found = list(minhash.verified(texts, signed, pairs, size=size, threshold=threshold))
    instead, spared = minhash.twins(texts, ((left, right) for left, right, _ in found), size=size, threshold=threshold)
    near = {positions[text]: positions[twin] for text, twin in instead.items()}
    figures = {"bands": bands, "rows": rows, "candidates": len(pairs), "verified": len(found), "spared": spared}
    return near, figures


def _write(
    corpus: Iterator[dict],
    folder: Path,
    twins: dict[int, int],
    exact: dict[int, int],
    shingle_chars: int,
    min_document_chars: int,
) -> dict[str, object]:
    """Write documents and removed; return the tally for the manifest."""
    wanted = set(twins.values())
    kept_twins: dict[int, tuple[str, str, str]] = {}  # a twin comes before its copies: (document, text, source)
    reasons: Counter[str] = Counter(exact_duplicate=0, near_duplicate=0, too_short=0)
    sources: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    tally = {"documents_in": 0, "documents_kept": 0, "documents_dropped": 0, "paragraphs_in": 0, "paragraphs_kept": 0}
    number = 0
    with (
        documents.writing(folder / "documents") as keep,
        documents.writing(folder / "removed", extra=REMOVED_FIELDS) as remove,
    ):
        for document in corpus:
            fields = {name: document[name] for name in ("id", "source", "language")}
            texts, gaps = paragraphs.split(document["text"])
            stays = [number + index not in twins for index in range(len(texts))]
            tally["documents_in"] += 1
            tally["paragraphs_in"] += len(texts)
            characters["in"] += len(document["text"])
            for index, text in enumerate(texts):
                if number + index in wanted:
                    kept_twins[number + index] = (document["id"], text, document["source"])
                if not stays[index]:
                    twin_id, twin_text, twin_source = kept_twins[twins[number + index]]
                    reason = "exact_duplicate" if number + index in exact else "near_duplicate"
                    row = {
                        "paragraph": index,
                        "text": text,
                        "reason": reason,
                        "twin_id": twin_id,
                        "twin_text": twin_text,
                    }
                    remove.write(fields | row | {"similarity": _similarity(text, twin_text, shingle_chars)})
                    reasons[reason] += 1
                    sources[f"{document['source']} ~ {twin_source}"] += 1
            twin_here = any(position in wanted for position in range(number, number + len(texts)))
            number += len(texts)
            left = paragraphs.join(texts, gaps, stays)
            if texts and (all(stays) or twin_here or len(left) >= min_document_chars):
                keep.write(fields | {"text": left})
                characters["kept"] += len(left)
                tally["documents_kept"] += 1
                tally["paragraphs_kept"] += sum(stays)
            else:
                if left:
                    remove.write(fields | {"text": left, "reason": "too_short"})
                reasons["too_short"] += sum(stays)
                tally["documents_dropped"] += 1
    return tally | {
        "paragraphs_removed": dict(reasons),
        "duplicates_by_sources": dict(sources.most_common()),
        "characters": dict(characters),
    }


def _similarity(left: str, right: str, size: int) -> float:
    """Exact Jaccard similarity of two paragraphs."""
    left, right = paragraphs.normalise(left), paragraphs.normalise(right)
    return 1.0 if left == right else minhash.jaccard(minhash.shingles(left, size), minhash.shingles(right, size))


if __name__ == "__main__":
    cli.run(main)
