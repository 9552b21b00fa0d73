"""The exported vocabulary read back: ids, types, merges or scores, roles; and what llama.cpp has no match for is refused.

That llama.cpp gives the same ids by it: tests/peers/test_llama_cpp.py.
"""

import json
from collections import Counter

import gguf
import numpy as np
import pytest
from conftest import TEXT
from gguf import TokenType
from tiny_model import CHAT
from tiny_model import tokenizer as byte_level_tokenizer
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from lib import gguf_vocabulary, models, spm
from lib.errors import UserError


def sentencepiece_model(model_type="bpe"):
    counts = Counter()
    for line in (TEXT / "ru.jsonl").read_text(encoding="utf-8").splitlines():
        for paragraph in json.loads(line)["text"].splitlines():
            spm.count_words(counts, paragraph)
    return spm.train(
        counts,
        vocab_size=700,
        model_type=model_type,
        unknown="<unk>",
        controls=["<s>", "</s>"],
        character_coverage=1.0,
        threads=1,
    )


MODEL = sentencepiece_model()


def sentencepiece_tokenizer(model=MODEL):
    fast = spm.to_fast(model)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT
    )


def saved(tokenizer, folder, edit=lambda spec: None):
    """The tokenizer's folder, with a change to its tokenizer.json."""
    models.save_tokenizer(tokenizer, folder)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    edit(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def written(folder, file):
    gguf_vocabulary.write(folder, file)
    fields = gguf.GGUFReader(file).fields
    return {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}


def test_sentencepiece_pieces_types_and_scores(tmp_path):
    fields = written(saved(sentencepiece_tokenizer(), tmp_path / "t"), tmp_path / "v.gguf")
    pieces = list(spm.proto.ModelProto.FromString(MODEL).pieces)
    assert fields["model"] == "llama"
    assert fields["tokens"] == [piece.piece for piece in pieces]
    assert fields["token_type"] == [piece.type for piece in pieces]
    assert fields["add_space_prefix"] is True
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["unknown_token_id"]) == (1, 2, 0)
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (True, False)
    assert fields["tokenizer.chat_template"] == CHAT
    # SentencePiece's own scores, in another scale: what is merged first there is first here.
    merged = [i for i, p in enumerate(pieces) if p.type == spm.NORMAL and len(p.piece) > 1]
    assert list(np.argsort([-pieces[i].score for i in merged])) == list(
        np.argsort([-fields["scores"][i] for i in merged])
    )
    assert len({fields["scores"][i] for i in merged}) == len(merged) > 200


def test_byte_level_pieces_merges_and_types(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    fields = written(saved(tokenizer, tmp_path / "t"), tmp_path / "v.gguf")
    assert (fields["model"], fields["pre"]) == ("gpt2", "gpt-2")
    assert fields["tokens"] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    assert fields["merges"] == [f"{left} {right}" for left, right in spec["model"]["merges"]]
    types = dict(zip(fields["tokens"], fields["token_type"], strict=True))
    assert types["<|im_end|>"] == TokenType.CONTROL
    assert types["<think>"] == TokenType.USER_DEFINED
    assert types["a"] == TokenType.NORMAL
    assert (fields["add_bos_token"], fields["eos_token_id"]) == (False, tokenizer.eos_token_id)
    assert "scores" not in fields


def test_rows_beyond_the_vocabulary_and_gaps_in_it_are_unused_tokens(tmp_path):
    folder = saved(byte_level_tokenizer(), tmp_path / "t", lambda spec: spec["model"]["vocab"].update({"zzq": 402}))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert max(spec["model"]["vocab"].values()) == 402
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    gguf_vocabulary.add(writer, folder, rows=448)
    writer.add_tensor("token_embd.weight", np.zeros((448, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(set(tokens)) == len(types) == 448
    assert tokens[402] == "zzq"
    assert tokens[401] == "[PAD401]"
    unused = [token for token, kind in enumerate(types) if kind == TokenType.UNUSED]
    assert unused == [400, 401, *range(403, 448)]
    assert [tensor.name for tensor in reader.tensors] == ["token_embd.weight"]
    with pytest.raises(UserError, match="ids up to 402, the matrix 400 rows"):
        gguf_vocabulary.add(gguf.GGUFWriter(None, "llama"), folder, rows=400)


def digits_first(spec):
    steps = [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def split_by(regex, **settings):
    def edit(spec):
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, in_bytes]}
        spec["model"].update(settings)

    return edit


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (digits_first, "smollm"),
        (split_by(LLAMA3, ignore_merges=True), "llama-bpe"),
        (split_by(LLAMA3), "smaug-bpe"),
        (split_by(LLAMA3.replace("{1,3}", "")), "qwen2"),
    ],
)
def test_pre_tokenizers_by_their_names(tmp_path, edit, name):
    assert written(saved(byte_level_tokenizer(), tmp_path / "t", edit), tmp_path / "v.gguf")["pre"] == name


def metaspace(spec):
    spec.update(
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    )


def first_of_several_ways(spec):
    """Take the merge on a piece's own way out; another of its splits stays."""
    merges = spec["model"]["merges"]
    ways = Counter(left + right for left, right in merges)
    return merges.pop(next(place for place, pair in enumerate(merges) if ways["".join(pair)] > 1))


def one_way_to_a_piece_last(spec):
    spec["model"]["merges"].append(first_of_several_ways(spec))


@pytest.mark.parametrize(
    ("tokenizer", "edit", "reason"),
    [
        (byte_level_tokenizer, split_by(r"\p{L}+"), "no pre-tokenizer of it is known to be"),
        (byte_level_tokenizer, split_by(LLAMA3.replace("{1,3}", ""), ignore_merges=True), "with ignore_merges=True"),
        (
            byte_level_tokenizer,
            lambda spec: spec.update(normalizer={"type": "Lowercase"}),
            "its normalizer is Lowercase",
        ),
        (byte_level_tokenizer, lambda spec: spec["added_tokens"][0].update(lstrip=True), "'<|im_start|>' is more than"),
        (sentencepiece_tokenizer, metaspace, "its pre-tokenizer is Metaspace"),
        (
            sentencepiece_tokenizer,
            lambda spec: spec["model"]["vocab"].update({"е▁и": 700}),
            "tokens across them, such as",
        ),
        (
            sentencepiece_tokenizer,
            lambda spec: spec["normalizer"]["normalizers"].insert(0, {"type": "NFC"}),
            "normalizer",
        ),
        (sentencepiece_tokenizer, first_of_several_ways, "put together in ways that are not among the merges"),
        (sentencepiece_tokenizer, one_way_to_a_piece_last, "that make the same token are not next to each other"),
        (sentencepiece_tokenizer, lambda spec: spec["model"]["vocab"].pop("<0x41>"), "255 of the 256 byte tokens"),
    ],
)
def test_what_llama_cpp_has_no_match_for_is_refused(tmp_path, tokenizer, edit, reason):
    folder = saved(tokenizer(), tmp_path / "t", edit)
    with pytest.raises(UserError, match=r"llama\.cpp can't encode as this tokenizer does: .*" + reason):
        gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()


def test_a_unigram_tokenizer_is_refused(tmp_path):
    folder = saved(sentencepiece_tokenizer(sentencepiece_model("unigram")), tmp_path / "t")
    with pytest.raises(UserError, match=r"it is Unigram, which llama\.cpp has only without a byte fallback"):
        gguf_vocabulary.write(folder, tmp_path / "v.gguf")
