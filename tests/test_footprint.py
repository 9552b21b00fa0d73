"""What training takes of memory, by formula, against what torch, transformers and DeepSpeed really take."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_model import model as tiny_model
from torch.profiler import ProfilerActivity, profile
from transformers import MistralConfig

from lib import attention, footprint, losses, shapes
from lib.errors import UserError

ROOT = Path(__file__).parents[1]
# Parameters by the model cards (the sizes of their safetensors).
PARAMETERS = {
    "mistral-7b": 7_241_732_096,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "nemo-12b": 12_247_782_400,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("base", PARAMETERS)
def test_shapes_that_are_kept_have_the_parameters_that_were_published(base):
    config, _ = shapes.read(ROOT / "configs" / "sources" / f"{base}.yaml")
    model = shapes.without_weights(config, config.vocab_size)
    assert model.num_parameters() == PARAMETERS[base]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_shape_is_the_given_ones_then_the_fetched_models_then_the_kept_ones(tmp_path):
    base, given, fetched = ROOT / "configs/sources/mistral-7b.yaml", tmp_path / "given.yaml", tmp_path / "model"
    given.write_text("model_type: llama\nhidden_size: 64\n", encoding="utf-8")
    fetched.mkdir()
    (fetched / "config.json").write_text('{"model_type": "mistral", "hidden_size": 96}', encoding="utf-8")
    widths = [shapes.read(base, *where)[0].hidden_size for where in ((fetched, given), (fetched, None), (None, None))]
    assert widths == [64, 96, 4096]
    for broken in ("hidden_size: 64", "model_type: llama\nhidden_size: 7", "model_type: none"):
        given.write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"given\.yaml: not a model's config"):
            shapes.read(base, None, given)


def test_an_unknown_base_without_a_hub_says_what_to_do(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("type: hub\npackage: some/model\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"some/model: the hub gives no config\.json \(.*--model_config"):
        shapes.read(mine)
    mine.write_text("type: pypi\npackage: some-model\n", encoding="utf-8")
    with pytest.raises(UserError, match="not known before it is fetched"):
        shapes.read(mine)


def test_states_of_plain_training_are_what_a_step_leaves_behind():
    model = tiny_model(400)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    parts = footprint.states(model.num_parameters(), split=None, bf16=False, accumulation=2)
    assert parts["optimizer"] == sum(value.nbytes for value in moments)
    assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert footprint.states(10, split=None, bf16=False) == {
        "weights": 40,
        "gradients": 0,
        "optimizer": 80,
        "buffers": 0,
    }
    assert footprint.states(10, split=None, bf16=True, processes=2)["buffers"] == 40


@pytest.mark.parametrize("processes", [1, 8, 16])
def test_split_states_are_what_deepspeed_says(processes):
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    parameters = 7_307_526_144
    for name in ("zero2", "zero3"):
        split = footprint.zero(ROOT / "configs" / "deepspeed" / f"{name}.json")
        parts = footprint.states(parameters, split=split, bf16=True, processes=processes)
        given = {"num_gpus_per_node": processes, "cpu_offload": False}
        if split.stage == 2:
            _, said = stage_1_and_2.estimate_zero2_model_states_mem_needs(parameters, **given)
            assert parts["buffers"] == 2 * 5e8 * 2  # two buckets of 500 million bf16 numbers
        else:
            _, said, _ = stage3.estimate_zero3_model_states_mem_needs(parameters, 0, cpu_offload_params=False, **given)
            assert parts["buffers"] == 2 * 5e8 * 2 + 1e9 * 2  # and a billion gathered weights
        assert sum(parts.values()) - parts["buffers"] == pytest.approx(said)


def test_activations_of_a_layer_are_those_added_up_by_hand():
    hidden, query, kv, inner, heads, length = 256, 512, 128, 640, 8, 384
    shape = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    one, two = (
        footprint.activations(MistralConfig(num_hidden_layers=layers, vocab_size=64, **shape), 2, length, bf16=True)
        for layers in (1, 2)
    )
    # A norm keeps its input and its root mean square in fp32, the quotient, and the scaled quotient that the matrices read; then
    # queries and keys (turned), values, attention's output and log-sum in fp32; gate, its silu, up, and their product.
    norm = 4 * hidden + 4 + 2 * hidden + 2 * hidden
    by_hand = 2 * norm + 2 * (query + kv) + 2 * kv + 2 * query + 4 * heads + 4 * 2 * inner
    assert (two - one) / (2 * length) == pytest.approx(by_hand, rel=0.001)


@pytest.mark.parametrize("ends", [[0, 100, 300, 512, 1024], [0, 512, 1024]])
def test_activations_without_data_are_those_of_a_real_pass(ends):
    model = tiny_model(64, num_key_value_heads=2, attn_implementation=attention.NAME).train()
    ids = torch.zeros(2, 512, dtype=torch.long)
    begins = torch.zeros(1024, dtype=torch.long)
    begins[ends[:-1]] = 1
    places = (torch.arange(1024) - torch.tensor(ends)[begins.cumsum(0) - 1]).view(2, 512)
    packed = {"position_ids": places, **attention.inside_documents(model, places)}
    real = footprint._kept(model, lambda: model.get_decoder()(input_ids=ids, use_cache=False, **packed))
    counted = footprint.activations(model.config, 2, 512, bf16=False, documents=ends)
    assert counted == pytest.approx(real, rel=0.01)


def test_recomputed_activations_are_the_layers_inputs_and_one_layers_own():
    config = MistralConfig(
        num_hidden_layers=8,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    whole = footprint.activations(config, 1, 128, bf16=True)
    assert footprint.activations(config, 1, 128, bf16=True, checkpointing=True) == 8 * 128 * 64 * 2 + whole / 8


@pytest.mark.parametrize(("reference", "pieces"), [(0, False), (5000, False), (3000, True)])
def test_the_head_takes_what_is_said(reference, pieces):
    positions, rows, hidden, chunk = 600, 5000, 64, 128
    torch.manual_seed(0)
    states = torch.randn(positions, hidden, requires_grad=True)
    weight = torch.randn(rows, hidden, requires_grad=True)
    asked = None
    if reference:
        asked = losses.Distribution(torch.randn(positions, hidden), torch.randn(reference, hidden))
    if pieces:
        asked = asked._replace(
            at=torch.arange(1, positions), hidden=asked.hidden[1:], pieces=torch.randint(reference, (rows,))
        )
    losses._matrices.cache_clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        losses.head_loss(states, weight, torch.randint(rows, (positions,)), reference=asked, chunk=chunk)
    held = list(
        itertools.accumulate(e.nbytes() for e in watched.profiler.kineto_results.events() if e.name() == "[memory]")
    )
    said = footprint.head(
        positions, rows, hidden, chunk=chunk, bf16=False, split=False, reference=reference, pieces=pieces
    )
    assert said == pytest.approx(max(held), rel=0.04)


def test_the_head_works_in_the_same_matrices_pass_after_pass():
    losses._matrices.cache_clear()
    weight = torch.randn(300, 16)
    for positions in (128, 300, 115):
        states, targets = torch.randn(positions, 16), torch.randint(300, (positions,))
        ours = losses.head_loss(states, weight, targets, chunk=128)
        assert ours.loss == pytest.approx(losses.plain_head_loss(states, weight, targets).loss.item(), rel=1e-5)
    told = losses._matrices.cache_info()
    assert (told.misses, told.hits) == (1, 2)
