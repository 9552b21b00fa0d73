"""SentencePiece to fast tokenizer: identical ids on hostile lines; the script's files and refusals."""

import json

import pyarrow as pa
import pytest
from conftest import TEXT
from tiny_model import save as save_tiny
from tiny_model import words
from transformers import AutoTokenizer

from lib import documents, spm, stage


def builtin(*names):
    return [
        {**json.loads(line), "source": name, "language": name[:2]}
        for name in names
        for line in (TEXT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def corpus_lines():
    return [line for document in builtin("ru", "en") for line in document["text"].splitlines() if line]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_fast_tokenizer_encodes_as_sentencepiece(model_type):
    lines = corpus_lines()
    model = spm.train(
        words(lines),
        vocab_size=900,
        model_type=model_type,
        unknown="<unk>",
        controls=["<s>", "</s>"],
        character_coverage=0.999,
        threads=1,
    )
    assert list(spm.mismatches(model, spm.to_fast(model), [*spm.HOSTILE, *lines])) == []


def test_the_check_sees_a_wrong_conversion():
    lines = corpus_lines()
    model = spm.train(
        words(lines), vocab_size=900, model_type="bpe", unknown="<unk>", controls=[], character_coverage=1.0, threads=1
    )
    fast = spm.to_fast(model)
    fast.normalizer = spm.normalizers.Replace(" ", spm.SPACE)  # the prefix space forgotten
    assert list(spm.mismatches(model, fast, lines))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with documents.writing(folder / "filter" / "documents", extra=[("split", pa.string())]) as writer:
        for number, document in enumerate(builtin("ru", "en")):
            writer.write({**document, "split": "train" if number % 10 else "held_out"})
    save_tiny(folder / "base")
    return folder


def test_script_writes_a_tokenizer_that_loads_and_carries_the_base(inputs, tmp_path, script):
    done = script(
        "train_spm",
        f"--documents={inputs / 'filter'}",
        f"--base={inputs / 'base'}",
        f"--out={tmp_path / 't'}",
        "--vocab_size=800",
        "--english_share=0.3",
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "t").iterdir()}
    assert names == {
        "manifest.json",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "fertility.json",
        "fertility.svg",
    }
    base, new = (AutoTokenizer.from_pretrained(path) for path in (inputs / "base", tmp_path / "t"))
    assert len(new) == 800
    assert (new.bos_token, new.eos_token) == (base.bos_token, base.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert new.chat_template == base.chat_template
    chat = new.apply_chat_template([{"role": "user", "content": "Привет"}], tokenize=False)
    ids = new(chat, add_special_tokens=False)["input_ids"]
    assert ids[0] == new.bos_token_id
    assert new.eos_token_id in ids
    text = "Мороз и солнце; день чудесный!  2 пробела\n🙂"
    assert new.decode(new(text)["input_ids"]) == text
    results = stage.read_manifest(tmp_path / "t")["results"]
    assert results["verified_lines"] > 200
    fertility = results["fertility"]
    assert fertility["new"]["ru"]["tokens_per_word"] < 0.7 * fertility["base"]["ru"]["tokens_per_word"]
    report = json.loads((tmp_path / "t" / "fertility.json").read_text(encoding="utf-8"))
    assert "".join(report["tokenizers"]["new"]["example"]).strip() == report["example"]
    assert report["tokenizers"]["new"]["sources"]["ru"].keys() == report["text"]["ru"].keys() == {"ru"}
    assert "Tokens per word, Russian" in (tmp_path / "t" / "fertility.svg").read_text(encoding="utf-8")


def test_a_vocabulary_too_large_for_the_text_is_refused(inputs, tmp_path, script):
    done = script(
        "train_spm",
        f"--documents={inputs / 'filter'}",
        f"--base={inputs / 'base'}",
        f"--out={tmp_path / 't'}",
        "--vocab_size=500000",
    )
    assert done.returncode == 2
    assert "SentencePiece can't train 500000 pieces" in done.stderr
    assert not (tmp_path / "t").exists()
