"""Documents on disk: what is read, and what broken input is answered with."""

import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lib import documents
from lib.errors import UserError

NAMES = ("id", "text", "source", "language")

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


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def not_utf8(*values):
    """Strings whose bytes Arrow takes on trust, as it does those of a file."""
    plain = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), *plain.buffers()[1:], plain.buffers()[0])


def rows(stream):
    return [{name: row[name] for name in NAMES} for batch in stream for row in batch.to_pylist()]


# What a column may be, and what is wrong with a row of it. Every case is read both ways, which must agree.
COLUMNS = {
    "plain": {"text": ["а", "", " "]},
    "large": {"text": pa.array(["а", "б"], pa.large_string()), "id": pa.array(["1", "2"], pa.large_string())},
    "view": {"text": pa.array(["а", "б"], pa.string_view())},
    "dictionary": {"text": pa.array(["а", "б", "а"]).dictionary_encode(), "source": pa.array(["x"] * 3).dictionary_encode()},
    "numbers as ids": {"text": ["а", "б", "в"], "id": pa.array([0, 18446744073709551615, None], pa.uint64())},
    "no ids, no sources": {"text": ["а", "б", "в"], "id": ["", None, "х"], "source": ["", None, "х"]},
    "further columns": {"text": ["а", "б", "в"], "when": pa.array([1, None, 10**18], pa.timestamp("ns"))},
    "nulls": {"text": ["а", None, "в"]},
    "text is a number": {"text": [1, 2, None]},
    "text is a list": {"text": [["а"], ["б"], []]},
    "text is bytes": {"text": [b"a", b"\xff"]},
    "text is nothing": {"text": pa.nulls(2)},
    "no text": {"content": ["а", "б"]},
    "none of the fields": {"other": [1, 2]},
    "not UTF-8": {"text": not_utf8(b"ab", b"\xff\xfe", None, b"\xed\xa0\x80", b"\x00")},
    "an id that is not UTF-8": {"text": ["а", "б"], "id": not_utf8(b"\xff", b"b")},
    "fractions as ids": {"text": ["а", "б"], "id": [0.5, None]},
    "a source that is a number": {"text": ["а", "б"], "source": [1, None]},
    "several faults": {"text": ["а", None, None, "в"], "id": [0.5, 0.5, None, None], "source": [None, 5, 5, 5]},
    "no rows": {"text": pa.array([], pa.string())},
}  # fmt: skip
EXPECTED_SKIPS = {
    "nulls": {"no_text": 1},
    "text is a number": {"wrong_type": 2, "no_text": 1},
    "text is a list": {"wrong_type": 3},
    "text is bytes": {"wrong_type": 2},
    "text is nothing": {"no_text": 2},
    "no text": {"no_text": 2},
    "none of the fields": {"no_text": 2},
    "not UTF-8": {"invalid_utf8": 2, "no_text": 1},
    "an id that is not UTF-8": {"invalid_utf8": 1},
    "fractions as ids": {"wrong_type": 1},
    "a source that is a number": {"wrong_type": 1},
    "several faults": {"wrong_type": 3, "no_text": 1},  # the first in the fields' order counts
}


@pytest.mark.parametrize("name", COLUMNS)
def test_parquet_read_by_row_and_by_batch_is_the_same(tmp_path, name):
    path = parquet(tmp_path / "x.parquet", **COLUMNS[name])
    total = len(next(iter(COLUMNS[name].values())))
    by_row, by_batch = Counter(), Counter()
    read = list(documents.read(path, on_error="skip", skipped=by_row, language="ru"))
    batches = list(documents.read_batches(path, on_error="skip", skipped=by_batch, language="ru"))
    assert rows(batches) == [{name: row[name] for name in NAMES} for row in read]
    assert all(batch.schema == documents.SCHEMA for batch in batches)
    assert all(isinstance(row[name], str) for row in read for name in NAMES)
    if name != "further columns":  # nanoseconds are nothing that Python has: such a row is lost to `read`, and counted
        assert by_row == by_batch == EXPECTED_SKIPS.get(name, {})
    assert len(read) + by_row.total() == total
    if by_row:
        messages = set()
        for reader in (documents.read, documents.read_batches):
            with pytest.raises(UserError) as raised:
                list(reader(path, language="ru"))
            messages.add(str(raised.value))
        assert len(messages) == 1
        assert messages.pop().startswith(f"{path}:")


def test_made_up_ids_and_sources_and_given_languages(tmp_path):
    columns = {"text": ["а", "б", "в"], "id": ["", None, "х"], "source": ["", None, "х"], "language": [None, "", "en"]}
    path = parquet(tmp_path / "x.y.parquet", **columns)
    expected = [("x-1", "x", "ru"), ("x-2", "x", "ru"), ("х", "х", "en")]
    assert [(d["id"], d["source"], d["language"]) for d in documents.read(path, language="ru")] == expected
    with pytest.raises(UserError, match=r"x\.y\.parquet:1: no field 'language'"):
        list(documents.read_batches(path))


def test_batches_of_json_lines_and_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD, {"text": 5}, {**GOOD, "id": 7}, b"not JSON\n"))
    (tmp_path / "b.txt").write_bytes("\ufeffтекст\r\nвторой".encode())
    skipped = Counter()
    found = rows(documents.read_batches(tmp_path, on_error="skip", skipped=skipped, language="ru"))
    assert found == [GOOD, {**GOOD, "id": "7"}, {"id": "b", "text": "текст\nвторой", "source": "b", "language": "ru"}]
    assert skipped == {"wrong_type": 1, "invalid_json": 1}
    with pytest.raises(UserError, match=r"a\.jsonl:2: 'text' is int"):
        list(documents.read_batches(tmp_path, language="ru"))


def test_further_columns_of_batches(tmp_path):
    wanted = [("split", pa.string()), ("score", pa.float32())]
    columns = {"text": ["а", None, "в"], "split": ["x", "y", None], "other": [1, 2, 3]}
    parquet(tmp_path / "a.parquet", **columns)
    (tmp_path / "b.jsonl").write_bytes(lines({**GOOD, "score": 2, "other": 3}))
    batches = list(documents.read_batches(tmp_path, on_error="skip", language="ru", columns=wanted))
    assert [(r["text"], r["split"], r["score"]) for b in batches for r in b.to_pylist()] == [
        ("а", "x", None),
        ("в", None, None),
        (GOOD["text"], None, 2),
    ]
    for path in (tmp_path / "a.parquet", tmp_path / "b.jsonl"):
        with pytest.raises(UserError, match=f"{path.name}: a column of another type than expected"):
            list(documents.read_batches(path, on_error="skip", language="ru", columns=[("other", pa.list_(pa.int8()))]))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_batches_are_bounded_by_rows_and_by_text(tmp_path, monkeypatch, kind):
    texts = ["б" * 500] * 3 + ["в" * 5000] + ["г"] * 12
    if kind == "parquet":
        table = pa.table({"text": texts, "language": ["ru"] * len(texts)})
        pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    else:
        (tmp_path / "x.jsonl").write_bytes(lines(*({"text": text, "language": "ru"} for text in texts)))
    monkeypatch.setattr(documents, "ROWS_PER_GROUP", 5)
    monkeypatch.setattr(documents, "BYTES_PER_GROUP", 2048)
    batches = list(documents.read_batches(tmp_path / f"x.{kind}"))
    assert [row["text"] for row in rows(batches)] == texts
    # A Parquet batch's rows are chosen by the average of its row group before anything is read.
    assert max(map(len, batches)) == {"parquet": 2, "jsonl": 5}[kind]
    sizes = [sum(len(text.encode()) for text in batch["text"].to_pylist()) for batch in batches]
    assert [size for size in sizes if size > 2048] == [10_000]
    with documents.writing(tmp_path / "out") as writer:
        for document in documents.read(tmp_path / f"x.{kind}"):
            writer.write(document)
    written = pq.ParquetFile(tmp_path / "out" / "00000.parquet")
    assert [d["text"] for d in documents.read(tmp_path / "out")] == texts
    assert written.num_row_groups > len(texts) / 5  # the long text ends a group before its fifth row


def whole_parquet(path):
    with documents.writing(path.parent / "made") as writer:
        for number in range(12_000):
            writer.write({**GOOD, "id": str(number), "text": f"{number} слово " * (number % 9)})
    return (path.parent / "made" / "00000.parquet").read_bytes()


def test_a_parquet_file_that_breaks_off_in_its_footer_or_in_a_page(tmp_path):
    path = tmp_path / "x.parquet"
    whole = whole_parquet(path)
    second = pq.ParquetFile(tmp_path / "made" / "00000.parquet").metadata.row_group(1).column(1)
    place = second.data_page_offset + 1000
    for content, message, skips in (
        (whole[: len(whole) * 2 // 3], "not a readable Parquet file", {"damaged_file": 1}),
        (whole[:-100] + whole[-99:], "not a readable Parquet file", {"damaged_file": 1}),
        (b"", "not a readable Parquet file", {"damaged_file": 1}),
        (
            whole[:place] + bytes(64) + whole[place + 64 :],
            "x.parquet:5001: row group 1 is damaged",
            {"damaged_row": 5000},
        ),
    ):
        path.write_bytes(content)
        for reader in (documents.read, documents.read_batches):
            with pytest.raises(UserError, match=message) as raised:
                list(reader(path))
            assert "\n" not in str(raised.value)
            skipped = Counter()
            found = list(reader(path, on_error="skip", skipped=skipped))
            assert skipped == skips
            number = len(found) if reader is documents.read else sum(map(len, found))
            assert number == (7_000 if "damaged_row" in skips else 0)
    assert documents.count(path) == 12_000
    with pytest.raises(UserError, match=r"x\.parquet: row group 1 is damaged"):
        list(documents.shuffled(path, seed=0))
    path.write_bytes(whole[:1000])
    assert documents.count(path) is None


def test_any_damage_to_a_parquet_file_is_an_error_or_a_count(tmp_path, capsys):
    """Bytes changed at random; Arrow answers them with half a dozen kinds of exceptions."""
    path = tmp_path / "x.parquet"
    texts = [f"Слово {number} " * (number % 30 + 1) for number in range(60)]
    sources = pa.array(["s"] * 60).dictionary_encode()
    columns = {"id": [str(n) for n in range(60)], "text": texts, "source": sources, "language": ["ru"] * 60}
    pq.write_table(pa.table(columns), path, row_group_size=20, write_page_checksum=True)
    whole = path.read_bytes()
    rng = random.Random(5)
    seen = Counter()
    for _ in range(300):
        damaged = bytearray(whole[: rng.choice([len(whole)] * 4 + [rng.randrange(len(whole))])])
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        skipped, again = Counter(), Counter()
        found = rows(documents.read_batches(path, on_error="skip", skipped=skipped))
        read = list(documents.read(path, on_error="skip", skipped=again))
        assert [{name: row[name] for name in NAMES} for row in read] == found
        assert skipped == again
        if not skipped["damaged_file"]:
            assert len(found) + skipped.total() == 60
        if skipped:
            seen.update(skipped.keys())
            with pytest.raises(UserError) as raised:
                list(documents.read(path))
            assert "\n" not in str(raised.value)
    assert min(seen["damaged_file"], seen["damaged_row"]) > 30


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "bytes", "empty"])
def test_a_damaged_compressed_file_is_an_error_or_one_skip_after_what_can_be_read(tmp_path, suffix, damage):
    pack = {".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
    rng = random.Random(0)
    whole = pack(lines(*[{**GOOD, "id": str(n), "text": str(rng.random()) * 2} for n in range(20_000)]))
    middle = len(whole) // 2
    damaged = {"cut": whole[:middle], "bytes": whole[:middle] + bytes(99) + whole[middle + 99 :], "empty": b""}[damage]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(damaged)
    with pytest.raises(
        UserError, match=r"x\.jsonl\.(gz|zst)(:\d+: not |: the compressed file is damaged after line [\d,]+ \()"
    ):
        list(documents.read(path))
    skipped = Counter()
    found = list(documents.read(path, on_error="skip", skipped=skipped))
    assert skipped["damaged_file"] == 1
    assert (0 if damage == "empty" else 1000) <= len(found) < 20_000


def test_files_of_several_compressed_frames_are_read_to_their_end(tmp_path):
    for suffix, pack in ((".jsonl.gz", gzip.compress), (".jsonl.zst", zstandard.compress)):
        (tmp_path / f"x{suffix}").write_bytes(pack(lines(GOOD)) + pack(lines(GOOD, GOOD)))
        assert len(list(documents.read(tmp_path / f"x{suffix}"))) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\\ud83d", "language": "ru"}', "lone_surrogate"),
        (b'{"text": "a", "id": "\\udc00", "language": "ru"}', "lone_surrogate"),
        (b'{"text": "a", "source": "\\udc00", "language": "ru"}', "lone_surrogate"),
        (b'{"text": "a", "language": "\\udc00"}', "lone_surrogate"),
        (b'{"text": "\\ud83d\\ude00", "language": "ru"}', None),
        (b'{"text": "a\\u0000b", "language": "ru"}', None),
        (b'{"text": "a\x00b", "language": "ru"}', "invalid_json"),
        (b"\x00" * 1000, "invalid_json"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"text": "a", "n": ' + b"[" * 200_000 + b"}", "invalid_json"),
        (b'{"text": "a", "n": NaN, "language": "ru"}', None),
        (b'{"text": "", "language": "ru"}', None),
        (b'{"text": null, "language": "ru"}', "no_text"),
        (b'{"text": ["a"], "language": "ru"}', "wrong_type"),
        (b'{"text": "a", "id": true, "language": "ru"}', "wrong_type"),
        (b'{"text": "a", "source": {}, "language": "ru"}', "wrong_type"),
        (b'{"text": "a", "language": 1}', "wrong_type"),
        (b'{"text": "a"}', "no_language"),
        (b'\xef\xbb\xbf{"text": "a", "language": "ru"}', "invalid_json"),  # a byte order mark in the middle
        ('{"text": "a"}'.encode("utf-16"), "invalid_utf8"),
        (gzip.compress(lines(GOOD)).replace(b"\n", b""), "invalid_utf8"),
    ],
)  # fmt: skip
def test_hostile_lines(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(GOOD).replace(b"\n", b"\r\n") + line + b"\n" + lines(GOOD))
    skipped = Counter()
    found = list(documents.read(path, on_error="skip", skipped=skipped))
    assert len(found) == (3 if reason is None else 2)
    assert skipped == ({} if reason is None else {reason: 1})
    assert found[0] == found[-1] == GOOD
    assert rows(documents.read_batches(path, on_error="skip")) == [{name: d[name] for name in NAMES} for d in found]
    if reason is not None:
        with pytest.raises(UserError, match=r"x\.jsonl:2: "):
            list(documents.read(path))


def test_a_line_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE", 1000)
    (tmp_path / "x.jsonl").write_bytes(lines(GOOD) + b"{" * 12_345 + b"\n" + lines(GOOD) + b"\x00" * 5000)
    with pytest.raises(UserError, match=r"x\.jsonl:2: more than 0 MB without a line break"):
        list(documents.read(tmp_path / "x.jsonl"))
    skipped = Counter()
    assert len(list(documents.read(tmp_path / "x.jsonl", on_error="skip", skipped=skipped))) == 2
    assert skipped == {"line_too_long": 2}


def test_two_columns_of_one_name_and_a_folder_of_a_file_s_name(tmp_path):
    pq.write_table(pa.table([["а"], ["б"]], names=["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: 2 columns named 'text'"):
        list(documents.read(tmp_path / "x.parquet"))
    parquet(
        tmp_path / "y.parquet" if (tmp_path / "y.parquet").mkdir() else tmp_path / "y.parquet" / "z.parquet", text=["а"]
    )
    assert [d["id"] for d in documents.read(tmp_path / "y.parquet", language="ru")] == ["z-1"]


def test_a_folder_without_a_readable_file_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_text("text\nа\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no file in it is one of \.parquet"):
        list(documents.read(tmp_path))


def test_raw_records_of_a_parquet_file_survive_what_python_can_not_hold(tmp_path):
    path = parquet(tmp_path / "x.parquet", body=not_utf8(b"ab", b"\xff", b"cd"))
    skipped = Counter()
    found = list(documents.read_records(path, on_error="skip", skipped=skipped))
    assert (found, skipped) == ([(1, {"body": "ab"}), (3, {"body": "cd"})], {"invalid_utf8": 1})
    with pytest.raises(UserError, match=r"x\.parquet:2: not UTF-8"):
        list(documents.read_records(path, on_error="stop", skipped=skipped))


def test_each_byte_of_a_footer_changed_is_an_error_or_a_count(tmp_path):
    """Among them the numbers of rows: what the footer says of the whole file must be what it says of its parts."""
    path = tmp_path / "x.parquet"
    columns = {"text": [f"слово {n}" for n in range(6)], "language": ["ru"] * 6}
    pq.write_table(pa.table(columns), path, row_group_size=2, write_statistics=False, store_schema=False)
    whole = path.read_bytes()
    problems = set()
    for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)):
        path.write_bytes(whole[:place] + bytes([(whole[place] + 2) % 256]) + whole[place + 1 :])
        skipped = Counter()
        found = rows(documents.read_batches(path, on_error="skip", skipped=skipped, language="ru"))
        assert skipped["damaged_file"] or len(found) + skipped.total() == 6
        try:
            list(documents.read(path, language="ru"))
        except UserError as error:
            problems.add(str(error))
    assert any("its footer contradicts itself" in problem for problem in problems)


def test_a_page_that_reads_well_but_fails_its_checksum_is_damaged(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"text": ["первый текст", "второй текст"], "language": ["ru", "ru"]})
    pq.write_table(table, path, compression="none", write_statistics=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace("второй".encode(), "другой".encode()))
    with pytest.raises(UserError, match=r"x\.parquet:1: row group 0 is damaged \(.*checksum"):
        list(documents.read(path))
    with documents.writing(tmp_path / "out") as writer:
        writer.write(GOOD)
    column = pq.ParquetFile(tmp_path / "out" / "00000.parquet").metadata.row_group(0).column(1)
    written = (tmp_path / "out" / "00000.parquet").read_bytes()
    place = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 4
    spoilt = tmp_path / "spoilt.parquet"
    spoilt.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
    with pytest.raises(UserError, match="checksum"):
        list(documents.read(spoilt))


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"language": "kk"}, "kk"),
        ({"lang": "Kazakh"}, "kk"),
        ({"language": "russian"}, "ru"),
        ({"language": "Belarusian", "lang": "en"}, "be"),
        ({"language": "Filipino"}, "fil"),  # has no code of two letters
        ({"language": "the language of birds"}, "xx"),
        ({"language": 7}, "xx"),
        ({}, "xx"),
    ],
)
def test_a_records_language_is_a_code_or_an_english_name(record, code):
    assert documents.language_of(record, "xx") == code
