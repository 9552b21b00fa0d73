"""lib/paired.py and the verdicts that scores.py draws from it, against numbers worked out by hand."""

import json

import pytest

from lib import metrics, paired, scores
from lib.paired import Answer, Details, Document, Item


def test_bits_per_byte_by_hand():
    ours = [metrics.Score(8.0, 4, 2), metrics.Score(2.0, 16, 3)]
    others = [metrics.Score(4.0, 4, 2), metrics.Score(12.0, 16, 3)]
    found = paired.bits_per_byte(ours, others)
    assert found["value"] == -6 / 20
    assert (found["low"], found["high"]) == (-10 / 16, 4 / 4)  # one document drawn twice, either of them


def test_a_constant_gap_is_certain_however_much_the_texts_differ():
    ours = [Document(str(n), 10.0 * n, 10) for n in range(1, 20)]
    others = [each._replace(bits=each.bits + 1) for each in ours]
    found = paired.bits_per_byte(ours, others)
    assert found["value"] == pytest.approx(-0.1)
    assert (found["low"], found["high"]) == (pytest.approx(-0.1), pytest.approx(-0.1))
    one, other = (metrics.summarise([metrics.Score(d.bits, d.bytes, 1) for d in each]) for each in (ours, others))
    assert scores.against(one, other, "lower") == "overlaps"
    assert paired.verdict(found, "lower") == "better"


def test_mcnemar_by_hand():
    ours = [True] * 8 + [False] * 2 + [True] * 5 + [False] * 5
    others = [False] * 8 + [True] * 2 + [True] * 5 + [False] * 5
    found = paired.share(ours, others)
    assert (found["value"], found["only_first"], found["only_second"]) == (0.3, 8, 2)
    # Two-sided, of 10 coins: 2 (1 + 10 + 45) / 1024.
    assert found["p_value"] == pytest.approx(112 / 1024)
    # The difference of 20 draws has mean 0.3 and standard deviation sqrt((0.5 - 0.09) / 20) = 0.143.
    assert found["low"] == pytest.approx(0.3 - 1.96 * 0.143, abs=0.06)
    assert found["high"] == pytest.approx(0.3 + 1.96 * 0.143, abs=0.06)
    turned = paired.share(others, ours)
    assert (turned["value"], turned["only_first"]) == (-0.3, 2)
    assert turned["p_value"] == found["p_value"]


def test_equal_answers_do_not_differ():
    found = paired.share([True, False], [True, False])
    assert found == {"value": 0, "low": 0, "high": 0, "only_first": 0, "only_second": 0, "p_value": 1.0}
    assert paired.verdict(found, "higher") == "overlaps"


@pytest.mark.parametrize(
    ("only_ours", "expected"),
    [(5, "overlaps"), (6, "better")],  # 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125
)
def test_a_handful_of_items_has_to_pass_the_exact_test(only_ours, expected):
    ours = [True] * only_ours + [False] * 94
    found = paired.share(ours, [False] * len(ours))
    assert found["low"] > 0  # the bootstrap alone would call both better
    assert paired.verdict(found, "higher") == expected


@pytest.mark.parametrize(
    ("interval", "better", "expected"),
    [
        ((-0.2, -0.1), "lower", "better"),
        ((-0.2, -0.1), "higher", "worse"),
        ((0.1, 0.2), "lower", "worse"),
        ((0.1, 0.2), "higher", "better"),
        ((-0.1, 0.2), "lower", "overlaps"),
        ((0.0, 0.2), "higher", "overlaps"),  # touching is not beside
    ],
)
def test_better_is_only_what_lies_beside_nothing(interval, better, expected):
    low, high = interval
    assert paired.verdict({"value": (low + high) / 2, "low": low, "high": high}, better) == expected


def test_an_evaluation_is_read_back(tmp_path):
    (tmp_path / "samples").mkdir()
    lines = {
        "documents.jsonl": [
            {"language": "ru", "id": "a", "bits": 8.0, "bytes": 4, "tokens": 2},
            {"language": "en", "id": "b", "bits": 2.0, "bytes": 16, "tokens": 3},
        ],
        "dialogues.jsonl": [{"language": "ru", "id": "t", "bits": 5.0, "bytes": 7, "tokens": 2}],
        "samples/quiz.jsonl": [{"id": 7, "prediction": 1, "target": 0, "correct": False, "log_probabilities": []}],
        "generations.jsonl": [
            {"id": "q", "category": "c", "prompt": "?", "language": "ru", "completion": "", "tokens": 1, "finished": True, "flags": ["empty"]}
        ],
    }  # fmt: skip
    for name, found in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    assert paired.read(tmp_path) == Details(
        {"ru": [Document("a", 8.0, 4)], "en": [Document("b", 2.0, 16)]},
        {"quiz": [Item("7", "0", False)]},
        [Answer("q", "?", "ru", ["empty"])],
        {"ru": [Document("t", 5.0, 7)]},
    )
    assert paired.read(tmp_path / "nothing") == Details({}, {}, [], {})


def test_the_same_is_the_same_ids_sizes_targets_and_prompts():
    documents = [Document("a", 8.0, 4), Document("b", 2.0, 16)]
    assert paired.same(documents, [each._replace(bits=1.0) for each in documents])
    assert not paired.same(documents, [each._replace(bytes=5) for each in documents])
    assert not paired.same(documents, documents[::-1])
    assert not paired.same(documents, documents[:1])
    assert not paired.same([], [])
    assert paired.same([Item("1", "0", True)], [Item("1", "0", False)])
    assert not paired.same([Item("1", "0", True)], [Item("1", "2", True)])
    assert paired.same([Answer("1", "?", "ru", [])], [Answer("1", "?", "ru", ["empty"])])
    assert not paired.same([Answer("1", "?", "ru", [])], [Answer("1", "!", "ru", [])])


WIDE = {"value": 2.0, "low": 1.0, "high": 3.0, "documents": 20, "bytes": 200, "tokens": 50}
ACCURACY = {"value": 0.5, "low": 0.3, "high": 0.7, "items": 20, "chance": 0.25, "shots": 0}
RATE = {"value": 0.5, "low": 0.3, "high": 0.7, "items": 20}


def evaluation(name, shift=0.0, right=10, flagged=10, first="0"):
    """Bits that differ by text but hardly by checkpoint, so that separate intervals are wide."""
    results = {"checkpoint": name, "vocabulary": 9, "parameters": 9, "fertility": {}}
    results |= {"bits_per_byte": {"ru": WIDE | {"value": 2.0 + shift}}}
    results |= {"tasks": {"quiz": ACCURACY}, "flaws": {"english_words": RATE}}
    results |= {"instructions": {"ru": WIDE | {"value": 2.0 + shift, "perplexity_per_token": 30.0}}}
    results |= {"kl_to_base": {"language": "en", "value": 0.5, "low": 0.4, "high": 0.6, "documents": 20}}
    spent = {"ru": [Document(first if n == 0 else str(n), (n + shift) * 10, 10) for n in range(20)]}
    items = Details(
        spent,
        {"quiz": [Item(first if n == 0 else str(n), "0", n < right) for n in range(20)]},
        [Answer(first if n == 0 else str(n), "?", "ru", ["english_words"] * (n < flagged)) for n in range(20)],
        spent,
    )
    return {"results": results, "items": items}


KEYS = ("bits_per_byte.ru", "instructions.ru", "tasks.quiz", "flaws.english_words")


def verdicts(*evaluations):
    cells = scores.score_table(evaluations, "ru")["rows"][1]["cells"]
    return [cells[key]["against_base"] for key in KEYS], ["difference" in cells[key] for key in KEYS]


def test_verdicts_go_by_pairs_where_the_items_are_the_same():
    base = evaluation("base")
    assert verdicts(base, evaluation("cpt", -0.1, 17, 3)) == (["better"] * 4, [True] * 4)
    assert verdicts(base, evaluation("cpt", 0.1, 3, 17)) == (["worse"] * 4, [True] * 4)
    assert verdicts(base, evaluation("cpt", 0.0, 12, 8)) == (["overlaps"] * 4, [True] * 4)


def test_verdicts_go_by_intervals_where_they_are_not():
    base, other = evaluation("base"), evaluation("cpt", -0.1, 17, 3)
    for before, after in (
        (base, evaluation("cpt", -0.1, 17, 3, first="x")),
        ({"results": base["results"]}, other),
        (base, {"results": other["results"]}),
        (base, other | {"items": Details({}, {}, [], {})}),
    ):
        assert verdicts(before, after) == (["overlaps"] * 4, [False] * 4)


def test_answers_that_can_not_have_a_flag_are_no_pairs():
    base, other = evaluation("base"), evaluation("cpt", flagged=0)
    for each in (base, other):
        each["items"].answers[10:] = [answer._replace(language="en") for answer in each["items"].answers[10:]]
    cell = scores.score_table([base, other], "ru")["rows"][1]["cells"]["flaws.english_words"]
    assert cell["difference"]["value"] == -1.0  # 10 of 10, not of 20


def test_the_number_of_comparisons_is_said():
    base, other = evaluation("base"), evaluation("cpt")
    said = scores.compared(scores.score_table([base, other, evaluation("sft")], "ru"))
    assert said.startswith("8 comparisons with the base, all paired; no correction for their number")
    said = scores.compared(scores.score_table([base, {"results": other["results"]}, evaluation("sft")], "ru"))
    assert said.startswith("8 comparisons with the base, 4 of them paired")
    assert scores.compared(scores.score_table([base], "ru")) == ""


def test_the_headline_tells_the_paired_difference():
    table = scores.score_table([evaluation("base"), evaluation("cpt", -0.1)], "ru")
    assert scores.headline(table, {}, "ru")[0] == (
        "Continued pre-training brings the model to 1.900 bits per byte of held-out Russian text against the base's 2.000 (5.0% better; text by "
        "text the difference is from -0.100 to -0.100, with 95% confidence)."
    )
    table = scores.score_table([evaluation("base"), evaluation("cpt", 0.0)], "ru")
    assert "not shown to differ)." in scores.headline(table, {}, "ru")[0]
