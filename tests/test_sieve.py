"""A corpus through the filter: parts, resuming, processes, counts, thresholds, what is held out."""

import concurrent.futures

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib import languages, scoring, sieve

RU = languages.load("ru")
LIMITS = {"too_short": 10}
AT_20 = 1 + 20 / 64  # the score of a text of 20 characters, as below


def length_as_score(texts):
    return np.tile([[1 + len(text) / 64] for text in texts], 6).astype(np.float32)


@pytest.fixture
def scored(monkeypatch):
    """The lengths of the texts that were scored, in their order."""
    seen = []

    def load(*_):
        return lambda texts: seen.extend(map(len, texts)) or length_as_score(texts)

    monkeypatch.setattr(scoring, "load", load)
    monkeypatch.setattr(sieve, "PART", 20)
    monkeypatch.setattr(sieve, "BLOCK", 10)
    return seen


def corpus(count, start=0):
    return [
        {"id": str(n), "text": "я" * (n % 50), "source": "odd" if n % 2 else "even", "language": "ru"}
        for n in range(start, count)
    ]


def judge(stream, folder, processes=1):
    how = {"limits": LIMITS, "language_folder": None, "precision": "fp32", "devices": ["cpu"]}
    sieve.judge(stream, folder, folder / "model", processes=processes, **how)


def verdicts(folder):
    return pa.concat_tables([pq.read_table(part) for part in sieve.parts(folder)]).to_pylist()


def test_verdicts_are_in_the_documents_order(scored, tmp_path):
    judge(corpus(45), tmp_path)
    found = verdicts(tmp_path)
    assert [row["characters"] for row in found] == [n % 50 for n in range(45)]
    assert [row["reason"] for row in found] == ["too_short"] * 10 + [None] * 35
    assert [row["score"] for row in found[:10]] == [None] * 10
    assert [row["score"] for row in found[10:]] == pytest.approx([1 + n / 64 for n in range(10, 45)])
    assert len(sieve.parts(tmp_path)) == 3
    assert scored == list(range(10, 45))


def test_an_interrupted_run_goes_on_from_its_last_part(scored, tmp_path):
    def broken():
        yield from corpus(45)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(broken(), tmp_path)
    assert len(sieve.parts(tmp_path)) == 1  # what waited in line is lost
    scored.clear()
    judge(corpus(45), tmp_path)
    assert scored == list(range(20, 45))
    again = verdicts(tmp_path)
    judge(corpus(45), tmp_path)  # nothing is left to do
    assert scored == list(range(20, 45))
    assert verdicts(tmp_path) == again
    judge(corpus(45), tmp_path / "whole")
    assert verdicts(tmp_path / "whole") == again


def test_no_more_blocks_wait_than_allowed():
    waiting = []

    def submit(work, block):
        waiting.append(block)
        return sieve._at_once(work, block)

    found = sieve._in_order(submit, lambda block: block, iter(range(100)), ahead=4)
    assert next(found) == 0
    assert len(waiting) == 4
    assert list(found) == list(range(1, 100))


def test_an_empty_corpus_has_one_empty_part(scored, tmp_path):
    judge([], tmp_path)
    assert verdicts(tmp_path) == []
    assert sieve.Tally(tmp_path).documents == sieve.Tally(tmp_path).scored == 0


def test_counts_by_hand(scored, tmp_path):
    judge(corpus(50), tmp_path)
    tally = sieve.Tally(tmp_path)
    assert (tally.documents, tally.scored, tally.characters) == (50, 40, sum(range(50)))
    assert tally.by_rule == {"too_short": 10}
    assert tally.criteria()["grammar"] == pytest.approx(1 + sum(range(10, 50)) / 40 / 64, abs=1e-3)
    assert tally.percentiles((0, 50, 100)) == pytest.approx(
        {"p0": 1 + 10 / 64, "p50": 1 + 29 / 64, "p100": 1 + 49 / 64}, abs=0.001
    )
    # 49, 48 and 47 characters are 0.117 of the 1,225 that came in; 49 and 48 only 0.079.
    assert tally.keeping(0.1) == 1.734  # the grid's last score that 47 characters reach
    assert tally.keeping(1.0) == 0  # the rules have taken more than that already
    curve = tally.kept_shares()["even"]
    assert curve[0] == {"threshold": 1.0, "documents": 1.0, "characters": 1.0}
    assert curve[4] == {"threshold": 1.4, "documents": 12 / 20, "characters": round(sum(range(26, 50, 2)) / 580, 4)}


def test_the_threshold_of_a_share_keeps_that_share(scored, tmp_path):
    judge(corpus(500), tmp_path)
    tally = sieve.Tally(tmp_path)
    threshold = tally.keeping(0.65)
    kept = [row for row in verdicts(tmp_path) if row["reason"] is None and row["score"] >= threshold]
    share = sum(row["characters"] for row in kept) / tally.characters
    assert 0.65 <= share < 0.65 + 10 * 49 / tally.characters


def test_held_out_are_the_smallest_hashes_and_at_most_a_fifth(scored, tmp_path):
    judge(corpus(50), tmp_path)
    kept, held = sieve.hold_out(tmp_path, AT_20, 4)
    rows = verdicts(tmp_path)
    expected = sorted(range(20, 50), key=lambda n: rows[n]["hash"])[:4]
    assert (kept, held) == (30, {"ru": set(expected)})
    assert len(sieve.hold_out(tmp_path, AT_20, 100)[1]["ru"]) == 6


def test_written_documents_are_those_that_came_in(scored, tmp_path):
    documents = corpus(50)
    documents[49]["text"] = "Пишите на ivan.petrov@example.com, ответим за день. " + "я" * 60
    judge(documents, tmp_path / "verdicts")
    how = {"threshold": AT_20, "held": {30}, "language_folder": None}
    figures = sieve.write(documents, tmp_path, tmp_path / "verdicts", mask_personal_data=True, **how)
    kept, removed = (pq.read_table(tmp_path / name).to_pylist() for name in ("documents", "removed"))
    assert [row["id"] for row in kept] == [str(n) for n in range(20, 50)]
    assert [row["id"] for row in kept if row["split"] == "held_out"] == ["30"]
    assert {row["reason"]: row["score"] is None for row in removed} == {"too_short": True, "low_quality": False}
    assert (figures["kept"], figures["removed"]) == (30, 20)
    assert figures["by_source"]["odd"] == {"kept": 15, "too_short": 5, "low_quality": 5}
    assert "ivan.petrov" not in kept[-1]["text"]
    assert sum(figures["masked"].values()) == 1
    assert {reason: len(rows) for reason, rows in figures["samples"].items()} == {"too_short": 10, "low_quality": 10}


def test_samples_are_few_and_short():
    shown = []
    for seen in range(1, 1001):
        sieve._draw(shown, {"text": f"{seen} " + "я" * 1000}, seen, seen)
    assert len(shown) == sieve.SHOWN
    assert {len(row["text"]) for row in shown} == {sieve.SHOWN_CHARACTERS}
    assert max(int(row["text"].split()[0]) for row in shown) > 500  # not the first ones only


def test_fresh_processes_give_what_this_one_gives():
    with sieve._pool(2) as submit:
        futures = [submit(sieve._hash, str(n)) for n in range(5)]
        assert all(isinstance(future, concurrent.futures.Future) for future in futures)
        assert [future.result() for future in futures] == [sieve._hash(str(n)) for n in range(5)]
