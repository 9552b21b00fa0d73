"""bench_eval on a tiny model: both sides ask the harness's own questions, and what is compared is shown to differ where it does."""

import json

import pytest
import torch
from conftest import ROOT
from tiny_model import save as save_tiny

import bench_eval
from lib import training_peers

HUB = ROOT / "configs" / "eval" / "hub"
NLI = [
    {"premise": f"Он {word}.", "hypothesis": "Он один.", "label": n} for n, word in enumerate(("дома", "спит", "тут"))
]
OKAPI = {"instruction": "2+2?", **{f"option_{letter}": letter for letter in "abcd"}, "answer": "B"}


def mmlu(subject, number):
    return {"question": f"{subject} {number}?", "subject": subject, "choices": list("1234"), "answer": number}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The last line of a benchmark, its jobs run in this process: each of their own would import torch again."""
    monkeypatch.setattr(training_peers, "alone", lambda work, *arguments: work(*arguments))
    threads = torch.get_num_threads()

    def measured(data, **settings):
        files = {}
        for name, rows in data.items():
            files[name] = tmp_path / f"{name}.jsonl"
            files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = dict.fromkeys(name.split(".")[0] for name in data)
        tasks = [HUB / f"{name}.yaml" for name in names]
        model = save_tiny(tmp_path / "model")
        bench_eval.main(model=model, tasks=tasks, data=files, rounds=1, threads=1, **settings)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    yield measured
    torch.set_num_threads(threads)


def test_our_tasks_are_those_of_the_harness(run):
    subjects = ("virology", "astronomy", "virology", "astronomy")
    data = {
        "ruxnli": NLI,
        "xnli_en": NLI,
        "ru_mmlu": [OKAPI],
        "ru_mmlu.train": [OKAPI],
        "en_mmlu": [mmlu(subject, number) for number, subject in enumerate(subjects)],
        "en_mmlu.dev": [mmlu(subject, 0) for subject in ("virology", "astronomy")],
    }
    found = run(data, items=3)
    assert found["bench"] == "eval"
    assert set(found["ratios"]) == set(found["memory_ratio"]) == {"HFLM, batch 1", "HFLM, batch 8"}
    assert min(found["ratios"].values()) > 0
    tasks = found["checks"]["tasks"]
    assert {name: task["items"] for name, task in tasks.items()} == {
        "ruxnli": 3,
        "xnli_en": 3,
        "ru_mmlu": 1,
        "en_mmlu": 3,
    }
    for task in tasks.values():
        for differ in task["items_that_differ"].values():
            assert differ == dict.fromkeys(("prompts", "target", "prediction", "prediction_bytes"), 0)
        assert len(set(task["right"].values())) == 1
        assert 0 < task["largest_difference_of_log_p"] < 1e-3


def test_the_same_examples_of_the_item_s_subject(run):
    data = {
        "en_mmlu": [mmlu(subject, number) for number, subject in enumerate(("virology", "astronomy"))],
        "en_mmlu.dev": [mmlu(subject, number) for subject in ("virology", "astronomy") for number in (3, 2)],
    }
    [task] = run(data, num_fewshot=2)["checks"]["tasks"].values()
    assert {tuple(differ.values()) for differ in task["items_that_differ"].values()} == {(0, 0, 0, 0)}


def test_differences_are_counted():
    item = {
        "prompts": [("", "а")],
        "log_probabilities": [-1.0, -2.0],
        "prediction": 0,
        "prediction_bytes": 1,
        "target": 0,
    }
    other = {**item, "prompts": [("", "б")], "log_probabilities": [-2.5, -2.0], "prediction": 1}
    found = bench_eval.compared({"ours": [item, item], "HFLM, batch 1": [item, item], "HFLM, batch 8": [item, other]})
    assert found["right"] == {"ours": 2, "HFLM, batch 1": 2, "HFLM, batch 8": 1}
    assert found["right_by_bytes"] == {"ours": 0, "HFLM, batch 1": 0, "HFLM, batch 8": 0}
    expected = {"prompts": 1, "target": 0, "prediction": 1, "prediction_bytes": 0}
    assert found["items_that_differ"]["HFLM, batch 8"] == expected
    assert found["largest_difference_of_log_p"] == 1.5


def test_a_ratio_above_1_means_that_ours_is_faster():
    medians = {"ours": {"x": 6.0}, "HFLM, batch 1": {"x": 2.0}, "HFLM, batch 8": {"x": 12.0}}
    assert bench_eval.ratios(medians, "x") == {"HFLM, batch 1": 3.0, "HFLM, batch 8": 0.5}
