"""merge.py: interpolation on the sphere by hand, t by filter and layer, and the script on pairs of tiny models."""

import json
import math
import os
import subprocess
import sys
import weakref

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import CHAT
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from transformers import AutoModelForCausalLM

import merge
from lib import cli, merging, models, stage
from lib.errors import UserError

RULES = [{"filter": "self_attn", "value": [0.2, 0.6]}, {"filter": "mlp", "value": 1}, {"value": 0.5}]
# merge.py that dies of kill -9 when it is about to write its fifth tensor.
KILLED_AT_THE_FIFTH = """
import os, sys
sys.path.insert(0, "scripts")
import merge
from lib import cli, merging
combine, done = merging.combine, []
def dying(*arguments):
    if len(done) == 4:
        os.kill(os.getpid(), 9)
    done.append(1)
    return combine(*arguments)
merging.combine = dying
cli.run(merge.main)
"""


def degrees(angle):
    """The unit vector at an angle in the plane."""
    return torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])


@pytest.mark.parametrize("t", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_unit_vectors_are_turned_at_even_speed(t):
    torch.testing.assert_close(merging.slerp(t, degrees(0), degrees(90)), degrees(90 * t))
    torch.testing.assert_close(merging.slerp(t, degrees(20), degrees(80)), degrees(20 + 60 * t))


def test_directions_are_compared_but_the_vectors_themselves_combined():
    # Between 2 and 3 long at 45 degrees: both are weighted by sin(22.5) / sin(45) = 0.5412.
    expected = 0.541196 * (2 * degrees(0) + 3 * degrees(45))
    torch.testing.assert_close(merging.slerp(0.5, 2 * degrees(0), 3 * degrees(45)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_ends_are_the_inputs_to_the_bit(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 7, 5, dtype=dtype)
    assert torch.equal(merging.slerp(0, a, b), a)
    assert torch.equal(merging.slerp(1, a, b), b)


def test_parallel_and_opposite_vectors_are_interpolated_linearly():
    a = torch.tensor([1.0, 0.0])
    assert merging.slerp(0.25, a, 3 * a).tolist() == [1.5, 0]
    assert merging.slerp(0.25, a, -a).tolist() == [0.5, 0]
    assert merging.slerp(0.5, a, a).tolist() == [1, 0]


@pytest.mark.parametrize(("angle", "linear"), [(1.75, True), (1.85, False), (178.15, False), (178.25, True)])
def test_linear_begins_at_a_cosine_of_0_9995(angle, linear):
    cosine = merging.cosine(degrees(0), degrees(angle))
    assert merging.is_linear(cosine) == linear
    of_a, of_b = merging.coefficients(0.25, cosine)
    assert (of_a.item(), of_b.item()) == (0.75, 0.25) if linear else (of_a + of_b).item() > 1.00001


def test_a_zero_vector_counts_as_orthogonal():
    a, nothing = torch.tensor([2.0, 0.0]), torch.zeros(2)
    torch.testing.assert_close(merging.slerp(1 / 3, nothing, a), torch.tensor([1.0, 0.0]))  # sin 30
    torch.testing.assert_close(merging.slerp(1 / 3, a, nothing), torch.tensor([math.sqrt(3), 0.0]))  # sin 60
    assert merging.slerp(0.5, nothing, nothing).tolist() == [0, 0]


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(2, 11, 7, dtype=torch.float64)
    angle = math.acos((a * b).sum() / (a.norm() * b.norm()))
    expected = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
    monkeypatch.setattr(merging, "CHUNK", 5)
    torch.testing.assert_close(merging.slerp(0.3, a, b), expected)


def test_bf16_is_rounded_only_once_and_the_wider_dtype_wins():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1000).bfloat16()
    assert torch.equal(merging.slerp(0.3, a, b), merging.slerp(0.3, a.float(), b.float()).bfloat16())
    assert torch.equal(merging.slerp(0.3, a, b.float()), merging.slerp(0.3, a.float(), b.float()))


def test_a_gradient_runs_from_the_first_layer_to_the_last():
    names = [
        "model.embed_tokens.weight",
        *(f"model.layers.{n}.mlp.up_proj.weight" for n in range(5)),
        "model.norm.weight",
    ]
    depths = merging.depths(names)
    assert [depths[name] for name in names] == [0, 0, 0.25, 0.5, 0.75, 1, 0]
    assert [merging.t_of(name, [0.2, 0.6, 1.0], depths[name]) for name in names] == pytest.approx(
        [0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 0.2]
    )
    assert merging.depths(["model.layers.0.mlp.up_proj.weight"]).popitem()[1] == 1  # of a single layer, the end


def test_the_first_rule_that_fits_counts():
    rules = [
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "attn.q", "value": 0.9},
        {"filter": "*", "value": 0.3},
    ]
    assert merging.t_of("model.layers.3.self_attn.q_proj.weight", rules, 0.25) == 0.25
    assert merging.t_of("model.layers.3.mlp.up_proj.weight", rules, 0.25) == 0.3
    with pytest.raises(UserError, match=r"no rule is for model\.norm\.weight"):
        merging.t_of("model.norm.weight", rules[:2], 0)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("1.5", r"t: 1\.5 is not from 0 \(--model\) to 1"),
        ("[]", "t: an empty list"),
        ("[0.1, -0.1]", r"t: -0\.1 is not from 0"),
        ("[{filtr: mlp, value: 1}]", r"t\[0\]: unknown key 'filtr', did you mean 'filter'"),
        ("[{filter: mlp}]", r"t\[0\]: no value"),
        ("[{filter: mlp, value: 1}, {value: 1e-1}]", r"t\[1\]: value: expected a number, got the text '1e-1'"),
        ("[{filter: 3, value: 1}]", r"t\[0\]: filter: expected part of a tensor's name, got 3"),
        ("half", "t"),
        ("true", "t: expected"),
    ],
)
def test_a_wrong_t_is_named(setting, complaint):
    with pytest.raises(UserError, match=complaint):
        merging.check_setting(cli.resolve(merge.main, {"model": "a", "other": "b", "out": "c", "t": setting})["t"])


def test_a_shard_holds_one_tensor_in_memory_at_a_time(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(True), "c": torch.randn(4).bfloat16()}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    alive = []

    def tensor_of(name):
        assert all(reference() is None for reference in alive)
        made = tensors[name].clone()
        alive.append(weakref.ref(made))
        return made

    size = merging.write_shard(tmp_path / "x.safetensors", layout, tensor_of)
    assert size == 24 + 8 + 1
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert all(header[name]["data_offsets"][0] % layout[name][0].itemsize == 0 for name in layout)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# The script


def save(folder, noise=0.0, chat=CHAT, shard="1GB", special=("<|im_start|>", "<|im_end|>"), rows=None, **settings):
    """A tiny model; the same one for any noise, which is added to it."""
    tokenizer = tiny_tokenizer(special, chat)
    model = tiny_model(rows or len(tokenizer), **settings)
    torch.manual_seed(1)
    for parameter in model.parameters():
        few = 0.01 if parameter.ndim < 2 else 1  # norms stay nearly parallel, so that some tensors are merged linearly
        parameter.data += noise * few * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def edit(folder, change):
    """A model's tensors changed where they lie."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def tensors_of(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.fixture
def pair(tmp_path):
    return save(tmp_path / "a"), save(tmp_path / "b", noise=0.1, chat="{{ messages }}")


@pytest.fixture
def merged(tmp_path):
    """Merges two folders in this process; returns the output folder."""

    def run(model, other, t=0.5):
        merge.main(model=model, other=other, out=tmp_path / "out", t=t)
        return tmp_path / "out"

    return run


@pytest.fixture
def refused(merged, tmp_path):
    """Two folders that merge.py has to refuse; returns its complaint."""

    def run(*arguments, **settings):
        with pytest.raises(UserError) as caught:
            merged(*arguments, **settings)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


def test_every_tensor_is_merged_at_its_own_t(pair, script, tmp_path):
    model, other = pair
    (tmp_path / "merge.yaml").write_text(json.dumps({"t": RULES}))
    out = tmp_path / "out"
    done = script(
        "merge", f"--model={model}", f"--other={other}", f"--out={out}", f"--config={tmp_path / 'merge.yaml'}"
    )
    assert done.returncode == 0, done.stderr
    a, b, merged = (tensors_of(folder) for folder in (model, other, out))
    report = json.loads((out / "tensors.json").read_text())
    assert a.keys() == merged.keys() == report.keys()
    for name in a:
        attention = "self_attn" in name
        t = (0.6 if "layers.1" in name else 0.2) if attention else 1.0 if "mlp" in name else 0.5
        assert report[name]["t"] == t
        assert torch.equal(merged[name], merging.slerp(t, a[name], b[name])), name
    results = stage.read_manifest(out)["results"]
    assert results["tensors"].keys() == {"slerp", "lerp"}
    assert sum(results["tensors"].values()) == len(a)
    assert results["dtype"] == "float32"
    assert results["bytes"] == sum(value.numel() * 4 for value in a.values())
    assert results["degrees"]["largest"] == max(line["degrees"] for line in report.values())
    assert models.load(out)[1].chat_template == CHAT  # --model's
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in model.iterdir()} | {"tensors.json", "manifest.json"}


def test_a_second_run_gives_the_same_bytes_also_after_kill_9(pair, tmp_path, script):
    model, other = pair
    flags = [f"--model={model}", f"--other={other}"]
    assert script("merge", *flags, f"--out={tmp_path / 'whole'}").returncode == 0
    out = tmp_path / "out"
    program = [sys.executable, "-c", KILLED_AT_THE_FIFTH, *flags, f"--out={out}"]
    killed = subprocess.run(program, cwd=ROOT, capture_output=True, env=os.environ)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    assert (tmp_path / "out.partial" / "model.safetensors").exists()
    assert script("merge", *flags, f"--out={out}").returncode == 0
    assert not (tmp_path / "out.partial").exists()
    for name in ("model.safetensors", "tensors.json", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tmp_path, merged, tied):
    settings = {"tie_word_embeddings": tied}
    model, other = save(tmp_path / "a", **settings), save(tmp_path / "b", noise=0.1, **settings)
    if tied:  # some tools store the head all the same
        edit(model, lambda tensors: tensors.update({merging.HEAD: tensors["model.embed_tokens.weight"].clone()}))
    out = merged(model, other)
    assert (merging.HEAD in tensors_of(out)) == (not tied)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert (loaded.get_input_embeddings().weight is loaded.lm_head.weight) == tied
    assert stage.read_manifest(out)["results"]["tied"] == tied


def test_shards_stay_shards_and_the_wider_dtype_is_kept(tmp_path, merged):
    model, other = save(tmp_path / "a"), save(tmp_path / "b", noise=0.1)
    half = AutoModelForCausalLM.from_pretrained(model).bfloat16()
    (model / "model.safetensors").unlink()
    half.save_pretrained(model, max_shard_size="30KB")
    names = sorted(path.name for path in model.glob("model*.safetensors"))
    assert len(names) > 1
    config = json.loads((model / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as transformers 4 spells it
    (model / "config.json").write_text(json.dumps(config))
    out = merged(model, other, t=0.0)
    assert sorted(path.name for path in out.glob("model*.safetensors")) == names
    index = json.loads((out / merging.INDEX).read_text())
    for name, file in index["weight_map"].items():
        with safe_open(out / file, framework="pt") as opened:
            assert torch.equal(opened.get_tensor(name), half.get_parameter(name).float())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in half.parameters())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    assert json.loads((out / "config.json").read_text()) == config | {"torch_dtype": "float32"}


def test_buffers_of_whole_numbers_are_copied_if_they_agree(pair, merged, refused, tmp_path):
    for folder in pair:
        edit(folder, lambda tensors: tensors.update({"steps": torch.tensor([3])}))
    edit(pair[1], lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    out = merged(*pair)
    written = tensors_of(out)
    assert written["steps"].tolist() == [3]
    assert not any("inv_freq" in name for name in written)
    assert stage.read_manifest(out)["results"]["tensors"]["copied"] == 1
    out.rename(tmp_path / "before")
    edit(pair[1], lambda tensors: tensors.update({"steps": torch.tensor([4])}))
    assert "steps: whole numbers that differ" in refused(*pair)


def test_another_tokenizer_is_refused_in_favour_of_the_initialised_base(pair, script, tmp_path):
    other = save(tmp_path / "c", special=("<s>", "</s>"))
    done = script("merge", f"--model={pair[0]}", f"--other={other}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "different vocabularies (400 and 400 tokens)" in (complaint := done.stderr.splitlines()[-1])
    assert "checkpoints/<profile>/init" in complaint
    assert not (tmp_path / "out").exists()


def test_rows_padded_otherwise_are_refused(pair, refused, tmp_path):
    complaint = refused(pair[0], save(tmp_path / "c", rows=448))
    assert "weight: [400, 32] in" in complaint
    assert "[448, 32] in" in complaint
    assert "padded to another multiple" in complaint


def test_another_architecture_is_refused(pair, refused, tmp_path):
    complaint = refused(pair[0], save(tmp_path / "c", rms_norm_eps=0.5))
    assert "rms_norm_eps is 1e-06 and 0.5" in complaint


def test_a_missing_tensor_is_named_with_its_side(pair, refused):
    edit(pair[1], lambda tensors: [tensors.pop(f"model.layers.{n}.mlp.up_proj.weight") for n in (0, 1)])
    complaint = refused(*pair)
    assert f"model.layers.0.mlp.up_proj.weight and 1 more: in {pair[0]}, but not in {pair[1]}" in complaint
    assert f"in {pair[0]}, but not in {pair[1]}" in refused(pair[1], pair[0])


def test_a_filter_for_no_tensor_is_refused(pair, refused):
    complaint = refused(*pair, t=[{"filter": "self_atn", "value": 1.0}, {"value": 0.0}])
    assert "t[0]: filter: 'self_atn' is in no tensor's name, did you mean 'self_attn'?" in complaint


def test_broken_weights_are_named(pair, refused, tmp_path):
    path = pair[1] / "model.safetensors"
    whole = path.read_bytes()
    edit(pair[1], lambda tensors: tensors["model.norm.weight"].fill_(math.nan))
    assert "model.norm.weight" in (complaint := refused(*pair))
    assert "holds NaN" in complaint
    path.write_bytes(whole[:-10])
    assert f"{path}: damaged" in refused(*pair)
    path.write_bytes(whole)
    edit(
        pair[1],
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)}),
    )
    assert "stored as F8_E4M3; quantised" in refused(*pair)
    path.unlink()
    assert "neither model.safetensors nor" in refused(*pair)
    assert "no such file or folder" in refused(pair[0], tmp_path / "nowhere")
