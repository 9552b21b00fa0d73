"""The mean of the old pieces' rows, against mergekit-tokensurgeon's `subword` method with `mean`, row by row.

mergekit knows a word's start by `Ġ` where a tokenizer's class tells it nothing, and reads donor tokens as text. So what it
is given is spelt with Ġ for ▁ (ids unchanged), and the two define the same rows, but for what `not_text` lists.
"""

import json
import shutil

import numpy as np
import peer
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lib import models, vocabulary
from lib.vocabulary import SPACE

pytestmark = peer.needs_peers

# fp32 sums of at most some tens of rows, in another order.
TOLERANCE = 1e-5
WORD_START = "Ġ"


def smollm2(folder):
    """SmolLM2 with its real rows and tokenizer, one layer left of its thirty; tied."""
    model, tokenizer = models.load(peer.fetched("smollm2-135m"))
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    models.save(model, tokenizer, folder)
    return folder


def mistral(folder):
    """Mistral's real tokenizer with random rows, two layers; untied."""
    peer.mistral(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=32_000, num_hidden_layers=2, tie_word_embeddings=False, **shape)
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def ours(base, tokenizer, out):
    peer.script("init_embeddings", f"--base={base}", f"--tokenizer={tokenizer}", f"--out={out}")
    return out


def theirs(base, tokenizer, out, *, prefix_space, method="mean"):
    """Rows by mergekit-tokensurgeon. It takes the donor's vocabulary from a model, whose weights this method ignores."""
    donor = respelt(tokenizer, out.with_name("donor"), prefix_space=True)
    size = len(models.load_tokenizer(tokenizer))
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=False, **shape)).save_pretrained(donor)
    original = respelt(base, out.with_name("original"), prefix_space=prefix_space)
    flags = ("--approximation-method=subword", f"--subword-method={method}", "--byte-match=yes")
    peer.run("mergekit-tokensurgeon", original, donor, out, *flags)
    return out


def respelt(source, folder, *, prefix_space):
    """A copy of a folder with Ġ for the ▁ of its SentencePiece vocabulary, and the prefix space left out or not."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if spec["normalizer"] is not None and not prefix_space:
        assert spec["normalizer"]["normalizers"].pop(0) == {"type": "Prepend", "prepend": SPACE}
    text = json.dumps(spec, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text.replace(SPACE, WORD_START), encoding="utf-8")
    return folder


def matrices(folder, rows):
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight.detach().numpy()[:rows] for layer in layers]


def differing(ours, theirs, tokens):
    """Tokens whose input or output rows differ."""
    apart = np.zeros(tokens, dtype=bool)
    for mine, other in zip(matrices(ours, tokens), matrices(theirs, tokens), strict=True):
        assert mine.shape == other.shape
        apart |= np.abs(mine - other).max(axis=1) > TOLERANCE
    return set(np.flatnonzero(apart).tolist())


def not_text(new, old):
    """Tokens for which mergekit defines something else than the mean of the token's old pieces, by reason.

    mergekit compares spellings: it takes the `é` of a new vocabulary for GPT-2's sign for the byte 0xE9; it looks a byte
    <0xNN> up as the character of that number, which is GPT-2's sign for it only if that character is printable, and where
    there is none averages the six characters `<0xNN>`; and of several spaces that are no old token it reads the first as one.
    """
    known = old.get_vocab()
    byte_level = vocabulary.is_byte_level(old.backend_tokenizer)
    old_surfaces, new_surfaces = vocabulary.surfaces(old), vocabulary.surfaces(new)
    added = new.added_tokens_decoder
    found = {"byte": set(), "sign": set(), "spaces": set()}
    for piece, token in new.get_vocab().items():
        byte = vocabulary.byte_token(piece)
        spelling = piece.replace(SPACE, WORD_START)
        if not byte_level or token in added:
            continue
        if byte is not None:
            if chr(byte) not in known:
                found["byte"].add(token)
        elif spelling in known:
            if old_surfaces[known[spelling]] != new_surfaces[token]:
                found["sign"].add(token)
        elif SPACE in piece[1:]:
            found["spaces"].add(token)
    return found


def test_smollm2_gets_the_same_rows(tmp_path):
    base = smollm2(tmp_path / "base")
    tokenizer = peer.train(base, tmp_path / "tokenizer", "--vocab_size=3000")
    new, old = models.load_tokenizer(tokenizer), models.load_tokenizer(base)
    a = ours(base, tokenizer, tmp_path / "init")
    b = theirs(base, tokenizer, tmp_path / "surgeon", prefix_space=True)
    apart = differing(a, b, len(new))
    reasons = not_text(new, old)
    _, rules = vocabulary.old_pieces(new, old)
    equal = {rule: len(set(tokens) - apart) for rule, tokens in rules.items()}
    counts = {reason: len(tokens) for reason, tokens in reasons.items()}
    print(f"SmolLM2: {len(new) - len(apart)} of {len(new)} rows equal {equal}, apart {counts}")
    assert apart == set().union(*reasons.values())
    assert equal["averaged"] > 1500
    # The proof for a sign: what mergekit gave `«` is the row of the byte 0xAB.
    rows, old_rows = matrices(b, len(new))[0], matrices(base, len(old))[0]
    known, old_surfaces, new_surfaces = old.get_vocab(), vocabulary.surfaces(old), vocabulary.surfaces(new)
    assert reasons["sign"]
    for token in reasons["sign"]:
        taken = known[new.convert_ids_to_tokens(token).replace(SPACE, WORD_START)]
        assert old_surfaces[taken] != new_surfaces[token]
        np.testing.assert_array_equal(rows[token], old_rows[taken])


@pytest.mark.parametrize("vocabulary_of", ["the test", "demo"])
def test_of_new_merges_mergekit_averages_the_spelling(tmp_path, vocabulary_of):
    """`ÐĴ` is how byte-level BPE spells В; mergekit takes it for text, where ours is the mean of the pieces of В."""
    base = smollm2(tmp_path / "base")
    if vocabulary_of == "demo":
        tokenizer = peer.demo("tokenizer")
    else:
        tokenizer = peer.train(base, tmp_path / "tokenizer", "--mode=extend", "--vocab_size=50800")
    new, old = models.load_tokenizer(tokenizer), models.load_tokenizer(base)
    a = ours(base, tokenizer, tmp_path / "init")
    b = theirs(base, tokenizer, tmp_path / "surgeon", prefix_space=True)
    _, rules = vocabulary.old_pieces(new, old)
    averaged, surfaces = rules["averaged"], vocabulary.surfaces(new)
    spelt = {token: new.convert_ids_to_tokens(token).replace(WORD_START, " ", 1) for token in averaged}
    misread = {token for token, text in spelt.items() if text.encode() != surfaces[token]}
    assert len(misread) > 1000
    assert differing(a, b, len(new)) == misread
    rows, old_rows = matrices(b, len(new))[0], matrices(base, len(old))[0]
    for token in sorted(misread)[::50]:
        pieces = old(spelt[token], add_special_tokens=False)["input_ids"]
        np.testing.assert_allclose(rows[token], old_rows[pieces].mean(axis=0), atol=TOLERANCE)


@pytest.fixture(scope="module")
def on_mistral(tmp_path_factory):
    """A folder with Mistral (base), a tokenizer for it, and the model with that vocabulary (init)."""
    folder = tmp_path_factory.mktemp("mistral")
    base = mistral(folder / "base")
    tokenizer = peer.train(base, folder / "tokenizer", "--vocab_size=3000")
    ours(base, tokenizer, folder / "init")
    return folder


@pytest.fixture
def mistral_rules(on_mistral):
    new, old = (models.load_tokenizer(on_mistral / name) for name in ("tokenizer", "base"))
    return new, old, vocabulary.old_pieces(new, old)[1]


def test_mistral_gets_the_same_rows(on_mistral, mistral_rules, tmp_path):
    new, _, rules = mistral_rules
    b = theirs(on_mistral / "base", on_mistral / "tokenizer", tmp_path / "surgeon", prefix_space=False)
    apart = differing(on_mistral / "init", b, len(new))
    counts = {rule: len(tokens) for rule, tokens in rules.items()}
    print(f"Mistral: {len(new) - len(apart)} of {len(new)} rows equal, {counts}")
    assert apart == set()
    assert counts["averaged"] > 1000


def test_mergekit_counts_the_prefix_space_as_a_piece(on_mistral, mistral_rules, tmp_path):
    """With Mistral's tokenizer as it is, mergekit's mean for `ите` is over ▁и, те: averaged rows differ by that alone."""
    new, old, rules = mistral_rules
    b = theirs(on_mistral / "base", on_mistral / "tokenizer", tmp_path / "surgeon", prefix_space=True)
    assert differing(on_mistral / "init", b, len(new)) == set(rules["averaged"])
    for got, old_rows in zip(matrices(b, len(new)), matrices(on_mistral / "base", len(old)), strict=True):
        for token in rules["averaged"]:
            text = vocabulary.surfaces(new)[token].decode()
            pieces = old(text, add_special_tokens=False)["input_ids"]
            np.testing.assert_allclose(got[token], old_rows[pieces].mean(axis=0), atol=TOLERANCE)


def test_the_comparison_sees_another_definition(on_mistral, mistral_rules, tmp_path):
    new, _, rules = mistral_rules
    b = theirs(on_mistral / "base", on_mistral / "tokenizer", tmp_path / "surgeon", prefix_space=False, method="sum")
    assert differing(on_mistral / "init", b, len(new)) == set(rules["averaged"])
