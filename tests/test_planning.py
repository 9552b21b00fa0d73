"""What a deduplication is said to take, before it starts."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib import documents, minhash, planning

HOW = minhash.scheme(0.8, 128, 5, False, 40)
WORDS = ["раз", "два", "три", "четыре", "пять", "вышел", "зайчик", "погулять", "вдруг", "охотник"]


def corpus(folder, files=6, rows=1200, group=400):
    """Files whose row groups differ in how long their paragraphs are, one document after another longer; and the truth."""
    rng = random.Random(1)
    folder.mkdir()
    compared = 0
    for number in range(files):
        texts = []
        for row in range(rows):
            longest = 5 + 40 * (row // group)
            lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(1 + row % 7)]
            compared += sum(len(line) >= 40 for line in lines)
            texts.append("\n".join(lines))
        table = pa.table({"id": [str(row) for row in range(rows)], "text": pa.array(texts, pa.large_string())})
        pq.write_table(table, folder / f"{number}.parquet", compression="zstd", row_group_size=group)
    return documents.files(folder), compared


def test_paragraphs_are_counted_in_a_sample(tmp_path, monkeypatch):
    files, compared = corpus(tmp_path / "corpus")
    assert planning.shape(files, HOW).paragraphs == pytest.approx(compared, rel=0.05)
    monkeypatch.setattr(planning, "FOOTERS", 3)
    monkeypatch.setattr(planning, "SAMPLED_GROUPS", 12)
    monkeypatch.setattr(planning, "SIGNED_BYTES", 12 * planning.WINDOWS * 4_000)
    assert planning.shape(files, HOW).paragraphs == pytest.approx(compared, rel=0.2)


def test_batches_are_counted(tmp_path):
    files, _ = corpus(tmp_path / "corpus")
    found = planning.shape(files, HOW)
    batches = [batch for file in files for batch in documents.read_batches(file, language="ru")]
    assert found.batches == len(batches)
    sizes = [batch["text"].nbytes for batch in batches]
    assert found.largest == pytest.approx(max(sizes), rel=0.1)
    assert found.text_bytes == pytest.approx(sum(sizes), rel=0.1)


def test_a_window_cuts_no_character():
    texts = pa.array(["", "ёж", "абв", "", "г"], pa.large_string())
    windows = [planning._window(texts, first, last).to_pylist() for first in range(12) for last in range(first, 13)]
    assert [text for text in windows[12] if text] == ["ёж", "абв", "г"]
    assert all("".join(found) in "ёжабвг" for found in windows)
    assert planning._window(texts, 3, 7).to_pylist() == ["", "а"]
    assert planning._window(texts.slice(2), 4, 12).to_pylist() == ["", "абв", "", "г"]


def test_broken_and_other_files_do_not_stop_the_plan(tmp_path):
    files, compared = corpus(tmp_path / "corpus")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 no")
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"words": ["x"]}), wrong)
    assert planning.shape([*files, damaged, wrong], HOW).paragraphs == pytest.approx(compared, rel=0.05)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"id": "1", "text": "x" * 26_800}) + "\n", encoding="utf-8")
    assert planning.shape([lines], HOW).paragraphs == pytest.approx(100, rel=0.05)
    assert str(planning.plan([], HOW, 4.0)).startswith("about 0 paragraphs")


def test_three_hundred_million_paragraphs_fit():
    corpus = planning.Shape(300e6, 300e6 * 270, 300e6 * 270 / 40e6, 64e6)
    found = planning.of_shape(corpus, HOW, 4.0, threads=8)
    assert max(found.memory_gb.values()) <= 4
    assert 57 < max(found.disk_gb.values()) <= 60
    assert str(found).splitlines()[0] == "about 300,000,000 paragraphs to compare"
    assert "GB (to group)" in str(found)


def test_less_memory_is_planned_if_less_is_allowed():
    corpus = planning.Shape(50e6, 50e6 * 270, 1000, 16e6)
    small, large = (planning.of_shape(corpus, HOW, memory, threads=2) for memory in (1.0, 4.0))
    assert small.memory_gb["find repeats"] < large.memory_gb["find repeats"] - 1
    assert small.disk_gb == large.disk_gb
    many = planning.of_shape(corpus, HOW, 1.0, threads=32)
    assert many.memory_gb["sign"] > small.memory_gb["sign"]
