import json

import pytest
import tiny_model
import torch
from transformers import MistralConfig, MistralForCausalLM

from lib import attention, machine

POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]])


@pytest.fixture(autouse=True, params=[0, 4, 256])
def shortest(request, monkeypatch):
    """Documents by torch's kernel, by the plain formula, and some by either."""
    monkeypatch.setattr(attention, "SHORT", request.param)
    return request.param


def outputs(model, implementation, ids, positions=POSITIONS):
    """Logits, and gradients of a scalar of them, by one implementation."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    packed = {"position_ids": positions, **attention.inside_documents(model, positions)}
    logits = model(input_ids=ids, use_cache=False, **packed).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return {"logits": logits.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def same(model, ids, positions=POSITIONS):
    expected = outputs(model, "eager", ids, positions)
    for name, found in outputs(model, attention.NAME, ids, positions).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def random_ids(shape=POSITIONS.shape):
    return torch.randint(60, shape, generator=torch.Generator().manual_seed(0))


def test_documents_end_where_positions_restart_and_where_rows_end():
    assert attention.boundaries(POSITIONS).tolist() == [0, 4, 6, 8, 16]
    # The rest of a document that the row before could not hold, should a row ever begin inside one.
    assert attention.boundaries(torch.tensor([[0, 1, 2], [3, 4, 0]])).tolist() == [0, 3, 5, 6]


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_it_is_masked_attention_with_any_number_of_key_heads(heads):
    same(tiny_model.model(60, num_key_value_heads=heads), random_ids())


def test_it_is_masked_attention_in_one_long_row():
    same(tiny_model.model(60), random_ids((1, 16)), POSITIONS.view(1, 16))


def test_it_is_masked_attention_when_activations_are_computed_again():
    model = tiny_model.model(60).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    same(model, random_ids())


@pytest.mark.parametrize("window", [3, 16])
def test_a_sliding_window_shorter_than_a_document_is_kept_to(window):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": None}
    config = MistralConfig(vocab_size=60, sliding_window=window, **shape, **more)
    same(MistralForCausalLM(config).eval(), random_ids())


def test_without_boundaries_it_is_torchs_own():
    model, ids = tiny_model.model(60), random_ids()
    padded = {"attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}
    model.set_attn_implementation("sdpa")
    expected = model(input_ids=ids, **padded).logits
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(model(input_ids=ids, **padded).logits, expected)


def test_no_pair_of_two_documents_is_computed(monkeypatch):
    model, lengths = tiny_model.model(60), []
    model.set_attn_implementation(attention.NAME)

    def watch(module, name):
        real = getattr(module, name)

        def seen(query, *args, **kwargs):
            lengths.append(query.shape[2])
            return real(query, *args, **kwargs)

        monkeypatch.setattr(module, name, seen)

    watch(torch.nn.functional, "scaled_dot_product_attention")
    watch(attention, "_plain")
    packed = {"position_ids": POSITIONS, **attention.inside_documents(model, POSITIONS)}
    model(input_ids=random_ids(), use_cache=False, **packed)
    assert lengths == [4, 2, 2, 8] * 2


def test_what_auto_takes_and_that_a_saved_model_does_not_name_it(tmp_path, monkeypatch):
    assert machine.choose_attention("auto") == attention.NAME
    monkeypatch.setattr(machine, "on_cuda", lambda: True)
    assert machine.choose_attention("auto") == "sdpa"
    model = tiny_model.model(60)
    model.set_attn_implementation(attention.NAME)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
