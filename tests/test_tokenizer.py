"""SentencePiece to fast tokenizer: identical ids on hostile lines; the script's files and refusals."""

import io
import json

import pyarrow as pa
import pytest
import sentencepiece
from conftest import TEXT
from tiny_model import save as save_tiny
from tiny_model import tokenizer as tiny_tokenizer
from tiny_model import words
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lib import documents, models, spm, stage
from lib.errors import UserError


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
    with pytest.raises(UserError, match="lines otherwise than SentencePiece"):
        spm.check(model, fast, lines)


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


def test_script_extends_the_base(inputs, tmp_path, script):
    done = script(
        "train_spm",
        f"--documents={inputs / 'filter'}",
        f"--base={inputs / 'base'}",
        f"--out={tmp_path / 't'}",
        "--mode=extend",
        "--vocab_size=800",
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "t" / "tokenizer.model").exists()
    base, new = (AutoTokenizer.from_pretrained(path) for path in (inputs / "base", tmp_path / "t"))
    assert len(base) == 400
    assert len(new) == 800
    assert (new.bos_token_id, new.eos_token_id) == (base.bos_token_id, base.eos_token_id)
    assert new.chat_template == base.chat_template
    results = stage.read_manifest(tmp_path / "t")["results"]
    assert results["extended"]["new_tokens"] == 400
    changed = results["extended"]["changed_lines"]
    assert changed["code"] == {"changed": 0, "lines": changed["code"]["lines"]}
    assert changed["english"]["changed"] <= 0.1 * changed["english"]["lines"]
    assert changed["digits"]["lines"] < changed["english"]["lines"]
    fertility = results["fertility"]
    assert fertility["new"]["ru"]["tokens_per_word"] < 0.9 * fertility["base"]["ru"]["tokens_per_word"]
    again = script(
        "train_spm",
        f"--documents={inputs / 'filter'}",
        f"--base={inputs / 'base'}",
        f"--out={tmp_path / 't2'}",
        "--mode=extend",
        "--vocab_size=300",
    )
    assert again.returncode == 2
    assert "adds nothing to the base's 400 tokens" in again.stderr


def test_what_stands_before_and_behind_a_text_is_carried_over():
    base = tiny_tokenizer()
    base.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[(token, base.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")],
    )
    base.add_tokens(["<think>"])
    controls = ["<|im_start|>", "<|im_end|>"]
    model = spm.train(
        words(corpus_lines()),
        vocab_size=900,
        model_type="bpe",
        unknown="<unk>",
        controls=controls,
        symbols=["<think>"],
        character_coverage=1.0,
        threads=1,
    )
    fast = spm.to_fast(model)
    fast.post_processor = models.begin_and_end_like(base, fast)
    new = models.dress(fast, base, "{{ messages }}")
    ids = new("Да <think>нет")["input_ids"]
    assert (ids[0], ids[-1]) == (new.bos_token_id, new.eos_token_id)
    assert new.convert_tokens_to_ids("<think>") in ids
    assert "<think>" in new.decode(ids, skip_special_tokens=True)
    assert models.begin_and_end_like(tiny_tokenizer(), fast) is None


def test_words_with_their_counts_train_the_model_that_the_text_does():
    lines = [" ".join(line.split()) for line in corpus_lines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=885, model_type="bpe", character_coverage=0.999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True, split_digits=True,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    settings = {"model_type": "bpe", "unknown": "<unk>", "controls": [], "character_coverage": 0.999, "threads": 1}
    found = sentencepiece.SentencePieceProcessor(model_proto=spm.train(words(lines), vocab_size=900, **settings))
    assert [found.id_to_piece(token) for token in range(885)] == [expected.id_to_piece(token) for token in range(885)]
    assert [found.id_to_piece(token) for token in range(885, 900)] == list(spm.RUNS)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_run_of_spaces_is_one_token_and_the_last_goes_with_its_word(model_type):
    settings = {"unknown": "<unk>", "controls": [], "character_coverage": 1.0, "threads": 1}
    fast = spm.to_fast(spm.train(words(corpus_lines()), vocab_size=900, model_type=model_type, **settings))
    together = fast.encode("на на").tokens
    assert together == ["▁на", "▁на"]
    assert fast.encode("на    на").tokens == ["▁на", "▁▁▁", "▁на"]
    assert fast.encode("    на").tokens == ["▁▁▁▁", "▁на"]
    assert fast.decode(fast.encode("на" + " " * 40 + "на").ids) == "на" + " " * 40 + "на"


def test_a_tokenizer_loads_as_its_file_has_it(tmp_path):
    """Whatever class its config names: transformers 5 gives GPT2Tokenizer a pre-tokenizer of its own."""
    base = tiny_tokenizer()
    base.backend_tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(r"\p{N}{1,3}|\p{L}+|."), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    base.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    loaded = models.load_tokenizer(tmp_path)
    assert json.loads(loaded.backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][0]["type"] == "Split"
