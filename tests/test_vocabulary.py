"""The new vocabulary over the old: surfaces, pieces, rows, for byte-level and SentencePiece bases, tied and untied."""

import json

import pytest
import torch
from tiny_model import model as tiny_model
from tiny_model import tokenizer as byte_level_tokenizer
from tiny_model import words
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lib import models, spm, stage, vocabulary

TEXT = [
    "Поезд остановился посреди поля, и проводница объявила, что стоянка продлится не меньше часа.",
    "На столе лежат старые письма, которые никто давно не читал.",
    "The old letters lay on the table, and nobody had read them for years.",
] * 10


def sentencepiece_tokenizer(vocab_size=400, unknown="<unk>", controls=("<s>", "</s>")):
    model = spm.train(
        words(TEXT),
        vocab_size=vocab_size,
        model_type="bpe",
        unknown=unknown,
        controls=list(controls),
        character_coverage=1.0,
        threads=1,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=spm.to_fast(model), unk_token=unknown, bos_token=controls[0], eos_token=controls[1]
    )


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_tokenizer()], ids=["bytes", "spm"])
def test_surfaces_join_to_the_text(tokenizer):
    surfaces = vocabulary.surfaces(tokenizer)
    for text in (*TEXT[:3], "ёж 🙂\n\tдва  пробела"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        joined = b"".join(surfaces[token] for token in ids).decode()
        assert joined.removeprefix(" ") == text.removeprefix(" ")
    assert surfaces[tokenizer.bos_token_id] is None


def test_byte_tokens():
    assert vocabulary.byte_token("<0x0A>") == 10
    assert vocabulary.byte_token("<0xFF>") == 255
    assert vocabulary.byte_token("▁a") is None


@pytest.mark.parametrize("old", [byte_level_tokenizer(), sentencepiece_tokenizer(330)], ids=["bytes", "spm"])
def test_every_new_token_has_the_old_pieces_of_its_bytes(old):
    new = sentencepiece_tokenizer(controls=("<|im_start|>", "<|im_end|>"))
    pieces, rules = vocabulary.old_pieces(new, old)
    old_surfaces, new_surfaces = vocabulary.surfaces(old), vocabulary.surfaces(new)
    for token in rules["copied"] + rules["averaged"]:
        assert b"".join(old_surfaces[piece] for piece in pieces[token]) == new_surfaces[token]
    assert all(len(pieces[token]) == 1 for token in rules["copied"] + rules["byte"] + rules["special"])
    assert rules["averaged"]
    assert rules["copied"]
    assert sorted(token for found in rules.values() for token in found) == list(range(len(new)))
    # Roles, not spellings, map <|im_start|> to <s>.
    assert pieces[new.bos_token_id] == [old.bos_token_id]
    assert pieces[new.eos_token_id] == [old.eos_token_id]


def test_a_prefix_space_is_one_old_piece_not_two():
    old = sentencepiece_tokenizer()
    new = sentencepiece_tokenizer(380)
    pieces, _ = vocabulary.old_pieces(new, old)
    token = next(i for i, s in enumerate(vocabulary.surfaces(new)) if s and s.startswith(" п".encode()))
    assert old.convert_ids_to_tokens(pieces[token])[0] != "▁▁"
    assert b"".join(vocabulary.surfaces(old)[p] for p in pieces[token]) == vocabulary.surfaces(new)[token]


@pytest.mark.parametrize("tied", [True, False])
def test_init_script_copies_averages_and_pads(tmp_path, script, tied):
    old = byte_level_tokenizer()
    base = tiny_model(len(old), tie_word_embeddings=tied, bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id)
    models.save(base, old, tmp_path / "base")
    new = sentencepiece_tokenizer(controls=("<|im_start|>", "<|im_end|>"))
    models.save_tokenizer(new, tmp_path / "tokenizer")
    done = script(
        "init_embeddings",
        f"--base={tmp_path / 'base'}",
        f"--tokenizer={tmp_path / 'tokenizer'}",
        f"--out={tmp_path / 'init'}",
        "--pad_to_multiple=64",
    )
    assert done.returncode == 0, done.stderr
    receipt = stage.read_manifest(tmp_path / "init")["results"]
    assert receipt["rows"] == 448
    assert receipt["rows_by_rule"]["padded"] == 48
    assert sum(receipt["rows_by_rule"].values()) == 448
    pieces, rules = vocabulary.old_pieces(new, old)
    rows = json.loads((tmp_path / "init" / "rows.json").read_text())
    assert rows["new"] == sorted(rules["averaged"] + rules["global_mean"])
    norms = base.get_input_embeddings().weight[: len(old)].norm(dim=1)
    ordinary = [token for token, surface in enumerate(vocabulary.surfaces(old)) if surface is not None]
    torch.testing.assert_close(
        torch.tensor(rows["norms"]["input"]), torch.stack([norms[ordinary].min(), norms[ordinary].max()])
    )
    assert ("head" in rows["norms"]) != tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "init")
    for old_matrix, matrix in (
        (base.get_input_embeddings().weight, loaded.get_input_embeddings().weight),
        (base.get_output_embeddings().weight, loaded.get_output_embeddings().weight),
    ):
        expected = torch.stack([old_matrix[p].mean(0) for p in pieces])
        torch.testing.assert_close(matrix[:400], expected, rtol=1e-5, atol=1e-6)
        assert not matrix[400:].any()
    assert AutoTokenizer.from_pretrained(tmp_path / "init")("Поезд")["input_ids"] == new("Поезд")["input_ids"]
    model, _ = models.load(tmp_path / "init")
    assert torch.isneginf(model(input_ids=torch.tensor([[5, 6]])).logits[..., 400:]).all()
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6]])).logits[..., :400]).all()


def test_a_tokenizer_larger_than_its_model_is_refused(tmp_path, script):
    models.save(tiny_model(300), byte_level_tokenizer(), tmp_path / "base")
    models.save_tokenizer(sentencepiece_tokenizer(), tmp_path / "tokenizer")
    done = script(
        "init_embeddings",
        f"--base={tmp_path / 'base'}",
        f"--tokenizer={tmp_path / 'tokenizer'}",
        f"--out={tmp_path / 'o'}",
    )
    assert done.returncode == 2
    assert "not its tokenizer" in done.stderr
    assert not (tmp_path / "o").exists()
