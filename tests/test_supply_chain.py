"""What the project lets in: packages by hash, models as plain weights, YAML as data."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
UNPACKING_RUNS_CODE = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
LOADS_ANYTHING = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def faults(source):
    """Lines of Python, and why each of them could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {(getattr(node, "module", None) or alias.name).partition(".")[0] for alias in node.names}
            if names & UNPACKING_RUNS_CODE:
                found.append((node.lineno, "pickles"))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            owner, _, method = called.rpartition(".")
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
                found.append((node.lineno, called))
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append((node.lineno, "torch.load without weights_only"))
            if owner == "yaml" and method in LOADS_ANYTHING:
                found.append((node.lineno, called))
            if given.get("allow_pickle", "False") != "False":
                found.append((node.lineno, "allow_pickle"))
            if given.get("trust_remote_code", "False") != "False":
                found.append((node.lineno, "code that comes with a model"))
            if method in ("from_pretrained", "from_config"):
                kind = owner.rpartition(".")[2]
                # Not said, transformers asks the user whether to run it.
                if kind.startswith("Auto") and "trust_remote_code" not in given:
                    found.append((node.lineno, "code that comes with a model"))
                weights = kind.startswith("AutoModel") or re.search("For[A-Z]|Model$", kind)
                if weights and method == "from_pretrained" and not {"gguf_file", "use_safetensors"} & given.keys():
                    found.append((node.lineno, "weights of any kind"))
    return found


@pytest.mark.parametrize("file", sorted(ROOT.glob("scripts/**/*.py")), ids=lambda file: file.name)
def test_nothing_that_is_read_can_run(file):
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "AutoConfig.from_pretrained(folder)",
        "transformers.AutoModel.from_pretrained(folder, use_safetensors=True)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)",
        "transformers.BertForSequenceClassification.from_pretrained(folder)",
        "datasets.load_dataset(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert len(faults(line)) == 1
    assert faults("model.eval()\nyaml.safe_load(text)\ntorch.load(path, weights_only=True)") == []


def hashed(*lines, folder=REQUIREMENTS):
    """What requirements/hashed.py prints for a file of such lines."""
    file = folder / "wanted.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, REQUIREMENTS / "hashed.py", file]
    return subprocess.run(command, capture_output=True, text=True)


def blocks(text):
    """`name==version` to its hashes, of a file as pip reads it."""
    lines = text.replace("\\\n", " ").splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line and not line.startswith("#")}


def test_every_pin_but_torch_has_hashes():
    """A pin that was changed and `make hashes` forgotten is what this is for."""
    known = blocks((REQUIREMENTS / "hashes.txt").read_text(encoding="utf-8"))
    for pin, hashes in known.items():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin)
        assert hashes
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", value) for value in hashes), pin
    for file in set(REQUIREMENTS.glob("*.txt")) - {REQUIREMENTS / "hashes.txt"}:
        done = subprocess.run([sys.executable, REQUIREMENTS / "hashed.py", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not any(pin.startswith("torch==") for pin in known)


def test_requirements_name_packages_and_no_place():
    """An index's address, a folder or an option to trust a host would go with the file to other machines."""
    for file in REQUIREMENTS.glob("*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if file.name != "hashes.txt" and line and not line.startswith("#"):
                assert re.fullmatch(r"[\w.-]+==[\w.]+|-[rc] [a-z]+\.txt", line), f"{file.name}: {line}"
            assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|--trusted-host", line)


def test_hashes_of_a_file_and_of_what_it_includes(tmp_path):
    (tmp_path / "other.txt").write_text("# a comment\n-c constraint.txt\nJinja2==3.1.6\ntorch==2.13.0\n")
    done = hashed("-r other.txt", "ml_dtypes==0.6.0", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(blocks(done.stdout)) == ["jinja2==3.1.6", "ml-dtypes==0.6.0"]
    done = hashed("Jinja2==3.1.7", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: no hashes of jinja2==3.1.7 in requirements/hashes.txt; run `make hashes`\n"
    assert done.stdout == ""


def test_packages_are_installed_by_hash_wherever_they_are():
    """In the virtual environment and in the image: first what has hashes, without looking for more, then torch."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for text in (makefile, dockerfile):
        found = [
            text.index(step)
            for step in (
                "/hashed.py ",
                "--no-deps --require-hashes",
                "pip check" if text is dockerfile else "@touch $@",
            )
        ]
        assert found == sorted(found)
