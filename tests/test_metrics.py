import math

import pytest
import tiny_model
import torch
from tokenizers import Tokenizer, normalizers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from lib import metrics, models

TEXTS = [
    "Поезд остановился.",
    "На столе лежат старые письма, а рядом — чернильница и «перо».",
    "The table. Стол.\n\nДа",
    "я",
]


@torch.no_grad()
def naive_bits(model, ids):
    """The sum of -log2 softmax over one sequence, every token but the first."""
    if len(ids) < 2:
        return 0.0
    logs = model(torch.tensor([ids]), use_cache=False).logits.log_softmax(-1)[0]
    return -sum(logs[place, token].item() for place, token in enumerate(ids[1:])) / math.log(2)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_bits_equal_the_plain_sum_whatever_the_batch(model, tokenizer, batch_tokens):
    scores = metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=batch_tokens)
    expected = [naive_bits(model, [tokenizer.bos_token_id, *encode(tokenizer, text)]) for text in TEXTS]
    assert [score.bits for score in scores] == pytest.approx(expected, rel=1e-5)
    assert [score.bytes for score in scores] == [len(text.encode()) for text in TEXTS]
    assert [score.tokens for score in scores] == [len(encode(tokenizer, text)) for text in TEXTS]


def test_logits_exist_for_a_chunk_at_a_time(model, tokenizer, monkeypatch):
    whole = metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=4096)
    monkeypatch.setattr(metrics, "LOGITS_AT_ONCE", 3 * len(tokenizer))
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[0]))
    chunked = metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=4096)
    hook.remove()
    assert max(seen) == 3
    assert sum(seen) == sum(score.tokens for score in whole)
    assert [s.bits for s in chunked] == pytest.approx([s.bits for s in whole], rel=1e-6)


def test_windows_by_hand():
    assert list(metrics.windows(list(range(10)), 4)) == [
        ([0], [1, 2, 3, 4]),
        ([2, 3, 4], [5, 6]),
        ([4, 5, 6], [7, 8]),
        ([5, 6, 7, 8], [9]),
    ]
    assert list(metrics.windows([7], 4)) == []
    assert list(metrics.windows([], 4)) == []


def test_a_text_longer_than_the_window_is_the_sum_of_its_windows(model, tokenizer):
    ids = [tokenizer.bos_token_id, *encode(tokenizer, TEXTS[1])]
    window = 8
    assert len(ids) > 3 * window
    expected = naive_bits(model, ids[: window + 1])
    for begin in range(window + 1, len(ids), window // 2):
        end = min(begin + window // 2, len(ids))
        seen = ids[end - 1 - window : end]
        expected += naive_bits(model, seen) - naive_bits(model, seen[: len(seen) - (end - begin)])
    [score] = metrics.bits_per_byte(model, tokenizer, [TEXTS[1]], window=window, batch_tokens=64)
    assert score.bits == pytest.approx(expected, rel=1e-5)
    [wide] = metrics.bits_per_byte(model, tokenizer, [TEXTS[1]], window=512, batch_tokens=64)
    assert wide.bits != pytest.approx(score.bits, rel=1e-5)


def test_train_mode_is_suspended_and_restored(tokenizer):
    model = tiny_model.model(len(tokenizer), attention_dropout=0.5)
    expected = metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=100)
    model.train()
    assert metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=100) == expected
    assert model.training
    model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metrics.bits_per_byte(model, tokenizer, TEXTS, window=512, batch_tokens=100)
    assert model.training


def test_padded_rows_take_no_probability(tokenizer):
    model = tiny_model.model(len(tokenizer) + 24)
    ids = [tokenizer.bos_token_id, *encode(tokenizer, TEXTS[0])]
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0, :, : len(tokenizer)].log_softmax(-1)
    expected = -sum(logs[place, token].item() for place, token in enumerate(ids[1:])) / math.log(2)
    models.mask_padded_rows(model, len(tokenizer))
    [score] = metrics.bits_per_byte(model, tokenizer, TEXTS[:1], window=512, batch_tokens=100)
    assert score.bits == pytest.approx(expected, rel=1e-5)


def test_a_dummy_prefix_costs_bits_and_earns_no_byte():
    pieces = ["<s>", "</s>", "▁", "д", "а"]
    raw = Tokenizer(kinds.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    model = tiny_model.model(len(pieces))
    [score] = metrics.bits_per_byte(model, tokenizer, ["да да"], window=512, batch_tokens=100)
    assert score.bytes == 9
    assert score.tokens == 6
    assert score.bits == pytest.approx(naive_bits(model, [0, 2, 3, 4, 2, 3, 4]), rel=1e-5)


def test_what_stands_before_the_first_token(model):
    only_end = tiny_model.tokenizer()
    only_end.bos_token = None
    assert metrics.prefix_token(only_end) == only_end.eos_token_id
    neither = tiny_model.tokenizer()
    neither.bos_token = neither.eos_token = None
    assert metrics.prefix_token(neither) is None
    [score] = metrics.bits_per_byte(model, neither, TEXTS[:1], window=512, batch_tokens=100)
    assert score.bits == pytest.approx(naive_bits(model, encode(neither, TEXTS[0])), rel=1e-5)
    assert score.bytes == len(TEXTS[0].encode())


def test_choices_of_one_question_share_a_sequence(model):
    fed = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, named: fed.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    requests = [([5, 6, 7], [number]) for number in range(10, 14)] + [([5, 6], [7, 10]), ([9], [3])]
    found = metrics.log_probabilities(model, requests, batch_tokens=1000)
    hook.remove()
    assert fed == [(2, 3)]
    with torch.no_grad():
        logs = model(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1)
    assert [one.log_probability for one in found[:4]] == pytest.approx(logs[2, 10:14].tolist(), rel=1e-5)
    assert found[4].log_probability == pytest.approx((logs[1, 7] + logs[2, 10]).item(), rel=1e-5)
    best = int(logs[2].argmax())
    answers = metrics.log_probabilities(model, [([5, 6, 7], [best]), ([5, 6, 7], [best - 1])], batch_tokens=1000)
    assert [one.greedy for one in answers] == [True, False]


def test_summarise_is_a_ratio_of_sums():
    scores = [metrics.Score(8.0, 4, 2), metrics.Score(2.0, 16, 3)]
    found = metrics.summarise(scores, seed=1)
    assert found["value"] == 0.5
    assert (found["low"], found["high"]) == (0.125, 2.0)  # one document drawn twice, either of them
    assert (found["documents"], found["bytes"], found["tokens"]) == (2, 20, 5)
    assert found["perplexity_per_token"] == 4.0
    assert metrics.summarise(scores, seed=1) == found


def test_wilson_interval_and_chance():
    found = metrics.accuracy([True] * 8 + [False] * 2, [0.25] * 5 + [0.5] * 5)
    assert found.pop("low") == pytest.approx(0.4902, abs=1e-4)
    assert found.pop("high") == pytest.approx(0.9433, abs=1e-4)
    assert found == {"metric": "accuracy", "value": 0.8, "items": 10, "chance": 0.375}
