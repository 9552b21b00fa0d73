"""The row audit's functions, by hand; cpt.py's use of it is in test_training.py."""

import json
import math
import types

import numpy as np
import pytest
import torch
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer

from lib import audit

SPELLINGS = ["<s>", "да", " нет", "\n", "\\xd0"]


def flags(*ids):
    return np.isin(np.arange(len(SPELLINGS)), ids)


def findings(**changes):
    """Rows 1 to 4 are new, all of them occur and have gradients, and nothing is known of norms."""
    given = {
        "new": flags(1, 2, 3, 4),
        "occurred": flags(0, 1, 2, 3, 4),
        "reached": {"input": flags(0, 1, 2, 3, 4), "head": flags(0, 1, 2, 3, 4)},
        "norms": {"input": np.ones(5), "head": np.ones(5)},
        "ranges": {},
        "spellings": SPELLINGS,
    }
    context = {"step": 3, "tokens": 1200, "gradients_watched_after_step": 0}
    return context | audit.audit(**given | changes)


@pytest.mark.parametrize(
    ("total", "epoch", "expected"), [(120, 1000, 12), (3500, 500, 50), (129, 129, 12), (9, 9, 1), (1, 1, 1)]
)
def test_the_first_tenth_is_of_an_epoch_or_of_a_shorter_run(total, epoch, expected):
    assert audit.first_tenth(total, epoch) == expected


def test_occurring():
    rows = iter([np.zeros(2, dtype=np.uint16), np.array([3, 1], dtype=np.uint16)])
    assert audit.occurring(rows, 5).tolist() == [True, True, False, True, False]
    assert not audit.occurring([], 5).any()


def test_the_rows_of_a_step_are_those_of_all_devices():
    args = types.SimpleNamespace(train_batch_size=3, gradient_accumulation_steps=128, world_size=8)
    assert audit.rows_per_step(args) == 3072


def test_norms_outside_come_farthest_first_and_rounding_is_no_finding():
    norms = np.array([1.0, 2.0, 0.25, 7.0, 2.001, 0.9995, 0.0, 3.0])
    assert audit.outside(norms, 1.0, 2.0).tolist() == [6, 2, 3, 7]
    assert audit.outside(np.array([1.0, math.nan]), 1.0, 2.0).tolist() == [1]
    assert audit.outside(np.array([0.0, 1.0]), 0.0, 2.0).tolist() == []


def test_row_norms_leave_padded_rows_out():
    assert audit.row_norms(torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 1.0], [9.0, 9.0]])), 2).tolist() == [5, 1]


def test_what_init_says_of_the_rows(tmp_path):
    new, ranges = audit.read_rows(tmp_path, 4)
    assert new.tolist() == [True] * 4
    assert ranges == {}
    facts = {"new": [1, 3, 4], "norms": {"input": [0.5, 2.0]}}  # 4 is a padded row
    (tmp_path / "rows.json").write_text(json.dumps(facts))
    new, ranges = audit.read_rows(tmp_path, 4)
    assert new.tolist() == [False, True, False, True]
    assert ranges == {"input": [0.5, 2.0]}


def test_a_tied_head_is_no_matrix_of_its_own():
    assert list(audit.matrices(tiny_model(8))) == ["input", "head"]
    assert list(audit.matrices(tiny_model(8, tie_word_embeddings=True))) == ["input"]


def test_tokens_are_spelt_as_they_stand_in_text():
    tokenizer = tiny_tokenizer()
    spellings = audit.spell(tokenizer)
    assert len(spellings) == len(tokenizer)
    assert spellings[tokenizer.bos_token_id] == "<|im_start|>"
    assert spellings[tokenizer.convert_tokens_to_ids("Ġthe")] == " the"
    assert spellings[tokenizer.convert_tokens_to_ids("Ð")] == "\\xd0"


def test_a_row_without_a_gradient_and_a_token_that_never_occurred_are_told_apart():
    found = findings(occurred=flags(0, 2, 3, 4), reached={"input": flags(0, 2, 4), "head": flags(0, 1, 2, 3, 4)})
    assert found["never_occurred"] == [{"id": 1, "token": "да"}]
    surprising, expected = {"id": 3, "token": "\n"}, {"id": 1, "token": "да"}
    assert found["no_gradient"] == {
        "input": {"though_occurred": 1, "rows": [surprising, expected]},
        "head": {"though_occurred": 0, "rows": []},
    }
    assert audit.report(found) == [
        "row audit, step 3, 1,200 tokens read: 2 of 4 new rows of the input embedding never got a gradient, "
        "1 of them though the token occurred: '\\n'",
        "row audit, step 3, 1,200 tokens read: 1 of 4 new tokens never occurred, "
        "the softmax only pushes their rows down: 'да'",
    ]
    assert audit.count(found) == {
        "step": 3, "new_rows": 4, "never_occurred": 1, "no_gradient": {"input": 2, "head": 0}, "norm_outside": {},
    }  # fmt: skip


def test_words_are_named_before_bytes_and_signs():
    found = findings(spellings=["\\xd0", "7", "да", "\n", " б"], new=flags(0, 1, 2, 3, 4), occurred=flags())
    assert [row["id"] for row in found["never_occurred"]] == [2, 4, 0, 1, 3]


def test_rows_of_the_base_may_go_without_a_gradient():
    found = findings(occurred=flags(1, 2, 3, 4), reached={"input": flags(1, 2, 3, 4)})
    assert audit.report(found) == ["row audit, step 3, 1,200 tokens read: nothing to report of 4 new rows"]


def test_gradients_that_were_watched_late_are_said_to_be():
    found = findings(occurred=flags(0, 1, 2, 3), reached={"input": flags(0, 1, 2, 3)})
    found["gradients_watched_after_step"] = 2
    assert audit.report(found)[0].endswith(
        "1 of 4 new rows of the input embedding never got a gradient (watched only after step 2), "
        "all because the token did not occur"
    )


def test_norms_are_reported_with_the_range_and_whose_row_it_is():
    norms = {"input": np.array([0.1, 1.0, 30.0, 1.0, 1.0]), "head": np.array([1.0, 1.0, 1.0, 1.0, 2.5])}
    found = findings(norms=norms, ranges={"input": [0.5, 2.0], "head": [0.5, 2.0]})
    assert found["norm_outside"]["input"] == {
        "range": [0.5, 2.0],
        "rows": [
            {"id": 2, "token": " нет", "new": True, "norm": 30.0},
            {"id": 0, "token": "<s>", "new": False, "norm": 0.1},
        ],
    }
    head = "row audit, step 3, 1,200 tokens read: "
    assert audit.report(found) == [
        head
        + "2 rows of the input embedding with a norm outside the base's 0.5 to 2: ' нет' (new) 30, '<s>' (base) 0.1",
        head + "1 row of the head with a norm outside the base's 0.5 to 2: '\\xd0' (new) 2.5",
    ]
    assert audit.count(found)["norm_outside"] == {"input": 2, "head": 1}


def test_long_lists_are_cut_on_screen_only(monkeypatch):
    monkeypatch.setattr(audit, "SHOWN", 2)
    found = findings(occurred=flags(0))
    assert [row["id"] for row in found["never_occurred"]] == [1, 2, 3, 4]
    assert audit.report(found)[-1].endswith("'да', ' нет' and 2 more")
