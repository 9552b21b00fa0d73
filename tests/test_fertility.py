"""Tokens per word and words left whole, by hand; the report by language and source."""

import json

import pytest
import tiny_model
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from lib import fertility, stage


def word_level(*words):
    raw = Tokenizer(kinds.WordLevel({word: place for place, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def sentencepiece_like():
    """`▁` stays apart from `нет`; what is no piece is spelt in bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "н", "е", "т", "не", "нет", ","]
    model = kinds.BPE(
        {piece: place for place, piece in enumerate(pieces)},
        [("н", "е"), ("не", "т")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def byte_level(*lines):
    """All of a line that was trained on may become one token; without any, every byte is one."""
    raw = Tokenizer(kinds.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def test_rates_by_hand():
    found = fertility.measure(word_level("да", "нет", ","), ["да, нет", "нет"])
    assert found == {
        "tokens_per_word": 4 / 3,
        "words_whole": 1.0,
        "bytes_per_token": 18 / 4,
        "characters_per_token": 10 / 4,
    }


def test_a_word_is_a_run_of_letters_with_their_marks():
    text = "сло\u0301во don't x2 по-русски ½ 王 _a"
    assert fertility.LETTERS.findall(text) == ["сло\u0301во", "don", "t", "x", "по", "русски", "王", "a"]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("нет нет", 1.0),  # SentencePiece's prefix space, a token of its own, does not cut the first word
        ("нет, нетне", 0.5),
        ("не\nнет", 1.0),
        ("не-нет", 1.0),  # two words here, whatever stands between white space
        ("нет ѳ", 0.5),  # two byte tokens claim the one letter
        ("ѳнет", 0.0),
        ("нетѳ", 0.0),
    ],
)
def test_words_whole_of_a_sentencepiece_like_tokenizer(text, whole):
    assert fertility.measure(sentencepiece_like(), [text])["words_whole"] == whole


@pytest.mark.parametrize(
    ("trained", "text", "whole", "tokens"),
    [
        ([], "a я", 0.5, 4),  # bytes that cut a letter
        ([" да."], "я да.", 0.5, 3),  # the space before and the punctuation after belong to the token
        (["да. да."], "да. да.", 1.0, 1),  # one token over two words
        (["да. "], "да. да. ", 1.0, 2),
        (["дал"], "далда", 0.0, 3),
    ],
)
def test_words_whole_of_a_byte_level_tokenizer(trained, text, whole, tokens):
    tokenizer = byte_level(*trained)
    assert len(tokenizer(text)["input_ids"]) == tokens
    assert fertility.measure(tokenizer, [text])["words_whole"] == whole


def test_the_report_is_by_language_and_source(tmp_path):
    tiny_model.tokenizer().save_pretrained(tmp_path / "tiny")
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / stage.MANIFEST).write_text(json.dumps({"results": {"skipped": "npm is not installed"}}))
    texts = {"ru": {"letters": ["Письма на столе.", "Поезд"], "trains": ["Поезд остановился."]}, "en": {"old": ["Old"]}}
    found = fertility.report({"new": tmp_path / "tiny", "gone": gone}, texts, "Old letters")
    assert found["text"]["ru"] == {
        "letters": {"documents": 2, "characters": 21, "words": 4},
        "trains": {"documents": 1, "characters": 18, "words": 2},
    }
    assert found["tokenizers"]["gone"] == {"skipped": "npm is not installed"}
    row = found["tokenizers"]["new"]
    tokenizer = tiny_model.tokenizer()
    for language, sources in texts.items():
        everything = [text for held in sources.values() for text in held]
        assert row["languages"][language] == fertility.measure(tokenizer, everything)
        assert row["sources"][language] == {name: fertility.measure(tokenizer, held) for name, held in sources.items()}
    assert "".join(row["example"]) == "Old letters"
    assert row["vocabulary"] == len(tokenizer)
