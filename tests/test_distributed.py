"""dedup under Daft, in one process and on a Ray cluster: the same removals and documents as the local engine."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lib import distributed, documents, duplicates, minhash

pytest.importorskip("daft", reason="Daft is not installed: pip install -r requirements/distributed.txt")

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "data" / "builtin" / "text"
PRIORITY = ["second", "first"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four files, 2,000 paragraphs made of the real ones' words, of which a third repeat others exactly or nearly."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(7)
    (folder / "real.jsonl").write_bytes((TEXT / "ru.jsonl").read_bytes())
    words = [word for line in (TEXT / "ru.jsonl").open(encoding="utf-8") for word in json.loads(line)["text"].split()]
    texts: list[str] = []
    for number in range(2000):
        paragraph = [rng.choice(words) for _ in range(rng.randint(15, 60))]
        if texts and number % 3 == 0:
            paragraph = rng.choice(texts).split()
            for _ in range(number % 4):
                paragraph[rng.randrange(len(paragraph))] = rng.choice(words)
        texts.append(" ".join(paragraph))
    for part, name in enumerate(("first", "second", "third")):
        of = texts[part::3]
        rows = [{"id": f"{name}-{n}", "text": "\n".join(of[n : n + 5]), "source": name} for n in range(0, len(of), 5)]
        lines = (json.dumps(row | {"language": "ru"}, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def run(script, corpus, out, engine, **env):
    flags = (f"--corpus={corpus}", "--language=ru", "--keep=source", f"--source_priority={','.join(PRIORITY)}")
    return script("dedup", *flags, f"--engine={engine}", f"--out={out}", env=env)


def outcome(folder):
    return {name: pq.read_table(folder / name).to_pylist() for name in ("documents", "removed")} | {
        "results": json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["results"]
    }


@pytest.fixture(scope="module")
def local(corpus, tmp_path_factory):
    """What the local engine makes of the corpus."""
    out = tmp_path_factory.mktemp("local") / "dedup"
    flags = [f"--corpus={corpus}", "--language=ru", "--keep=source", f"--source_priority={','.join(PRIORITY)}"]
    command = [sys.executable, str(ROOT / "scripts" / "dedup.py"), *flags, f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    found = outcome(out)
    reasons = found["results"]["paragraphs_removed"]
    assert reasons["exact_duplicate"] > 100
    assert reasons["near_duplicate"] > 100
    return found


@pytest.mark.parametrize("address", ["", "local"], ids=["one process", "Ray cluster"])
def test_the_same_as_the_local_engine(script, corpus, local, tmp_path, address):
    if address:
        pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements/distributed.txt")
    done = run(script, corpus, tmp_path / "dedup", "daft", RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert (" on ray, machines: 1" if address else " in this process") in done.stderr
    assert outcome(tmp_path / "dedup") == local


def batches(file, skipped):
    return documents.read_batches(file, skipped=skipped, language="ru")


@pytest.mark.parametrize(("rows_per_part", "memory_gb"), [(10**6, 1), (150, 1), (150, 1e-5)])
def test_the_same_pairs_however_they_are_split(corpus, tmp_path, monkeypatch, rows_per_part, memory_gb):
    """One part a band, several, and several of which one at a time is brought together."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(documents, "ROWS_PER_GROUP", 40)  # many row groups
    monkeypatch.setattr(distributed, "ROWS_PER_PART", rows_per_part)
    how = minhash.scheme(0.8, 128, 5, False, 40)
    index = distributed.sign(documents.files(corpus), batches, how, tmp_path, PRIORITY)
    again = duplicates.sign(documents.files(corpus), batches, how, tmp_path / "local", PRIORITY)
    assert index.offsets.tolist() == again.offsets.tolist()
    assert (index.documents, index.paragraphs) == (again.documents, again.paragraphs)

    found, expected = distributed.exact(index, memory_gb), duplicates.exact(again, 1)
    assert len(expected[0]) > 100
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))

    alive = np.full(index.count // 8 + 1, 255, dtype=np.uint8)
    alive[:20] = 0
    pairs = duplicates.banded(again, how, alive, 1)
    assert len(pairs) > 100
    assert pairs.min() // index.count >= 160
    assert np.array_equal(distributed.banded(index, how, alive, memory_gb), pairs)


def test_a_corpus_of_headings(script, tmp_path):
    """Nothing is long enough to be compared."""
    (tmp_path / "short.jsonl").write_text('{"id": "1", "text": "Глава первая", "language": "ru"}\n', encoding="utf-8")
    done = run(script, tmp_path / "short.jsonl", tmp_path / "dedup", "daft", RAY_ADDRESS="")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "dedup" / "documents").num_rows == 1


def test_broken_input_is_one_line(script, tmp_path):
    """On Ray, which wraps what is raised on a worker."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements/distributed.txt")
    (tmp_path / "broken.jsonl").write_text('{"id": "1", "text"\n', encoding="utf-8")
    done = run(script, tmp_path / "broken.jsonl", tmp_path / "dedup", "daft", RAY_ADDRESS="local")
    assert done.returncode != 0
    assert f"error: {tmp_path / 'broken.jsonl'}:1: not valid JSON" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("package", "address"), [("daft", ""), ("ray", "local")])
def test_a_missing_package_is_named_before_any_work(corpus, tmp_path, package, address):
    program = f"import sys; sys.modules[{package!r}] = None; from lib import cli; import dedup; cli.run(dedup.main)"
    flags = [f"--corpus={corpus}", "--engine=daft", f"--out={tmp_path / 'dedup'}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode != 0
    assert f"--engine=daft: {package} is not installed; pip install -r requirements/distributed.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "127.0.0.1:port"])
def test_a_cluster_that_does_not_answer_is_one_line(script, corpus, tmp_path, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements/distributed.txt")
    done = run(script, corpus, tmp_path / "dedup", "daft", RAY_ADDRESS=address)
    assert done.returncode != 0
    assert f"error: RAY_ADDRESS={address}: no Ray cluster answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
