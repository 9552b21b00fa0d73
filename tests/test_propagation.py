"""Learned embedding propagation: planted maps found again, and merge.py on a base, its instruct model and an adapted base, all tiny."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

import merge
from lib import merging, models, propagation, stage, vocabulary
from lib.errors import UserError

HIDDEN = 32
OTHER_CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def planted(seed, size=HIDDEN):
    """A map that is no identity, no rotation and no scaling."""
    torch.manual_seed(seed)
    return torch.eye(size) + 0.3 * torch.randn(size, size)


def test_a_planted_map_is_found():
    wanted = planted(0, 8)
    base = torch.randn(50, 8)
    found = propagation.fit(base, base @ wanted)
    torch.testing.assert_close(found.map.float(), wanted)
    assert found.before == pytest.approx(((base @ wanted - base).norm() / base.norm()).item(), rel=1e-4)
    assert found.after < 1e-5


def test_of_rows_that_no_map_fits_it_is_the_least_squares_one():
    torch.manual_seed(1)
    base, instruct = torch.randn(2, 50, 8, dtype=torch.float64)
    found = propagation.fit(base, instruct)
    expected = torch.linalg.lstsq(base, instruct).solution
    torch.testing.assert_close(found.map, expected)
    assert found.after == pytest.approx(((base @ expected - instruct).norm() / base.norm()).item())


def test_directions_that_no_row_has_are_left_as_they_are():
    torch.manual_seed(2)
    base, instruct = torch.randn(2, 3, 8)
    found = propagation.fit(base, instruct)
    torch.testing.assert_close(propagation.apply(base, found.map), instruct, atol=1e-4, rtol=1e-4)
    assert found.after < 1e-5
    beside = torch.linalg.qr(base.T, mode="complete").Q.T[3:]
    torch.testing.assert_close(propagation.apply(beside, found.map), beside, atol=1e-5, rtol=1e-5)


def test_parts_of_the_rows_are_summed(monkeypatch):
    base = torch.randn(50, 8)
    whole = propagation.fit(base, base.flip(0)).map
    monkeypatch.setattr(propagation, "_ROWS", 7)
    torch.testing.assert_close(propagation.fit(base, base.flip(0)).map, whole)
    torch.testing.assert_close(propagation.apply(base, whole).double(), base.double() @ whole, atol=1e-5, rtol=1e-5)


# The script


def save(folder, tokenizer, model, ends=None):
    model.generation_config = GenerationConfig(eos_token_id=ends or tokenizer.eos_token_id)
    model.save_pretrained(folder)
    models.save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture
def three(tmp_path):
    """Folders of an adapted base, an instruct model whose rows are the base's times planted maps, and the base."""

    def make(*, tied=False, marks=("<|im_start|>", "<|im_end|>"), instruct_size=300):
        settings = {"tie_word_embeddings": tied}
        old, new = tiny_tokenizer(size=300), tiny_tokenizer(size=400)
        base, adapted = tiny_model(len(old), **settings), tiny_model(len(new) + 16, **settings)
        torch.manual_seed(5)
        for parameter in adapted.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        told = tiny_tokenizer(special=marks, chat=OTHER_CHAT, size=instruct_size)
        instruct = tiny_model(len(told), rope_theta=5000.0, **settings)
        for parameter in instruct.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        if len(told) == len(old):
            for seed, layer in enumerate(("get_input_embeddings", "get_output_embeddings")[: 1 if tied else 2]):
                getattr(instruct, layer)().weight.data = getattr(base, layer)().weight.data @ planted(seed)
            instruct.tie_weights()
        return (
            save(tmp_path / "adapted", new, adapted),
            save(tmp_path / "instruct", told, instruct, ends=[told.convert_tokens_to_ids("<|im_end|>"), 5]),
            save(tmp_path / "base", old, base),
        )

    return make


@pytest.mark.parametrize("method", ["overlap", "conversion"])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_go_through_the_planted_maps_and_layers_are_the_instruct_models(three, tmp_path, method, tied):
    model, other, base = three(tied=tied)
    merge.main(model=model, other=other, base=base, propagate=method, out=tmp_path / "out")
    adapted, instruct, out = (load_file(folder / "model.safetensors") for folder in (model, other, tmp_path / "out"))
    names = [propagation.EMBEDDING] + [merging.HEAD] * (not tied)
    report = json.loads((tmp_path / "out" / "tensors.json").read_text())
    for seed, name in enumerate(names):
        expected = adapted[name] @ planted(seed)
        expected[:2] = instruct[name][:2]  # the marks of a chat
        torch.testing.assert_close(out[name], expected, atol=1e-3, rtol=1e-3)
        assert report[name]["rule"] == method
        assert report[name]["left"] < 1e-4 < 0.5 < report[name]["apart"]
    layers = out.keys() - set(names)
    assert layers == instruct.keys() - set(names)
    assert all(torch.equal(out[name], instruct[name]) for name in layers)
    assert stage.read_manifest(tmp_path / "out")["results"]["tensors"] == {"instruct": len(layers), method: len(names)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.rope_parameters["rope_theta"] == 5000.0
    assert loaded.config.vocab_size == 416
    new = models.load_tokenizer(tmp_path / "out")
    assert models.fingerprint(new) == models.fingerprint(models.load_tokenizer(model))
    assert new.chat_template == OTHER_CHAT


def test_special_tokens_take_no_part_in_a_fit(three):
    model, _, base = three()
    new, old = (models.load_tokenizer(folder) for folder in (model, base))
    pieces, rules = vocabulary.old_pieces(new, old)
    torch.manual_seed(7)
    rows = torch.randn(len(old), HIDDEN)
    instruct = rows @ planted(0)
    instruct[[pieces[token][0] for token in rules["special"]]] += 100
    for method in ("overlap", "conversion"):
        _, fitted = propagation.propagate(rows, rows, instruct, pieces, rules, len(old), method)
        torch.testing.assert_close(fitted.map.float(), planted(0), atol=1e-4, rtol=1e-4)
        assert fitted.after < 1e-5


def test_swap_leaves_rows_as_they_are(three, tmp_path):
    model, other, base = three()
    merge.main(model=model, other=other, base=base, propagate="swap", out=tmp_path / "out")
    adapted, instruct, out = (load_file(folder / "model.safetensors") for folder in (model, other, tmp_path / "out"))
    for name in (propagation.EMBEDDING, merging.HEAD):
        assert torch.equal(out[name][2:], adapted[name][2:])
        assert torch.equal(out[name][:2], instruct[name][:2])
    assert stage.read_manifest(tmp_path / "out")["results"]["fits"] == {}


def test_ends_of_an_answer_are_the_instruct_models_by_their_spelling(three, tmp_path, script):
    model, other, base = three()
    paths = [f"--model={model}", f"--other={other}", f"--base={base}", f"--out={tmp_path / 'out'}"]
    done = script("merge", *paths, "--propagate=conversion")
    assert done.returncode == 0, done.stderr
    assert "% after the map" in done.stdout
    old, new = (models.load_tokenizer(folder) for folder in (other, tmp_path / "out"))
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert new.convert_ids_to_tokens(ends) == old.convert_ids_to_tokens([1, 5])


def test_models_that_do_not_go_together_are_refused(three, tmp_path):
    model, other, base = three(instruct_size=310)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--base and --propagate go together"):
        merge.main(model=model, other=other, out=out, base=base)
    with pytest.raises(UserError, match=r"different vocabularies \(310 and 300 tokens\): --base is the model that"):
        merge.main(model=model, other=other, out=out, base=base, propagate="swap")
    tied = save(tmp_path / "tied", tiny_tokenizer(size=300), tiny_model(300, tie_word_embeddings=True))
    with pytest.raises(UserError, match="do not go together: tie_word_embeddings is False and True"):
        merge.main(model=model, other=tied, out=out, base=base, propagate="swap")


def test_a_chat_mark_that_the_new_vocabulary_lacks_is_named(three, tmp_path):
    model, _, base = three()
    told = tiny_tokenizer(size=300)
    told.chat_template = "<|im_end|>{{ messages }}"
    other = save(tmp_path / "other", told, tiny_model(len(told)))
    new = tiny_tokenizer(special=("<s>", "</s>"))
    with pytest.raises(UserError, match=r"its chat template needs the token '<\|im_end\|>'"):
        propagation.check(save(model, new, tiny_model(len(new))), other, base)
