"""Rebuild the tokenizer for the target language: SentencePiece on the filtered text plus a share of English.

    python scripts/train_spm.py --documents=data/demo/filter --base=checkpoints/models/smollm2-135m \
        --out=checkpoints/demo/tokenizer --config=configs/demo/tokenizer.yaml

Reads:  the filtered documents (split 'train'), the base model's tokenizer, tokenizers to compare with.
Writes: tokenizer.model (SentencePiece), tokenizer.json (encodes identically, checked) with the base's special tokens
        and chat template, fertility.json (tokens per word and so on, on held-out text, beside other tokenizers).
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lib import cli, documents, fertility, languages, models, progress, spm, stage
from lib.errors import UserError

REPLAY_LANGUAGE = "en"


def main(
    *,
    documents: Path,
    base: Path,
    out: Path,
    compare: list[Path] = [],  # noqa: B006  (never changed; a list is what the annotation says)
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
        out: folder to write.
        compare: folders of other tokenizers for the fertility report.
        language: code of the target language (configs/languages/).
        vocab_size: all pieces, bytes and special tokens included; a multiple of 64 needs no padded rows.
        model_type: 'bpe' or 'unigram'.
        english_share: share of English characters in the training text.
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
    inputs = {"documents": documents, "base": base, **{f"compare[{n}]": path for n, path in enumerate(compare)}}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        unknown = base_tokenizer.unk_token or "<unk>"
        held_out_text = _held_out(documents, held_out_characters)
        texts = list(_training_text(documents, language, english_share, max_train_characters, seed))
        progress.say(f"tokenizer: training {vocab_size:,} {model_type} pieces on {sum(map(len, texts)):,} characters")
        model = spm.train(
            texts,
            vocab_size=vocab_size,
            model_type=model_type,
            unknown=unknown,
            controls=[token for token in _special_tokens(base_tokenizer) if token != unknown],
            character_coverage=character_coverage,
            threads=os.cpu_count() or 1,
        )
        (building.folder / "tokenizer.model").write_bytes(model)
        fast = spm.to_fast(model)
        checked = [*spm.HOSTILE, *itertools.islice(texts, verify_lines)]
        _verify(model, fast, checked)
        tokenizer = _dress(fast, base_tokenizer, template)
        models.save_tokenizer(tokenizer, building.folder)
        _check_round_trip(building.folder, tokenizer, checked)

        report = fertility.report(
            {"new": building.folder, base.name: base, **{path.name: path for path in compare}},
            held_out_text,
            languages.load(language).example,
        )
        stage.write_json(building.folder / "fertility.json", report)
        building.record(
            vocab_size=len(tokenizer),
            train_characters=sum(map(len, texts)),
            verified_lines=len(checked),
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


def _held_out(folder: Path, limit: int) -> dict[str, list[str]]:
    return documents.held_out(folder / "documents", limit)


def _special_tokens(base: PreTrainedTokenizerFast) -> list[str]:
    """The base's special tokens in the order of their ids."""
    added = base.backend_tokenizer.get_added_tokens_decoder()
    return [token.content for _, token in sorted(added.items()) if token.special]


def _verify(model: bytes, fast: spm.Tokenizer, lines: list[str]) -> None:
    wrong = list(spm.mismatches(model, fast, lines))
    if wrong:
        line, expected, got = wrong[0]
        raise UserError(
            f"the fast tokenizer encodes {len(wrong)} of {len(lines)} lines otherwise than SentencePiece, "
            f"first {line[:80]!r}: {expected[:12]} against {got[:12]}"
        )


def _dress(fast: spm.Tokenizer, base: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer with the base's roles, its bos and eos behaviour, and the chat template."""
    roles = {f"{role}_token": getattr(base, f"{role}_token") for role in ("bos", "eos", "pad")}
    roles["unk_token"] = base.unk_token or "<unk>"
    roles["pad_token"] = roles["pad_token"] or roles["eos_token"]
    ids = base("x")["input_ids"]
    if base.bos_token_id is not None and ids[0] == base.bos_token_id:
        start = (base.bos_token, fast.token_to_id(base.bos_token))
        fast.post_processor = processors.TemplateProcessing(
            single="$bos $A".replace("$bos", start[0]), pair=f"{start[0]} $A {start[0]} $B", special_tokens=[start]
        )
    named = {token for token in roles.values() if token}
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        **{role: token for role, token in roles.items() if token},
        extra_special_tokens=[token for token in _special_tokens(base) if token not in named],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=base.model_max_length,
    )


def _check_round_trip(folder: Path, tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> None:
    """What was saved loads again as the same tokenizer."""
    loaded = models.load_tokenizer(folder)
    before, after = (t(lines, add_special_tokens=True)["input_ids"] for t in (tokenizer, loaded))
    if before != after or models.fingerprint(tokenizer) != models.fingerprint(loaded):
        raise AssertionError(f"{folder}: the saved tokenizer loads as another one")


if __name__ == "__main__":
    cli.run(main)
