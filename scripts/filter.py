"""Throw out poor documents: named rules first, then a small encoder that scores the paper's five criteria.

    python scripts/filter.py --config=configs/demo/filter.yaml --documents=data/demo/dedup/documents \
        --encoder=checkpoints/models/e5-small --out=data/demo/filter

The rules are pure functions (lib/rules.py), their limits settings. What passes them is scored by the encoder's first
layers with five heads (informativeness, usefulness for studying, grammatical correctness, style, safety; 1 to 5), fine-tuned
first: on annotations where there are any, else on *weak labels*, real beginnings of documents against damaged ones
(lib/corruption.py). Overall score: the mean of the five, but at most a point
above safety.

Reads:  documents, encoder (a Hugging Face folder of a BERT encoder), annotations (id, text and the five scores).
Writes: documents/*.parquet: kept, with `score` and `split` ('train' or 'held_out').
        removed/*.parquet: with `reason` and `score` (null where a rule removed it).
        model/: the trained filter, a Hugging Face folder.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import transformers

from lib import cli, languages, progress, quality, rules, stage
from lib import documents as corpora
from lib.errors import UserError

HELD_OUT_SHARE = 5  # at most one in five of a language's documents is held out


def main(
    *,
    documents: Path,
    encoder: Path,
    out: Path,
    limits: dict[str, float],
    annotations: Path | None = None,
    layers: int = 3,
    max_tokens: int = 128,
    batch_tokens: int = 4096,
    training_documents: int = 600,
    epochs: int = 2,
    learning_rate: float = 3e-4,
    threshold: float = 2.5,
    held_out_documents: int = 100,
    language_folder: Path | None = None,
    seed: int = 0,
    on_error: corpora.OnError = "stop",
) -> None:
    """Filter documents.

    Args:
        documents: a file or folder of documents.
        encoder: Hugging Face folder of the encoder to fine-tune.
        out: the folder to write.
        limits: each rule's limit by the rule's name (lib/rules.py); a rule without a limit is not applied.
        annotations: annotated texts to train on; without them, weak labels.
        layers: how many of the encoder's layers to use, from the bottom.
        max_tokens: tokens at the beginning of a document that the encoder reads.
        batch_tokens: tokens in a batch, padding included.
        training_documents: real documents for weak labels (each also in a damaged form).
        epochs: passes over the training examples.
        learning_rate: the highest, after warm-up.
        threshold: overall score (1 to 5) below which a document is removed as `low_quality`; 0 removes nothing.
        held_out_documents: kept documents of each language never to train on, chosen by a hash of their ids.
        language_folder: the languages' YAML files; by default the project's configs/languages.
        seed: of all random choices.
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    rules.check(limits)
    for name in ("max_tokens", "batch_tokens", "training_documents", "epochs"):
        if settings[name] < 1:
            raise UserError(f"--{name}={settings[name]}: at least 1")
    if batch_tokens < max_tokens:
        raise UserError(f"--batch_tokens={batch_tokens}: no less than --max_tokens={max_tokens}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)
    inputs = {"documents": documents, "encoder": encoder, "annotations": annotations}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        annotated = quality.read_annotations(annotations) if annotations else None
        model, tokenizer = quality.load(encoder, layers)
        skipped: Counter[str] = Counter()

        # Rules. Only the beginnings of what passes stay in memory.
        known: dict[str, languages.Language] = {}
        reasons: list[str | None] = []
        passed: list[tuple[str, str, str]] = []  # beginning, language, source
        for document in _read(documents, on_error, skipped, "rules"):
            code = document["language"]
            if code not in known:
                known[code] = languages.load(code, language_folder)
            reasons.append(rules.broken(document["text"], known[code], limits))
            if reasons[-1] is None:
                beginning = document["text"][: max_tokens * quality.CHARACTERS_PER_TOKEN]
                passed.append((beginning, code, document["source"]))
        if not passed:
            raise UserError(
                f"{documents}: the rules leave no document ({_spell(reasons)}); look at --limits and at the input"
            )

        # The encoder: labels, training, held-out evaluation, scores.
        examples = annotated or _weak_labels(passed, known, training_documents, max_tokens, seed)
        training, held_out = quality.divide(examples, seed)
        reading = {"max_tokens": max_tokens, "batch_tokens": batch_tokens}
        schedule = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed}
        losses = quality.train(model, tokenizer, training, max_tokens=max_tokens, **schedule)
        metrics = quality.evaluate(
            held_out, quality.predict(model, tokenizer, [example.text for example in held_out], **reading)
        )
        predicted = quality.predict(model, tokenizer, [beginning for beginning, _, _ in passed], **reading)
        model.save_pretrained(building.folder / "model")
        tokenizer.save_pretrained(building.folder / "model")
        scores: list[float | None] = [None] * len(reasons)
        positions = [position for position, reason in enumerate(reasons) if reason is None]
        for position, score in zip(positions, quality.overall(predicted).tolist(), strict=True):
            scores[position] = score
            if score < threshold:
                reasons[position] = "low_quality"
        if None not in reasons:
            raise UserError(f"{documents}: no document is left ({_spell(reasons)}); lower --threshold={threshold}")

        # Write.
        held = _held_out(_read(documents, on_error, Counter(), "choose"), reasons, held_out_documents)
        figures = _write(_read(documents, on_error, Counter(), "write"), building.folder, reasons, scores, held)
        dropped = Counter(reason for reason in reasons if reason is not None)
        kept = reasons.count(None)
        assert (figures["kept"], figures["removed"]) == (kept, sum(dropped.values()))
        assert kept + figures["removed"] == len(reasons)
        building.record(
            documents_in=len(reasons),
            documents_kept=kept,
            documents_removed=dict(dropped.most_common()),
            held_out=dict(Counter(code for code, _ in held)),
            **{name: figures[name] for name in ("by_source", "characters")},
            labels="annotations" if annotated else "weak",
            training={"examples": len(training), "loss_by_epoch": losses},
            evaluation=metrics,
            criteria={
                name: round(float(mean), 3) for name, mean in zip(quality.CRITERIA, predicted.mean(axis=0), strict=True)
            },
            score_percentiles=_percentiles(quality.overall(predicted)),
            skipped=dict(skipped),
        )
    print(
        f"labels {'annotations' if annotated else 'weak'} | held-out AUC {metrics['auc']} (length {metrics['auc_of_length']})"
    )
    print(progress.funnel(kept, len(reasons), dropped, "documents"))


def _read(path: Path, on_error: corpora.OnError, skipped: Counter[str], title: str) -> Iterator[dict]:
    stream = corpora.read(path, on_error=on_error, skipped=skipped)
    return progress.bar(stream, total=corpora.count(path), title=title, unit="documents")


def _weak_labels(
    passed: Sequence[tuple[str, str, str]], known: dict[str, languages.Language], count: int, max_tokens: int, seed: int
) -> list[quality.Example]:
    chosen = quality.balanced_sample([(code, source) for _, code, source in passed], count, seed)
    if len(chosen) < 5:
        raise UserError(f"only {len(chosen)} documents pass the rules: too few to train the filter on, 5 at least")
    texts = [passed[position][:2] for position in chosen]
    return quality.weak_labels(texts, known, max_chars=max_tokens * 5, seed=seed)


def _held_out(stream: Iterator[dict], reasons: Sequence[str | None], count: int) -> set[tuple[str, str]]:
    """(language, id) of each language's kept documents with the smallest hashes of their ids."""
    hashed: dict[str, list[tuple[bytes, str]]] = defaultdict(list)
    for document, reason in zip(stream, reasons, strict=True):
        if reason is None:
            digest = hashlib.blake2b(document["id"].encode(), digest_size=16).digest()
            hashed[document["language"]].append((digest, document["id"]))
    return {
        (language, identity)
        for language, found in hashed.items()
        for _, identity in sorted(found)[: min(count, len(found) // HELD_OUT_SHARE)]
    }


def _write(
    stream: Iterator[dict],
    folder: Path,
    reasons: Sequence[str | None],
    scores: Sequence[float | None],
    held: set[tuple[str, str]],
) -> dict[str, object]:
    """Write documents and removed; return counts for the manifest."""
    by_source: dict[str, Counter[str]] = defaultdict(Counter)
    characters: Counter[str] = Counter()
    score_field = ("score", pa.float32())
    with (
        corpora.writing(folder / "documents", extra=[score_field, ("split", pa.string())]) as keep,
        corpora.writing(folder / "removed", extra=[("reason", pa.string()), score_field]) as remove,
    ):
        for document, reason, score in zip(stream, reasons, scores, strict=True):
            fields = {name: document[name] for name in ("id", "text", "source", "language")} | {"score": score}
            if reason is None:
                split = "held_out" if (document["language"], document["id"]) in held else "train"
                keep.write(fields | {"split": split})
                characters[split] += len(document["text"])
            else:
                remove.write(fields | {"reason": reason})
                characters["removed"] += len(document["text"])
            by_source[document["source"]][reason or "kept"] += 1
        return {
            "kept": keep.rows,
            "removed": remove.rows,
            "by_source": {source: dict(counts.most_common()) for source, counts in sorted(by_source.items())},
            "characters": dict(characters),
        }


def _spell(reasons: Sequence[str | None]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in Counter(reasons).most_common())


def _percentiles(scores: np.ndarray) -> dict[str, float]:
    wanted = (0, 1, 5, 25, 50, 75, 95, 100)
    return {f"p{p}": round(float(value), 3) for p, value in zip(wanted, np.percentile(scores, wanted), strict=True)}


if __name__ == "__main__":
    cli.run(main)
