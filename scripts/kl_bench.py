r"""Compare ways not to forget: what each run learned of the new language, and what it lost of English, beside the base model.

    python scripts/kl_bench.py --base=checkpoints/models/smollm2-135m --held_out=data/demo/kl-bench/extend/pack/held_out/documents \
        --general=data/raw/lee-news-en/documents --tasks=configs/eval/builtin/minimal_pairs.yaml \
        --runs=checkpoints/demo/kl-bench/extend-none,checkpoints/demo/kl-bench/extend-first_piece --out=data/demo/kl-bench/scores

Reads:  runs of cpt.py on equally many tokens, named <mode>-<what was tried> (<mode>-none, without a reference, is what the others
        of a mode are compared with); the base model; held-out documents; general English, which no run was trained on; task files.
Writes: kl-bench.json (figures; what each model spent on each document and said to each item, so that later runs compare in pairs)
        and kl-bench.svg (English lost against the new language gained).
"""

import hashlib
import itertools
import random
from collections.abc import Collection
from pathlib import Path

from lib import cli, comparison, documents, fertility, forgetting, harness, machine, models, packing, progress, stage
from lib.errors import UserError

HELD = ("reference", "combine", "kl_")  # what settings of cpt.py begin with that say how English is held
SPENT = ("tokens", "steps", "train_seconds", "tokens_per_second")


def main(
    *,
    runs: list[Path],
    base: Path,
    held_out: Path,
    general: Path,
    out: Path,
    tasks: list[Path] = [],  # noqa: B006 (never changed)
    language: str = "ru",
    characters: int = 100_000,
    margin: float = 0.0,
    window: int = 1024,
    batch_tokens: int = 4096,
) -> None:
    """Score the base and each run on the same documents and items, and name the best run.

    Args:
        runs: outputs of cpt.py, named <mode>-<what was tried>.
        base: folder of the unadapted base model.
        held_out: held-out documents of the training sources.
        general: documents of general English, of none of the training sources.
        out: folder to write.
        tasks: task files (configs/eval/**.yaml), all of whose items are asked.
        language: the language that was learned.
        characters: text of each kind, at most: held-out text by language, and general English.
        margin: per cent of the base's bits per byte on general English that the best run may lose at most.
        window: tokens that a model sees at once.
        batch_tokens: tokens in one forward pass.
    """
    settings = dict(locals())
    manifests = _manifests(runs)
    inputs = {"base": base, "held_out": held_out, "general": general}
    inputs |= {f"runs[{number}]": run for number, run in enumerate(runs)}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        texts = _texts(held_out, general, language, characters)
        asked = harness.load(tasks, num_fewshot=0, seed=0)
        answers: dict[str, dict] = {}

        def measure(name: str, folder: Path) -> forgetting.Measured:
            model, tokenizer = models.load(folder, device=machine.device())
            scores = comparison.score(model, tokenizer, texts, window=window, batch_tokens=batch_tokens)
            spent = {kind: fertility.measure(tokenizer, found) for kind, found in texts.items()}
            results, answers[name] = {}, {}
            if asked:
                results, answers[name] = harness.run(model, tokenizer, asked, limit=None, batch_tokens=batch_tokens)
            return forgetting.Measured(scores, spent, results)

        folders = {"base": base} | {run.name: run for run in runs}
        measured = {
            name: measure(name, folder)
            for name, folder in progress.bar(folders.items(), title="kl-bench", unit="models")
        }
        table = forgetting.figures(measured["base"], {run.name: measured[run.name] for run in runs})
        for name, manifest in manifests.items():
            held = {key: value for key, value in manifest["settings"].items() if key.startswith(HELD)}
            spent = {key: manifest["results"][key] for key in SPENT}
            table["runs"][name] |= {"settings": held, "training": spent}
        best, why = forgetting.best(table, language, margin)
        table |= {"language": language, "best": {"run": best, "why": why}}
        details = {"documents": _documents(texts), "models": _details(measured, answers)}
        stage.write_json(building.folder / "kl-bench.json", table | details)
        (building.folder / "kl-bench.svg").write_text(forgetting.picture(table, language), encoding="utf-8")
        building.record(**table)
    print(forgetting.text(table, language))
    print(f"best after {manifests[best]['results']['tokens']:,} tokens: {best}: {why}")


def _manifests(runs: list[Path]) -> dict[str, dict]:
    """The runs' manifests by name.

    Raises:
        UserError: there are no runs, they don't compare, or a name does not say what it should.
    """
    if not runs:
        raise UserError("--runs: name at least one output of cpt.py")
    if unnamed := [run.name for run in runs if not all(run.name.partition("-"))]:
        raise UserError(f"--runs: {unnamed[0]} is not named <mode>-<what was tried>, as extend-none is")
    manifests = comparison.trained(runs)
    for name, manifest in manifests.items():
        reference = manifest["settings"]["reference"]
        if name == forgetting.without(name) and reference != "none":
            raise UserError(f"--runs: {name} was trained with reference {reference}, so it is not what it is named")
    return manifests


def _texts(held_out: Path, general: Path, language: str, characters: int) -> dict[str, list[str]]:
    """Texts by kind: the learned language first, then English of the training sources' kind, then general English."""
    by_source = documents.held_out_by_source(held_out, characters)
    wanted = (language, packing.REPLAY_LANGUAGE)
    if missing := [code for code in wanted if code not in by_source]:
        raise UserError(f"{held_out}: no held-out document in language '{missing[0]}'")
    found = {code: list(itertools.chain.from_iterable(by_source[code].values())) for code in wanted}
    sources = {source for held in by_source.values() for source in held}
    return found | {forgetting.GENERAL: _general(general, characters, sources)}


def _general(path: Path, characters: int, trained_on: Collection[str]) -> list[str]:
    """Documents in English, drawn by lot until the last one crosses the limit.

    Raises:
        UserError: there are none, or some are of a training source.
    """
    pairs = []
    for document in documents.read(path):
        if document["source"] in trained_on:
            raise UserError(f"--general={path}: has documents of {document['source']}, which the runs were trained on")
        if document["language"] == packing.REPLAY_LANGUAGE:
            pairs.append((document["id"], document["text"]))
    if not pairs:
        raise UserError(f"--general={path}: no document in language '{packing.REPLAY_LANGUAGE}'")
    texts = [text for _, text in random.Random(0).sample(sorted(pairs), len(pairs))]
    before = itertools.accumulate(map(len, texts), initial=0)
    return [text for text, so_far in zip(texts, before, strict=False) if so_far < characters]


def _documents(texts: dict[str, list[str]]) -> dict[str, list[dict]]:
    """What tells a document from others in a later comparison, and its size."""
    return {
        kind: [{"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())} for text in found]
        for kind, found in texts.items()
    }


def _details(measured: dict[str, forgetting.Measured], answers: dict[str, dict]) -> dict[str, dict]:
    """By model: bits and tokens of each document, in the order of `documents`, and which items it got right."""
    return {
        name: {
            "bits": {kind: [score.bits for score in found] for kind, found in model.scores.items()},
            "tokens": {kind: [score.tokens for score in found] for kind, found in model.scores.items()},
            "correct": {
                task: {str(item["id"]): item["correct"] for item in items} for task, items in answers[name].items()
            },
        }
        for name, model in measured.items()
    }


if __name__ == "__main__":
    cli.run(main)
