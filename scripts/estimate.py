"""Say what a profile will take before anything is rented: tokens, FLOPs, memory by part, time, disk, and the price of annotation.

    make estimate PROFILE=vikhr-7b GPUS=8
    python scripts/estimate.py --base=configs/sources/mistral-7b.yaml --settings=configs/vikhr-7b/cpt.yaml,configs/vikhr-7b/sft.yaml \
        --gpus=8 --train_tokens=11000000000 --dialogues=680000

Nothing has to be fetched or trained: the base model's shape is that of its config.json, which the project keeps for its own
profiles (configs/shapes) and the hub gives alone for others. What has been made already (a pack, a tokenizer, an instruction set)
is counted where it is named; the rest is assumed, and every assumption is printed. Training is estimated; fetching, filtering
and evaluation are not.

Reads:  settings of the stages, the base's source; what is there of the base model, the tokenizer, pack and instruct stages.
Writes: with --out a folder with estimate.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lib import api, cli, forecast, prices, shapes, stage, workload

STAGES = ("cpt", "sft")
GPU = Literal["A100-80", "A100-40", "H100", "H200", "L40S", "4090"]


def main(
    *,
    base: Path,
    settings: list[Path] = [],  # noqa: B006 (never changed)
    model: Path | None = None,
    model_config: Path | None = None,
    tokenizer: Path | None = None,
    pack: Path | None = None,
    instruct: Path | None = None,
    out: Path | None = None,
    gpus: int = 0,
    gpu: GPU = "A100-80",
    utilisation: float | None = None,
    train_tokens: int | None = None,
    dialogues: int | None = None,
    dialogue_tokens: int = 400,
    annotate: bool = False,
    translate: int = 0,
    input_price: float | None = None,
    output_price: float | None = None,
) -> None:
    """Estimate a profile.

    Args:
        base: YAML of the base model's source.
        settings: YAMLs of stages, each named after its own; a stage without one has its script's defaults.
        model: folder of the base model, if it is fetched.
        model_config: a config.json instead (or a YAML of its keys).
        tokenizer: output of the tokenizer stage, if there is one.
        pack: output of the pack stage, if there is one.
        instruct: output of the instruct stage, if there is one.
        out: the folder to write.
        gpus: that share a step, on all machines; 0 is this machine's processor.
        gpu: which.
        utilisation: share of the peak that training reaches; by default 0.4 of a GPU's and 0.55 of a processor's.
        train_tokens: of the target language, where nothing is packed and pack.yaml sets no limit.
        dialogues: of the instruction set, where there is none yet.
        dialogue_tokens: of each, on average.
        annotate: the filter learns from annotations.
        translate: dialogues that a language model translates.
        input_price: US dollars for a million tokens of prompts.
        output_price: US dollars for a million tokens of answers.
    """
    given = dict(locals())
    limits = api.Limits(input_price=input_price, output_price=output_price)
    names = ("tokenizer", "init", "pack", *STAGES, *["annotate"] * annotate, *["translate"] * bool(translate))
    resolved = {name: workload.settings(name, settings) for name in names}
    config, shape_from = shapes.read(base, model, model_config)
    rows = workload.vocabulary_rows(resolved["tokenizer"], resolved["init"], tokenizer)
    on = forecast.device(gpu, gpus, utilisation)
    made = {"tokenizer": tokenizer, "pack": pack, "instruct": instruct}
    work = {
        "cpt": workload.of_cpt(resolved["cpt"], resolved["pack"], on.count, base.stem, made, train_tokens),
        "sft": workload.of_sft(resolved["sft"], on.count, made, dialogues, dialogue_tokens),
    }
    runs = {name: forecast.training(resolved[name], config, rows, on) for name in STAGES}
    results = {
        "device": on._asdict(),
        "base": {
            "shape_from": shape_from,
            "parameters": shapes.without_weights(config, config.vocab_size).num_parameters(),
        },
        "stages": {name: forecast.stage_figures(runs[name], work[name], resolved[name], on) for name in STAGES},
        "disk": forecast.disk_figures(runs, work, resolved),
        "api": {
            **({"annotate": prices.annotating(resolved["annotate"], limits)} if annotate else {}),
            **(
                {"translate": prices.translating(resolved["translate"], translate, dialogue_tokens, limits)}
                if translate
                else {}
            ),
        },
        "assumptions": forecast.assumptions(on, made, work, dialogues, dialogue_tokens),
    }
    _print(results)
    for name in STAGES:
        if (needed := sum(results["stages"][name]["memory"].values())) > on.memory:
            _say_what_would_fit(name, needed, on, forecast.cures(runs[name], work[name], on))
    if out is not None:
        with stage.output(out, inputs={"base": base, "model": model, **made}, settings=given) as building:
            stage.write_json(building.folder / "estimate.json", results)
            building.record(**results)


def _print(results: Mapping) -> None:
    """The tables, sizes in GB (10^9 bytes), and what they rest on."""
    on, stages = results["device"], results["stages"]
    print(f"\nbase model: {results['base']['parameters']:,} parameters, by {results['base']['shape_from']}")
    print(
        f"on {on['count']} x {on['name']}: {on['peak'] / 1e12:,.2f} TFLOP/s, {on['memory'] / 1e9:,.0f} GB each, "
        f"{on['utilisation']:.0%} of the peak\n"
    )
    time, memory = stages["cpt"]["seconds"], stages["cpt"]["memory"]
    lines = {
        "parameters, M": lambda f: f"{f['parameters'] / 1e6:,.1f}",
        "tokens, M": lambda f: f"{f['tokens'] / 1e6:,.2f}",
        "steps": lambda f: f"{f['steps']:,}",
        "tokens a step": lambda f: f"{f['tokens'] / f['steps']:,.0f}",
        "FLOPs": lambda f: f"{f['flops']:.3g}",
        "  6 N D": lambda f: f"{f['six_n_d']:.3g}",
        "time": lambda f: _spell(sum(f["seconds"].values())),
        **{f"  {part}": lambda f, part=part: _spell(f["seconds"][part]) for part in time},
        f"{on['name']} hours": lambda f: f"{f['device_hours']:,.1f}",
        "memory, GB": lambda f: f"{sum(f['memory'].values()) / 1e9:,.1f}",
        **{f"  {part}": lambda f, part=part: f"{f['memory'][part] / 1e9:,.1f}" for part in memory},
    }
    print(f"{'':<18}" + "".join(f"{name:>14}" for name in stages))
    for name, cell in lines.items():
        print(f"{name:<18}" + "".join(f"{cell(figures):>14}" for figures in stages.values()))
    sizes = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in results["disk"].items())
    print(f"\ndisk: {sum(results['disk'].values()) / 1e9:,.1f} GB ({sizes})")
    for name, expected in results["api"].items():
        print(f"{name}: {api.spell_estimate(expected)}")
    print("\nassumed:")
    for each in results["assumptions"]:
        print(f"  {each['name']} = {each['value']}: {each['reason']}")


def _spell(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _say_what_would_fit(name: str, needed: float, on: forecast.Device, cures: Mapping[str, float]) -> None:
    print(f"\n{name} does not fit: {needed / 1e9:.1f} of {on.memory / 1e9:.0f} GB. In {name}.yaml:")
    for change, size in cures.items():
        print(f"  {change}: {size / 1e9:.1f} GB, {'fits' if size <= on.memory else 'does not fit either'}")


if __name__ == "__main__":
    cli.run(main)
