"""Hostile input through the real scripts: a clear line and exit status 2, or counted skips; no document is lost unnoticed."""

import gzip
import importlib
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from conftest import ROOT, TEXT
from test_filter import encoder  # noqa: F401  (a fixture: a random two-layer encoder)
from tiny_model import save as save_tiny

from lib import documents
from lib.errors import UserError

GOOD = [json.loads(line) for line in (TEXT / "ru.jsonl").read_text(encoding="utf-8").splitlines()[:12]]
TEXTS = [document["text"] for document in GOOD]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def lines(*records):
    return b"".join(r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def parquet(path, row_group_size=3, **columns):
    pq.write_table(
        pa.table(columns), path, row_group_size=row_group_size, write_page_checksum=True, write_statistics=False
    )


def spoil_second_group(path):
    """Overwrite bytes in the middle of its texts."""
    group = pq.ParquetFile(path).metadata.row_group(1)
    texts = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "text")
    place = (texts.dictionary_page_offset or texts.data_page_offset) + texts.total_compressed_size // 2
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + b"\xaa" * 60 + whole[place + 60 :])


def of(number, **changes):
    return {"id": f"d{number}", "text": TEXTS[number], "language": "ru", "source": "made"} | changes


def hostile(folder):
    """A folder of files with something wrong in most of them; (documents that can be read, what is to be skipped)."""
    folder.mkdir()
    plain = {"language": ["ru"] * 6, "text": TEXTS[:6], "id": list("abcdef")}
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(of(0), of(1)).replace(b"\n", b"\r\n"))
    (folder / "broken.jsonl").write_bytes(
        lines(
            of(2),
            b'{"text": "\\ud800 lone", "language": "ru"}\n',
            b'{"text": "ab", "language": "ru", "id": "\\udfff"}\n',
            b'{"text": "\xff\xfe", "language": "ru"}\n',
            b"\x00" * 500 + b"\n",
            b'{"text": "no end\n',
            b"[]\n",
            {"text": 5, "language": "ru"},
            {"text": ["list"], "language": "ru"},
            {"text": None, "language": "ru"},
            {"content": "another name", "language": "ru"},
            {"text": "no language"},
            b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n",
        )
    )
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "empty_texts.jsonl").write_bytes(
        lines(of(3), *({"text": t, "language": "ru"} for t in ("", " ", "\n\n\n")))
    )
    (folder / "nul.jsonl").write_bytes(lines(of(4), {"text": "\x00" * 300, "language": "ru"}))
    (folder / "same_ids.jsonl").write_bytes(lines(*(of(n, id="same") for n in (5, 6, 7))))
    cut = gzip.compress(lines(*(of(8, id=str(n)) for n in range(3))))
    (folder / "cut.jsonl.gz").write_bytes(cut[:-12])
    (folder / "nested.jsonl.gz").write_bytes(gzip.compress(gzip.compress(lines(of(0))).replace(b"\n", b"")))
    (folder / "cut.jsonl.zst").write_bytes(zstandard.compress(lines(*(of(9, id=str(n)) for n in range(3))))[:-12])
    (folder / "not_utf8.txt").write_bytes("Привет".encode("cp1251"))
    parquet(folder / "a_good.parquet", **plain)
    parquet(folder / "b_page.parquet", **plain)
    (folder / "c_footer.parquet").write_bytes((folder / "b_page.parquet").read_bytes()[:-20])
    spoil_second_group(folder / "b_page.parquet")
    parquet(folder / "d_none.parquet", text=pa.array([], pa.string()))
    parquet(folder / "e_numbers.parquet", text=[1, 2, None], language=["ru"] * 3)
    parquet(folder / "f_bytes.parquet", text=[b"a", b"\xff"], language=["ru"] * 2)
    parquet(folder / "g_dictionary.parquet", text=pa.array(TEXTS[:3]).dictionary_encode(), language=["ru", None, "ru"])
    parquet(folder / "h_names.parquet", content=TEXTS[:2])
    (folder / "README.md").write_text("not a document", encoding="utf-8")


def told(folder):
    """(documents, skips by reason) as the reader tells them."""
    skipped = Counter()
    return list(documents.read(folder, on_error="skip", skipped=skipped)), skipped


EXPECTED_SKIPS = {
    "lone_surrogate": 2,
    "invalid_utf8": 3,  # a line, a packed file in a packed file, a text file
    "invalid_json": 4,
    "wrong_type": 6,
    "no_text": 5,
    "no_language": 2,
    "damaged_file": 3,
    "damaged_row": 3,
}


def test_what_the_reader_tells_of_them(tmp_path):
    hostile(tmp_path / "in")
    found, skipped = told(tmp_path / "in")
    assert skipped == EXPECTED_SKIPS
    batches = list(documents.read_batches(tmp_path / "in", on_error="skip"))
    assert [row for batch in batches for row in batch.to_pylist()] == [
        {name: row[name] for name in documents.SCHEMA.names} for row in found
    ]


def results(out):
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]


def test_dedup_keeps_count(script, tmp_path):
    hostile(tmp_path / "in")
    found, skipped = told(tmp_path / "in")
    out = tmp_path / "out"
    done = script("dedup", f"--corpus={tmp_path / 'in'}", f"--out={out}", "--on_error=skip", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    figures = results(out)
    assert figures["skipped"] == skipped
    assert figures["documents_in"] == len(found) == figures["documents_kept"] + figures["documents_dropped"]
    assert pq.read_table(out / "documents").num_rows == figures["documents_kept"] > 0
    assert figures["paragraphs_in"] == figures["paragraphs_kept"] + sum(figures["paragraphs_removed"].values())


def filter_flags(folder, model, out):
    config = f"--config={ROOT}/configs/test/filter.yaml"
    return [config, f"--documents={folder}", f"--encoder={model}", f"--out={out}"]


def test_filter_keeps_count(script, encoder, tmp_path):  # noqa: F811
    hostile(tmp_path / "in")
    found, skipped = told(tmp_path / "in")
    out = tmp_path / "out"
    done = script("filter", *filter_flags(tmp_path / "in", encoder, out), "--on_error=skip", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    figures = results(out)
    assert figures["skipped"] == skipped
    assert figures["documents_in"] == len(found)
    assert figures["documents_in"] == figures["documents_kept"] + sum(figures["documents_removed"].values())
    kept, removed = (pq.read_table(out / part).to_pylist() for part in ("documents", "removed"))
    assert Counter((d["id"], d["text"]) for d in [*kept, *removed]) == Counter((d["id"], d["text"]) for d in found)
    assert {r["reason"] for r in removed if not r["text"].strip()} == {"too_short"}
    assert [r["reason"] for r in removed if r["text"].startswith("\x00")] == ["mojibake"]


def damaged(path):
    """A Parquet file of documents whose second row group can't be read."""
    parquet(path, id=list("abcdef"), text=TEXTS[:6], source=["s"] * 6, language=["ru"] * 6, split=["train"] * 6)
    spoil_second_group(path)


def cut(path):
    damaged(path)
    path.write_bytes(path.read_bytes()[:-20])


def wrong_columns(path):
    parquet(path, content=TEXTS)


def lone_surrogate(path):
    path.with_suffix(".jsonl").write_bytes(lines(of(0), b'{"text": "\\ud800", "language": "ru"}\n'))


STOPS = [
    (damaged, "x.parquet:4: row group 1 is damaged"),
    (cut, "x.parquet: not a readable Parquet file"),
    (wrong_columns, "x.parquet:1: no field 'text'"),
    (lone_surrogate, "x.jsonl:2: 'text' holds a lone surrogate"),
]


@pytest.mark.parametrize("name", ["dedup", "filter"])
@pytest.mark.parametrize(("make", "message"), STOPS)
def test_the_first_thing_that_is_wrong_stops_the_run_in_one_line(encoder, tmp_path, name, make, message):  # noqa: F811
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "x.parquet")
    settings = {"corpus": [tmp_path / "in"]}
    if name == "filter":
        settings = yaml.safe_load((ROOT / "configs" / "test" / "filter.yaml").read_text(encoding="utf-8"))
        settings |= {"documents": tmp_path / "in", "encoder": encoder}
    with pytest.raises(UserError) as raised:
        importlib.import_module(name).main(out=tmp_path / "out", **settings)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dedup", "pack", "train_spm"])
def test_a_damaged_file_ends_a_script_with_one_line(script, tmp_path, name):
    folder = tmp_path / "in" / "documents"
    folder.mkdir(parents=True)
    damaged(folder / "00000.parquet")
    save_tiny(tmp_path / "model")
    flags = {
        "dedup": [f"--corpus={folder}"],
        "pack": [f"--documents={tmp_path / 'in'}", f"--tokenizer={tmp_path / 'model'}"],
        "train_spm": [f"--documents={tmp_path / 'in'}", f"--base={tmp_path / 'model'}", "--vocab_size=500"],
    }[name]
    done = script(name, *flags, f"--out={tmp_path / 'out'}", env=ONE_THREAD)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error: " in line]  # perhaps behind a progress bar
    assert len(errors) == 1
    assert "00000.parquet" in errors[0]
    assert "row group 1 is damaged" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dedup", "filter"])
def test_a_line_of_fifty_megabytes(script, encoder, tmp_path, name):  # noqa: F811
    """One document of 50 MB among others: kept or removed by name, in bearable time and memory."""
    rng = random.Random(0)
    words = [word for text in TEXTS for word in text.split()]
    size, pieces = 0, []
    while size < 26_000_000:  # Cyrillic: two bytes a character
        pieces.append(" ".join(rng.choices(words, k=100)))
        size += len(pieces[-1]) + 1
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(*(of(n) for n in range(12)), {"id": "big", "text": " ".join(pieces), "language": "ru"}))
    out = tmp_path / "out"
    flags = [f"--corpus={path}", f"--out={out}"] if name == "dedup" else filter_flags(path, encoder, out)
    done = script(name, *flags, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert results(out)["documents_in"] == 13
    parts = [pq.read_table(out / part, columns=["id"]) for part in ("documents", "removed")]
    assert sum(part["id"].to_pylist().count("big") for part in parts) == 1
    if name == "filter":
        assert results(out)["documents_removed"]["too_long"] == 1
