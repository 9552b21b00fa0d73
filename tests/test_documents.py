"""Documents on disk: what is read, and what broken input is answered with."""

import gzip
import json
from collections import Counter

import pyarrow as pa
import pytest
import zstandard

from lib import documents
from lib.errors import UserError

GOOD = {"id": "a", "text": "Привет, мир", "source": "s", "language": "ru"}


def lines(*records):
    return b"".join(r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def test_reads_what_it_writes_in_order(tmp_path):
    with documents.writing(tmp_path) as writer:
        for number in range(12_000):
            writer.write({**GOOD, "id": str(number)})
    assert [d["id"] for d in documents.read(tmp_path)] == [str(n) for n in range(12_000)]
    assert next(documents.read(tmp_path)) == {**GOOD, "id": "0"}


def test_no_document_is_still_a_readable_folder(tmp_path):
    with documents.writing(tmp_path):
        pass
    assert list(documents.read(tmp_path)) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_plain_and_compressed(tmp_path, suffix):
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
    (tmp_path / f"x{suffix}").write_bytes(pack(lines(GOOD, {"text": "без имени", "language": "ru"})))
    read = list(documents.read(tmp_path / f"x{suffix}"))
    assert read == [GOOD, {"id": "x-2", "text": "без имени", "source": "x", "language": "ru"}]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b'{"text": "a"\n', "x.jsonl:2: not valid JSON"),
        (b'{"text": "\xff\xfe"}\n', "x.jsonl:2: not UTF-8 at byte 10"),
        (b"[1, 2]\n", "x.jsonl:2: a JSON list, not an object"),
        (b'{"texd": "a"}\n', "x.jsonl:2: no field 'text'"),
        (b'{"text": 5, "language": "ru"}\n', "x.jsonl:2: 'text' is int"),
        (b'{"text": "\\ud800", "language": "ru"}\n', "x.jsonl:2: 'text' holds a lone surrogate"),
    ],
)
def test_a_broken_line_stops_with_its_place_or_is_counted(tmp_path, broken, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(GOOD, broken, GOOD))
    with pytest.raises(UserError) as error:
        list(documents.read(path))
    assert message in str(error.value)
    assert "--on_error=skip" in str(error.value)
    skipped = Counter()
    assert len(list(documents.read(path, on_error="skip", skipped=skipped))) == 2
    assert skipped.total() == 1


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 not at all")
    with pytest.raises(UserError, match=name):
        list(documents.read(tmp_path / name))


def test_a_truncated_gzip_is_named(tmp_path):
    whole = gzip.compress(lines(*[{**GOOD, "text": str(n) * 50} for n in range(2000)]))
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz.*damaged"):
        list(documents.read(tmp_path / "x.jsonl.gz"))


def test_shuffled_depends_on_the_seed_alone_and_loses_nothing(tmp_path):
    with documents.writing(tmp_path) as writer:
        for number in range(100):
            writer.write({**GOOD, "id": str(number)})
    first, again, other = ([d["id"] for d in documents.shuffled(tmp_path, seed, buffer=10)] for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(str(n) for n in range(100))
    assert first != sorted(first, key=int)


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UserError, match=r"not one of \.parquet"):
        list(documents.read(tmp_path / "x.docx"))


def held_out_folder(folder, *rows):
    with documents.writing(folder, extra=[("split", pa.string())]) as writer:
        for number, (split, language, source, text) in enumerate(rows):
            writer.write({"id": str(number), "split": split, "language": language, "source": source, "text": text})
    return folder


def test_held_out_text_is_shared_evenly_among_the_sources_that_have_it(tmp_path):
    many = [("held_out", "ru", "big", f"{number:03}" + "б" * 7) for number in range(100)]
    few = [("held_out", "ru", "small", "м" * 10)] * 2
    other = [("train", "ru", "unseen", "х" * 10), ("held_out", "en", "old", "old")]
    folder = held_out_folder(tmp_path, *many, ("held_out", "ru", "middle", "с" * 40), *few, *other)
    found = documents.held_out_by_source(folder, 100)
    sizes = {
        language: {source: sum(map(len, texts)) for source, texts in part.items()} for language, part in found.items()
    }
    assert sizes == {"ru": {"big": 40, "middle": 40, "small": 20}, "en": {"old": 3}}
    assert documents.held_out(folder, 100) == {
        language: [text for texts in part.values() for text in texts] for language, part in found.items()
    }
    crossed = documents.held_out_by_source(folder, 41)["ru"]
    assert {source: sum(map(len, texts)) for source, texts in crossed.items()} == {"big": 10, "middle": 40}


def test_held_out_text_is_drawn_from_all_of_a_source_whatever_the_order(tmp_path):
    rows = [("held_out", "ru", f"s{number % 2}", f"{number:04}") for number in range(200)]
    found = documents.held_out(held_out_folder(tmp_path / "a", *rows), 80)["ru"]
    assert len(found) == len(set(found)) == 20
    assert max(map(int, found)) > 100
    assert documents.held_out(tmp_path / "a", 80, seed=1)["ru"] != found
    with documents.writing(tmp_path / "b", extra=[("split", pa.string())]) as writer:
        for document in reversed(list(documents.read(tmp_path / "a"))):
            writer.write(document)
    assert documents.held_out(tmp_path / "b", 80)["ru"] == found
