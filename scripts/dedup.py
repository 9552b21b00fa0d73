"""Remove paragraphs that repeat or nearly repeat another (the paper's section 3.1).

    python scripts/dedup.py --config=configs/demo/dedup.yaml --corpus=data/raw/books,data/raw/web --out=data/demo/dedup

Paragraphs are compared in a normal form (lib/paragraphs.py). Equal ones are found by a 128-bit hash; among the rest,
candidates come from MinHash over n-grams and banding, are checked against a bit sketch, and each survivor by the exact
Jaccard similarity (lib/minhash.py, lib/duplicates.py). Pairs form clusters, of which `keep` says what stays; a paragraph
goes only if it is similar enough to one that stays, for in a chain of pairs the ends need not be similar at all.
A document that loses text and ends up too short goes as a whole, unless another's copy was removed in its favour.

Nothing is held in memory but a share of the index (--memory_gb); what is on disk in between is planned and printed first.
An interrupted run goes on where it was.

Reads:  corpus: documents (Parquet, JSON Lines, text) in files or folders, several joined by commas.
Writes: documents/*.parquet: what is left, untouched where nothing was removed.
        removed/*.parquet: id, paragraph (its number in the document; null for a whole document), text, source, language,
        reason, twin_id, twin_text (the paragraph kept instead) and the similarity to it.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from lib import cli, distributed, documents, duplicates, minhash, planning, progress, rebuilding, stage, storage
from lib.errors import UserError


def main(
    *,
    corpus: list[storage.Place],
    out: storage.Place,
    num_perm: int = 128,
    threshold: float = 0.8,
    shingles: Literal["characters", "words"] = "characters",
    shingle_size: int = 5,
    min_chars: int = 40,
    min_document_chars: int = 200,
    keep: Literal["first", "longest", "source"] = "first",
    source_priority: list[str] = [],  # noqa: B006
    language: str | None = None,
    method: Literal["minhash", "mihash"] = "minhash",
    bits: int = 128,
    memory_gb: float = 4.0,
    engine: Literal["local", "daft"] = "local",
    on_error: documents.OnError = "stop",
) -> None:
    """Deduplicate a corpus by paragraph.

    Args:
        corpus: files or folders of documents, or addresses (s3://bucket/folder), in the order in which the first of equals is kept.
        out: the folder or address to write.
        num_perm: MinHash registers that the bands may use.
        threshold: Jaccard similarity (0 to 1) from which two paragraphs count as near duplicates.
        shingles: what n-grams are made of; nearly equal paragraphs share few n-grams of words.
        shingle_size: characters or words in an n-gram.
        min_chars: paragraphs with fewer characters in normal form (headings) are never removed.
        min_document_chars: a document left with fewer characters by removals is dropped.
        keep: of duplicates, the 'first' in corpus order, the 'longest', or that of the 'source' named first.
        source_priority: names of sources for keep=source, the best first; the others follow.
        language: given to documents that name none (ISO code).
        method: how candidates are found: MinHash, or a hash learned on MinHash's pairs (MIHash), which finds fewer.
        bits: of a learned code.
        memory_gb: memory for what grows with the corpus, about; the plan that is printed says what a run will take.
        engine: 'local', or 'daft' to sign and group on the Ray cluster of RAY_ADDRESS (in this process if it is not set).
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    _check(settings)
    how = minhash.scheme(threshold, num_perm, shingle_size, shingles == "words", min_chars)
    inputs = {f"corpus[{number}]": path for number, path in enumerate(corpus)}

    def batches(file: Path, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        return documents.read_batches(file, on_error=on_error, skipped=skipped, language=language)

    with stage.output(out, inputs=inputs, settings=settings, resume=True) as building:
        files = [file for path in corpus for file in documents.files(path)]
        work = building.folder / "work"
        print(planning.plan(files, how, memory_gb))

        # Which paragraphs go, and instead of which.
        runs = distributed if engine == "daft" else duplicates
        index = runs.sign(files, batches, how, work, source_priority)
        if not index.paragraphs:
            names = ", ".join(map(str, corpus))
            raise UserError(f"{names}: no paragraph of text in the whole corpus; check the paths and the fetch stage")
        by = runs.banded
        if method == "mihash":
            from lib import learned  # brings torch, for which the others need not wait

            by = learned.Search(batches, bits).candidates
        found = duplicates.find(index, batches, how, keep=keep, memory_gb=memory_gb, repeated=runs.exact, candidates=by)

        # The corpus without them.
        tally = rebuilding.write(index, batches, found, building.folder, min_document_chars)
        if not tally["documents_kept"]:
            raise UserError(f"no document is left of {tally['documents_in']:,}: --min_document_chars is too high")
        shutil.rmtree(work)
        building.record(**tally, **found.figures, skipped=index.skipped)
    print(progress.funnel(tally["paragraphs_kept"], index.paragraphs, tally["paragraphs_removed"], "paragraphs"))


def _check(settings: dict[str, object]) -> None:
    threshold, size, num_perm = (settings[name] for name in ("threshold", "shingle_size", "num_perm"))
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold={threshold}: a similarity above 0 and at most 1")
    if size < 1 or (settings["shingles"] == "characters" and size > settings["min_chars"]):
        raise UserError(f"--shingle_size={size}: from 1 to --min_chars={settings['min_chars']}")
    if not 16 <= num_perm <= 4096:
        raise UserError(f"--num_perm={num_perm}: from 16 to 4096")
    if settings["bits"] % 8 or not 64 <= settings["bits"] <= 256:
        raise UserError(f"--bits={settings['bits']}: a multiple of 8 from 64 to 256")
    if (settings["keep"] == "source") != bool(settings["source_priority"]):
        raise UserError("--keep=source wants --source_priority, the names of sources, and nothing else does")
    if not settings["memory_gb"] > 0.5:
        raise UserError(f"--memory_gb={settings['memory_gb']}: above 0.5")
    if settings["engine"] == "daft":
        distributed.connect()  # what it lacks is said before any work


if __name__ == "__main__":
    cli.run(main)
