"""Grids of variants: what each changes, what is its own and what shared, and the table of means and ranges."""

import importlib
import inspect
import json

import pyarrow as pa
import pytest
import yaml
from conftest import ROOT

import ablate
from lib import documents, grids, page
from lib.errors import UserError


class Profile:
    """A profile with settings for sft only."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "sft.yaml").write_text("max_steps: 9\nlearning_rate: 1.0e-4\n", encoding="utf-8")

    def settings_file(self, step):
        return self.folder / "sft.yaml" if step == "sft" else None


def grid(tmp_path, **content):
    given = {"checkpoint": "sft", "variants": {"a": {}, "b": {}}} | content
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in given.items() if value is not None}), encoding="utf-8")
    return file


def load(tmp_path, **content):
    return grids.load(grid(tmp_path, **content), "demo")


def test_a_variant_owns_what_it_changes_and_all_that_reads_it(tmp_path):
    variants = {
        "same": None,
        "vocabulary": {"settings": {"tokenizer": {"vocab_size": 9}}},
        "filter": {"settings": {"filter": {"target": "score=1"}}},
        "rewards": {"variables": {"PREFERENCES": ""}, "settings": {"instruct": None}},
        "annotations": {"settings": {"annotate": {"passes": 1}}},
        "shots": {"settings": {"eval": {"num_fewshot": 5}}},
    }
    found = load(tmp_path, variants=variants).variants
    after_filter = ("filter", "tokenizer", "init", "pack", "cpt", "merge", "sft", "eval")
    assert {name: variant.changed for name, variant in found.items()} == {
        "same": ("eval",),
        "vocabulary": after_filter[1:],
        "filter": after_filter,
        "rewards": ("instruct", "sft", "eval"),
        "annotations": ("annotations", *after_filter),
        "shots": ("eval",),
    }
    assert found["rewards"].variables == {"PREFERENCES": ""}


def test_settings_are_the_profiles_with_the_grids_and_the_variants_in_their_place(tmp_path):
    content = {
        "settings": {"sft": {"max_steps": 3, "batch_size": 2}},
        "variants": {"a": {}, "b": {"settings": {"sft": {"batch_size": 1}, "cpt": {"z_loss": 1.0}}}},
    }
    profile = Profile(tmp_path)
    one = load(tmp_path, **content).variants
    assert one["a"].settings(profile, 0) == {"sft": {"max_steps": 3, "learning_rate": 1e-4, "batch_size": 2}}
    assert one["b"].settings(profile, 0) == {
        "sft": {"max_steps": 3, "learning_rate": 1e-4, "batch_size": 1},
        "cpt": {"z_loss": 1.0},
    }
    several = load(tmp_path, **content, seeds=[4, 7]).variants["a"]
    assert several.settings(profile, 7)["sft"]["seed"] == 7
    assert several.settings(profile, 7)["cpt"] == {"seed": 7}
    assert several.changed == ("cpt", "merge", "sft", "eval")
    assert load(tmp_path, seeds=[1, 2], checkpoint="init").variants["a"].changed == ("eval",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"checkpoint": "pack"}, "checkpoint: one of init, cpt"),
        ({"variants": {"a": {}}}, "at least two"),
        ({"seeds": []}, "seeds: a list"),
        ({"seed": 3}, "unknown key 'seed'"),
        ({"variants": {"a": {}, "b/c": {}}}, "variant 'b/c'"),
        ({"variants": {"a": {}, "b": {"sft": {}}}}, "variant b: settings and variables"),
        ({"variants": {"a": {}, "b": {"settings": {"stf": {}}}}}, "no stage 'stf'"),
    ],
)
def test_what_is_no_grid_is_named(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        load(tmp_path, **content)


def test_a_missing_grid_names_those_there_are():
    with pytest.raises(UserError, match="test has: filter, kl, sft, vocab"):
        grids.load(grids.Path("configs/test/ablations/none.yaml"), "test")


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("configs/*/ablations/*.yaml")), ids=lambda p: f"{p.parts[-3]}-{p.stem}"
)
def test_the_grids_that_come_along_are_understood_by_the_stages(file):
    profile = file.parts[-3]
    found = grids.load(file, profile)
    made = ablate.Make({"PROFILE": profile})
    for variant in found.variants.values():
        for step, settings in variant.settings(made, found.seeds[0]).items():
            main = importlib.import_module({"tokenizer": "train_spm", "init": "init_embeddings"}.get(step, step)).main
            assert set(settings) <= set(inspect.signature(main).parameters), step


def test_settings_that_say_the_same_are_not_written_again(tmp_path):
    file = ablate._write(tmp_path, "sft", {"b": 1, "a": "да"})
    before = file.stat().st_mtime_ns
    assert ablate._write(tmp_path, "sft", {"b": 1, "a": "да"}).stat().st_mtime_ns == before
    assert ablate._write(tmp_path, "sft", {"b": 2}).stat().st_mtime_ns > before
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == {"b": 2}


def test_unequal_budgets_are_refused():
    def runs(*training):
        return {f"v{place}": {0: {"training": found}} for place, found in enumerate(training)}

    ablate._check_budgets(runs({"steps": 3, "tokens": 5}, {"steps": 3, "tokens": 6}), "sft")
    with pytest.raises(UserError, match="numbers of tokens: v0 5, v1 6"):
        ablate._check_budgets(runs({"steps": 3, "tokens": 5}, {"steps": 3, "tokens": 6}), "cpt")
    with pytest.raises(UserError, match="numbers of steps"):
        ablate._check_budgets(runs({"steps": 3, "tokens": 5}, {"steps": 4, "tokens": 5}), "sft")


def test_a_variant_may_not_train_on_what_is_scored(tmp_path):
    def write(folder, **splits):
        with documents.writing(folder, extra=[("split", pa.string())]) as writer:
            for name, split in splits.items():
                writer.write({"id": name, "text": "текст", "source": "s", "language": "ru", "split": split})

    write(tmp_path / "held_out", a="held_out", b="held_out")
    write(tmp_path / "good" / "documents", a="held_out", b="held_out", c="held_out", d="train")
    write(tmp_path / "bad" / "documents", a="held_out", b="train", d="train")
    ablate._check_held_out(tmp_path / "good", tmp_path / "held_out")
    with pytest.raises(UserError, match="1 of the 2 held-out documents are training text"):
        ablate._check_held_out(tmp_path / "bad", tmp_path / "held_out")


def test_a_variant_may_not_be_tuned_on_dialogues_that_are_scored(tmp_path):
    def write(file, *questions):
        file.parent.mkdir(exist_ok=True)
        talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": "Да"}] for q in questions]
        file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), encoding="utf-8")

    write(tmp_path / "held_out.jsonl", "Кто?", "Где?")
    write(tmp_path / "good" / "instructions.jsonl", "Как?")
    write(tmp_path / "bad" / "instructions.jsonl", "Где?", "Как?", "Где?")
    ablate._check_talks(tmp_path / "good", tmp_path / "held_out.jsonl")
    with pytest.raises(UserError, match="1 of the 2 held-out dialogues are tuned on"):
        ablate._check_talks(tmp_path / "bad", tmp_path / "held_out.jsonl")


def test_means_and_ranges_over_the_seeds():
    def evaluation(name, bits):
        measured = {"value": bits, "low": bits - 0.1, "high": bits + 0.1, "documents": 3, "bytes": 9, "tokens": 4}
        spent = {"tokens_per_word": 2.0, "characters_per_token": 3.0}
        results = {"checkpoint": name, "bits_per_byte": {"ru": measured}, "fertility": {"ru": spent}, "tasks": {}}
        return {"results": results | {"vocabulary": 9, "parameters": 9}, "folder": name}

    training = {"training": {"steps": 3, "tokens": 5, "tokens_per_second": 1.0, "other": 1}}
    runs = {"a": {0: evaluation("sft", 1.2) | training, 1: evaluation("sft", 1.4) | training}}
    runs["b"] = {0: evaluation("sft", 1.1) | training, 1: evaluation("sft", 1.1) | training}
    table = ablate._table(evaluation("base", 1.5), runs, "ru")
    key = next(column["key"] for column in table["columns"] if column["group"] == "bits_per_byte")
    assert table["variants"]["a"]["summary"][key] == {"mean": pytest.approx(1.3), "low": 1.2, "high": 1.4}
    assert table["variants"]["a"]["training"][1] == {"steps": 3, "tokens": 5, "tokens_per_second": 1.0}
    lines = ablate._text(table).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["base", "a", "b"]
    assert "1.300 (1.200 to 1.400)" in lines[2]
    shown = page.ablation({**table, "about": "Which?", "paper": {"a": {"bits/byte ru": 1.0}}})
    assert shown["titles"] == ["bits/byte ru"]
    assert [row["name"] for row in shown["rows"]] == ["base", "a", "b", "the paper's a"]
    assert [row["cells"] for row in shown["rows"]] == [
        [{"value": "1.500", "low": "1.400", "high": "1.600"}],
        [{"value": "1.300", "low": "1.200", "high": "1.400"}],
        [{"value": "1.100", "low": "1.100", "high": "1.100"}],
        [{"value": "1.000"}],
    ]
    runs["b"].pop(1)
    alone = page.ablation({**ablate._table(evaluation("base", 1.5), {"b": runs["b"]}, "ru"), "about": "", "paper": {}})
    assert alone["rows"][1]["cells"] == [{"value": "1.100", "low": "1.000", "high": "1.200"}]
    assert alone["rows"][1]["training"]["steps"] == 3
