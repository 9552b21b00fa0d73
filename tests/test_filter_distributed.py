"""filter under Daft, on this machine and on a Ray cluster: the same verdicts, scores and documents as the local engine."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_filter import CRITERIA, encoder, good_documents, lines, write  # noqa: F401  (a fixture: a random encoder)

from lib import corruption, documents, sieve

pytest.importorskip("daft", reason="Daft is not installed: pip install -r requirements/distributed.txt")

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "data" / "builtin" / "text"
# Parts of 20 documents; a block is as many, because the processes of Daft know their own number only.
SMALL_PARTS = (
    "from lib import sieve; sieve.PART = sieve.BLOCK = 20; from lib import cli; import filter; cli.run(filter.main)"
)


def run(corpus, out, program=SMALL_PARTS, **settings):
    flags = [f"--{name}={value}" for name, value in settings.items() if name.islower()]
    flags += [f"--config={ROOT}/configs/test/filter.yaml", f"--documents={corpus}", f"--out={out}", "--precision=fp32"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
    env |= {name: value for name, value in settings.items() if name.isupper()}
    return subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, env=env, cwd=ROOT)


def outcome(folder):
    receipts, manifest = (
        json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in ("receipts", "manifest")
    )
    tables = {name: pq.read_table(folder / name).to_pylist() for name in ("documents", "removed")}
    return tables | {"receipts": receipts, "results": manifest["results"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Good and spoilt documents and broken lines, in JSON Lines and in Parquet of small row groups; parts cross files."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(1)
    texts = [corruption.symbols(d["text"], 0.02 * (n % 10), rng) for n, d in enumerate(good_documents(30))]
    spoilt = [d | {"language": "ru", "source": "spoilt"} for d in lines(TEXT / "ru_spoilt.jsonl")]
    cut = [{"text": t[: 100 + 7 * n], "language": "ru"} for n, t in enumerate(texts)]
    first = write(folder / "first.jsonl", [*cut[:13], {"text": 1}, *spoilt, {"language": "ru"}])
    first.write_text(first.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    rows = [{"id": str(n), "text": row["text"], "language": "ru"} for n, row in enumerate(cut * 2)]
    rows[5]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), folder / "second.parquet", row_group_size=9)
    return folder


@pytest.fixture(scope="module")
def local(corpus, encoder, tmp_path_factory):  # noqa: F811
    """(the filter trained, what the local engine makes of the corpus by it)."""
    folder = tmp_path_factory.mktemp("local")
    good = good_documents(12)  # half of them are damaged, so that the scores differ
    for document in good[6:]:
        document["text"] = corruption.symbols(document["text"], 0.5, random.Random(0))
    scored = [d | dict.fromkeys(CRITERIA, 5 if n < 6 else 1) for n, d in enumerate(good)]
    how = {"annotations": write(folder / "annotations.jsonl", scored * 3), "epochs": 35, "limits": "{}"}
    done = run(write(folder / "in.jsonl", good), folder / "trained", encoder=encoder, **how)
    assert done.returncode == 0, done.stderr
    model = folder / "trained" / "model"
    done = run(corpus, folder / "filter", model=model, target="keep_share=0.5", on_error="skip")
    assert done.returncode == 0, done.stderr
    found = outcome(folder / "filter")
    assert found["results"]["documents_removed"]["low_quality"] > 10
    assert len(found["results"]["documents_removed"]) > 4
    assert found["results"]["skipped"] == {"no_text": 2, "wrong_type": 1, "invalid_json": 1}
    return model, found


@pytest.mark.parametrize("address", ["", "local"], ids=["this machine", "Ray cluster"])
def test_the_same_as_the_local_engine(corpus, local, tmp_path, address):
    if address:
        pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements/distributed.txt")
    model, expected = local
    how = {"model": model, "target": "keep_share=0.5", "on_error": "skip", "engine": "daft", "processes": 2}
    done = run(corpus, tmp_path / "filter", RAY_ADDRESS=address, **how)
    assert done.returncode == 0, done.stderr
    assert (" on ray, machines: 1" if address else " in this process") in done.stderr
    found = outcome(tmp_path / "filter")
    assert found == expected  # scores too, to the last bit: the same documents in the same batches


def test_an_interrupted_run_judges_only_what_is_missing(corpus, local, tmp_path):
    model, expected = local
    how = {"model": model, "target": "keep_share=0.5", "on_error": "skip", "engine": "daft", "processes": 1}
    killed = SMALL_PARTS.replace("cli.run", "filter._sift = lambda *_: sys.exit('killed'); cli.run")
    done = run(corpus, tmp_path / "filter", "import sys; " + killed, **how)
    assert "killed" in done.stderr, done.stderr
    parts = sieve.parts(tmp_path / "filter.partial" / "verdicts")
    assert len(parts) == -(-expected["results"]["documents_in"] // 20)
    parts[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in parts if path.exists()}
    done = run(corpus, tmp_path / "filter", "import sys; " + killed, **how)
    assert "killed" in done.stderr, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sieve.parts(tmp_path / "filter.partial" / "verdicts") == parts
    done = run(corpus, tmp_path / "filter", **how)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "filter") == expected


def test_broken_input_and_an_unknown_language_are_one_line(corpus, local, tmp_path):
    model, _ = local
    done = run(corpus, tmp_path / "filter", model=model, engine="daft")
    assert f"error: {corpus / 'first.jsonl'}:14: 'text' is int, not a string" in done.stderr
    foreign = write(tmp_path / "in.jsonl", [good_documents(1)[0] | {"language": "xx"}])
    done = run(foreign, tmp_path / "foreign", model=model, engine="daft")
    assert "error: " in done.stderr
    assert "no settings for language 'xx'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


def test_a_missing_package_is_named_before_any_work(corpus, local, tmp_path):
    program = "import sys; sys.modules['daft'] = None; " + SMALL_PARTS
    done = run(corpus, tmp_path / "filter", program, model=local[0], engine="daft")
    assert done.returncode != 0
    assert "--engine=daft: daft is not installed; pip install -r requirements/distributed.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_parts_by_hand(monkeypatch):
    monkeypatch.setattr(sieve, "PART", 10)
    assert sieve.spans([4, 0, 13, 3]) == [[(0, 0, 4), (2, 0, 6)], [(2, 6, 13), (3, 0, 3)]]
    assert sieve.spans([21]) == [[(0, 0, 10)], [(0, 10, 20)], [(0, 20, 21)]]
    assert sieve.spans([]) == sieve.spans([0, 0]) == [[]]


def test_the_rows_of_a_span_are_those_of_the_whole(corpus):
    def batches():
        return documents.read_batches(corpus, on_error="skip", skipped=Counter())

    whole = list(sieve.records(batches()))
    assert whole == [
        {name: row[name] for name in ("id", "text", "source", "language")}
        for row in documents.read(corpus, on_error="skip")
    ]
    for first, stop in ((0, 5), (7, 40), (30, len(whole)), (len(whole), len(whole) + 5)):
        assert list(sieve.records(batches(), first, stop)) == whole[first:stop]
