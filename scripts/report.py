"""Write one HTML page about a whole run, and a model card, from what the stages recorded.

    python scripts/report.py --fetched=data/raw/manpages-ru,checkpoints/models/smollm2-135m --dedup=data/demo/dedup \
        --filter=data/demo/filter --tokenizer=checkpoints/demo/tokenizer --init=checkpoints/demo/init \
        --pack=data/demo/pack --cpt=checkpoints/demo/cpt --instruct=data/demo/instruct --sft=checkpoints/demo/sft \
        --evaluations=data/demo/eval/base,data/demo/eval/sft --out=data/demo/report

Reads:  the manifests of all stages; fertility.json, metrics.jsonl, generations.jsonl; samples of the removed texts and
        the filter's receipts.json.
Writes: report.html (one file, nothing loaded from elsewhere) and MODEL_CARD.md for the tuned model. The manifest's
        results hold the score table as data.
"""

import json
from pathlib import Path

from lib import cli, documents, flaws, page, paired, plots, receipts, scores, stage
from lib.errors import UserError

REPORT = "report.html"
CARD = "MODEL_CARD.md"


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
    reward: Path | None = None,
    ablations: list[Path] = [],  # noqa: B006 (never changed)
    leaks: Path | None = None,
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
        reward: folder of the reward model, where there is one.
        ablations: outputs of ablate.py, where there are some.
        leaks: output of the leaks stage, where there is one.
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
    folders = {
        "dedup": dedup,
        **({"annotate": annotations} if annotations else {}),
        "filter": filter,
        "tokenizer": tokenizer,
        "init": init,
        "pack": pack,
        "cpt": cpt,
        **({"reward": reward} if reward else {}),
        "instruct": instruct,
        "sft": sft,
        **({"leaks": leaks} if leaks else {}),
    }
    folders |= {f"eval {path.name}": path for path in evaluations}
    folders |= {f"ablate {path.name}": path for path in ablations}
    here = {path.name: path for path in fetched if (path / stage.MANIFEST).is_file()}
    inputs = {f"fetched[{number}]": path for number, path in enumerate(here.values())}
    inputs |= {n: path for n, path in folders.items() if n != "annotate" and not n.startswith(("eval ", "ablate "))}
    inputs["annotations"] = annotations
    inputs |= {f"evaluations[{number}]": path for number, path in enumerate(evaluations)}
    inputs |= {f"ablations[{number}]": path for number, path in enumerate(ablations)}
    manifests = {name: stage.read_manifest(path) for name, path in folders.items()}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        sources = {path.name: stage.read_manifest(path) if path.name in here else None for path in fetched}
        results = {name: manifest["results"] for name, manifest in manifests.items()}
        language = manifests["tokenizer"]["settings"]["language"]
        base = Path(manifests["init"]["inputs"]["base"]["path"]).name
        fertility = json.loads((tokenizer / "fertility.json").read_text(encoding="utf-8"))
        scored = [manifests[f"eval {path.name}"] | {"items": paired.read(path)} for path in evaluations]
        table = scores.score_table(scored, language)
        said = scores.headline(table, fertility["tokenizers"], language, random_model=page.is_random(sources.get(base)))
        answers = {
            manifests[f"eval {path.name}"]["results"]["checkpoint"]: paired.generations(path) for path in evaluations
        }
        stages = [*({"name": f"fetch {name}", "folder": here[name], **sources[name]} for name in here)]
        stages += [{"name": name, "folder": folders[name], **manifest} for name, manifest in manifests.items()]
        context = {
            "profile": out.parent.name,
            "language": language,
            "base": base,
            "base_source": sources.get(base),
            "headline": said,
            "table": table,
            "results": results,
            "stages": stages,
            "seconds": sum(entry["seconds"] for entry in stages),
            "finished": max(entry["finished"] for entry in stages),
            "commits": sorted({entry["commit"] for entry in stages}),
            "versions": page.versions(stages),
            "provenance": page.provenance(sources),
            "out": out,
        }
        card = page.model_card(answers=answers.get("sft", []), model=sft, **context)
        (building.folder / CARD).write_text(card, encoding="utf-8")
        context |= {
            "settings_of": lambda name: manifests[name]["settings"],
            "made_by": scores.MADE_BY,
            "compared": scores.compared(table),
            "meaning_of_flags": flaws.FLAGS,
            "row_rules": page.RULES,
            "systems": receipts.SYSTEMS,
            "tokenizations": page.tokenizations(fertility),
            "example": fertility["example"],
            "ablations": {path.name: page.ablation(results[f"ablate {path.name}"]) for path in ablations},
            "score_plots": plots.scores(
                table | {"columns": [c for c in table["columns"] if c["group"] in scores.DRAWN]}
            ),
            "fertility_plots": plots.fertility(
                {scores.name_of(code): spent for code, spent in plots.tokens_per_word(fertility).items()}, base
            ),
            "fertility_rows": page.fertility_rows(fertility, language),
            "source_rows": page.source_rows(sources, results["filter"]),
            **receipts.shown(dedup, filter, manifests, samples, near_duplicates, seed),
            "cpt_plots": plots.training("cpt", _lines(cpt / "metrics.jsonl")),
            "sft_plots": plots.training("sft", _lines(sft / "metrics.jsonl")),
            "leaks": _leaks(leaks, results, scored),
            "side_by_side": page.side_by_side(answers, prompts),
            "checkpoints": list(answers),
        }
        (building.folder / REPORT).write_text(page.render("report.html.j2", **context), encoding="utf-8")
        building.record(headline=said, scores=table, seconds_of_all_stages=round(context["seconds"], 1))
    print(f"\n{scores.text_table(table)}\n\n{scores.compared(table)}\nreport: {out / REPORT}")


def _leaks(folder: Path | None, results: dict[str, dict], scored: list[dict]) -> list[dict]:
    if folder is None:
        return []
    items = {evaluation["results"]["checkpoint"]: evaluation["items"] for evaluation in scored}
    return page.leaks(results["leaks"]["tasks"], _lines(folder / "leaks.jsonl"), items)


def _lines(path: Path) -> list[dict]:
    """A JSON Lines file that a stage may not have written."""
    return [record for _, record in documents.read_json_lines(path)] if path.is_file() else []


if __name__ == "__main__":
    cli.run(main)
