"""Shared boundaries of two tokenizers, and what a reference is asked at them."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from tiny_model import words

from lib import alignment, losses, models, objective, packing, reference, spm, vocabulary

TEXTS = [
    "Поезд остановился посреди поля, правильно? Да.",
    "The old letters are on the table 12.",
    " Ё — ж\n\n🙂 ok ",
    "Нет",
]
LENGTH = 48


def sentencepiece_tokenizer():
    """A vocabulary of its own, with the space before every text that SentencePiece's have."""
    counts = words([*TEXTS, "Поезд поля письма столе Какая планета"] * 5)
    model = spm.train(
        counts, vocab_size=420, model_type="bpe", unknown="<unk>", controls=["<|im_start|>", "<|im_end|>"],
        character_coverage=1.0, threads=1,
    )  # fmt: skip
    return models.dress(spm.to_fast(model), tiny_tokenizer(), "")


@pytest.fixture(scope="module")
def tokenizers():
    return {"bytes": tiny_tokenizer(), "spm": sentencepiece_tokenizer()}


PAIRS = [("spm", "bytes"), ("bytes", "spm"), ("spm", "spm"), ("bytes", "bytes")]


def ends(tokenizer, text):
    """Bytes of the text that have been read at the end of each token, by the offsets that tokenizers gives."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [len(text[:end].encode()) for _, end in spans]


def pack(tokenizer, texts, length=LENGTH):
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = packing.fill_rows(packing.encode_documents(texts, tokenizer, begin, end), length)
    return [
        {
            "input_ids": torch.from_numpy(row.tokens),
            "position_ids": torch.from_numpy(row.positions),
            "labels": torch.from_numpy(row.tokens).masked_fill(torch.from_numpy(row.positions) == 0, losses.IGNORED),
            "replay": number % 2 == 1,
            "row": number,
        }
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("text", TEXTS[:2])
def test_boundaries_are_those_of_the_tokenizers_offsets(tokenizers, pair, text):
    ours, theirs = (tokenizers[name] for name in pair)
    ids = [ours.bos_token_id, *ours(text, add_special_tokens=False)["input_ids"], ours.eos_token_id]
    found = alignment.Aligner(ours, theirs, 1000).segment(ids)
    assert found.tokens == [theirs.bos_token_id, *theirs(text, add_special_tokens=False)["input_ids"]]
    # Neither tokenizer cuts characters in these two texts, so offsets in characters tell all.
    our_ends, their_ends = [0, *ends(ours, text)], [0, *ends(theirs, text)]
    shared = sorted(set(our_ends) & set(their_ends))
    assert [our_ends[at] for at in found.ours] == [their_ends[at] for at in found.theirs] == shared
    assert len(shared) > 3


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_rows_have_read_the_same_bytes_at_every_shared_boundary(tokenizers, pair):
    ours, theirs = (tokenizers[name] for name in pair)
    aligner = alignment.Aligner(ours, theirs, 1000)
    surfaces = [[surface or b"" for surface in vocabulary.surfaces(tokenizer)] for tokenizer in (ours, theirs)]
    boundaries = cut = 0
    for item in pack(ours, TEXTS * 3):
        row = aligner.row(item["input_ids"].numpy(), item["position_ids"].numpy())
        cut += vocabulary.surfaces(ours)[item["input_ids"][0]] is not None
        sides = [
            (item["input_ids"].tolist(), item["position_ids"].tolist()),
            (row.tokens.tolist(), row.positions.tolist()),
        ]
        for at in zip(row.ours, row.theirs, strict=True):
            read = []
            for (tokens, positions), spelling, place in zip(sides, surfaces, at, strict=True):
                begin = place - positions[place]
                read.append(b"".join(spelling[token] for token in tokens[begin : place + 1]))
            # But for the space before a text, and the rest of a character that the row before it began.
            assert read[0].lstrip(b" ").endswith(read[1].lstrip(b" "))
            assert len(read[0].lstrip(b" ")) - len(read[1].lstrip(b" ")) <= 3
        documents = np.cumsum(item["position_ids"].numpy() == 0)[row.ours]
        assert row.same_document.tolist() == [*(documents[1:] == documents[:-1]), False]
        boundaries += len(row.ours)
    assert boundaries > 60
    assert cut > 0


def test_a_text_that_the_reference_changes_has_no_boundaries(tokenizers):
    class Lowering:
        def __init__(self, plain):
            self.plain = plain

        def __getattr__(self, name):
            return getattr(self.plain, name)

        def __call__(self, text, **more):
            return self.plain(text.replace("Ё", ""), **more)

    ours = tokenizers["spm"]
    aligner = alignment.Aligner(ours, tokenizers["bytes"], 1000)
    aligner.theirs = Lowering(tokenizers["bytes"])
    ids = [ours.bos_token_id, *ours(TEXTS[2], add_special_tokens=False)["input_ids"]]
    assert aligner.segment(ids).tokens == []
    whole = aligner.row(np.array([*ids, ours.bos_token_id, ids[1]]), np.array([*range(len(ids)), 0, 1]))
    assert whole.tokens[0] == tokenizers["bytes"].bos_token_id, "the other document of the row is still there"


def test_the_reference_reads_no_more_than_it_can(tokenizers):
    ours, theirs = tokenizers["spm"], tokenizers["bytes"]
    ids = [ours.bos_token_id, *ours(TEXTS[0], add_special_tokens=False)["input_ids"]]
    found = alignment.Aligner(ours, theirs, 9).segment(ids)
    assert len(found.tokens) == 9
    assert 0 < found.theirs.max() < 9


@pytest.fixture(scope="module")
def pair_of_models(tokenizers):
    ours, theirs = tokenizers["spm"], tokenizers["bytes"]
    return tiny_model(len(ours)), ours, tiny_model(len(theirs)), theirs


def batch_of(items, held):
    rows = [{name: item[name] for name in ("input_ids", "position_ids", "labels")} for item in items]
    return {
        **packing.collate(rows, flatten=False),
        "replay": torch.tensor([item["replay"] for item in items]),
        **({} if held is None else held.inputs(items)),
    }


def read_alone(model, tokenizer, text, ids=None):
    """log P of every next token of one text by itself, positions x vocabulary."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if ids is None else ids
    with torch.no_grad():
        return (
            model(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]]), use_cache=False).logits[0].log_softmax(-1)
        )


@pytest.mark.parametrize("kind", ["init", "first_piece", "chunk"])
def test_the_kl_of_a_packed_batch_is_that_of_its_texts_one_by_one(pair_of_models, kind):
    """By the formulas of the paper's equation and of the two references, on plain logits of each text alone."""
    model, ours, base, theirs = pair_of_models
    texts = TEXTS[:2] + TEXTS[3:]
    (item,) = pack(ours, [*texts, "ж" * 400], length=sum(len(ours(text)["input_ids"]) + 2 for text in texts))[:1]
    frozen, spelt = (tiny_model(len(ours)), ours) if kind == "init" else (base, theirs)
    with torch.no_grad():
        for weight in frozen.parameters():
            weight.mul_(1.1)
    held = reference.Reference(kind, frozen, spelt, ours)
    trained = tiny_model(len(ours))
    objective.attach_loss(trained, torch.tensor(vocabulary.lengths(ours)), objective.Objective(kl_weight=1.0), held)
    with torch.no_grad():
        out = trained(**batch_of([item], held))
    sums = dict(zip(objective.PARTS, out.logits.tolist(), strict=True))

    first = reference.first_pieces(ours, theirs)
    ce, kl, count = 0.0, 0.0, 0
    for text in texts:
        ids = ours(text, add_special_tokens=False)["input_ids"]
        p = read_alone(model, ours, text)
        r = read_alone(frozen, spelt, text)
        ce -= p[range(len(ids) + 1), [*ids, ours.eos_token_id]].sum().item()
        if kind == "init":
            kl += (p.exp() * (p - r)).sum().item()
            count += len(p)
            continue
        our_ends, their_ends = [0, *ends(ours, text)], [0, *ends(theirs, text)]
        shared = sorted(set(our_ends) & set(their_ends))
        if kind == "first_piece":
            for end in shared:
                q = torch.zeros(len(theirs)).index_add(0, torch.tensor(first), p[our_ends.index(end)].exp())
                there = q > 0
                kl += (q * (q.clamp_min(1e-38).log() - r[their_ends.index(end)]))[there].sum().item()
            count += len(shared)
        else:
            their_ids = theirs(text, add_special_tokens=False)["input_ids"]
            for begin, end in itertools.pairwise(shared):
                a = [our_ends.index(begin), our_ends.index(end)]
                b = [their_ends.index(begin), their_ends.index(end)]
                log_q = p[range(*a), ids[slice(*a)]].sum()
                log_p = r[range(*b), their_ids[slice(*b)]].sum()
                q, s = log_q.exp().item(), log_p.exp().item()
                kl += q * math.log(q / s) + (1 - q) * math.log((1 - q) / (1 - s))
            count += len(shared) - 1
    assert sums["ce_target"] == pytest.approx(ce, rel=1e-4)
    assert sums["positions_target"] == sum(len(ours(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)
    # The space before each text is a byte of its token.
    assert sums["bytes_target"] == sum(len(text.encode()) + 1 for text in texts)
    assert sums["kl_positions"] == count
    assert sums["kl"] == pytest.approx(kl, rel=2e-3, abs=1e-4)
    assert kl > 0.01
    assert out.loss.item() == pytest.approx(ce / sums["positions_target"] + kl / count, rel=1e-3)


@pytest.mark.parametrize("kind", ["init", "first_piece", "chunk"])
def test_one_long_row_or_several_give_the_same_kl(pair_of_models, kind):
    """Flash attention's layout, read by torch's attention."""
    _, ours, base, theirs = pair_of_models
    items = pack(ours, TEXTS * 8)[:3]
    frozen, spelt = (tiny_model(len(ours)), ours) if kind == "init" else (base, theirs)
    found = []
    for flatten in (False, True):
        held = reference.Reference(kind, frozen, spelt, ours, flatten=flatten)
        trained = tiny_model(len(ours))
        with torch.no_grad():
            trained.model.norm.weight.mul_(1.3)
        objective.attach_loss(trained, torch.tensor(vocabulary.lengths(ours)), None, held)
        rows = [{name: item[name] for name in ("input_ids", "position_ids", "labels")} for item in items]
        with torch.no_grad():
            out = trained(
                **packing.collate(rows, flatten=flatten),
                replay=torch.tensor([item["replay"] for item in items]),
                **held.inputs(items),
            )
        found.append(out.logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    parts = dict(zip(objective.PARTS, found[0].tolist(), strict=True))
    by_row = [int((item["labels"][1:] != losses.IGNORED).sum()) for item in items]
    assert (parts["positions_target"], parts["positions_replay"]) == (by_row[0] + by_row[2], by_row[1])


def test_only_the_asked_rows_are_read(pair_of_models):
    _, ours, base, theirs = pair_of_models
    items = [item | {"row": number} for number, item in enumerate(pack(ours, TEXTS * 40))]
    held = reference.Reference("first_piece", base, theirs, ours, on="replay")
    inputs = held.inputs(items[:4])
    assert len(inputs["ref_lengths"]) == 2
    assert {int(at) // LENGTH for at in inputs["kl_at"]} == {1, 3}
    nobody = held.inputs([items[0]])
    assert (len(nobody["ref_input_ids"]), nobody.pop("kl_items")) == (0, 0)
    assert held.ask(**nobody) is None
    some = reference.Reference("first_piece", base, theirs, ours, fraction=0.25)
    asked = [len(some.inputs([items[0] | {"row": row}])["ref_lengths"]) for row in range(400)]
    assert 70 < sum(asked) < 130
    assert asked == [len(some.inputs([items[0] | {"row": row}])["ref_lengths"]) for row in range(400)]


def test_a_batch_without_a_row_for_the_reference_has_plain_ce(pair_of_models):
    _, ours, base, theirs = pair_of_models
    item = pack(ours, TEXTS * 8)[0] | {"replay": False}
    held = reference.Reference("chunk", base, theirs, ours, on="replay")
    outs = []
    for given in (held, None):
        trained = tiny_model(len(ours))
        objective.attach_loss(trained, torch.tensor(vocabulary.lengths(ours)), None, given)
        outs.append(trained(**batch_of([item], given)))
    torch.testing.assert_close(outs[0].loss, outs[1].loss)
    outs[0].loss.backward()


def test_weights_of_the_combinations():
    positions, kl_positions = torch.tensor(10), torch.tensor(4)
    for combine, expected in (("sum", (0.1, 0.05, None)), ("lerp", (0.07, 0.075, None)), ("slerp", (0.1, 0.25, 0.3))):
        found = objective.Objective(kl_weight=0.2, combine=combine, t=0.3).weights(positions, kl_positions)
        assert float(found["ce_weight"]) == pytest.approx(expected[0])
        assert float(found["kl_weight"]) == pytest.approx(expected[1])
        assert found["slerp"] == expected[2]


def test_the_offloaded_reference_answers_the_same(pair_of_models, tmp_path):
    _, ours, base, theirs = pair_of_models
    models.save(base, theirs, tmp_path / "base")
    items = pack(ours, TEXTS * 8)[:2]
    answers = []
    for offload in (False, True):
        frozen, spelt = reference.load(
            tmp_path / "base", attention="sdpa", dtype=torch.float32, device=torch.device("cpu"), offload=offload
        )
        held = reference.Reference("first_piece", frozen, spelt, ours)
        inputs = held.inputs(items)
        inputs.pop("kl_items")
        answers.append(held.ask(**inputs))
    torch.testing.assert_close(answers[0].hidden, answers[1].hidden)
    torch.testing.assert_close(answers[0].weight, answers[1].weight)
