"""Initialised rows against transformers' `resize_token_embeddings` and against slow loops that share no code with ours."""

import itertools
import json
from pathlib import Path

import mistral_common
import pyarrow as pa
import pytest
import sentencepiece
import torch
from conftest import TEXT
from sentencepiece import sentencepiece_model_pb2 as proto
from tiny_model import model as tiny_model
from tiny_model import tokenizer as byte_level_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from lib import conversion, documents, models

MISTRAL_V1 = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def train(script, base, out, *flags):
    """A tokenizer by train_spm.py on the committed Russian text."""
    filtered, template = out.with_name("filter"), out.with_name("template.jinja")
    with documents.writing(filtered / "documents", extra=[("split", pa.string())]) as writer:
        for number, line in enumerate((TEXT / "ru.jsonl").read_text(encoding="utf-8").splitlines()):
            split = "train" if number % 10 else "held_out"
            writer.write({**json.loads(line), "source": "ru", "language": "ru", "split": split})
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}", encoding="utf-8")
    paths = (f"--documents={filtered}", f"--base={base}", f"--out={out}", f"--chat_template={template}")
    done = script("train_spm", *paths, *flags)
    assert done.returncode == 0, done.stderr
    return out


def initialise(script, base, tokenizer, out):
    done = script(
        "init_embeddings", f"--base={base}", f"--tokenizer={tokenizer}", f"--out={out}", "--pad_to_multiple=64"
    )
    assert done.returncode == 0, done.stderr


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def both_matrices(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def merged(symbols, rank):
    """Byte-pair encoding as the paper has it: merge the best-ranked pair that stands furthest left, until there is none."""
    symbols = list(symbols)
    while True:
        ranked = [(rank(*pair), place) for place, pair in enumerate(itertools.pairwise(symbols))]
        best = min(((r, place) for r, place in ranked if r is not None), default=None)
        if best is None:
            return symbols
        place = best[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


@pytest.mark.parametrize("tied", [True, False])
def test_an_extended_vocabulary_gets_the_rows_of_resize_token_embeddings_and_means(tmp_path, script, tied):
    old = byte_level_tokenizer()
    base = tiny_model(len(old), tie_word_embeddings=tied, bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id)
    models.save(base, old, tmp_path / "base")
    size = len(old) + 150
    tokenizer = train(script, tmp_path / "base", tmp_path / "tokenizer", "--mode=extend", f"--vocab_size={size}")
    initialise(script, tmp_path / "base", tokenizer, tmp_path / "init")
    ours, new = loaded(tmp_path / "init")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs.resize_token_embeddings(size, pad_to_multiple_of=64, mean_resizing=False)
    assert (theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight) is tied
    merges = json.loads((tmp_path / "base" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    ranks = {tuple(pair): place for place, pair in enumerate(merges)}
    with torch.no_grad():
        for layer in (theirs.get_input_embeddings(), theirs.get_output_embeddings()):
            for token in range(len(old), size):
                pieces = merged(new.convert_ids_to_tokens(token), lambda *pair: ranks.get(pair))
                assert len(pieces) > 1
                rows = [layer.weight[old.get_vocab()[piece]] for piece in pieces]
                layer.weight[token] = sum(rows) / len(rows)
            layer.weight[size:] = 0  # padding is normal noise there, zero here

    for before, mine, other in zip(both_matrices(base), both_matrices(ours), both_matrices(theirs), strict=True):
        assert mine.shape == other.shape == (576, 32)
        assert torch.equal(mine[: len(old)], before)
        assert torch.equal(other[: len(old)], before)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    ids = torch.tensor([new("Поезд остановился посреди поля, и проводница объявила.")["input_ids"]])
    assert ids.max() >= len(old)
    logits = [model.eval()(input_ids=ids).logits[..., :size] for model in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """Mistral-7B's tokenizer with random weights: two layers, an input matrix and a head of their own."""
    folder = tmp_path_factory.mktemp("mistral") / "base"
    folder.mkdir()
    conversion.tokenizer_from_sentencepiece(MISTRAL_V1, folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=32_000, num_hidden_layers=2, tie_word_embeddings=False, **shape)
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def replaced(mistral, script):
    """A tokenizer of 1,500 tokens in Mistral's place, the model with it and its tokenizer as the auto classes load them."""
    folder = mistral.parent
    if not (folder / "init").exists():
        train(script, mistral, folder / "tokenizer", "--vocab_size=1500")
        initialise(script, mistral, folder / "tokenizer", folder / "init")
    return folder / "tokenizer", *loaded(folder / "init")


def test_mistral_with_a_new_vocabulary(mistral, replaced):
    _, model, new = replaced
    assert type(model) is MistralForCausalLM
    pieces = proto.ModelProto.FromString(MISTRAL_V1.read_bytes()).pieces
    place = {piece.piece: number for number, piece in enumerate(pieces)}

    def rank(left, right):
        return -pieces[place[left + right]].score if left + right in place else None

    def ids(part):  # a character that Mistral has no piece for is its bytes
        return [place[part]] if part in place else [place[f"<0x{byte:02X}>"] for byte in part.encode()]

    copied = averaged = 0
    base, _ = loaded(mistral)
    for old_rows, rows in zip(both_matrices(base), both_matrices(model), strict=True):
        assert rows.shape == (1536, 32)
        assert not rows[1500:].any()
        for piece, token in new.get_vocab().items():
            if piece in place:
                assert torch.equal(rows[token], old_rows[place[piece]]), piece
                copied += 1
            else:
                parts = [old_rows[number] for part in merged(piece, rank) for number in ids(part)]
                torch.testing.assert_close(rows[token], sum(parts) / len(parts), rtol=1e-5, atol=1e-6)
                averaged += len(parts) > 1
    assert copied + averaged == 2 * 1500
    assert averaged > 800


def test_mistral_saved_and_loaded_again_is_the_same(replaced, tmp_path):
    tokenizer, model, new = replaced
    text = "Поезд остановился посреди поля.\n\n  Two spaces, 🙂 и ёлка №5"
    trained = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    assert new(text, add_special_tokens=False)["input_ids"] == trained.encode(text)
    assert new.decode(trained.encode(text)) == text
    model.save_pretrained(tmp_path / "again")
    new.save_pretrained(tmp_path / "again")
    model_again, again = loaded(tmp_path / "again")
    assert again.get_vocab() == new.get_vocab()
    assert again(text)["input_ids"] == new(text)["input_ids"]
    state = model_again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (model_again.config.vocab_size, model_again.config.eos_token_id) == (1536, new.eos_token_id)
    ids = torch.tensor([new(text)["input_ids"]])
    assert torch.equal(model_again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    masked, _ = models.load(tmp_path / "again")
    assert torch.isneginf(masked(input_ids=ids).logits[..., 1500:]).all()
