"""New merges on top of a base's own: what is learnt, what stays as it was, and that every new token can be reached."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import mistral_common
import pytest
from conftest import TEXT
from tiny_model import tokenizer as byte_level_tokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib import bpe, conversion, models, spm, vocabulary
from lib.errors import UserError

RU, EN = (
    [
        line
        for document in (TEXT / f"{code}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in json.loads(document)["text"].splitlines()
        if line
    ]
    for code in ("ru", "en")
)
CODE = Path(bpe.__file__).read_text(encoding="utf-8").splitlines()


def chunks_of(lines):
    counts = Counter()
    for line in lines:
        bpe.count_chunks(counts, line)
    return counts


def mistral(folder):
    file = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    folder.mkdir(parents=True)
    conversion.tokenizer_from_sentencepiece(file, folder)
    return models.load_tokenizer(folder)


def like_llama3():
    """Special tokens beside the model's vocabulary, `ignore_merges`, three digits a token, letters with what precedes them."""
    plain = byte_level_tokenizer(special=())
    spec = json.loads(plain.backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(spec))
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")


@pytest.fixture(params=["bytes", "llama3", "mistral"])
def base(request, tmp_path):
    if request.param == "mistral":
        return mistral(tmp_path / "mistral")
    return byte_level_tokenizer() if request.param == "bytes" else like_llama3()


def test_merges_by_hand():
    # "ab" 8 times, "bc" 7: after "ab", 4 of "bc" are left, and "ab"+"c" 3.
    words = {(0, 1): 5, (0, 1, 2): 3, (1, 2): 4}
    assert bpe.learn(words, [b"a", b"b", b"c"], 3) == [(0, 1), (1, 2), (3, 2)]


def test_a_run_of_one_letter_is_merged_from_the_left():
    assert bpe.learn({(0, 0, 0, 0): 3}, [b"a"], 2) == [(0, 0), (1, 1)]


def test_merges_equal_a_recount_after_every_merge():
    rng = random.Random(0)
    words = Counter()
    while len(words) < 400:
        words[tuple(rng.choices(range(6), weights=[8, 6, 4, 3, 2, 1], k=rng.randint(2, 9)))] += rng.randint(1, 20)
    surfaces = [letter.encode() for letter in "abcdef"]
    sequences, known, expected = {word: list(word) for word in words}, list(surfaces), []
    while len(expected) < 60:
        counts = Counter()
        for word, sequence in sequences.items():
            for pair in itertools.pairwise(sequence):
                counts[pair] += words[word]
        allowed = [pair for pair in counts if known[pair[0]] + known[pair[1]] not in known]
        best = min(allowed, key=lambda pair: (-counts[pair], pair))
        expected.append(best)
        known.append(known[best[0]] + known[best[1]])
        for word, old in sequences.items():
            new = []
            for token in old:
                if new and (new[-1], token) == best:
                    new[-1] = len(known) - 1
                else:
                    new.append(token)
            sequences[word] = new
    assert bpe.learn(words, surfaces, 60) == expected


def test_words_end_where_the_base_ends_them():
    base = byte_level_tokenizer()
    words = bpe.encode_words(base.backend_tokenizer, {" слово,": 3})
    surfaces = vocabulary.surfaces(base)
    assert {b"".join(surfaces[token] for token in word).decode() for word in words} == {" слово"}


@pytest.mark.parametrize(
    ("surface", "latin", "sensible"),
    [
        ("слово", False, True),
        ("word", False, False),
        ("word", True, True),
        ("—", False, True),
        ("г. 2", False, False),
        ("очень длинная строка", False, False),
        ("сл".encode()[:3], False, False),  # a letter and half of the next
        ("世".encode()[:2], False, True),  # on the way to a whole character
        ("世".encode()[1:], False, False),
    ],
)
def test_which_tokens_are_worth_having(surface, latin, sensible):
    assert bpe._sensible(surface if isinstance(surface, bytes) else surface.encode(), latin) == sensible


def test_the_base_stays_and_every_new_token_is_reached(base):
    first = max(base.get_vocab().values()) + 1
    fast = bpe.extend(base, chunks_of(RU), vocab_size=first + 300, coverage=1.0, latin=False)
    new = models.dress(fast, base, "{{ messages }}")
    assert len(new) == first + 300
    old_ids = base.get_vocab()
    assert {piece: token for piece, token in new.get_vocab().items() if token < first} == old_ids
    assert [getattr(new, f"{role}_token_id") for role in ("bos", "eos")] == [base.bos_token_id, base.eos_token_id]
    assert new("x")["input_ids"] == base("x")["input_ids"]
    english = [*EN, *CODE, "0123456789 3.14", "<|end|> x"]
    assert bpe.changed_lines(base, new, [line for line in english if line.isascii()])["changed"] == 0
    for line in (*RU, *spm.HOSTILE):
        assert new.decode(new(line)["input_ids"]) == base.decode(base(line)["input_ids"])
    spent = sum(len(new(line)["input_ids"]) for line in RU) / sum(len(base(line)["input_ids"]) for line in RU)
    assert spent < 0.97
    assert [token for token in vocabulary.unreachable(new) if token >= first] == []
    surfaces = vocabulary.surfaces(new)
    assert len({surfaces[token] for token in range(first, len(new))}) == 300
    # The same, as a user would see it: the token's text alone (a SentencePiece base puts the space before it itself).
    prefix = b"" if vocabulary.is_byte_level(fast) else b" "
    whole = {token: surfaces[token] for token in range(first, len(new)) if surfaces[token].startswith(prefix)}
    texts = {token: surface.removeprefix(prefix).decode(errors="replace") for token, surface in whole.items()}
    texts = {token: text for token, text in texts.items() if "�" not in text}
    assert len(texts) > 50
    assert {token: new(text, add_special_tokens=False)["input_ids"] for token, text in texts.items()} == {
        token: [token] for token in texts
    }


def test_an_unreachable_token_is_seen():
    base = byte_level_tokenizer()
    spec = json.loads(base.backend_tokenizer.to_str())
    spec["model"]["vocab"]["xyzzy"] = len(base)  # a token that no merge makes
    planted = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    assert vocabulary.unreachable(planted) == [*vocabulary.unreachable(base), len(base)]


def test_the_sentencepiece_model_grows_with_its_fast_form(tmp_path):
    base = mistral(tmp_path / "m")
    fast = bpe.extend(base, chunks_of(RU), vocab_size=32_300, coverage=1.0, latin=False)
    model = spm.extend(spm.read_model(tmp_path / "m" / "tokenizer.model"), fast)
    lines = [*spm.HOSTILE, *RU, *EN, *(spm.spoil(line, place) for place, line in enumerate(RU))]
    assert list(spm.mismatches(model, fast, lines)) == []
    assert fast.encode("стоянка").ids != base.backend_tokenizer.encode("стоянка").ids


def test_letters_that_the_base_spells_in_bytes_become_tokens(tmp_path):
    base = mistral(tmp_path / "m")
    cherokee = ["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎤᏙᎯᏳᎯ, ᏣᎳᎩ ᎠᏰᎵ."] * 20
    assert "<0xE1>" in base.tokenize(cherokee[0])
    fast = bpe.extend(base, chunks_of(cherokee), vocab_size=32_030, coverage=1.0, latin=False)
    encoded = fast.encode(cherokee[0], add_special_tokens=False)
    assert not [token for token in encoded.tokens if vocabulary.byte_token(token) is not None]
    assert vocabulary.unreachable(models.dress(fast, base, "")) == vocabulary.unreachable(base)


def test_refusals(tmp_path):
    base = byte_level_tokenizer()
    with pytest.raises(UserError, match="adds nothing to the base's 400 tokens"):
        bpe.extend(base, chunks_of(RU), vocab_size=400, coverage=1.0, latin=False)
    with pytest.raises(UserError, match=r"bears .* new merges"):
        bpe.extend(base, chunks_of(RU[:2]), vocab_size=9000, coverage=1.0, latin=False)
    unigram = spm.train(
        chunks_of(RU),
        vocab_size=600,
        model_type="unigram",
        unknown="<unk>",
        controls=[],
        character_coverage=1.0,
        threads=1,
    )
    with pytest.raises(UserError, match="this one's tokenizer is Unigram"):
        other = PreTrainedTokenizerFast(tokenizer_object=spm.to_fast(unigram))
        bpe.extend(other, chunks_of(RU), vocab_size=900, coverage=1.0, latin=False)
