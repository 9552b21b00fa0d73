"""Throw out poor documents: named rules first, then a small encoder that scores the paper's five criteria.

    python scripts/filter.py --config=configs/demo/filter.yaml --documents=data/demo/dedup/documents \
        --encoder=checkpoints/models/e5-small --out=data/demo/filter
    python scripts/filter.py ... --model=data/demo/filter/model        (apply a trained filter instead of training one)

The rules are pure functions (lib/rules.py), their limits settings. What passes them is scored by the encoder's first
layers with ordinal heads for informativeness, usefulness for studying, grammatical correctness, style, safety and an overall
score (1 to 5), fine-tuned first: on annotations where there are any, else on *weak labels*, real beginnings of documents
against damaged ones (lib/corruption.py). An annotation's overall score is the mean of the five, but at most a point above
safety. What scores below a threshold goes; the threshold is fixed, or found for a stated target.

Reads:  documents, encoder (a Hugging Face folder of a BERT encoder), annotations (id, text and the five scores).
Writes: documents/*.parquet: kept, with `score` and `split` ('train' or 'held_out').
        removed/*.parquet: with `reason` and `score` (null where a rule removed it).
        model/: the trained filter, a Hugging Face folder with filter.json (its evaluation) and model.onnx.
        receipts.json: samples of what each reason removed, and what other thresholds would keep of each source.

An interrupted run goes on with what it had judged.
"""

import inspect
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from lib import cli, progress, rules, scoring, sieve, stage, storage, targets
from lib import documents as corpora
from lib.errors import UserError

VERDICTS = "verdicts"  # gone when the stage is finished

# lib/learning.py, and torch with it, is imported where it is used, and so is lib/distributed.py: the scoring processes
# import this file too.


def main(
    *,
    documents: storage.Place,
    out: storage.Place,
    limits: dict[str, float],
    encoder: Path | None = None,
    model: Path | None = None,
    annotations: Path | None = None,
    layers: int = 3,
    max_tokens: int = 128,
    training_documents: int = 600,
    epochs: int = 2,
    learning_rate: float = 3e-4,
    target: str = "lose_good=0.03",
    held_out_documents: int = 100,
    mask_personal_data: bool = False,
    precision: scoring.Precision = "auto",
    processes: int = 0,
    language_folder: Path | None = None,
    engine: Literal["local", "daft"] = "local",
    seed: int = 0,
    on_error: corpora.OnError = "stop",
) -> None:
    """Filter documents.

    Args:
        documents: a file or folder of documents, or an address (s3://bucket/folder).
        out: the folder or address to write.
        limits: each rule's limit by the rule's name (lib/rules.py); a rule without a limit is not applied.
        encoder: Hugging Face folder of the encoder to fine-tune.
        model: a trained filter, the model/ of an earlier run, to apply instead; it brings its own max_tokens.
        annotations: annotated texts to train on; without them, weak labels.
        layers: how many of the encoder's layers to use, from the bottom.
        max_tokens: tokens at the beginning of a document that the encoder reads.
        training_documents: real documents for weak labels (each also in a damaged form), a third of them to measure on.
        epochs: passes over the training examples.
        learning_rate: the highest, after warm-up.
        target: what the threshold is to reach: score=3.5, a fixed overall score (1 to 5; score=0 removes nothing);
            keep_share=0.65, of all characters that came in; or, by labelled examples that were not trained on,
            precision=0.95, good ones among the kept, or lose_good=0.03, at most, of the good ones.
        held_out_documents: kept documents of each language never to train on, chosen by a hash of their ids.
        mask_personal_data: replace e-mail addresses, phone and card numbers in what is kept.
        precision: of the scores: 'fp32', 'bf16', 'int8' (onnxruntime, scores differ by up to 0.3); 'auto' is bf16 on a
            GPU or a processor made for it, else fp32.
        processes: to score in, each with one thread (or a GPU in turn); 0 is one a core.
        language_folder: the languages' YAML files; by default the project's configs/languages.
        engine: 'local', or 'daft' to judge on the Ray cluster of RAY_ADDRESS (on this machine if it is not set).
        seed: of all random choices.
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    _check(settings)
    inputs = {name: settings[name] for name in ("documents", "encoder", "model", "annotations")}
    with stage.output(out, inputs=inputs, settings=settings, resume=True) as building:
        trained = model or _train(building.folder / "model", settings)
        _judge(building.folder / VERDICTS, trained, settings)
        closing = _sift(building, trained, settings)
        shutil.rmtree(building.folder / VERDICTS)
    print(closing)


def _check(settings: Mapping[str, object]) -> None:
    rules.check(settings["limits"])
    targets.parse(settings["target"])
    for name in ("max_tokens", "training_documents", "epochs"):
        if settings[name] < 1:
            raise UserError(f"--{name}={settings[name]}: at least 1")
    if settings["processes"] < 0:
        raise UserError(f"--processes={settings['processes']}: at least 1, or 0 for one a core")
    if (settings["encoder"] is None) == (settings["model"] is None):
        raise UserError("give either --encoder to train a filter, or --model to apply a trained one")
    if settings["model"] and settings["annotations"]:
        raise UserError("--annotations are to train on, but --model is trained already; leave one of them out")
    if settings["model"]:
        scoring.facts(settings["model"])
    if settings["engine"] == "daft":
        from lib import distributed

        distributed.connect()  # what it lacks is said before any work


def _train(folder: Path, settings: Mapping[str, object]) -> Path:
    """The folder of a filter trained on annotations, or on weak labels from a sample; not again if it is there."""
    from lib import learning

    if learning.is_finished(folder):
        return folder
    texts: list[tuple[str, str, str]] = []
    if settings["annotations"] is None:
        rest = [settings[name] for name in ("training_documents", "limits", "language_folder", "seed")]
        broken: Counter[str] = Counter()
        texts = sieve.sample(_read(settings, Counter(), "sample"), *rest, broken)
        if not texts:
            raise _nothing_left(settings["documents"], broken)
    wanted = inspect.signature(learning.learn).parameters.keys() & settings.keys()
    learning.learn(folder, texts, **{name: settings[name] for name in wanted})
    return folder


def _judge(folder: Path, trained: Path, settings: Mapping[str, object]) -> None:
    how = {name: settings[name] for name in ("limits", "language_folder", "precision")}
    processes, on_error = settings["processes"], settings["on_error"]
    if settings["engine"] == "daft":

        def batches(file: Path, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
            return corpora.read_batches(file, on_error=on_error, skipped=skipped)

        files = corpora.files(settings["documents"])
        sieve.judge_by_daft(files, batches, folder, trained, processes=processes, **how)
        return
    devices = scoring.devices()
    cores = len(os.sched_getaffinity(0))
    processes = processes or (cores if devices == ["cpu"] else min(cores, 4 * len(devices)))
    sieve.judge(_read(settings, Counter(), "judge"), folder, trained, devices=devices, processes=processes, **how)


def _sift(building: stage.Output, trained: Path, settings: Mapping[str, object]) -> str:
    """Find the threshold, write what is kept and what is not, record it all; the closing lines."""
    source, judged = settings["documents"], building.folder / VERDICTS
    facts, tally = scoring.facts(trained), sieve.Tally(judged)
    if not tally.scored:
        raise _nothing_left(source, tally.by_rule)
    threshold = targets.threshold(settings["target"], facts["calibration"], tally.keeping)
    kept, held = sieve.hold_out(judged, threshold, settings["held_out_documents"])
    if not kept:
        raise UserError(f"{source}: no document is left; --target={settings['target']} asks for {threshold:.3f} of 5")
    skipped: Counter[str] = Counter()
    figures = sieve.write(
        _read(settings, skipped, "write"),
        building.folder,
        judged,
        threshold=threshold,
        held=set().union(*held.values()),
        language_folder=settings["language_folder"],
        mask_personal_data=settings["mask_personal_data"],
    )
    dropped = Counter(tally.by_rule)
    if tally.scored > kept:
        dropped[sieve.LOW_QUALITY] = tally.scored - kept
    assert (figures["kept"], figures["removed"]) == (kept, dropped.total())
    assert kept + dropped.total() == tally.documents
    assert corpora.count(source) in (None, tally.documents + skipped.total())
    shares = tally.kept_shares()
    stage.write_json(building.folder / "receipts.json", {"removed": figures["samples"], "kept_shares": shares})
    building.record(
        documents_in=tally.documents,
        documents_kept=kept,
        documents_removed=dict(dropped.most_common()),
        held_out={code: len(chosen) for code, chosen in held.items()},
        **{name: figures[name] for name in ("by_source", "characters", "masked")},
        **{name: facts[name] for name in ("labels", "training", "evaluation", "precision")},
        threshold=round(threshold, 4),
        criteria=tally.criteria(),
        score_percentiles=tally.percentiles(),
        skipped=dict(skipped),
    )
    found = facts["evaluation"]
    labels = f"labels {facts['labels']} | held-out AUC {found['auc']} (bag of words {found['auc_of_bag_of_words']})"
    return f"{labels} | threshold {threshold:.3f}\n{progress.funnel(kept, tally.documents, dropped, 'documents')}"


def _nothing_left(path: Path, broken: Counter[str]) -> UserError:
    reasons = ", ".join(f"{name} {number:,}" for name, number in broken.most_common()) or "there is none"
    return UserError(f"{path}: the rules leave no document ({reasons}); look at --limits and at the input")


def _read(settings: Mapping[str, object], skipped: Counter[str], title: str) -> Iterator[dict]:
    path = settings["documents"]
    stream = sieve.records(corpora.read_batches(path, on_error=settings["on_error"], skipped=skipped))
    return progress.bar(stream, total=corpora.count(path), title=title, unit="documents")


if __name__ == "__main__":
    cli.run(main)
