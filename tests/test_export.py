"""export.py: the folder and the GGUF file of tiny models, read back; and what hub.problems says of each defect planted in a folder.

That llama.cpp computes the same: tests/peers/test_export.py.
"""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import TokenType
from safetensors.torch import load_file, save_file
from tiny_model import model as tiny_model
from tiny_model import save as save_tiny
from tiny_model import tokenizer as tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
from lib import generation, gguf_model, hub, models, stage
from lib.errors import UserError

CARD = "---\nlicense: apache-2.0\nlanguage: [ru, en]\ntags: [text-generation]\n---\n# A model\n"
FOLDER = ["README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"]
FOLDER += ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def tiny(tmp_path):
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def exported(tmp_path):
    """Exports a folder in this process; returns the output folder."""

    def run(model, **settings):
        export.main(model=model, name="it", out=tmp_path / "out", **settings)
        return tmp_path / "out"

    return run


def read(out):
    (file,) = out.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor):
    """A GGUF tensor's numbers, in the shape that torch has."""
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).view(*map(int, tensor.shape[::-1]))


def test_a_folder_for_the_hub_and_a_file_for_llama_cpp(tiny, tmp_path, script):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"use_cache": False, "_model_name_or_path": "/home/me"}))
    (tmp_path / "card.md").write_text(CARD)
    out = tmp_path / "out"
    done = script("export", f"--model={tiny}", "--name=my-model", f"--card={tmp_path / 'card.md'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert f"hf upload my-model {out}/hub\n" in done.stdout
    assert f"hf upload my-model-GGUF {out}/my-model-F16.gguf\n" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["hub", "manifest.json", "my-model-F16.gguf"]
    assert sorted(path.name for path in (out / "hub").iterdir()) == FOLDER
    assert (out / "hub" / "README.md").read_text() == CARD
    config = json.loads((out / "hub" / "config.json").read_text())
    assert (config["use_cache"], config["dtype"], "_model_name_or_path" in config) == (True, "bfloat16", False)
    weights, saved = load_file(tiny / "model.safetensors"), load_file(out / "hub" / "model.safetensors")
    assert weights.keys() == saved.keys()
    assert all(torch.equal(saved[name], weights[name].bfloat16()) for name in weights)
    results = stage.read_manifest(out)["results"]
    assert (results["rows"], results["vocabulary"], results["ends"]) == (400, 400, ["<|im_end|>"])
    assert results["vllm_tensor_parallel"] == [1, 2, 4]
    fields, tensors = read(out)
    assert fields["general.name"] == "my-model"
    assert (fields["general.license"], fields["general.languages"]) == ("apache-2.0", ["ru", "en"])
    assert (fields["general.architecture"], fields["general.file_type"]) == ("llama", gguf.LlamaFileType.MOSTLY_F16)
    shape = ("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size")
    assert [fields[f"llama.{key}"] for key in shape] == [2048, 32, 2, 64, 400]
    heads = ("head_count", "head_count_kv", "key_length", "value_length")
    assert [fields[f"llama.{'rope' if key == 'x' else 'attention'}.{key}"] for key in heads] == [4, 4, 8, 8]
    assert fields["llama.rope.dimension_count"] == 8
    assert fields["llama.rope.freq_base"] == 10000.0
    assert fields["tokenizer.chat_template"] == tiny_tokenizer().chat_template
    assert len(tensors) == len(weights) == 2 * 9 + 3
    made = {name: values(tensor) for name, tensor in tensors.items()}
    assert torch.equal(made["token_embd.weight"], weights["model.embed_tokens.weight"].half().float())
    assert torch.equal(made["output.weight"], weights["lm_head.weight"].half().float())
    assert torch.equal(made["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"].half().float())
    assert torch.equal(made["blk.1.attn_v.weight"], weights["model.layers.1.self_attn.v_proj.weight"].half().float())
    query = weights["model.layers.1.self_attn.q_proj.weight"].half().float()
    assert torch.equal(made["blk.1.attn_q.weight"][8:16], query[[8, 12, 9, 13, 10, 14, 11, 15]])
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_rows_of_a_head_are_laid_by_pairs():
    rows = torch.arange(16).view(8, 2)
    assert gguf_model.neighbours(rows, 2)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    assert gguf_model.neighbours(rows, 1)[:, 0].tolist() == [0, 8, 2, 10, 4, 12, 6, 14]


@pytest.mark.parametrize(
    ("kind", "file_type", "stored"), [("f32", 0, "F32"), ("bf16", 32, "BF16"), ("q8_0", 7, "Q8_0")]
)
def test_kinds_of_matrices(tiny, exported, kind, file_type, stored):
    fields, tensors = read(exported(tiny, gguf=kind, dtype="float32"))
    assert fields["general.file_type"] == file_type
    weights = load_file(tiny / "model.safetensors")
    found, wanted = values(tensors["blk.0.ffn_up.weight"]), weights["model.layers.0.mlp.up_proj.weight"]
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == stored
    if kind == "q8_0":  # blocks of 32 weights, 127 steps from zero to the largest; the step is kept in fp16
        steps = wanted.view(-1, 32).abs().amax(1, keepdim=True) / 127
        assert ((found - wanted).view(-1, 32).abs() <= 0.5 * steps + 127 * steps * 2**-11 + 1e-9).all()
        assert not torch.equal(found, wanted)
    else:
        assert torch.equal(found, (wanted.bfloat16() if kind == "bf16" else wanted).float())
    assert torch.equal(values(tensors["blk.0.attn_norm.weight"]), weights["model.layers.0.input_layernorm.weight"])


def save(folder, rows=400, chat=True, large=False, **settings):
    tokenizer = tiny_tokenizer(**({} if chat else {"chat": None}))
    model = tiny_model(rows, **settings)
    if large:
        model.get_input_embeddings().weight.data[7, 7] = 1e5
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    models.save(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_padded_rows_go_or_are_made_anew(tmp_path, exported, tied):
    out = exported(save(tmp_path / "padded", rows=448, tie_word_embeddings=tied), dtype="float32")
    fields, tensors = read(out)
    before = load_file(tmp_path / "padded" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_file(out / "hub" / "model.safetensors")["model.embed_tokens.weight"], before[:400])
    assert (fields["llama.vocab_size"], len(fields["tokenizer.ggml.tokens"])) == (400, 400)
    assert ("output.weight" in tensors) != tied
    assert "suppress_tokens" not in json.loads((out / "hub" / "generation_config.json").read_text())
    out = exported(tmp_path / "padded", pad_to_multiple=128, dtype="float32")
    fields, tensors = read(out)
    after = load_file(out / "hub" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(after[:400], before[:400])
    assert after.shape[0] == json.loads((out / "hub" / "config.json").read_text())["vocab_size"] == 512
    assert not after[400:].any()
    assert json.loads((out / "hub" / "generation_config.json").read_text())["suppress_tokens"] == list(range(400, 512))
    assert fields["tokenizer.ggml.token_type"][400:] == [TokenType.UNUSED] * 112


def test_shards_are_named_as_transformers_names_them(tiny, exported):
    out = exported(tiny, shard_gb=5e-5, gguf="none")
    names = sorted(path.name for path in (out / "hub").glob("*.safetensors"))
    assert len(names) > 1
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert stage.read_manifest(out)["results"]["shards"] == len(names)
    assert not list(out.glob("*.gguf"))


def test_rotary_factors_of_llama3(tmp_path, exported):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    _, tensors = read(exported(save(tmp_path / "m", rope_parameters=rope)))
    # Wavelengths 6.3, 63, 628 and 6283: those under 128/4 stay, those over 128 are 8 times longer, between them it is mixed by
    # (128/62.8 - 1) / 3 = 0.346: 1 / (0.654/8 + 0.346) = 2.34.
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, [1, 2.3389, 8, 8], rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "given", "complaint"),
    [
        ({"hidden_act": "gelu"}, {}, "its activation is gelu, not silu; gguf: none leaves"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, {}, "embedding is 'dynamic'"),
        ({"mlp_bias": True}, {}, r"llama\.cpp has no place for model\.layers\.0\.mlp\.\w+_proj\.bias"),
        ({"chat": False}, {}, "no chat template"),
        ({"large": True}, {"gguf": "none", "dtype": "float16"}, "--dtype=float16: a weight is too large"),
        ({"large": True}, {}, "a weight is too large for fp16; take gguf: bf16"),
        ({}, {"pad_to_multiple": 0}, "pad_to_multiple from 1"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, exported, settings, given, complaint):
    folder = save(tmp_path / "m", **settings)
    with pytest.raises(UserError, match=complaint):
        exported(folder, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("card", "complaint"),
    [("# A model\n", "it has no metadata block"), ("---\nlicense: [a\n---\n", "the Hub can't read its metadata block")],
)
def test_a_card_without_metadata_is_refused(tiny, tmp_path, exported, card, complaint):
    (tmp_path / "card.md").write_text(card)
    with pytest.raises(UserError, match=complaint):
        exported(tiny, card=tmp_path / "card.md")


def rewrite(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def spoil(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def another_weight(tensors):
    tensors["model.norm.weight"][3] += 0.5


def padding_that_is_not_zero(tensors):
    tensors["lm_head.weight"][430] = 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda hub: (hub / "chat_template.jinja").unlink(), "chat_template.jinja is missing"),
        (lambda hub: (hub / "pytorch_model.bin").touch(), "pytorch_model.bin: pickled weights"),
        (lambda hub: (hub / "consolidated.safetensors").touch(), "another format's"),
        (lambda hub: (hub / "old.safetensors").touch(), "where ['model.safetensors'] belong"),
        (lambda hub: rewrite(hub / "config.json", architectures=None), "architectures is None"),
        (lambda hub: rewrite(hub / "config.json", use_cache=False), "use_cache is off"),
        (
            lambda hub: rewrite(hub / "generation_config.json", eos_token_id=7),
            "eos_token_id is 7, answers end with [1]",
        ),
        (
            lambda hub: rewrite(hub / "generation_config.json", suppress_tokens=None),
            "suppress_tokens is not the 48 rows",
        ),
        (lambda hub: spoil(hub / "model.safetensors", another_weight), "model.norm.weight is not what was saved"),
        (lambda hub: spoil(hub / "model.safetensors", padding_that_is_not_zero), "rows of the head beyond"),
        (
            lambda hub: spoil(hub / "model.safetensors", lambda t: t.pop("model.norm.weight")),
            "missing_keys: ['model.norm",
        ),
        (lambda hub: models.save_tokenizer(tiny_tokenizer(size=350), hub), "gives other ids than the tokenizer"),
        (
            lambda hub: models.save_tokenizer(tiny_tokenizer(chat="hello"), hub),
            "the chat template is missing or another",
        ),
    ],
)
def test_a_defect_of_the_folder_is_named(tmp_path, exported, change, complaint):
    folder = exported(save(tmp_path / "m"), pad_to_multiple=64, gguf="none", dtype="float32") / "hub"
    source, tokenizer = AutoModelForCausalLM.from_pretrained(folder), models.load_tokenizer(folder)
    ends = generation.end_tokens(source, tokenizer)
    assert hub.problems(folder, source, tokenizer, ends) == []
    change(folder)
    found = hub.problems(folder, source, tokenizer, ends)
    assert any(complaint in problem for problem in found), found


def test_numbers_of_gpus_that_vllm_shares_a_model_over():
    mistral = {"vocab_size": 32000, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    assert hub.tensor_parallel(mistral) == [1, 2, 4, 8, 16]
    smollm2 = {"vocab_size": 98304, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    assert hub.tensor_parallel(smollm2) == [1, 3]
    assert hub.tensor_parallel(smollm2 | {"vocab_size": 98250}) == [1, 3]  # padded to 98,304 by vLLM
    few_keys = {"vocab_size": 49152, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 3072}
    assert hub.tensor_parallel(few_keys) == [
        1,
        2,
        4,
        12,
    ]  # 3 and 6 neither divide four key heads nor are divided by them


def test_a_sliding_window_is_named_as_what_llama_cpp_lacks(tmp_path, exported, capsys):
    config = json.loads((save(tmp_path / "m") / "config.json").read_text())
    mistral = config | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 512}
    (tmp_path / "m" / "config.json").write_text(json.dumps(mistral))
    out = exported(tmp_path / "m")
    assert stage.read_manifest(out)["results"]["architectures"] == ["MistralForCausalLM"]
    assert "beyond 512 tokens it attends to all before" in stage.read_manifest(out)["results"]["limits"][0]
    assert AutoTokenizer.from_pretrained(out / "hub").is_fast
