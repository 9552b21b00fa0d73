"""Which tokens of a dialogue count, id by id; which dialogues are refused."""

import json

import pytest
from tiny_model import tokenizer as tiny_tokenizer

from lib import dialogues
from lib.errors import UserError
from lib.losses import IGNORED

TURNS = [
    {"role": "system", "content": "Ты помощник."},
    {"role": "user", "content": "Сколько будет 2+2?"},
    {"role": "assistant", "content": "Четыре."},
    {"role": "user", "content": "А 3+3?"},
    {"role": "assistant", "content": "Шесть."},
]


def test_only_answers_and_their_end_tokens_count():
    tokenizer = tiny_tokenizer()
    ids, labels = dialogues.encode(TURNS, tokenizer)
    expected = []
    for turn in TURNS:
        head = tokenizer(f"<|im_start|>{turn['role']}\n", add_special_tokens=False)["input_ids"]
        body = tokenizer(f"{turn['content']}<|im_end|>", add_special_tokens=False)["input_ids"]
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        counted = turn["role"] == "assistant"
        expected += [(token, IGNORED) for token in head]
        expected += [(token, token if counted else IGNORED) for token in body]
        expected += [(token, IGNORED) for token in newline]
    assert list(zip(ids, labels, strict=True)) == expected
    counted = tokenizer.decode([token for token in labels if token != IGNORED])
    assert counted == "Четыре.<|im_end|>Шесть.<|im_end|>"


def test_a_template_that_rewrites_history_is_refused():
    tokenizer = tiny_tokenizer(chat="{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="rewrites earlier turns"):
        dialogues.encode(TURNS, tokenizer)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (None, "no list 'messages'"),
        ([], "no list 'messages'"),
        ([{"role": "bot", "content": "a"}], "message 0 has no role"),
        ([{"role": "user", "content": " "}], "message 0 is empty"),
        ([{"role": "user", "content": "a"}], "turns are not"),
        (TURNS[:1], "turns are not"),
        (TURNS[2:3] + TURNS[1:2], "turns are not"),
        (TURNS, None),
        (TURNS[1:3], None),
    ],
)
def test_faults(messages, fault):
    found = dialogues.fault(messages)
    assert found == fault or fault in found


def test_a_broken_dialogue_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n" + json.dumps({"messages": TURNS[:2]}) + "\n")
    with pytest.raises(UserError, match=r"i\.jsonl:2: the turns are not"):
        list(dialogues.read(path))
    assert len(list(dialogues.read(path, on_error="skip"))) == 1
