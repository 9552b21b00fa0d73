"""Turn filtered documents into token sequences of a fixed length, with a share of English replay.

    python scripts/pack.py --documents=data/demo/filter --tokenizer=checkpoints/demo/tokenizer --out=data/demo/pack \
        --config=configs/demo/pack.yaml

Reads:  the filtered documents, the tokenizer.
Writes: train/ (tokens.bin, positions.bin, replay.bin: memory-mapped rows in training order) and held_out/documents/
        (the held-out documents of every language, as text: what bits per byte are measured on, by any tokenizer).
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lib import cli, documents, models, packing, progress, stage
from lib.errors import UserError

REPLAY_LANGUAGE = "en"


def main(
    *,
    documents: Path,
    tokenizer: Path,
    out: Path,
    sequence_length: int = 1024,
    english_share: float = 0.1,
    max_train_tokens: int | None = None,
    held_out_characters: int = 300_000,
    seed: int = 0,
) -> None:
    """Pack the training documents and set the held-out ones aside.

    Args:
        documents: output of the filter stage.
        tokenizer: folder of the tokenizer.
        out: folder to write.
        sequence_length: tokens a row, at most 65,536.
        english_share: share of the rows that are English replay; 0 for none.
        max_train_tokens: stop after so many tokens; all of the text if not given.
        held_out_characters: held-out text per language, at most.
        seed: of the order of the documents.
    """
    settings = dict(locals())
    if not 0 <= english_share < 1:
        raise UserError(f"english_share: {english_share} is not a share from 0 to below 1")
    if not 2 <= sequence_length <= 2**16:
        raise UserError(f"sequence_length: {sequence_length} is not from 2 to 65,536")
    with stage.output(out, inputs={"documents": documents, "tokenizer": tokenizer}, settings=settings) as building:
        tok = models.load_tokenizer(tokenizer)
        end = tok.eos_token_id
        if end is None:
            raise UserError(f"{tokenizer}: it has no end-of-sequence token to put between documents")
        # What evaluation conditions the first token on, too; training has to know it.
        start = tok.bos_token_id if tok.bos_token_id is not None else end

        def rows(replay: bool) -> Iterator[packing.Row]:
            texts = _training_texts(documents, replay, seed)
            return packing.fill_rows(packing.encode_documents(texts, tok, start, end), sequence_length)

        limit = None if max_train_tokens is None else -(-max_train_tokens // sequence_length)
        writer = packing.PackedWriter(building.folder / "train", len(tok))
        replayed = 0
        bar = progress.bar(total=limit, title="pack", unit="row")
        for row, is_replay in packing.interleave(rows(False), rows(True), english_share):
            if writer.rows == limit:
                break
            writer.write(row, is_replay)
            replayed += is_replay
            bar.update()
        bar.close()
        writer.close()
        if not writer.rows:
            raise UserError(
                f"{documents}: not one row of {sequence_length} tokens: too little text in the target language"
                + (f", or in English for an english_share of {english_share}" if english_share else "")
            )
        held_out = _hold_out(documents, building.folder / "held_out", held_out_characters)
        building.record(
            rows=writer.rows,
            sequence_length=sequence_length,
            tokens=writer.rows * sequence_length,
            english_rows=replayed,
            vocabulary=len(tok),
            tokenizer=models.fingerprint(tok),
            held_out=held_out,
        )
    print(
        f"packed {writer.rows:,} rows of {sequence_length} = {writer.rows * sequence_length:,} tokens, "
        f"{replayed / writer.rows:.1%} English | held out "
        + ", ".join(f"{language} {facts['documents']} documents" for language, facts in held_out.items())
    )


def _training_texts(folder: Path, replay: bool, seed: int) -> Iterator[str]:
    for document in documents.shuffled(folder / "documents", seed):
        if document["split"] == "train" and (document["language"] == REPLAY_LANGUAGE) == replay:
            yield document["text"]


def _hold_out(folder: Path, target: Path, limit: int) -> dict[str, dict[str, int]]:
    """Copy held-out documents, up to `limit` characters a language; counts by language."""
    counts: dict[str, dict[str, int]] = {}
    with documents.writing(target / "documents", extra=[("split", pa.string())]) as writer:
        for document in documents.read(folder / "documents"):
            facts = counts.setdefault(document["language"], {"documents": 0, "characters": 0})
            if document["split"] != "held_out" or facts["characters"] >= limit:
                continue
            writer.write(document)
            facts["documents"] += 1
            facts["characters"] += len(document["text"])
    return counts


if __name__ == "__main__":
    cli.run(main)
