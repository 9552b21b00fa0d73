"""The command line: what is refused, in which words, and before any work."""

from pathlib import Path
from typing import Literal

import pytest

from lib import cli, progress
from lib.errors import UserError


def main(
    *,
    corpus: Path,
    rate: float = 1e-3,
    steps: int | None = None,
    kind: Literal["bpe", "unigram"] = "bpe",
    dry: bool = False,
    paths: list[Path] = [],  # noqa: B006
    revision: str | None = None,
) -> None: ...


def resolve(tmp_path, yaml="", **flags):
    path = tmp_path / "s.yaml"
    path.write_text(yaml, encoding="utf-8")
    return cli.resolve(main, {"config": str(path), **flags})


def test_later_wins_default_yaml_flag(tmp_path):
    assert resolve(tmp_path, "corpus: a\nrate: 0.5", rate="0.25")["rate"] == 0.25
    assert resolve(tmp_path, "corpus: a\nrate: 0.5")["rate"] == 0.5
    assert resolve(tmp_path, "corpus: a")["rate"] == 1e-3


def test_flags_take_the_annotated_type(tmp_path):
    settings = resolve(tmp_path, corpus="x", rate="1e-4", steps="3", dry="true", paths="a,b", revision="1234567")
    assert settings == {
        "corpus": Path("x"),
        "rate": 1e-4,
        "steps": 3,
        "kind": "bpe",
        "dry": True,
        "paths": [Path("a"), Path("b")],
        "revision": "1234567",
    }


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("corpus: a\nraet: 1", "unknown setting 'raet', did you mean 'rate'?"),
        ("corpus: a\nrate: fast", "rate: input should be a valid number"),
        ("corpus: a\nsteps: no", "steps: expected int | None, got False"),
        ("corpus: a\nkind: bep", "kind: input should be 'bpe' or 'unigram', got 'bep'"),
        ("rate: 1", "missing --corpus"),
        ("- a", "expected 'setting: value' lines, found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_settings_are_named(tmp_path, yaml, message):
    with pytest.raises(UserError) as error:
        resolve(tmp_path, yaml)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_1e4_text_is_read_as_the_number_it_means(tmp_path):
    assert resolve(tmp_path, "corpus: a\nrate: 1e-4")["rate"] == 1e-4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--documnets=x"], "error: --documnets: unknown setting 'documnets', did you mean 'documents'?"),
        (["--config=no/such.yaml"], "error: no/such.yaml: no such file"),
        ([], "error: missing --documents, --tokenizer, --out"),
        (["--documents=no", "--tokenizer=no", "--out=no"], "error: --documents=no: no such file or folder"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(script, flags, message):
    done = script("pack", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_every_flag_and_runs_nothing(script):
    done = script("pack", "--help")
    assert done.returncode == 0
    text = done.stdout + done.stderr
    for flag in ("--sequence_length", "--max_train_tokens", "--config", "tokens a row, at most 65,536"):
        assert flag in text


def test_an_error_begins_a_line_even_beside_an_open_bar(capsys):
    bar = iter(progress.bar(range(9), title="reading"))
    next(bar)
    assert cli._complain("broken", 2) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: broken"


def test_settings_are_shown_a_line_each(capsys):
    cli.show({"seed": 1, "corpus": [Path("a"), Path("b/c")]})
    assert capsys.readouterr().err == "  seed    1\n  corpus  a, b/c\n"
