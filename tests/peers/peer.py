"""The peers' environment (made by `make test-peers`), and inputs that both its tests take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mistral_common
import pyarrow as pa
import pytest
from conftest import ROOT, TEXT

from lib import conversion, documents

BIN = Path(os.environ.get("PEERS", ROOT / ".venv-peers")).absolute() / "bin"
MODELS = ROOT / "checkpoints" / "models"
MISTRAL_DATA = Path(mistral_common.__file__).parent / "data"

needs_peers = pytest.mark.skipif(not BIN.is_dir(), reason="the peers are not installed: make test-peers")


def run(program, *arguments, stdin=None, timeout=280):
    """A program of the peers' environment; returns what it printed."""
    done = subprocess.run(
        [BIN / program, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",  # llama.cpp logs pieces that are half a character
        timeout=timeout,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def script(name, *flags):
    """Run a script of the project; it has to succeed. (conftest's fixture of that name lives for one test only.)"""
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def fetched(name):
    """A folder that `make fetch` makes, or the test is skipped."""
    if not (MODELS / name / "manifest.json").is_file():
        pytest.skip(f"{MODELS / name} is not there: make fetch")
    return MODELS / name


def demo(stage):
    """The demo's checkpoint of a stage (its tokenizer is one, too), or the test is skipped."""
    folder = ROOT / "checkpoints" / "demo" / stage
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"{folder} is not there: make {stage}")
    return folder


def mistral(folder):
    """Mistral-7B's tokenizer, from its SentencePiece model."""
    folder.mkdir()
    conversion.tokenizer_from_sentencepiece(MISTRAL_DATA / "tokenizer.model.v1", folder)
    return folder


def text_lines():
    """The committed Russian and English text by paragraphs."""
    return [line for document in _texts() for line in document["text"].splitlines() if line.strip()]


def train(base, out, *flags):
    """A tokenizer made by train_spm.py for a base, from the committed text."""
    filtered, template = out.with_name("filter"), out.with_name("template.jinja")
    with documents.writing(filtered / "documents", extra=[("split", pa.string())]) as writer:
        for number, document in enumerate(_texts()):
            writer.write({**document, "split": "train" if number % 10 else "held_out"})
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}", encoding="utf-8")
    paths = (f"--documents={filtered}", f"--base={base}", f"--out={out}", f"--chat_template={template}")
    script("train_spm", *paths, "--english_share=0.3", *flags)
    return out


def _texts():
    return [
        {**json.loads(line), "source": name, "language": name}
        for name in ("ru", "en")
        for line in (TEXT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
