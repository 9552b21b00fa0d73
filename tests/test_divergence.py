"""lib/divergence.py: how far a model is from its base, against plain formulas, and what it has to be whatever the models."""

import pytest
import torch
from test_alignment import ends, read_alone, sentencepiece_tokenizer
from tiny_model import LINES
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer

from lib import divergence, models, reference
from lib.divergence import Divergence

TEXTS = ["The old letters are on the table 12.", "The train, the letters: on  the table?\n\n🙂 Да", "a"]


@pytest.fixture(scope="module")
def base():
    made = tiny_tokenizer()
    return tiny_model(len(made)), made


@pytest.fixture(scope="module")
def trained(base):
    """The base's tokenizer, and weights that moved."""
    moved = tiny_model(len(base[1]))
    with torch.no_grad():
        for weight in moved.parameters():
            weight.mul_(1.2)
    return moved, base[1]


@pytest.fixture(scope="module")
def adapted():
    made = sentencepiece_tokenizer()
    return tiny_model(len(made)), made


def test_under_one_vocabulary_it_is_the_kl_at_every_position(trained, base):
    found = divergence.from_base(*trained, *base, TEXTS, window=512)
    for text, each in zip(TEXTS, found, strict=True):
        p, r = (
            read_alone(*side, text)[:-1] for side in (trained, base)
        )  # after the last token there is nothing to say
        assert each.kl == pytest.approx((p.exp() * (p - r)).sum().item(), rel=1e-4)
        assert each.positions == each.base_tokens == len(p)
        assert each.kl / each.positions > 0.01


def test_a_model_is_at_zero_from_itself(base, adapted):
    for side in (base, adapted):
        found = divergence.from_base(*side, tiny_model(len(side[1])), side[1], [*TEXTS, *LINES], window=512)
        summary = divergence.summarise(found)
        assert (summary["value"], summary["low"], summary["high"]) == (0, 0, 0)
        assert summary["compared"] == 1


def test_under_two_vocabularies_it_is_that_of_sums_at_shared_boundaries(adapted, base):
    (model, ours), (_, theirs) = adapted, base
    first = torch.tensor(reference.first_pieces(ours, theirs))
    some_apart = False
    texts = [TEXTS[0], "Поезд остановился посреди поля, правильно? Да."]
    for text, found in zip(texts, divergence.from_base(*adapted, *base, texts, window=512), strict=True):
        p, r = read_alone(model, ours, text), read_alone(*base, text)
        our_ends, their_ends = [0, *ends(ours, text)], [0, *ends(theirs, text)]
        shared = sorted((set(our_ends) & set(their_ends)) - {len(text.encode())})
        expected = 0.0
        for end in shared:
            q = torch.zeros(len(theirs)).index_add(0, first, p[our_ends.index(end)].exp())
            there = q > 0
            expected += (q[there] * (q[there].log() - r[their_ends.index(end)][there])).sum().item()
        assert found.kl == pytest.approx(expected, rel=1e-4)
        assert found.positions == len(shared)
        assert found.base_tokens == len(their_ends) - 1
        some_apart |= found.positions < found.base_tokens
    assert some_apart


def test_sums_over_pieces_are_the_plain_kl_where_both_vocabularies_are_one(trained, base, monkeypatch):
    plain = divergence.from_base(*trained, *base, TEXTS, window=512)
    monkeypatch.setattr(models, "fingerprint", id)
    same_ids = tiny_tokenizer()
    summed = divergence.from_base(*trained, base[0], same_ids, TEXTS, window=512)
    for one, other in zip(plain, summed, strict=True):
        assert other.kl == pytest.approx(one.kl, rel=1e-4)
        assert other[1:] == one[1:]


def test_it_is_never_negative(adapted, base):
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in adapted[0].parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        assert min(each.kl for each in divergence.from_base(*adapted, *base, LINES, window=512)) > 0


def test_only_what_the_window_reaches_is_compared(trained, base):
    [found] = divergence.from_base(*trained, *base, [TEXTS[0]], window=6)
    p, r = (read_alone(*side, TEXTS[0])[:5] for side in (trained, base))
    assert found.positions == 5
    assert found.kl == pytest.approx((p.exp() * (p - r)).sum().item(), rel=1e-4)


def test_the_mean_is_a_ratio_of_sums_with_an_interval_over_documents():
    found = divergence.summarise([Divergence(4.0, 8, 16), Divergence(1.0, 12, 14)], seed=1)
    assert found == {"value": 0.25, "low": 0.0833, "high": 0.5, "documents": 2, "positions": 20, "compared": 20 / 30}
    # A document that can't be spelt in the base's tokens has no say.
    some = divergence.summarise([Divergence(4.0, 8, 16), Divergence(0.0, 0, 0)], seed=1)
    assert (some["value"], some["low"], some["high"], some["documents"]) == (0.5, 0.5, 0.5, 1)
