"""Merge two checkpoints of one model: each tensor interpolated on the sphere (SLERP), as mergekit does it; or an adapted base and an instruct model.

    python scripts/merge.py --model=checkpoints/demo/init --other=checkpoints/demo/cpt --out=checkpoints/demo/merge \
        --config=configs/demo/merge.yaml
    python scripts/merge.py ... --t='[{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]'
    python scripts/merge.py --model=<the adapted base> --other=<the base's instruct model> --base=<the base> --propagate=conversion --out=...

Reads:  two Hugging Face model folders with one tokenizer, of any size: a tensor of each is in memory at a time. With --propagate an
        adapted base (cpt), an instruct model and the base of both; of these the embeddings are in memory.
Writes: a Hugging Face model folder with the shards, configuration, tokenizer and chat template of --model (with --propagate: the
        configuration and chat template of --other), and tensors.json (a line a tensor: its t, the angle between the two and whether
        it was interpolated on the sphere; or where it is from, and how well its map fits).
"""

import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from lib import cli, merging, progress, propagation, stage, storage
from lib.errors import UserError

Tensors = tuple[dict[str, merging.Stored], Callable[[str], tuple[torch.Tensor, dict[str, object]]]]


def main(
    *,
    model: Path,
    other: Path,
    out: storage.Place,
    t: merging.Setting = 0.5,
    base: Path | None = None,
    propagate: propagation.Method | None = None,
) -> None:
    """Interpolate the weights of two checkpoints with the same tokenizer, tensor by tensor.

    Nearly parallel tensors are interpolated linearly, as in mergekit; that is most of them after a short training.

    Args:
        model: folder of the checkpoint at t = 0 (mergekit's base_model).
        other: folder of the checkpoint at t = 1.
        out: folder or address to write.
        t: how far to go from model to other: a number; a gradient, numbers spread from the first layer to the last (other
            tensors take the first); or a list of {filter: part of a tensor's name, value: number or gradient}, of which the
            first that fits a tensor counts, the last being {value: ...} for the rest.
        base: with propagate, the model that both come from, with the vocabulary of other.
        propagate: in place of interpolating, carry the embeddings of model, a base with a new vocabulary, to the instruct model other
            (learned embedding propagation): 'swap' as they are, or by a linear map fitted on the tokens of both vocabularies
            ('overlap') or on what all new tokens are initialised with ('conversion', its authors' best).
    """
    settings = dict(locals())
    merging.check_setting(t)
    if (propagate is None) != (base is None):
        raise UserError(
            "--base and --propagate go together: the map between base and instruct model is what propagates"
        )
    with stage.output(out, inputs={"model": model, "other": other, "base": base}, settings=settings) as building:
        if propagate:
            tied = propagation.check(model, other, base)
            layout, tensor_of = _propagated(model, other, base, propagate, tied)
        else:
            tied = merging.check_same_model(model, other)
            layout, tensor_of = _interpolated(model, other, t, tied)
        by_file: dict[str, dict[str, merging.Stored]] = {}
        for name, tensor in layout.items():
            by_file.setdefault(tensor.file.name, {})[name] = tensor
        report: dict[str, dict] = {}
        size = 0
        with progress.bar(total=len(layout), title="merge", unit="tensors") as bar:

            def merged(name: str) -> torch.Tensor:
                bar.update()
                result, report[name] = tensor_of(name)
                return result

            for file, of_file in sorted(by_file.items()):
                header = {name: (tensor.dtype, tensor.shape) for name, tensor in of_file.items()}
                size += merging.write_shard(building.folder / file, header, merged)
        if len(by_file) > 1:
            weight_map = {name: tensor.file.name for name, tensor in layout.items()}
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            stage.write_json(building.folder / merging.INDEX, index)
        dtype = merging.main_dtype(layout)
        if propagate:
            propagation.dress(model, other, building.folder, dtype)
        else:
            merging.copy_companions(model, building.folder, dtype)
        stage.write_json(building.folder / "tensors.json", report)
        rules = Counter(line["rule"] for line in report.values())
        building.record(tensors=dict(rules), bytes=size, tied=tied, dtype=str(dtype).removeprefix("torch."))
        found, said = _fits(report) if propagate else _angles(report)
        building.record(**found)
    counts = " | ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
    print(f"{len(layout):,} tensors, {size / 1e6:,.0f} MB: {counts} | {said}")


def _interpolated(model: Path, other: Path, t: merging.Setting, tied: bool) -> Tensors:
    """The interpolated tensors: where each goes, and what makes it with its line of tensors.json."""
    pairs = merging.pairs(model, other, t, tied=tied)
    layout = {name: merging.Stored(pair.first.file, pair.dtype, pair.first.shape) for name, pair in pairs.items()}
    return layout, lambda name: _merge(name, pairs[name])


def _propagated(model: Path, other: Path, base: Path, method: propagation.Method, tied: bool) -> Tensors:
    """The same for the adapted base's embeddings before the instruct model's layers."""
    layout, matrices = propagation.tensors(model, other, base, method, tied=tied)
    layers = merging.stored(other)

    def tensor_of(name: str) -> tuple[torch.Tensor, dict[str, object]]:
        if name not in matrices:
            return merging.read(name, layers[name]), {"rule": "instruct"}
        rows, fitted = matrices[name]
        return rows, {"rule": method} | ({"apart": fitted.before, "left": fitted.after} if fitted else {})

    return layout, tensor_of


def _angles(report: dict[str, dict]) -> tuple[dict[str, object], str]:
    """For the manifest and the closing line: how far apart the interpolated tensors were."""
    angles = {name: line["degrees"] for name, line in report.items() if "degrees" in line}
    widest = max(angles, key=angles.__getitem__)
    degrees = {"median": statistics.median(angles.values()), "largest": angles[widest], "largest_in": widest}
    return {"degrees": degrees}, f"largest angle {angles[widest]:.2f} degrees, in {widest}"


def _fits(report: dict[str, dict]) -> tuple[dict[str, object], str]:
    """For the manifest and the closing line: how far the instruct model's rows are from the base's, before and after the map."""
    fits = {name: {key: line[key] for key in ("apart", "left")} for name, line in report.items() if "apart" in line}
    said = [f"{name} {fit['apart']:.1%} apart, {fit['left']:.1%} after the map" for name, fit in fits.items()]
    return {"fits": fits}, ", ".join(said) or "rows as they were"


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
