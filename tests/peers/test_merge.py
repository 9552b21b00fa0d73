"""merge.py against mergekit's `slerp`, tensor by tensor, on pairs of small models."""

import json

import peer
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import tokenizer as tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = peer.needs_peers

# mergekit's own example: attention and MLP run against each other over the layers.
EXAMPLE = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
LAYERS = 4


def save(folder, *, other, dtype, **settings):
    """A model, or another near it: angles from none to a right one and opposite ones, on both sides of mergekit's threshold."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **settings))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        parameter.data += torch.randn_like(parameter) * 0.01  # norms begin as ones
        if other and name.endswith("layers.0.input_layernorm.weight"):
            parameter.data.zero_()
        elif other and name.endswith("o_proj.weight"):
            parameter.data *= -1
        elif other:
            parameter.data += torch.randn_like(parameter) * parameter.data.std() * (0, 0.02, 0.04, 0.3, 3)[number % 5]
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def theirs(model, other, setting, out):
    config = out.with_name("mergekit.yml")
    models = [{"model": str(model)}, {"model": str(other)}]
    content = {"merge_method": "slerp", "base_model": str(model), "models": models, "parameters": {"t": setting}}
    config.write_text(json.dumps(content), encoding="utf-8")
    peer.run("mergekit-yaml", config, out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    ("setting", "dtypes", "layers", "tied"),
    [
        (EXAMPLE, (torch.float32, torch.float32), LAYERS, True),
        (EXAMPLE, (torch.bfloat16, torch.float32), LAYERS, False),
        ([0.1, 0.9, 0.4], (torch.bfloat16, torch.bfloat16), LAYERS, False),
        ([0.1, 0.9], (torch.float64, torch.float64), 1, True),
        (0.3, (torch.float16, torch.bfloat16), LAYERS, False),
    ],
    ids=["fp32, tied", "bf16+fp32", "bf16", "fp64, one layer, tied", "fp16+bf16"],
)
def test_the_same_tensors(tmp_path, setting, dtypes, layers, tied):
    shape = {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    model = save(tmp_path / "model", other=False, dtype=dtypes[0], **shape)
    other = save(tmp_path / "other", other=True, dtype=dtypes[1], **shape)
    out = tmp_path / "ours"
    peer.script("merge", f"--model={model}", f"--other={other}", f"--out={out}", f"--t={json.dumps(setting)}")
    a, b = load_file(out / "model.safetensors"), theirs(model, other, setting, tmp_path / "theirs")
    assert {name: tensor.dtype for name, tensor in a.items()} == {name: tensor.dtype for name, tensor in b.items()}
    apart = {name: ((a[name] - b[name]).abs().max() / b[name].abs().max()).item() for name in a}
    report = json.loads((out / "tensors.json").read_text())
    rules = [line["rule"] for line in report.values()]
    largest = max(apart, key=apart.__getitem__)
    print(f"{len(a)} tensors ({rules.count('lerp')} lerp): at most {apart[largest]:.1e} apart, in {largest}")
    assert apart[largest] <= torch.finfo(torch.float32).eps
    assert rules.count("lerp") >= layers
    assert rules.count("slerp") >= layers
