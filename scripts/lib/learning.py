"""A filter learnt from start to end: labels, training, calibration, held-out evaluation; a folder that says it all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import transformers

from lib import judging, quality, scoring, sieve, stage
from lib.errors import UserError
from lib.judging import OVERALL

WEAK_CHARACTERS = 5  # a token, in weak labels' texts: what is damaged should be read


def is_finished(folder: Path) -> bool:
    """Whether a trained and judged filter is there already."""
    return (folder / scoring.FACTS).is_file() and "evaluation" in scoring.facts(folder)


def learn(
    folder: Path,
    texts: Sequence[tuple[str, str, str]],
    *,
    encoder: Path,
    annotations: Path | None,
    layers: int,
    max_tokens: int,
    epochs: int,
    learning_rate: float,
    precision: scoring.Precision,
    language_folder: Path | None,
    seed: int,
) -> None:
    """Train a filter into `folder`.

    Three parts of the labelled documents do three things: most train, some fit the temperatures and the threshold, and
    the rest, never looked at before, is what the evaluation is of, at the precision that the corpus is scored at.

    Args:
        folder: to write.
        texts: (text, language, source) to make weak labels of, where there are no annotations.
        encoder: Hugging Face folder.
        annotations: annotated texts.
        layers: of the encoder, from the bottom.
        max_tokens: that the encoder reads.
        epochs: passes over the training examples.
        learning_rate: the highest.
        precision: of the scores.
        language_folder: the languages' YAML files.
        seed: of all random choices.

    Raises:
        UserError: too few documents, or an encoder that can't be used.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)
    device = scoring.devices()[0]
    examples = quality.read_annotations(annotations) if annotations else _weak(texts, max_tokens, language_folder, seed)
    training, calibration, held_out = quality.divide(examples, seed)
    model, tokenizer = quality.load(encoder, layers)
    if max_tokens > model.config.max_position_embeddings:
        raise UserError(f"--max_tokens={max_tokens}: {encoder} reads {model.config.max_position_embeddings} at most")
    schedule = {"epochs": epochs, "learning_rate": learning_rate, "max_tokens": max_tokens, "seed": seed}
    losses = quality.train(model.to(device), tokenizer, training, **schedule)
    calibrated = _calibrate(model, tokenizer, calibration, held_out, max_tokens)
    quality.save(model, tokenizer, folder, {"max_tokens": max_tokens})
    score = scoring.load(folder, precision, device)
    predicted, apart = (score([example.text for example in part]) for part in (held_out, calibration))
    exact = quality.expected(*_said(model.to(device), tokenizer, held_out, max_tokens))
    differences = np.abs(exact - predicted)
    facts = {
        **scoring.facts(folder),
        "calibration": {
            "scores": [round(float(value), 4) for value in apart[:, OVERALL]],
            "good": [example.good for example in calibration],
        },
        "labels": "annotations" if annotations else "weak",
        "training": {"examples": len(training), "loss_by_epoch": losses},
        "evaluation": judging.evaluate(training, held_out, predicted, seed) | {"calibration": calibrated},
        "precision": {
            "name": scoring.choose(precision, device),
            "largest_difference_from_fp32": round(float(differences.max()), 5),
            "mean_difference_from_fp32": round(float(differences.mean()), 6),
        },
    }
    stage.write_json(folder / scoring.FACTS, facts)


def _weak(
    texts: Sequence[tuple[str, str, str]], max_tokens: int, language_folder: Path | None, seed: int
) -> list[quality.Example]:
    if len(texts) < 5:
        raise UserError(f"only {len(texts)} documents pass the rules: too few to train the filter on, 5 at least")
    known = {code: sieve.known(code, language_folder) for _, code, _ in texts}
    return quality.weak_labels(texts, known, max_chars=max_tokens * WEAK_CHARACTERS, seed=seed)


def _said(
    model: transformers.BertForSequenceClassification,
    tokenizer: object,
    examples: Sequence[quality.Example],
    max_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(what the heads say of the examples, the heads' cuts)."""
    latent = quality.latents(model, tokenizer, [example.text for example in examples], max_tokens)
    return latent, np.array(model.config.cuts, dtype=np.float32)


def _calibrate(
    model: transformers.BertForSequenceClassification,
    tokenizer: object,
    calibration: Sequence[quality.Example],
    held_out: Sequence[quality.Example],
    max_tokens: int,
) -> Mapping[str, object]:
    """Fit temperatures on one part, put them into the model, and measure on the other what they did."""
    labels = quality.labels(held_out)
    before = judging.calibration_error(*_said(model, tokenizer, held_out, max_tokens), labels)
    fitted = judging.temperatures(*_said(model, tokenizer, calibration, max_tokens), quality.labels(calibration))
    quality.cool(model, fitted)
    after = judging.calibration_error(*_said(model, tokenizer, held_out, max_tokens), labels)
    return {
        "examples": len(calibration),
        "temperatures": {name: round(value, 3) for name, value in zip(scoring.HEADS, fitted, strict=True)},
        "error_before": round(before, 4),
        "error_after": round(after, 4),
    }
