"""Merge two checkpoints of one model: each tensor interpolated on the sphere (SLERP), as mergekit does it.

    python scripts/merge.py --model=checkpoints/demo/init --other=checkpoints/demo/cpt --out=checkpoints/demo/merge \
        --config=configs/demo/merge.yaml
    python scripts/merge.py ... --t='[{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]'

Reads:  two Hugging Face model folders with one tokenizer, of any size: a tensor of each is in memory at a time.
Writes: a Hugging Face model folder with the shards, configuration, tokenizer and chat template of --model, and tensors.json
        (the t of each tensor, the angle between the two, and whether it was interpolated on the sphere).
"""

import statistics
from collections import Counter
from pathlib import Path

import torch

from lib import cli, merging, progress, stage, storage
from lib.errors import UserError


def main(*, model: Path, other: Path, out: storage.Place, t: merging.Setting = 0.5) -> None:
    """Interpolate the weights of two checkpoints with the same tokenizer, tensor by tensor.

    Nearly parallel tensors are interpolated linearly, as in mergekit; that is most of them after a short training.

    Args:
        model: folder of the checkpoint at t = 0 (mergekit's base_model).
        other: folder of the checkpoint at t = 1.
        out: folder or address to write.
        t: how far to go from model to other: a number; a gradient, numbers spread from the first layer to the last (other
            tensors take the first); or a list of {filter: part of a tensor's name, value: number or gradient}, of which the
            first that fits a tensor counts, the last being {value: ...} for the rest.
    """
    settings = dict(locals())
    merging.check_setting(t)
    with stage.output(out, inputs={"model": model, "other": other}, settings=settings) as building:
        tied = merging.check_same_model(model, other)
        pairs = merging.pairs(model, other, t, tied=tied)
        by_file: dict[str, dict[str, merging.Pair]] = {}
        for name, pair in pairs.items():
            by_file.setdefault(pair.first.file.name, {})[name] = pair
        report: dict[str, dict] = {}
        size = 0
        with progress.bar(total=len(pairs), title="merge", unit="tensors") as bar:

            def merged(name: str) -> torch.Tensor:
                bar.update()
                result, report[name] = _merge(name, pairs[name])
                return result

            for file, of_file in sorted(by_file.items()):
                layout = {name: (pair.dtype, pair.first.shape) for name, pair in of_file.items()}
                size += merging.write_shard(building.folder / file, layout, merged)
        if len(by_file) > 1:
            weight_map = {name: pair.first.file.name for name, pair in pairs.items()}
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            stage.write_json(building.folder / merging.INDEX, index)
        dtype = merging.main_dtype(pairs)
        merging.copy_companions(model, building.folder, dtype)
        stage.write_json(building.folder / "tensors.json", report)
        rules = Counter(line["rule"] for line in report.values())
        angles = {name: line["degrees"] for name, line in report.items() if "degrees" in line}
        widest = max(angles, key=angles.__getitem__)
        building.record(
            tensors=dict(rules),
            bytes=size,
            tied=tied,
            dtype=str(dtype).removeprefix("torch."),
            degrees={"median": statistics.median(angles.values()), "largest": angles[widest], "largest_in": widest},
        )
    counts = " | ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
    print(
        f"{len(pairs):,} tensors, {size / 1e6:,.0f} MB: {counts} | largest angle {angles[widest]:.2f} degrees, in {widest}"
    )


def _merge(name: str, pair: merging.Pair) -> tuple[torch.Tensor, dict[str, object]]:
    """The interpolated tensor, and its line of tensors.json."""
    a, b = merging.read(name, pair.first), merging.read(name, pair.other)
    if not pair.dtype.is_floating_point:
        if not torch.equal(a, b):
            raise UserError(f"{name}: whole numbers that differ between the models; there is nothing between them")
        return a, {"rule": "copied"}
    cosine = merging.cosine(a, b)
    if not cosine.isfinite():
        raise UserError(
            f"{name}: {pair.first.file} or {pair.other.file} holds NaN or infinity; that checkpoint is broken"
        )
    result = merging.combine(*merging.coefficients(pair.t, cosine), a, b)
    rule = "lerp" if merging.is_linear(cosine) else "slerp"
    return result, {"rule": rule, "t": pair.t, "degrees": round(cosine.acos().rad2deg().item(), 3)}


if __name__ == "__main__":
    cli.run(main)
