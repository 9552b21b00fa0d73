"""Models come as safetensors and without code: what loads them refuses anything else, whatever the user answers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lib import conversion, mihash, models, quality, rewards
from lib.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of a causal model and of an encoder, with their tokenizers, as safetensors."""
    folder = tmp_path_factory.mktemp("models")
    texts = ["The river was high, and the cat sat on the mat by the door."] * 20
    for name, make in (("causal", conversion.random_llama), ("encoder", conversion.random_bert)):
        (folder / name).mkdir()
        make(texts, folder / name)
    return folder


def pickled(folder):
    """The same weights as a pickle."""
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_code(folder):
    """The same weights, of an architecture that only a file beside them has, which says when it is run."""
    config = json.loads((folder / "config.json").read_text())
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
    config |= {"model_type": "mine", "auto_map": {kind: f"mine.{kind}" for kind in kinds}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("import pathlib\n\npathlib.Path(__file__).with_name('ran').touch()\n")


@pytest.mark.parametrize(("spoil", "problem"), [(pickled, "safetensors"), (with_code, "code")])
@pytest.mark.parametrize(
    ("kind", "load"),
    [
        ("causal", models.load),
        ("encoder", rewards.load),
        ("encoder", lambda folder: quality.load(folder, 1)),
        ("encoder", lambda folder: mihash.encoder_features([], folder)),
    ],
    ids=["models", "rewards", "quality", "mihash"],
)
def test_a_model_is_safetensors_and_no_code(tiny, tmp_path, monkeypatch, kind, load, spoil, problem):
    folder = shutil.copytree(tiny / kind, tmp_path / "model")
    load(folder)
    spoil(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    with pytest.raises(UserError, match=problem) as told:
        load(folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)
    if (load, spoil) == (models.load, with_code):
        assert "(auto_map in config.json), which is never run; take one of an architecture" in str(told.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (pickled, "error: no .safetensors among the model's files; pickled weights are not loaded, convert them first"),
        (
            with_code,
            "this model needs code of its own (auto_map in config.json), which is never run; take one of an arch",
        ),
    ],
)
def test_fetch_and_a_user_who_says_yes(tiny, tmp_path, spoil, problem):
    folder = shutil.copytree(tiny / "causal", tmp_path / "model")
    spoil(folder)
    flags = ["--type=path", f"--path={folder}", "--format=model", "--licence=x", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, ROOT / "scripts" / "fetch.py", *flags]
    done = subprocess.run(command, input="y\ny\n", capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not (folder / "ran").exists()


def test_code_and_pickles_beside_a_model_stay_where_they_are(tiny, tmp_path):
    """Of an architecture that transformers has, other people's code for it is neither copied nor run."""
    folder = shutil.copytree(tiny / "causal", tmp_path / "model")
    with_code(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    command = [sys.executable, ROOT / "scripts" / "fetch.py", "--type=path", f"--path={folder}", "--format=model"]
    done = subprocess.run(
        [*command, "--licence=x", f"--out={tmp_path / 'out'}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".jinja", ".safetensors"}
    models.load(tmp_path / "out")
    assert not (folder / "ran").exists()
