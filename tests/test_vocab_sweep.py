"""scripts/vocab_sweep.py on tiny tokenizers: the files, the figures by hand, and what it refuses."""

import json

import pytest
import tiny_model

import vocab_sweep
from lib import stage
from lib.errors import UserError


def rates(spent, whole=0.5):
    return {"tokens_per_word": spent, "words_whole": whole, "bytes_per_token": 3.0, "characters_per_token": 2.0}


def tokenizer(folder, vocabulary, spent, base="base", words=9):
    """A folder as train_spm.py leaves it, as far as the script reads it."""
    tiny_model.tokenizer().save_pretrained(folder)
    rows = {"new": {"vocabulary": vocabulary, "languages": {"ru": rates(spent), "en": rates(1.5)}}}
    rows[base] = {"vocabulary": 300, "languages": {"ru": rates(8.0, 0.125), "en": rates(1.25)}}
    text = {language: {"s": {"documents": 1, "characters": 60, "words": words}} for language in ("ru", "en")}
    stage.write_json(folder / "fertility.json", {"example": "", "text": text, "tokenizers": rows})
    stage.write_json(folder / stage.MANIFEST, {"stage": "train_spm", "results": {}})
    return folder


@pytest.fixture
def base(tmp_path):
    tiny_model.model(300).config.save_pretrained(tmp_path / "base")  # no weights
    return tmp_path / "base"


def run(script, base, out, *tokenizers, flags=()):
    named = ",".join(map(str, tokenizers))
    return script("vocab_sweep", f"--tokenizers={named}", f"--base={base}", f"--out={out}", *flags)


def test_the_sizes_side_by_side(script, base, tmp_path):
    larger, smaller = tokenizer(tmp_path / "1024", 1024, 2.0), tokenizer(tmp_path / "700", 700, 4.0)
    done = run(script, base, tmp_path / "out", larger, smaller)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "vocab-sweep.json", "vocab-sweep.svg"}
    # Two matrices of 32 columns; a layer: 4 x 32 x 32 of attention, 3 x 32 x 64 of the MLP, 2 x 32 of norms; a last norm.
    body = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    table = json.loads((tmp_path / "out" / "vocab-sweep.json").read_text())
    assert (table["tied"], table["body_parameters"]) == (False, body)
    assert [(row["vocabulary"], row["rows"], row["embedding_parameters"]) for row in table["sizes"]] == [
        (700, 704, 704 * 64),
        (1024, 1024, 1024 * 64),
    ]
    assert (table["base"]["name"], table["base"]["embedding_parameters"]) == ("base", 300 * 64)
    assert table["sizes"][0]["embeddings_against_body"] == 704 * 64 / body
    assert table["sizes"][0]["languages"] == {
        "ru": {"tokens_per_word": 4.0, "words_whole": 0.5, "tokens_against_base": 0.5},
        "en": {"tokens_per_word": 1.5, "words_whole": 0.5, "tokens_against_base": 1.2},
    }
    assert stage.read_manifest(tmp_path / "out")["results"]["sizes"] == table["sizes"]
    lines = [line.split() for line in done.stdout.splitlines()]
    share = f"{100 * 300 * 64 / body:.1f}%"
    assert lines[1][:4] == ["700", "4.00", "50.0%", "50.0%"]
    assert lines[3] == ["base", "300", "8.00", "12.5%", "100.0%", "1.25", "50.0%", "100.0%", "0.0", share]


def test_a_tied_head_costs_nothing_more_and_rows_are_padded_as_told(script, tmp_path):
    tiny_model.model(300, tie_word_embeddings=True).config.save_pretrained(tmp_path / "base")
    one = tokenizer(tmp_path / "t", 1024, 2.0)
    done = run(script, tmp_path / "base", tmp_path / "out", one, flags=["--pad_to_multiple=768"])
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "vocab-sweep.json").read_text())
    assert table["tied"]
    assert table["sizes"][0]["embedding_parameters"] == 1536 * 32
    assert table["base"]["embedding_parameters"] == 300 * 32


def test_no_folders_are_refused_in_one_line(script, base, tmp_path):
    done = run(script, base, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --tokenizers: name at least one output of train_spm.py")
    assert not (tmp_path / "out").exists()


def test_what_is_no_tokenizer_or_does_not_compare_is_refused(base, tmp_path):
    good = tokenizer(tmp_path / "good", 700, 2.0)
    (tmp_path / "bare").mkdir()
    (tmp_path / "other").mkdir()
    stage.write_json(tmp_path / "other" / stage.MANIFEST, {"stage": "filter", "results": {}})
    tokenizer(tmp_path / "foreign", 700, 2.0, base="llama")
    tokenizer(tmp_path / "longer", 700, 2.0, words=10)
    for name, said in (
        ("bare", "no manifest.json, so no stage finished writing it"),
        ("other", "no fertility.json, so train_spm.py did not write this folder"),
        ("foreign", f"not compared with base; train it with --base={base}"),
        ("longer", f"measured on other held-out text than {good}"),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: {said}"):
            vocab_sweep.main(tokenizers=[good, tmp_path / name], base=base, out=tmp_path / "out")
    with pytest.raises(UserError, match="--pad_to_multiple=0"):
        vocab_sweep.main(tokenizers=[good], base=base, out=tmp_path / "out", pad_to_multiple=0)
    (base / "config.json").unlink()
    with pytest.raises(UserError, match=f"^{base}: not a model that transformers can load"):
        vocab_sweep.main(tokenizers=[good], base=base, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
