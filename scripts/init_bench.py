"""Compare ways to initialise the new rows: held-out bits per byte at the start and after an equal, short training.

    python scripts/init_bench.py --base=checkpoints/models/smollm2-135m --held_out=data/demo/pack/held_out/documents \
        --runs=checkpoints/demo/init-bench/mean,checkpoints/demo/init-bench/focus --out=data/demo/init-bench

Reads:  of each run, init/ (init_embeddings.py by the method it is named after) and cpt/ (cpt.py on the same rows, for as many
        steps); held-out documents.
Writes: init-bench.json, init-bench.svg.
"""

from pathlib import Path

from lib import cli, comparison, documents, metrics, models, paired, plots, progress, stage
from lib.errors import UserError

MOMENTS = ("init", "cpt")


def main(
    *,
    runs: list[Path],
    base: Path,
    held_out: Path,
    out: Path,
    language: str = "ru",
    characters: int = 40_000,
    window: int = 1024,
    batch_tokens: int = 4096,
) -> None:
    """Score each run twice, and say by how much each differs from the first on the same documents.

    Args:
        runs: folders of runs, each with init/ and cpt/; the first is what the others are compared with.
        base: folder of the unadapted base model, for comparison.
        held_out: held-out documents.
        out: folder to write.
        language: decides which run is best.
        characters: held-out text per language, at most.
        window: tokens that a model sees at once.
        batch_tokens: tokens in one forward pass.
    """
    settings = dict(locals())
    if len(runs) < 2:
        raise UserError("--runs: name at least two runs to compare")
    trained = comparison.trained(runs, "cpt")
    inputs = {"base": base, "held_out": held_out}
    inputs |= {f"runs[{number}]/{moment}": run / moment for number, run in enumerate(runs) for moment in MOMENTS}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        texts = documents.held_out(held_out, characters)
        if language not in texts:
            raise UserError(f"{held_out}: no held-out document in language '{language}'")

        def score(folder: Path) -> dict[str, list[metrics.Score]]:
            return comparison.score(*models.load(folder), texts, window=window, batch_tokens=batch_tokens)

        unadapted = score(base)
        scored = {}
        for run in progress.bar(runs, title="init-bench", unit="run"):
            scored[run.name] = {moment: score(run / moment) for moment in MOMENTS}
        first = scored[runs[0].name]
        table = {
            "base": {code: metrics.summarise(found) for code, found in unadapted.items()},
            "tokens": trained[runs[0].name]["results"]["tokens"],
            "runs": {
                name: {
                    moment: {
                        code: metrics.summarise(found)
                        | {"difference": paired.bits_per_byte(found, first[moment][code])}
                        for code, found in by_language.items()
                    }
                    for moment, by_language in moments.items()
                }
                for name, moments in scored.items()
            },
        }
        best = min(table["runs"], key=lambda name: table["runs"][name]["cpt"][language]["value"])
        stage.write_json(building.folder / "init-bench.json", table)
        (building.folder / "init-bench.svg").write_text(_picture(table), encoding="utf-8")
        building.record(best=best, **table)
    print(_text(table, runs[0].name))
    print(f"best in '{language}' after {table['tokens']:,} tokens: {best}")


def _picture(table: dict) -> str:
    panels = {}
    for code, base in table["base"].items():
        rows = {name: {moment: run[moment][code] for moment in MOMENTS} for name, run in table["runs"].items()}
        unit = f"○ start   ● after {table['tokens']:,} tokens   ┆ base"
        panels[f"Bits per byte, {code}"] = plots.before_and_after(rows, MOMENTS, unit=unit, line=base["value"])
    return plots.picture(panels, height=1.2 + 0.3 * len(table["runs"]))


def _text(table: dict, first: str) -> str:
    """A line a run: bits per byte with intervals, and the difference from the first with its interval."""
    codes = list(table["base"])
    width = max(map(len, table["runs"]))
    heads = [f"{'start' if moment == 'init' else 'trained'} {code}" for moment in MOMENTS for code in codes]
    lines = ["  ".join([" " * width, *(f"{head:<24}" for head in heads)])]
    for name, run in table["runs"].items():
        cells = []
        for moment in MOMENTS:
            for code in codes:
                found = run[moment][code]
                gap = found["difference"]
                change = "" if name == first else f" ({gap['low']:+.3f} to {gap['high']:+.3f})"
                cells.append(f"{found['value']:.3f}{change}".ljust(24))
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    lines.append("the base: " + ", ".join(f"{code} {found['value']:.3f}" for code, found in table["base"].items()))
    return "\n".join([*lines, f"in brackets: 95% interval of the difference from {first}, on the same documents"])


if __name__ == "__main__":
    cli.run(main)
