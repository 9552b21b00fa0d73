"""lib/speed.py: what is read and what is made, in which passes, and the arithmetic of the times."""

import itertools

import pytest
import torch

from lib import metrics, speed, unseen
from lib.errors import UserError

TEXT = "На столе лежат старые письма. Поезд остановился посреди поля, правильно? " * 4


def test_a_prompt_and_what_follows_it():
    prompt, rest = speed.pieces([TEXT, TEXT], 100)
    assert TEXT.startswith(f"{prompt} {rest}")
    assert 90 <= len(prompt) <= 100
    assert 0 < len(rest) <= 5
    # Of too little text the end is left to be made; documents follow each other.
    prompt, rest = speed.pieces(["раз два три четыре пять", "шесть"], 1000)
    assert (prompt, rest) == ("раз два три четыре пять", "ш")


def test_the_prompt_is_read_in_one_pass_and_the_rest_token_by_token(model, tokenizer):
    passes, logits = [], []
    hooks = [
        model.model.register_forward_pre_hook(lambda _, __, named: passes.append(named["input_ids"]), with_kwargs=True),
        model.lm_head.register_forward_hook(lambda _, __, out: logits.append(out[0])),
    ]
    prompt, rest = "Поезд остановился посреди", "поля, правильно?"
    found = speed.one_text(model, tokenizer, prompt, rest)
    for hook in hooks:
        hook.remove()
    ids = tokenizer(f"{prompt} {rest}", add_special_tokens=False)["input_ids"]
    read = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert found["prompt"]["tokens"] == 1 + read
    assert found["generation"]["tokens"] == len(ids) - read
    assert (found["prompt"]["characters"], found["generation"]["characters"]) == (len(prompt), len(rest))
    one_repeat = [[metrics.prefix_token(tokenizer), *ids[:read]], *([token] for token in ids[read:])]
    assert [each[0].tolist() for each in passes] == one_repeat * (speed.REPEATS + 1)
    # From the cache comes what reading the whole would give, and only the last position's logits are made.
    with torch.no_grad():
        whole = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0, read:]
    torch.testing.assert_close(torch.cat(logits[-len(one_repeat) :]), whole, rtol=1e-4, atol=1e-4)


def test_medians_without_the_warm_up(model, tokenizer, monkeypatch):
    # Reading takes 100, 1, 2, 3, 4, 50 s, making ten times as long.
    lengths = [length for repeat in (100, 1, 2, 3, 4, 50) for length in (repeat, 10 * repeat)]
    clock = itertools.accumulate((step for length in lengths for step in (0, length)), initial=0)
    next(clock)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    found = speed.one_text(model, tokenizer, "Поезд поезд поезд", "поля")
    assert found["prompt"]["characters_per_second"] == 17 / 3
    assert (found["prompt"]["slowest"], found["prompt"]["fastest"]) == (17 / 50, 17)
    assert found["prompt"]["tokens_per_second"] == found["prompt"]["tokens"] / 3
    assert found["generation"]["characters_per_second"] == 4 / 30


def test_conditions_are_told_and_a_text_too_long_is_refused(model, tokenizer):
    found = speed.measure(model, tokenizer, {"ru": unseen.Drawn(["a"], [TEXT])}, 60)
    assert found["device"]
    assert (found["threads"], found["dtype"]) == (torch.get_num_threads(), "float32")
    assert set(found["languages"]) == {"ru"}
    with pytest.raises(UserError, match=r"--speed_characters: .* made for 2,048; say fewer"):
        speed.measure(model, tokenizer, {"ru": unseen.Drawn(["a"], [TEXT * 30])}, 9000)
