"""scripts/kl_bench.py on tiny models: the table against metrics called by hand, the rule on planted figures, what it refuses."""

import json

import pytest
import tiny_model
import torch
import yaml

import init_bench
import kl_bench
from lib import comparison, forgetting, harness, metrics, models, paired, stage
from lib.errors import UserError

RUSSIAN = ["На столе лежат старые письма.", "Поезд остановился посреди поля.", "Какая планета ближе всех к Солнцу?"]
ENGLISH = ["The old letters are on the table.", "The train stopped in a field.", "Which planet is nearest to the Sun?"]
NEWS = ["The river rose overnight, officials say.", "Two ships were late.", "Rain is expected by Friday."]


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def finished(folder, noise=0.0, reference="init", tokens=4096, seconds=12.3):
    """A tiny model as cpt.py leaves it, its weights moved by seeded noise."""
    made = tiny_model.tokenizer()
    trained = tiny_model.model(len(made), bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id)
    torch.manual_seed(len(folder.name))
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(noise * torch.randn_like(weight))
    trained.save_pretrained(folder)
    made.save_pretrained(folder)
    settings = {"reference": reference, "combine": "sum", "kl_weight": 0.5, "kl_on": "all", "learning_rate": 1e-3}
    results = {"tokens": tokens, "steps": 4, "train_seconds": seconds, "tokens_per_second": 333.0}
    stage.write_json(folder / stage.MANIFEST, {"stage": "cpt", "settings": settings, "results": results})
    return folder


def asked(tmp_path):
    """A task file of three minimal pairs."""
    pairs = [{"id": f"p{i}", "good": good, "bad": good[::-1]} for i, good in enumerate(RUSSIAN)]
    task = {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(lines(tmp_path / "pairs.jsonl", pairs))}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "target_delimiter": "",
        "doc_to_choice": "{{[bad, good]}}",
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return tmp_path / "pairs.yaml"


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Flags of the script: a base that knows English tokens only, held-out documents, general English."""
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "LINES", ENGLISH)
        base = tiny_model.save(tmp_path / "base")
    held_out = [
        {
            "id": f"{language}-{i}",
            "text": text,
            "source": f"manuals-{language}",
            "language": language,
            "split": "held_out",
        }
        for language, texts in (("ru", RUSSIAN), ("en", ENGLISH))
        for i, text in enumerate(texts)
    ]
    general = [{"id": f"n-{i}", "text": text, "source": "news", "language": "en"} for i, text in enumerate(NEWS)]
    return {
        "base": base,
        "held_out": lines(tmp_path / "held_out.jsonl", held_out),
        "general": lines(tmp_path / "general.jsonl", general),
        "out": tmp_path / "out",
    }


def test_the_figures_are_those_worked_out_by_hand(script, inputs, tmp_path):
    task = asked(tmp_path)
    plain = finished(tmp_path / "extend-none", noise=0.05, reference="none", seconds=10.0)
    held = finished(tmp_path / "extend-chunk", noise=0.01)
    other = finished(tmp_path / "replace-init", noise=0.02)
    flags = {**inputs, "runs": f"{plain},{held},{other}", "tasks": task}
    done = script("kl_bench", *(f"--{name}={value}" for name, value in flags.items()))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in inputs["out"].iterdir()} == {"manifest.json", "kl-bench.json", "kl-bench.svg"}
    written = json.loads((inputs["out"] / "kl-bench.json").read_text())
    assert list(written["runs"]) == ["extend-none", "extend-chunk", "replace-init"]

    texts = {"ru": RUSSIAN, "en": ENGLISH, "general": NEWS}
    by_sum = {
        kind: {kl_bench.hashlib.sha256(text.encode()).hexdigest(): text for text in of} for kind, of in texts.items()
    }
    texts = {kind: [by_sum[kind][found["sha256"]] for found in written["documents"][kind]] for kind in texts}
    assert {kind: sorted(found) for kind, found in texts.items()} == {
        "ru": sorted(RUSSIAN), "en": sorted(ENGLISH), "general": sorted(NEWS)
    }  # fmt: skip

    def by_hand(folder):
        return {
            kind: metrics.bits_per_byte(*models.load(folder), found, window=64, batch_tokens=64)
            for kind, found in texts.items()
        }

    scores = {name: by_hand(folder) for name, folder in (("base", inputs["base"]), ("none", plain), ("chunk", held))}
    row = written["runs"]["extend-chunk"]
    for kind in texts:
        found, theirs, without = scores["chunk"][kind], scores["base"][kind], scores["none"][kind]
        said = row["bits_per_byte"][kind]
        spent = sum(score.bits for score in found) / sum(len(text.encode()) for text in texts[kind])
        assert said["value"] == pytest.approx(spent, rel=1e-5)
        for name, others in (("from_base", theirs), ("from_none", without)):
            assert said[name] == pytest.approx(paired.bits_per_byte(found, others), rel=1e-4, abs=1e-6)
        assert row["fewer_tokens"][kind] == sum(s.tokens for s in theirs) / sum(s.tokens for s in found)
        assert written["models"]["extend-chunk"]["bits"][kind] == pytest.approx([s.bits for s in found], rel=1e-5)
    words = sum(len(text.split()) for text in RUSSIAN)
    assert row["fertility"]["ru"]["tokens_per_word"] == sum(s.tokens for s in scores["chunk"]["ru"]) / words
    assert row["fewer_tokens"]["ru"] > 1.5  # the base has no Russian tokens
    tasks = harness.load([task], num_fewshot=0, seed=0)
    results, samples = harness.run(*models.load(held), tasks, limit=None, batch_tokens=64)
    assert row["tasks"] == results
    right = {item["id"]: item["correct"] for item in samples["pairs"]}
    assert written["models"]["extend-chunk"]["correct"] == {"pairs": right}
    assert row["settings"] == {"reference": "init", "combine": "sum", "kl_weight": 0.5, "kl_on": "all"}
    assert row["training"] == {"tokens": 4096, "steps": 4, "train_seconds": 12.3, "tokens_per_second": 333.0}
    # What nothing is there to compare with.
    assert "from_none" not in written["runs"]["extend-none"]["bits_per_byte"]["ru"]
    assert "from_none" not in written["runs"]["replace-init"]["bits_per_byte"]["ru"]

    results = stage.read_manifest(inputs["out"])["results"]
    assert results == {key: written[key] for key in results}
    assert set(written) - set(results) == {"documents", "models"}
    assert done.stdout.count("replace-init") >= 2
    assert f"best after 4,096 tokens: {written['best']['run']}: " in done.stdout
    svg = (inputs["out"] / "kl-bench.svg").read_text()
    for shown in ("chunk", "none", "init", "extend", "replace", "General English, %", "Held-out en, %"):
        assert f">{shown}" in svg, shown


def planted(**runs):
    """A table of runs by (bits per byte in ru, upper end of the general English difference from a base of 1.0)."""
    rows = {
        name: {
            "bits_per_byte": {
                "ru": {"value": ru},
                "general": {"value": 1.0, "from_base": {"value": high - 0.01, "low": high - 0.02, "high": high}},
            }
        }
        for name, (ru, high) in runs.items()
    }
    return {"base": {"bits_per_byte": {"general": {"value": 2.0}}}, "runs": rows}


def test_the_best_run_is_the_lowest_of_those_that_forget_nothing():
    table = planted(a=(1.2, 0.03), b=(1.3, -0.001), c=(1.25, 0.0))
    name, why = forgetting.best(table, "ru", 0.0)
    assert name == "c"
    assert why.startswith("lowest bits per byte in 'ru' of the 2 of 3 runs")
    assert forgetting.best(table, "ru", 1.4)[0] == "c"
    assert forgetting.best(table, "ru", 1.6)[0] == "a"  # 0.03 of 2.0


def test_where_all_forget_the_best_run_is_that_which_forgets_least():
    name, why = forgetting.best(planted(a=(1.2, 0.03), b=(1.5, 0.01), c=(1.1, 0.02)), "ru", 0.0)
    assert name == "b"
    assert "+0.50%, is the lowest" in why


def test_runs_that_do_not_compare_are_refused(inputs, tmp_path):
    good = finished(tmp_path / "extend-init")
    longer = finished(tmp_path / "extend-chunk", tokens=8192)
    twin = finished(tmp_path / "elsewhere" / "extend-init")
    mislabelled = finished(tmp_path / "extend-none", reference="chunk")
    nameless = finished(tmp_path / "chunk")
    (tmp_path / "replace-init").mkdir()
    foreign = tmp_path / "replace-none"
    foreign.mkdir()
    stage.write_json(foreign / stage.MANIFEST, {"stage": "filter", "settings": {}, "results": {}})
    for runs, said in (
        ([], "--runs: name at least one output of cpt.py"),
        ([good, longer], "extend-chunk was trained on another number of tokens than extend-init"),
        ([good, twin], "--runs: two folders are named extend-init"),
        ([mislabelled], "--runs: extend-none was trained with reference chunk"),
        ([nameless], "--runs: chunk is not named <mode>-<what was tried>"),
        ([tmp_path / "replace-init"], f"{tmp_path / 'replace-init'}: no manifest.json"),
        ([foreign], f"{foreign}: its manifest counts no tokens and steps, so cpt.py did not write this folder"),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            kl_bench.main(runs=runs, **inputs)
    assert not inputs["out"].exists()


def test_initialisations_that_do_not_compare_are_refused(inputs, tmp_path):
    folders = [tmp_path / "mean", tmp_path / "focus"]
    finished(folders[0] / "cpt")
    finished(folders[1] / "cpt", tokens=8192)
    with pytest.raises(UserError, match=r"^focus was trained on another number of tokens than mean;"):
        init_bench.main(runs=folders, base=inputs["base"], held_out=inputs["held_out"], out=inputs["out"])
    assert list(comparison.trained(folders[:1], "cpt")) == ["mean"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "manuals-en"}, "has documents of manuals-en, which the runs were trained on"),
        ({"language": "de"}, "no document in language 'en'"),
    ],
)
def test_general_english_of_the_wrong_kind_is_refused(inputs, tmp_path, change, said):
    row = {"id": "n-0", "text": NEWS[0], "source": "news", "language": "en"} | change
    general = lines(tmp_path / "other.jsonl", [row])
    with pytest.raises(UserError, match=f"^--general={general}: {said}"):
        kl_bench.main(runs=[finished(tmp_path / "extend-init")], **inputs | {"general": general})


def test_general_english_is_cut_off_at_a_document(tmp_path):
    rows = [{"id": f"n-{i}", "text": "x" * 10, "source": "news", "language": "en"} for i in range(9)]
    assert len(kl_bench._general(lines(tmp_path / "many.jsonl", rows), 25, set())) == 3
    assert len(kl_bench._general(tmp_path / "many.jsonl", 1000, set())) == 9


def test_held_out_text_without_english_is_refused(inputs, tmp_path):
    rows = [row for row in map(json.loads, inputs["held_out"].read_text().splitlines()) if row["language"] == "ru"]
    only = lines(tmp_path / "ru.jsonl", rows)
    with pytest.raises(UserError, match=f"^{only}: no held-out document in language 'en'"):
        kl_bench.main(runs=[finished(tmp_path / "extend-init")], **inputs | {"held_out": only})
