"""lib/replies.py: which tokens of a dialogue are scored after what, and that their bits are the plain sum."""

import math

import pytest
import tiny_model
import torch
from test_dialogues import TURNS

from lib import dialogues, metrics, replies
from lib.errors import UserError
from lib.losses import IGNORED

SHORT = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": " Нет.\n"}]


def test_runs_of_counted_tokens_by_hand():
    ids, labels = list(range(8)), [IGNORED, IGNORED, 2, 3, IGNORED, 5, IGNORED, 7]
    whole = list(replies.spans(ids, labels, 100))
    assert whole == [([0, 1], [2, 3]), ([0, 1, 2, 3, 4], [5]), ([0, 1, 2, 3, 4, 5, 6], [7])]
    # Windows of 4 score 1 to 4, then 5 and 6, then 7; the run 2 to 5 is cut where a window ends.
    labels = [IGNORED, IGNORED, 2, 3, 4, 5, IGNORED, 7]
    assert list(replies.spans(ids, labels, 4)) == [([0, 1], [2, 3, 4]), ([2, 3, 4], [5]), ([3, 4, 5, 6], [7])]


def test_bits_are_the_sum_over_the_tokens_that_tuning_counts(model, tokenizer):
    found = replies.bits(model, tokenizer, [TURNS, SHORT], window=512, batch_tokens=100)
    for messages, score in zip((TURNS, SHORT), found, strict=True):
        ids, labels = dialogues.encode(messages, tokenizer)
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        counted = [place for place, label in enumerate(labels) if label != IGNORED]
        assert score.bits == pytest.approx(-sum(logs[place - 1, ids[place]].item() for place in counted) / math.log(2))
        assert score.tokens == len(counted)
    assert [score.bytes for score in found] == [len("Четыре.Шесть.".encode()), len("Нет.".encode())]
    summary = metrics.summarise(found)
    bits, tokens = (sum(score[n] for score in found) for n in (0, 2))
    assert summary["perplexity_per_token"] == pytest.approx(math.exp(bits * math.log(2) / tokens))
    assert summary["value"] == pytest.approx(bits / summary["bytes"])


def test_in_a_window_too_short_every_counted_token_is_scored_once(model, tokenizer):
    ids, labels = dialogues.encode(TURNS, tokenizer)
    window = 16
    assert len(ids) > 3 * window
    found = list(replies.spans(ids, labels, window))
    assert [token for _, counted in found for token in counted] == [label for label in labels if label != IGNORED]
    assert max(len(context) + len(counted) - 1 for context, counted in found) <= window
    assert min(len(context) for context, _ in found[1:]) >= window // 2
    [score] = replies.bits(model, tokenizer, [TURNS], window=window, batch_tokens=100)
    [whole] = replies.bits(model, tokenizer, [TURNS], window=512, batch_tokens=100)
    assert score.tokens == whole.tokens
    assert score.bits != pytest.approx(whole.bits, rel=1e-4)


def test_only_a_tokenizer_without_a_template_takes_the_files(tokenizer, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}", encoding="utf-8"
    )
    assert replies.with_template(tokenizer, file) is tokenizer
    bare = tiny_model.tokenizer(chat=None)
    dressed = replies.with_template(bare, file)
    assert dressed.apply_chat_template(SHORT, tokenize=False) == "user: Да?<|im_end|>assistant:  Нет.\n<|im_end|>"
    assert bare.chat_template is None
    with pytest.raises(UserError, match="no chat template to read dialogues by"):
        replies.with_template(bare, None)
