"""Train and score variants of a profile that differ in a few settings, and lay them side by side.

    python scripts/ablate.py --grid=configs/demo/ablations/sft.yaml --profile=demo --out=data/demo/ablations/sft

A grid names its variants as differences from the profile. What a variant changes, and what comes after that, is made for it alone
(`<data>/variants/<grid>/<variant>-<seed>/`); all before is the profile's, made once, and so is the text that all are scored on. Make
does the work, so a second run does nothing, and an interrupted one goes on.

Reads:  a grid (lib/grids.py), a profile.
Writes: ablation.json: for each variant and seed the scores and what training took; per variant means and ranges over the seeds.
"""

import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import cli, curation, documents, grids, paired, progress, scores, stage
from lib.errors import UserError


def main(*, grid: Path, profile: str, out: Path, language: str = "ru", variables: dict[str, str] = {}) -> None:  # noqa: B006
    """Make all variants and their table.

    Args:
        grid: YAML of the variants.
        profile: what they are variants of.
        out: the folder to write.
        language: its scores come first.
        variables: of Make, for all runs (GPUS, D, C, ...).
    """
    settings = dict(locals())
    wanted = grids.load(grid, profile)
    make = Make({"PROFILE": profile, **variables})
    data = Path(variables.get("D", f"data/{profile}"))
    base = make(data / "eval" / "base")
    runs: dict[str, dict[int, dict]] = {}
    for name, variant in progress.bar(wanted.variants.items(), title=f"ablate {grid.stem}", unit="variants"):
        for seed in wanted.seeds:
            folder = data / "variants" / grid.stem / f"{name}-{seed}"
            files = {step: _write(folder, step, found) for step, found in variant.settings(make, seed).items()}
            told = {
                "VARIANT": f"{grid.stem}/{name}-{seed}",
                "CHANGED": " ".join(variant.changed),
                **{f"CONF-{step}": str(file) for step, file in files.items()},
                **variant.variables,
            }
            made = make(folder / "eval" / wanted.checkpoint, **told)
            if "filter" in variant.changed:
                _check_held_out(folder / "filter", data / "pack" / "held_out" / "documents")
            if "instruct" in variant.changed:
                _check_talks(folder / "instruct", data / "instruct" / "held_out.jsonl")
            runs.setdefault(name, {})[seed] = made | {"training": stage.read_manifest(_model(made))["results"]}
    _check_budgets(runs, wanted.checkpoint)
    inputs = {"grid": grid} | {
        f"{name}[{seed}]": Path(run["folder"]) for name, by_seed in runs.items() for seed, run in by_seed.items()
    }
    with stage.output(out, inputs=inputs, settings=settings) as building:
        table = _table(base, runs, language)
        table |= {"paper": wanted.paper, "about": wanted.about}
        stage.write_json(building.folder / "ablation.json", table)
        building.record(**table)
    print(_text(table))


class Make:
    """Runs of Make with some variables, which find out what they can reuse."""

    def __init__(self, variables: Mapping[str, str]):
        self.variables = dict(variables)

    def __call__(self, folder: Path, **more: str) -> dict:
        """The manifest of a stage's folder, made if need be, and its `folder`."""
        self._run(str(folder / stage.MANIFEST), **more)
        return stage.read_manifest(folder) | {"folder": str(folder)}

    def settings_file(self, step: str) -> Path | None:
        """The profile's settings of a stage."""
        found = self._run(f"settings-{step}", quiet=True).strip()
        return Path(found) if found else None

    def _run(self, target: str, *, quiet: bool = False, **more: str) -> str:
        given = [f"{name}={value}" for name, value in (self.variables | more).items()]
        done = subprocess.run(
            ["make", *(["-s"] if quiet else []), target, *given], stdout=subprocess.PIPE if quiet else None, text=True
        )
        if done.returncode:
            raise UserError(f"make {target} {' '.join(given)}: it failed, see above; the same command goes on")
        return done.stdout or ""


def _write(folder: Path, step: str, settings: Mapping[str, object]) -> Path:
    """Settings of a stage as a file that is not touched if it says the same already."""
    file = folder / "settings" / f"{step}.yaml"
    text = grids.as_yaml(settings)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return file


def _model(evaluation: Mapping) -> Path:
    return Path(evaluation["inputs"]["model"]["path"])


def _check_held_out(filtered: Path, held_out: Path) -> None:
    """Refuse a variant that trained on a document that all are scored on."""
    scored = {document["id"] for document in documents.read(held_out)}
    trained = {d["id"] for d in documents.read(filtered / "documents") if d["split"] == "train" and d["id"] in scored}
    if trained:
        raise UserError(
            f"{filtered}: {len(trained)} of the {len(scored)} held-out documents are training text there; "
            "give the variant's filter more held_out_documents than the profile's"
        )


def _check_talks(instruct: Path, held_out: Path) -> None:
    """Refuse a variant that was tuned on a dialogue that all are scored on."""
    scored = {curation.prompt(record) for _, record in documents.read_json_lines(held_out)}
    given = {curation.prompt(record) for _, record in documents.read_json_lines(instruct / "instructions.jsonl")}
    if tuned := scored & given:
        raise UserError(
            f"{instruct}: {len(tuned)} of the {len(scored)} held-out dialogues are tuned on there; "
            "give the variant's instruct the profile's held_out_share"
        )


def _check_budgets(runs: Mapping[str, Mapping[int, dict]], checkpoint: str) -> None:
    """Refuse to compare trainings of unequal length: steps, and where there is nothing but text, tokens."""
    measures = ("steps", "tokens") if checkpoint == "cpt" else ("steps",)
    for measure in measures:
        seen = {name: run["training"].get(measure) for name, by_seed in runs.items() for run in by_seed.values()}
        if len(set(seen.values())) > 1:
            told = ", ".join(f"{name} {value:,}" for name, value in seen.items())
            raise UserError(
                f"the variants were trained for different numbers of {measure}: {told}; set max_steps for all"
            )


def _table(base: dict, runs: Mapping[str, Mapping[int, dict]], language: str) -> dict:
    """Columns, the base's cells, and by variant the cells of each seed, their means and ranges."""
    named = [(name, seed, run) for name, by_seed in runs.items() for seed, run in by_seed.items()]
    evaluations = [base] + [
        {**run, "results": {**run["results"], "checkpoint": f"{name}-{seed}"}} for name, seed, run in named
    ]
    evaluations = [each | {"items": paired.read(Path(each["folder"]))} for each in evaluations]
    table = scores.score_table(evaluations, language)
    cells = {row["checkpoint"]: row["cells"] for row in table["rows"]}
    variants = {}
    for name, by_seed in runs.items():
        each = {seed: cells[f"{name}-{seed}"] for seed in by_seed}
        summary = {}
        for column in table["columns"]:
            values = [found[column["key"]]["value"] for found in each.values() if found[column["key"]]]
            if values:
                summary[column["key"]] = {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
        training = {
            seed: {key: run["training"].get(key) for key in ("steps", "tokens", "tokens_per_second")}
            for seed, run in by_seed.items()
        }
        variants[name] = {"summary": summary, "seeds": each, "training": training}
    return {"columns": table["columns"], "base": cells["base"], "variants": variants}


def _text(table: Mapping) -> str:
    """A line a variant: means of bits per byte and of the tasks, and the range over the seeds where there are several."""
    columns = [column for column in table["columns"] if column["group"] in scores.DRAWN]
    several = any(len(variant["seeds"]) > 1 for variant in table["variants"].values())

    def cell(found: Mapping | None, column: Mapping) -> str:
        if found is None:
            return "-"
        text = scores.spell(found.get("mean", found.get("value")), column["style"])
        if several and "mean" in found:
            text += (
                f" ({scores.spell(found['low'], column['style'])} to {scores.spell(found['high'], column['style'])})"
            )
        return text

    rows: list[Sequence[str]] = [["", *(column["title"] for column in columns)]]
    rows.append(["base", *(cell(table["base"][column["key"]], column) for column in columns)])
    for name, variant in table["variants"].items():
        rows.append([name, *(cell(variant["summary"].get(column["key"]), column) for column in columns)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    cli.run(main)
