"""Sequences that begin alike, read as one: rows and masks by hand, and the same log-probabilities as each alone."""

import pytest
import tiny_model
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from lib import metrics, prefixes

QUESTION = [5, 6, 7, 8]
EXAMPLES = list(range(20, 60))


@pytest.fixture(scope="module")
def model():
    return tiny_model.model(200)


def requests():
    """Two choices of several tokens, a letter, a question of its own, and two questions after the same examples."""
    return [
        (QUESTION, [9, 10, 11]),
        (QUESTION, [9, 12]),
        (QUESTION, [13]),
        ([90], [91, 92]),
        ([*EXAMPLES, 61, 62], [63, 64, 65]),
        ([*EXAMPLES, 61, 62], [66, 67]),
        ([*EXAMPLES, 70], [71, 72]),
        ([1], EXAMPLES),
    ]


@torch.no_grad()
def alone(model, context, continuation):
    """(log p, greedy) of one request, by the formula."""
    logs = model(torch.tensor([[*context, *continuation]]), use_cache=False).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    found = [
        (logs[place, token].item(), token == logs[place].argmax())
        for place, token in zip(places, continuation, strict=True)
    ]
    return sum(value for value, _ in found), all(best for _, best in found)


def widths(model):
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, named: seen.append((tuple(named["input_ids"].shape), "attention_mask" in named)), with_kwargs=True
    )
    return seen, hook


def test_a_row_by_hand():
    [row] = prefixes.lay_out([[1, 2, 3, 4], [1, 2, 5], [1, 2]])
    assert row.tokens == [1, 2, 3, 4, 5]
    assert row.positions == [0, 1, 2, 3, 2]
    assert {number: places.tolist() for number, places in row.places.items()} == {
        0: [0, 1, 2, 3],
        1: [0, 1, 4],
        2: [0, 1],
    }
    assert row.is_tree
    assert prefixes.seen(row, 6).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],  # padding sees itself: a line that sees nothing would be NaN
    ]


def test_only_what_has_much_in_common_shares_a_row_and_rows_are_limited():
    def laid(*sequences, **limits):
        return [row.tokens for row in prefixes.lay_out(sequences, **limits)]

    assert laid([1, 2, 3, 4, 5], [1, 6, 7, 8, 9]) == [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]]
    assert laid([1, 2, 3, 4, 5], [1, 2, 7, 8, 9]) == [[1, 2, 3, 4, 5, 7, 8, 9]]
    assert laid([1, 2, 3], [1, 2, 4], [1, 2, 5], longest=4) == [[1, 2, 3, 4], [1, 2, 5]]
    assert laid([1, 2, 3], [1, 2, 3], [1, 2], [1, 2, 4], longest=0) == [[1, 2, 3], [1, 2, 4]]
    assert laid() == []


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_shared_beginnings_change_no_score(model, batch_tokens):
    seen, hook = widths(model)
    found = metrics.log_probabilities(model, requests(), batch_tokens=batch_tokens)
    hook.remove()
    assert any(masked for _, masked in seen)
    assert sum(rows * width for (rows, width), _ in seen) < sum(len(a) + len(b) - 1 for a, b in requests())
    for one, request in zip(found, requests(), strict=True):
        expected, greedy = alone(model, *request)
        assert one.log_probability == pytest.approx(expected, abs=1e-4)
        assert one.greedy == greedy


def test_a_model_that_knows_no_trees_reads_each_sequence_alone(monkeypatch):
    """Without rotary positions, with other attention, or past its sliding window."""
    model = tiny_model.model(200)
    assert prefixes.can_share(model, 48)
    seen, hook = widths(model)
    model.config._attn_implementation = "eager"
    assert not prefixes.can_share(model, 48)
    found = metrics.log_probabilities(model, requests(), batch_tokens=4096)
    hook.remove()
    assert not any(masked for _, masked in seen)
    assert found[4].log_probability == pytest.approx(alone(model, *requests()[4])[0], abs=1e-4)
    model.config._attn_implementation = "sdpa"
    model.config.sliding_window = 47
    assert not prefixes.can_share(model, 48)
    assert prefixes.can_share(model, 47)
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not prefixes.can_share(model, 47)
    model.config.layer_types, model.config.rope_parameters = None, None
    assert not prefixes.can_share(model, 47)


def test_layers_of_both_kinds_read_trees():
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=200, initializer_range=0.3, **shape, **layers)).eval()
    assert prefixes.can_share(model, 44)
    found = metrics.log_probabilities(model, requests(), batch_tokens=4096)
    for one, request in zip(found, requests(), strict=True):
        assert one.log_probability == pytest.approx(alone(model, *request)[0], abs=1e-3)
