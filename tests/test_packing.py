"""Packing: every token once and in order, documents apart, and the loss of a packed batch that of its documents."""

import numpy as np
import pytest
import torch
from tiny_model import model as tiny_model

from lib import losses, packing, training

IGNORED = losses.IGNORED


def test_rows_by_hand():
    rows = list(packing.fill_rows([[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]], length=4))
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [row.positions.tolist() for row in rows] == [[0, 1, 2, 0], [0, 1, 2, 3]]


def test_nothing_is_lost_but_the_last_rest():
    documents = [list(range(begin, begin + size)) for begin, size in ((0, 5), (5, 11), (16, 1), (17, 9))]
    rows = list(packing.fill_rows(documents, length=8))
    assert np.concatenate([row.tokens for row in rows]).tolist() == list(range(24))


def test_replay_is_spread_evenly_and_stops_with_either_stream():
    main = (packing.Row(np.array([n]), np.array([0])) for n in range(100))
    replay = (packing.Row(np.array([-n]), np.array([0])) for n in range(100))
    flags = [flag for _, flag in packing.interleave(main, replay, 0.25)]
    assert flags[:8] == [False, False, False, True] * 2
    short = (packing.Row(np.array([n]), np.array([0])) for n in range(3))
    assert len(list(packing.interleave(short, iter(()), 0.0))) == 3


def test_written_rows_are_read_back_with_labels_inside_documents(tmp_path):
    writer = packing.PackedWriter(tmp_path, vocabulary=70_000)
    for row in packing.fill_rows([[69_999, 2, 3], [4, 5, 6, 7, 8]], length=4):
        writer.write(row, replay=False)
    writer.close()
    rows = packing.PackedRows(tmp_path, 4, 70_000)
    assert len(rows) == 2
    assert rows[0]["input_ids"].tolist() == [69_999, 2, 3, 4]
    assert rows[0]["labels"].tolist() == [IGNORED, 2, 3, IGNORED]
    assert rows[1]["labels"].tolist() == [IGNORED, 6, 7, 8]


@pytest.mark.parametrize(("vocabulary", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_token_type(vocabulary, kind):
    assert packing.token_type(vocabulary) is kind


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_batch_has_the_loss_of_its_documents_one_by_one(attention, flatten):
    model = tiny_model(60)
    model.set_attn_implementation(attention)
    training.attach_loss(model, vocabulary=60, chunk=5)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 60, size).tolist() for size in (7, 5, 12, 8)]
    rows = [
        {
            "input_ids": torch.from_numpy(row.tokens),
            "position_ids": torch.from_numpy(row.positions),
            "labels": torch.from_numpy(np.where(row.positions == 0, IGNORED, row.tokens)),
        }
        for row in packing.fill_rows(documents, length=12)
    ]
    assert len(rows) == 2
    assert rows[1]["position_ids"].tolist() == list(range(12)), (
        "the first row holds two whole documents, the second one"
    )
    packed = model(**packing.collate(rows, flatten=flatten)).logits[0]
    alone = sum(
        torch.nn.functional.cross_entropy(
            model(input_ids=torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
        )
        for ids in (documents[0], documents[1], documents[2])
    )
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)


def test_dialogues_are_packed_whole_and_fillers_count_for_nothing():
    dialogues = [([n] * size, [n] * size) for n, size in ((1, 3), (2, 6), (3, 4), (4, 2))]
    rows = packing.pack_dialogues(dialogues, length=8, filler=0)
    assert [row["input_ids"].tolist() for row in rows] == [[2] * 6 + [4] * 2, [3] * 4 + [1] * 3 + [0]]
    assert rows[1]["labels"].tolist() == [IGNORED, 3, 3, 3, IGNORED, 1, 1, IGNORED]
    assert rows[1]["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert [row["tokens"] for row in rows] == [8, 7]
