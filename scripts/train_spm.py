"""Give the target language tokens: a new SentencePiece vocabulary, or new merges on top of the base's own.

    python scripts/train_spm.py --documents=data/demo/filter --base=checkpoints/models/smollm2-135m \
        --out=checkpoints/demo/tokenizer --config=configs/demo/tokenizer.yaml

Reads:  the filtered documents (split 'train'), the base model's tokenizer, tokenizers to compare with.
Writes: tokenizer.json with the base's special tokens, added tokens and chat template; tokenizer.model that encodes
        identically (checked), unless a byte-level base is extended; fertility.json (tokens per word and so on, on held-out
        text by language and source, beside other tokenizers) and fertility.svg (the paper's Figure 1).
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lib import bpe, cli, documents, fertility, languages, models, plots, progress, spm, stage, storage, vocabulary
from lib.errors import UserError

REPLAY_LANGUAGE = "en"


def main(
    *,
    documents: Path,
    base: Path,
    out: storage.Place,
    compare: list[Path] = [],  # noqa: B006  (never changed; a list is what the annotation says)
    mode: Literal["replace", "extend"] = "replace",
    language: str = "ru",
    vocab_size: int = 40_000,
    model_type: spm.ModelType = "bpe",
    english_share: float = 0.1,
    character_coverage: float = 0.9995,
    max_train_characters: int = 1_000_000_000,
    held_out_characters: int = 300_000,
    chat_template: Path | None = None,
    verify_lines: int = 10_000,
    seed: int = 0,
) -> None:
    """Train, convert, check and describe a tokenizer.

    Args:
        documents: output of the filter stage.
        base: folder of the base model (its tokenizer is read).
        out: folder or address to write.
        compare: folders of other tokenizers for the fertility report.
        mode: 'replace' the base's vocabulary (the paper), or 'extend' it by merges of its own kind; English then stays as it is.
        language: code of the target language (configs/languages/).
        vocab_size: all tokens, the base's (when extended), bytes and special ones included; a multiple of 64 needs no padded rows.
        model_type: 'bpe' or 'unigram', where the vocabulary is replaced.
        english_share: share of English characters in the training text, where the vocabulary is replaced.
        character_coverage: share of the characters that get pieces; the rest is spelt in bytes.
        max_train_characters: text to train on, at most.
        held_out_characters: held-out text per language for the fertility report, at most.
        chat_template: Jinja file for a base that has no chat template.
        verify_lines: lines on which both encodings have to agree.
        seed: of the sampling of text.
    """
    settings = dict(locals())
    base_tokenizer = models.load_tokenizer(base)
    template = base_tokenizer.chat_template or (chat_template and chat_template.read_text(encoding="utf-8"))
    if template is None:
        raise UserError(f"{base}: its tokenizer has no chat template; name a Jinja file with --chat_template")
    spoken = languages.load(language)
    inputs = {"documents": documents, "base": base, **{f"compare[{n}]": path for n, path in enumerate(compare)}}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        held_out_text = _held_out(documents, held_out_characters)
        if mode == "replace":
            count, share = spm.count_words, english_share
        else:
            count, share = bpe.count_chunks, 0.0
        counts: Counter[str] = Counter()
        lines, characters = [], 0
        for line in _training_text(documents, language, share, max_train_characters, seed):
            count(counts, line)
            characters += len(line)
            if len(lines) < verify_lines:
                lines.append(line)
        progress.say(
            f"tokenizer: {mode}, {vocab_size:,} tokens from {characters:,} characters, {len(counts):,} different words"
        )
        if mode == "replace":
            fast, model = _replace(base_tokenizer, counts, vocab_size, model_type, character_coverage)
        else:
            fast, model = _extend(
                base, base_tokenizer, counts, vocab_size, character_coverage, "Latin" in spoken.scripts
            )
        checked = [
            *spm.HOSTILE,
            *(spm.spoil(line, place // 2) if place % 2 else line for place, line in enumerate(lines)),
        ]
        if model is not None:
            spm.check(model, fast, checked)
            (building.folder / "tokenizer.model").write_bytes(model)
        tokenizer = models.dress(fast, base_tokenizer, template)
        models.save_tokenizer(tokenizer, building.folder)
        _check_round_trip(building.folder, tokenizer, checked)
        unreachable = vocabulary.unreachable(tokenizer)
        if mode == "extend":
            building.record(extended=_describe_extension(base_tokenizer, tokenizer, unreachable, held_out_text))

        report = fertility.report(
            {
                "new": building.folder,
                base.name: base,
                **{path.name.removeprefix("tokenizer-"): path for path in compare},
            },
            held_out_text,
            spoken.example,
        )
        stage.write_json(building.folder / "fertility.json", report)
        spent = {languages.load(code).name: values for code, values in plots.tokens_per_word(report).items()}
        picture = plots.fertility_picture(spent, base.name)
        (building.folder / "fertility.svg").write_text(picture, encoding="utf-8")
        building.record(
            vocab_size=len(tokenizer),
            train_characters=characters,
            verified_lines=len(checked),
            unreachable=len(unreachable),
            fertility={name: row.get("languages") for name, row in report["tokenizers"].items()},
            example=report["example"],
        )
    example = {name: row["example"] for name, row in report["tokenizers"].items() if "example" in row}
    print(f"{report['example']!r}: " + " | ".join(f"{name} {len(pieces)} tokens" for name, pieces in example.items()))
    print("new tokenizer: " + " ".join(example["new"]))


def _training_text(folder: Path, language: str, english_share: float, limit: int, seed: int) -> Iterator[str]:
    """Paragraphs of training documents in random order, `english_share` of the characters English."""
    taken = {True: 0, False: 0}
    for document in progress.bar(documents.shuffled(folder / "documents", seed), title="tokenizer: text", unit="doc"):
        english = document["language"] == REPLAY_LANGUAGE and language != REPLAY_LANGUAGE
        budget = limit * (english_share if english else 1 - english_share)
        if document["split"] != "train" or taken[english] >= budget:
            continue
        taken[english] += len(document["text"])
        yield from (line for line in document["text"].splitlines() if line.strip())
    if not taken[False]:
        raise UserError(f"{folder}: no training document in another language than English")


def _held_out(folder: Path, limit: int) -> fertility.Texts:
    texts = documents.held_out_by_source(folder / "documents", limit)
    if not texts:
        raise UserError(f"{folder}: no held-out document, so no text to measure fertility on")
    return texts


def _replace(
    base: PreTrainedTokenizerFast, words: Counter[str], vocab_size: int, model_type: spm.ModelType, coverage: float
) -> tuple[Tokenizer, bytes]:
    """A SentencePiece vocabulary with the base's special and added tokens, and its fast form."""
    unknown = base.unk_token or "<unk>"
    added = [token for _, token in sorted(base.backend_tokenizer.get_added_tokens_decoder().items())]
    model = spm.train(
        words,
        vocab_size=vocab_size,
        model_type=model_type,
        unknown=unknown,
        controls=[token.content for token in added if token.special and token.content != unknown],
        symbols=[token.content for token in added if not token.special],
        character_coverage=coverage,
        threads=os.cpu_count() or 1,
    )
    fast = spm.to_fast(model)
    fast.post_processor = models.begin_and_end_like(base, fast)
    return fast, model


def _extend(
    folder: Path, base: PreTrainedTokenizerFast, chunks: Counter[str], vocab_size: int, coverage: float, latin: bool
) -> tuple[Tokenizer, bytes | None]:
    """The base's vocabulary with more merges, and its SentencePiece model with the same ones where it has such a file."""
    fast = bpe.extend(base, chunks, vocab_size=vocab_size, coverage=coverage, latin=latin)
    if not (folder / "tokenizer.model").is_file():
        return fast, None
    return fast, spm.extend(spm.read_model(folder / "tokenizer.model"), fast)


def _describe_extension(
    base: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast, unreachable: list[int], held_out: fertility.Texts
) -> dict[str, object]:
    """What was added, and what share of English lines, of those with digits and of lines of code is encoded otherwise now."""
    first = max(base.get_vocab().values()) + 1
    if wrong := [token for token in unreachable if token >= first]:
        raise AssertionError(
            f"{len(wrong)} new tokens can't be reached, first {tokenizer.convert_ids_to_tokens(wrong[:5])}"
        )
    english = [
        line for texts in held_out.get(REPLAY_LANGUAGE, {}).values() for text in texts for line in text.splitlines()
    ]
    kinds = {
        "english": english,
        "digits": [line for line in english if any(map(str.isdigit, line))],
        "code": Path(argparse.__file__).read_text(encoding="utf-8").splitlines(),
    }
    changed = {
        kind: bpe.changed_lines(base, tokenizer, [line for line in lines if line]) for kind, lines in kinds.items()
    }
    return {"new_tokens": len(tokenizer) - first, "changed_lines": changed}


def _check_round_trip(folder: Path, tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> None:
    """What was saved loads again as the same tokenizer."""
    loaded = models.load_tokenizer(folder)
    before, after = (t(lines, add_special_tokens=True)["input_ids"] for t in (tokenizer, loaded))
    if before != after or models.fingerprint(tokenizer) != models.fingerprint(loaded):
        raise AssertionError(f"{folder}: the saved tokenizer loads as another one")


if __name__ == "__main__":
    cli.run(main)
