"""Object storage: read where it lies, written whole; on file systems of this machine and on an S3-compatible server."""

import gzip
import hashlib
import http.server
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
import uuid
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from s3_server import BUCKET, Line, serving

from lib import cli, documents, stage, storage
from lib.errors import UserError

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "data" / "builtin" / "text"
ROWS = [{"id": f"d{n}", "text": f"Строка\r\n{n}", "source": "s", "language": "ru"} for n in range(20)]


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto")
    with serving() as environment:
        yield environment


@pytest.fixture
def bucket(s3, monkeypatch):
    """An address of its own in the bucket, and this process allowed to use it."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    storage.place("s3://x").fs.clear_instance_cache()
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "local", "s3"])
def address(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"local://{tmp_path}/store"


def finished(folder, **files):
    """A stage's output with some text files."""
    with stage.output(folder, inputs={}, settings={}) as building:
        for name, text in files.items():
            file = building.folder / name.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
    return folder


def content(address):
    """Text of each object below an address."""
    there = storage.place(str(address))
    return {name: (there / name).read_text() for name in storage.listing(there)}


def put(address, name, data):
    there = storage.place(f"{address}/{name}")
    there.fs.pipe_file(there.path, data)
    return there


def corpus(folder):
    """The same rows in each format."""
    folder.mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet", row_group_size=7)
    (folder / "e.txt").write_bytes("Один\r\nдва".encode())
    (folder / "sub").mkdir()
    (folder / "sub" / "f.jsonl").write_bytes(lines)
    return folder


def test_documents_are_read_where_they_lie(tmp_path, address):
    here = corpus(tmp_path / "corpus")
    for file in here.rglob("*.*"):
        put(address, file.relative_to(here).as_posix(), file.read_bytes())
    there = storage.place(address)
    assert list(documents.read(there, language="ru")) == list(documents.read(here, language="ru"))
    by_batch = [pa.Table.from_batches(documents.read_batches(path, language="ru")) for path in (there, here)]
    assert by_batch[0].equals(by_batch[1])
    assert by_batch[0].num_rows == 5 * len(ROWS) + 1
    parquet = there / "d.parquet"
    assert documents.files(parquet) == [parquet]
    assert documents.count(parquet) == len(ROWS)
    shuffled = [list(documents.shuffled(path, seed=1)) for path in (parquet, here / "d.parquet")]
    assert shuffled[0] == shuffled[1] != ROWS


def test_an_address_keeps_its_slashes_and_a_path_is_no_address():
    def main(*, corpus: list[storage.Place], one: storage.Place | None = None, model: Path | None = None) -> None: ...

    found = cli.resolve(main, {"corpus": "memory://a/b,data/x", "one": "memory://c/d/"})
    assert [str(path) for path in found["corpus"]] == ["memory://a/b", "data/x"]
    assert isinstance(found["corpus"][1], Path)
    assert str(found["one"]) == "memory://c/d"
    with pytest.raises(UserError, match=r"^--model: this has to be a path of this machine, not s3://b/m; copy it"):
        cli.resolve(main, {"corpus": "a", "model": "s3://b/m"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonesuch://b/x", "Unsupported filesystem: 'nonesuch'"),
        ("gs://b/x", r"gs://b/x: .*gcsfs.*; pip install -r requirements/storage.txt"),
        ("s3://AKIA1:secret@b/x", r"s3://\.\.\.: credentials do not belong in an address"),
        ("memory://nothing-here", "memory://nothing-here: no such file or folder"),
    ],
)
def test_addresses_that_are_no_use(text, problem):
    with pytest.raises(UserError, match=problem) as told:
        documents.files(storage.place(text))
    assert "secret" not in str(told.value)


def test_a_digest_changes_with_the_content(address):
    there = put(address, "a.jsonl", b"one").parent
    before = storage.digest(there)
    assert storage.digest(there) == before
    put(address, "a.jsonl", b"two")
    after = storage.digest(there)
    assert after != before
    put(address, "manifest.json", b"{}")
    assert storage.digest(there) == hashlib.sha256(b"{}").hexdigest()
    described = stage.describe_input("corpus", there)
    assert described == {"path": address, "sha256": storage.digest(there)}


def test_a_finished_folder_is_copied_whole_and_only_once(tmp_path, address):
    folder = finished(tmp_path / "out", a="1", sub__b="2")
    to = storage.place(f"{address}/stage")
    assert storage.push(folder, to) == {"kept": 0, "sent": 3, "bytes": 2 + (folder / "manifest.json").stat().st_size}
    assert content(to) == {name: (folder / name).read_text() for name in ("a", "manifest.json", "sub/b")}
    assert storage.push(folder, to) == {"kept": 3}
    put(to, "sub/b", b"3")  # as many bytes as there were
    assert storage.push(folder, to)["sent"] == 2  # the manifest, too: it was away while "b" was wrong
    assert content(to)["sub/b"] == "2"


def test_another_output_takes_the_place_of_the_earlier_and_of_nothing_else(tmp_path, address):
    to = storage.place(f"{address}/stage")
    storage.push(finished(tmp_path / "first", a="1", b="2"), to)
    second = finished(tmp_path / "second", a="one")
    put(to, "mine.txt", b"not yours")
    with pytest.raises(UserError, match=r"holds 1 objects of something else \(mine.txt\)"):
        storage.push(second, to)
    assert set(content(to)) == {"a", "b", "manifest.json", "mine.txt"}
    to.fs.rm_file((to / "mine.txt").path)
    storage.push(second, to)
    assert content(to) == {name: (second / name).read_text() for name in ("a", "manifest.json")}


def test_a_folder_that_is_not_what_its_manifest_says_is_not_copied(tmp_path, address):
    folder = finished(tmp_path / "out", a="1")
    (folder / "a").write_text("12")
    with pytest.raises(UserError, match=r"missing, or not of the 1 bytes that manifest.json tells"):
        storage.push(folder, storage.place(address))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest.json of a finished stage"):
        storage.push(folder, storage.place(address))


def test_the_manifest_comes_last_and_goes_first(tmp_path, address, monkeypatch):
    """Whatever the moment, an address with a manifest has all that it lists."""
    to = storage.place(f"{address}/stage")
    folders = [finished(tmp_path / "first", a="1", b="2"), finished(tmp_path / "second", a="one", c="3")]
    seen = []

    def watching(do):
        def watched(*given, **options):
            do(*given, **options)
            there = content(to)
            seen.append("manifest.json" in there)
            if seen[-1]:
                assert set(json.loads(there["manifest.json"])["files"]) <= set(there)

        return watched

    for name in ("put_file", "rm_file", "pipe_file"):
        monkeypatch.setattr(to.fs, name, watching(getattr(to.fs, name)))
    for folder in folders:
        storage.push(folder, to)
    assert [key for key, _ in itertools.groupby(seen)] == [False, True, False, True]


def test_an_etag_is_what_s3_stores_compute(tmp_path, monkeypatch):
    """Of one part the MD5 of the content; of several that of their MD5s, and their number."""
    file = tmp_path / "file"
    file.write_bytes(b"abcdefghij")
    assert storage._etag(file) == hashlib.md5(b"abcdefghij").hexdigest()
    monkeypatch.setattr(storage, "PART", 4)
    parts = b"".join(hashlib.md5(part).digest() for part in (b"abcd", b"efgh", b"ij"))
    assert storage._etag(file) == hashlib.md5(parts).hexdigest() + "-3"
    file.write_bytes(b"abcdefg")  # under two parts it is sent whole
    assert storage._etag(file) == hashlib.md5(b"abcdefg").hexdigest()
    file.write_bytes(b"")
    assert storage._etag(file) == hashlib.md5(b"").hexdigest()


def test_what_the_store_hashes_is_not_read_back(tmp_path, bucket, monkeypatch):
    to = storage.place(bucket)
    monkeypatch.setattr(storage, "opened", None)
    assert storage.push(finished(tmp_path / "out", a="1"), to)["sent"] == 2


def fetched(script, path, out, **environment):
    flags = [f"--path={path}", f"--out={out}", "--type=path", "--format=documents", "--licence=x", "--language=ru"]
    return script("fetch", *flags, env=environment)


def test_stages_read_from_a_bucket_and_write_to_it(tmp_path, script, s3, bucket):
    """fetch from an address to an address, then dedup from there to there: what the same stages make on a disk."""
    put(bucket, "texts/ru.jsonl", (TEXT / "ru.jsonl").read_bytes())
    raw = fetched(script, f"{bucket}/texts", f"{bucket}/raw", **s3)
    assert raw.returncode == 0, raw.stderr
    assert fetched(script, TEXT / "ru.jsonl", tmp_path / "raw").returncode == 0
    done = script("dedup", f"--corpus={bucket}/raw/documents", f"--out={bucket}/dedup", env=s3)
    assert done.returncode == 0, done.stderr
    assert script("dedup", f"--corpus={tmp_path}/raw/documents", f"--out={tmp_path}/dedup").returncode == 0
    for name in ("raw", "dedup"):
        there = storage.place(f"{bucket}/{name}")
        assert list(documents.read(there / "documents")) == list(documents.read(tmp_path / name / "documents"))
        ours, theirs = stage.read_manifest(tmp_path / name), json.loads((there / "manifest.json").read_text())
        assert theirs["results"] == ours["results"]
        settings = [{**made["settings"], "corpus": None} for made in (ours, theirs)]
        assert settings[0] == settings[1]
        assert not storage.outbox(there).exists()
    assert theirs["inputs"]["corpus[0]"]["path"] == f"{bucket}/raw/documents"
    told = raw.stderr + done.stderr + json.dumps(theirs)
    assert s3["AWS_SECRET_ACCESS_KEY"] not in told


class Hub(http.server.BaseHTTPRequestHandler):
    """A model hub that has one data set, of the files `content`, and wants a token."""

    content: ClassVar[dict[str, bytes]] = {}
    token = "hf_not-for-everybody"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, _, question = urllib.parse.unquote(self.path).partition("?")
        below = path.partition("/main/")[2]
        headers = {"ETag": '"1"', "X-Repo-Commit": "a" * 40, "Content-Type": "application/json"}
        status = 200
        if self.headers.get("Authorization") != f"Bearer {self.token}" or "/some/set" not in path:
            status, body = 401, b"{}"
        elif "/resolve/" in path:
            body = self.content[below]
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
                first, last = map(int, asked.groups())
                status, body = 206, body[first : last + 1]
        elif "/tree/" in path:
            found = [{"type": "file", "path": n, "size": len(c), "oid": "1"} for n, c in self.content.items()]
            top = [{"type": "directory", "path": "data", "oid": "2", "size": 0}]
            body = json.dumps(found if below or "recursive=true" in question else top).encode()
        else:
            body = json.dumps({"id": "some/set", "sha": "a" * 40, "siblings": []}).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET


def test_a_data_set_of_a_hub_is_read_file_by_file(tmp_path, script):
    rows = [row | {"text": f"Это строка номер {n}, и она довольно длинная."} for n, row in enumerate(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    Hub.content = {"data/a.parquet": (tmp_path / "a.parquet").read_bytes()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": Hub.token,
    }
    environment |= {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    try:
        done = fetched(script, "hf://datasets/some/set/data", tmp_path / "out", **environment)
        wrong = fetched(
            script, "hf://datasets/some/set/data", tmp_path / "no", **environment | {"HF_TOKEN": "hf_of-another"}
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert [row["text"] for row in documents.read(tmp_path / "out" / "documents")] == [row["text"] for row in rows]
    assert wrong.returncode == 2
    assert "error: hf://datasets/some/set/data: " in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "hf_of-another" not in wrong.stderr
    with pytest.raises(UserError, match="the hub is only read here"):
        storage.check_writable(storage.place("hf://datasets/some/set/out"))


@pytest.mark.parametrize(
    ("change", "problem", "advice"),
    [
        ({}, "The specified bucket does not exist", "check the name"),
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG123"}, "The AWS Access Key Id you provided does not exist", "check the credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret-1"}, "The request signature we calculated", "check the credentials"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials", "check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect", "check the network"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_comes_before_the_work(script, s3, tmp_path, change, problem, advice):
    environment = {name: value for name, value in (s3 | change).items() if value is not None}
    bucket = BUCKET if change else "nonesuch"
    for done in (
        fetched(script, f"s3://{bucket}/texts", tmp_path / "out", **environment),
        fetched(script, TEXT / "ru.jsonl", f"s3://{bucket}/out", **environment),
    ):
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: s3://{bucket}/")
        assert problem in line
        assert advice in line
        assert "Traceback" not in done.stderr
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert environment.get(name, "none at all") not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()
    assert not list((ROOT / storage.OUTBOX / "s3" / bucket).glob("out*"))  # nothing was built for it


def big(folder):
    """A finished stage of small files and, after them, one of 3 MB."""
    noise = np.random.default_rng(0).integers(0, 16, 3_000_000)
    return finished(folder, a="1", b="2", m="".join("0123456789abcdef"[n] for n in noise), z="3")


def pushing(folder, to, environment):
    command = [sys.executable, ROOT / "scripts" / "push.py", f"--folder={folder}", f"--to={to}"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("how", ["cut", "killed"])
def test_a_copy_that_breaks_off_leaves_no_manifest_and_goes_on(tmp_path, s3, bucket, how):
    folder, to = big(tmp_path / "out"), f"{bucket}/stage"
    with Line(s3["AWS_ENDPOINT_URL"], up=1_000_000, stall=how == "killed") as line:
        process = pushing(folder, to, s3 | {"AWS_ENDPOINT_URL": line.address})
        assert line.full.wait(60)
        if how == "killed":
            process.kill()
        _, said = process.communicate(timeout=100)
    if how == "cut":
        assert process.returncode == 2
        assert f"error: {to}/m: " in said
        assert "check the network" in said
        assert said.rstrip().endswith("what has arrived stays there, the same command goes on")
        assert "Traceback" not in said
    assert set(content(to)) == {"a", "b"}
    process = pushing(folder, to, s3)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert content(to) == {file.name: file.read_text() for file in folder.iterdir()}
    assert storage.push(folder, storage.place(to)) == {"kept": 5}


def test_a_cut_line_is_no_damaged_file(tmp_path, s3, bucket, monkeypatch):
    """`on_error: skip` skips broken input; a corpus that can't be reached is none."""
    rows = [{"id": str(n), "text": os.urandom(1000).hex(), "source": "s", "language": "ru"} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    put(bucket, "parquet/a.parquet", (tmp_path / "a.parquet").read_bytes())
    put(bucket, "lines/a.jsonl", lines)
    put(bucket, "packed/a.jsonl.gz", gzip.compress(lines))
    put(bucket, "zst/a.jsonl.zst", zstandard.compress(lines))
    with Line(s3["AWS_ENDPOINT_URL"], down=300_000) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
        fs = storage.place(bucket).fs
        fs.clear_instance_cache()
        for folder in ("parquet", "lines", "packed", "zst"):
            there = storage.place(f"{bucket}/{folder}")
            there.fs.retries = 1
            skipped = Counter()
            with pytest.raises(UserError, match="check the network"):
                list(documents.read_batches(there, on_error="skip", skipped=skipped))
            assert not skipped
