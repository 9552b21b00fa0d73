"""Turn filtered documents into token sequences of a fixed length, each source on its own; training mixes them.

    python scripts/pack.py --documents=data/demo/filter --tokenizer=checkpoints/demo/tokenizer --out=data/demo/pack \
        --config=configs/demo/pack.yaml

Reads:  the filtered documents, the tokenizer.
Writes: train/<source>/ (tokens-00000.bin, positions-00000.bin, ...: memory-mapped rows in the order of the documents)
        and held_out/documents/ (the held-out documents of every language, as text: what bits per byte are measured on,
        by any tokenizer).
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from lib import cli, documents, models, packing, progress, stage, storage
from lib.errors import UserError


def main(
    *,
    documents: storage.Place,
    tokenizer: Path,
    out: storage.Place,
    sequence_length: int = 1024,
    max_train_tokens: int | None = None,
    max_replay_tokens: int | None = None,
    held_out_characters: int = 300_000,
    seed: int = 0,
) -> None:
    """Pack the training documents and set the held-out ones aside.

    Args:
        documents: output of the filter stage, or its address (s3://bucket/folder).
        tokenizer: folder of the tokenizer.
        out: folder or address to write.
        sequence_length: tokens a row, at most 65,536.
        max_train_tokens: tokens of the target language, at most; then every source gives the same share of its
            documents, drawn by lot. All of the text if not given.
        max_replay_tokens: the same of English, for training to replay; 0 for none.
        held_out_characters: held-out text per language, at most.
        seed: of the lots.
    """
    settings = dict(locals())
    if not 2 <= sequence_length <= 2**16:
        raise UserError(f"sequence_length: {sequence_length} is not from 2 to 65,536")
    with stage.output(out, inputs={"documents": documents, "tokenizer": tokenizer}, settings=settings) as building:
        tok = models.load_tokenizer(tokenizer)
        if tok.eos_token_id is None:
            raise UserError(f"{tokenizer}: it has no end-of-sequence token to put between documents")
        sources = packing.survey(progress.bar(_read(documents, "train"), title="survey", unit="doc"), tok, seed)
        names = packing.names(sources)
        writers, shares = {}, {}
        for replay, limit in ((False, max_train_tokens), (True, max_replay_tokens)):
            group = {key: facts for key, facts in sources.items() if (key[1] == packing.REPLAY_LANGUAGE) == replay}
            for key, (shares[key], most) in packing.allot(group, limit, sequence_length).items():
                folder = building.folder / "train" / packing.folder_name(names[key])
                writers[key] = packing.ShardWriter(folder, sequence_length, len(tok), most)
        _pack(documents, tok, writers, shares, seed)
        if not any(writer.rows for (_, language), writer in writers.items() if language != packing.REPLAY_LANGUAGE):
            raise UserError(
                f"{documents}: not one row of {sequence_length} tokens: too little text in the target language"
            )
        if missing := [names[key] for key, writer in writers.items() if not writer.rows]:
            progress.say(f"pack: not one row of {', '.join(missing)}")
        packed = {
            names[key]: {
                "folder": writer.folder.name,
                "language": key[1],
                "documents": writer.documents,
                "documents_in": sources[key].documents,
                "rows": writer.rows,
                "tokens": writer.rows * sequence_length,
            }
            for key, writer in writers.items()
            if writer.rows
        }
        building.record(
            sequence_length=sequence_length,
            **{unit: sum(source[unit] for source in packed.values()) for unit in ("rows", "tokens")},
            sources=packed,
            vocabulary=len(tok),
            tokenizer=models.fingerprint(tok),
            held_out=_hold_out(documents, building.folder / "held_out", held_out_characters),
        )
    print(_closing_line(building.results))


def _closing_line(results: Mapping) -> str:
    tokens: Counter[str] = Counter()
    for source in results["sources"].values():
        tokens[source["language"]] += source["tokens"]
    return (
        f"packed {results['rows']:,} rows of {results['sequence_length']:,} from {len(results['sources'])} sources: "
        + ", ".join(f"{language} {number:,} tokens" for language, number in tokens.most_common())
        + " | held out "
        + ", ".join(f"{language} {facts['documents']} documents" for language, facts in results["held_out"].items())
    )


def _read(folder: Path, split: str) -> Iterator[dict]:
    """The documents of one split; of the others no text becomes an object."""
    for batch in documents.read_batches(folder / "documents", columns=[("split", pa.string())]):
        yield from batch.filter(pc.equal(batch["split"], split)).to_pylist()


def _pack(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    writers: Mapping[packing.Key, packing.ShardWriter],
    shares: Mapping[packing.Key, float],
    seed: int,
) -> None:
    """Give each writer the documents of its source whose lot is below its share, until it is full."""

    def drawn() -> Iterator[tuple[packing.ShardWriter, str]]:
        for document in progress.bar(_read(folder, "train"), title="pack", unit="doc"):
            key = document["source"], document["language"]
            if not writers[key].full and packing.lot(document["id"], seed) < shares[key]:
                yield writers[key], document["text"]

    takers, texts = itertools.tee(drawn())
    end = tokenizer.eos_token_id
    # What evaluation conditions the first token on, too; training has to know it.
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    for ids, (writer, _) in zip(
        packing.encode_documents((text for _, text in texts), tokenizer, start, end), takers, strict=True
    ):
        writer.add(ids)


def _hold_out(folder: Path, target: Path, limit: int) -> dict[str, dict[str, int]]:
    """Copy held-out documents, up to `limit` characters a language; counts by language."""
    counts: dict[str, dict[str, int]] = {}
    with documents.writing(target / "documents", extra=[("split", pa.string())]) as writer:
        for document in _read(folder, "held_out"):
            facts = counts.setdefault(document["language"], {"documents": 0, "characters": 0})
            if facts["characters"] < limit:
                writer.write(document)
                facts["documents"] += 1
                facts["characters"] += len(document["text"])
    return counts


if __name__ == "__main__":
    cli.run(main)
