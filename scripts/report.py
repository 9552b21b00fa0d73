"""Write one HTML page about a whole run, and a model card for each final checkpoint, from what the stages recorded.

    python scripts/report.py --fetched=data/raw/manpages-ru,checkpoints/models/smollm2-135m --dedup=data/demo/dedup \
        --filter=data/demo/filter --tokenizer=checkpoints/demo/tokenizer --init=checkpoints/demo/init \
        --pack=data/demo/pack --cpt=checkpoints/demo/cpt --instruct=data/demo/instruct --sft=checkpoints/demo/sft \
        --evaluations=data/demo/eval/base,data/demo/eval/sft --out=data/demo/report

Reads:  the manifests of all stages; fertility.json, metrics.jsonl, generations.jsonl; samples of the removed texts and
        the filter's receipts.json.
Writes: report.html (one file, nothing loaded from elsewhere); cards/<checkpoint>/README.md for cpt, sft and what lies
        between them. The manifest's results hold the score table as data.
"""

from collections.abc import Mapping
from pathlib import Path

from lib import cards, cli, documents, flaws, lineage, page, plots, receipts, scores, stage
from lib.errors import UserError

REPORT = "report.html"
STAGES = (
    "dedup", "annotations", "filter", "tokenizer", "init", "pack", "cpt", "merge", "reward", "instruct", "sft", "leaks",
)  # fmt: skip


def main(
    *,
    fetched: list[Path],
    dedup: Path,
    filter: Path,
    tokenizer: Path,
    init: Path,
    pack: Path,
    cpt: Path,
    instruct: Path,
    sft: Path,
    evaluations: list[Path],
    out: Path,
    annotations: Path | None = None,
    merge: Path | None = None,
    translated: list[Path] = [],  # noqa: B006 (never changed)
    reward: Path | None = None,
    ablations: list[Path] = [],  # noqa: B006
    leaks: Path | None = None,
    base_model: str | None = None,
    samples: int = 3,
    near_duplicates: int = 20,
    prompts: int = 40,
    seed: int = 0,
) -> None:
    """Report on a run.

    Args:
        fetched: folders of sources, models and tokenizers; one that is not there is reported as missing.
        dedup: output of the dedup stage.
        filter: output of the filter stage.
        tokenizer: folder of the new tokenizer.
        init: folder of the initialised model.
        pack: output of the pack stage.
        cpt: folder of the model after continued pre-training.
        instruct: output of the instruct stage.
        sft: folder of the model after instruction tuning.
        evaluations: outputs of the eval stage, in the order of training, the base first.
        out: the folder to write.
        annotations: output of the annotate stage, where there was one.
        merge: folder of the model that init and cpt were merged to, where instruction tuning started from that.
        translated: outputs of the translate stage, where there are some.
        reward: folder of the reward model, where there is one.
        ablations: outputs of ablate.py, where there are some.
        leaks: output of the leaks stage, where there is one.
        base_model: the base's name on the hub, for the cards, where it was fetched from elsewhere.
        samples: removed texts that are shown for each reason.
        near_duplicates: near duplicates that are shown with the paragraphs kept instead.
        prompts: prompts that are shown with their answers, at most.
        seed: draws the samples.
    """
    settings = dict(locals())
    for name in ("samples", "near_duplicates", "prompts"):
        if settings[name] < 0:
            raise UserError(f"--{name}={settings[name]}: no negative numbers")
    if not evaluations:
        raise UserError("--evaluations: name at least one output of the eval stage")
    lists = {
        "fetched": [path for path in fetched if (path / stage.MANIFEST).is_file()],
        "translated": translated,
        "evaluations": evaluations,
        "ablations": ablations,
    }
    stages = {name: settings[name] for name in STAGES if settings[name]}
    inputs = stages | {f"{name}[{n}]": path for name, paths in lists.items() for n, path in enumerate(paths)}
    run = lineage.read(stages, lists)
    with stage.output(out, inputs=inputs, settings=settings) as building:
        sources = {path.name: run["manifests"].get(f"fetch {path.name}") for path in fetched}
        run |= page.described(run, sources) | {"profile": out.parent.name, "out": out}
        for checkpoint in cards.final(run):
            path = building.folder / cards.path_of(checkpoint)
            path.parent.mkdir(parents=True)
            text = cards.card(checkpoint, run, base_model or cards.hub_name(run["base_source"]))
            path.write_text(text, encoding="utf-8")
        parts = receipts.shown(dedup, filter, run["manifests"], samples, near_duplicates, seed)
        parts |= _parts(run, sources, prompts)
        (building.folder / REPORT).write_text(page.render("report.html.j2", **run, **parts), encoding="utf-8")
        building.record(headline=run["headline"], scores=run["table"], seconds_of_all_stages=round(run["seconds"], 1))
    print(f"\n{scores.text_table(run['table'])}\n\n{scores.compared(run['table'])}\nreport: {out / REPORT}")


def _parts(run: Mapping, sources: Mapping[str, Mapping | None], prompts: int) -> dict[str, object]:
    """What only the page has, by the template's names."""
    folders, results, table, fertility = run["folders"], run["results"], run["table"], run["fertility"]
    plotted = table | {"columns": [column for column in table["columns"] if column["group"] in scores.DRAWN]}
    spent = {scores.name_of(code): by_name for code, by_name in plots.tokens_per_word(fertility).items()}
    leaked = _lines(folders["leaks"] / "leaks.jsonl") if "leaks" in folders else []
    return {
        "made_by": scores.MADE_BY,
        "compared": scores.compared(table),
        "meaning_of_flags": flaws.FLAGS,
        "row_rules": page.RULES,
        "systems": receipts.SYSTEMS,
        "cards": [cards.path_of(checkpoint) for checkpoint in cards.final(run)],
        "tokenizations": page.tokenizations(fertility),
        "score_plots": plots.scores(plotted),
        "fertility_plots": plots.fertility(spent, run["base"]),
        "fertility_rows": page.fertility_rows(fertility, run["language"]),
        "source_rows": page.source_rows(sources, results["filter"]),
        "cpt_plots": plots.training("cpt", _lines(folders["cpt"] / "metrics.jsonl")),
        "sft_plots": plots.training("sft", _lines(folders["sft"] / "metrics.jsonl")),
        "ablations": {name: page.ablation(found) for name, found in results.items() if name.startswith("ablate ")},
        "leaks": page.leaks(results["leaks"]["tasks"], leaked, run["items"]) if "leaks" in results else [],
        "side_by_side": page.side_by_side(run["answers"], prompts),
        "checkpoints": list(run["answers"]),
    }


def _lines(path: Path) -> list[dict]:
    """A JSON Lines file that a stage may not have written."""
    return [record for _, record in documents.read_json_lines(path)] if path.is_file() else []


if __name__ == "__main__":
    cli.run(main)
