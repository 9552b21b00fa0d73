"""Local files in the place of a task's data set: what is read, what is asked, and what is wrong with them in one line."""

import csv
import json

import datasets
import pytest
import tiny_model
from conftest import ROOT

from lib import harness, items
from lib.errors import UserError

HUB = ROOT / "configs/eval/hub"
NLI = [
    {"premise": "Он дома.", "hypothesis": "Он один.", "label": 1},
    {"premise": "Идёт дождь.", "hypothesis": "Сухо.", "label": 2},
    {"premise": "Он спит.", "hypothesis": "Он не бодрствует.", "label": 0},
]
PAIR = {"source_sentence": "Мы идём домой.", "target_sentence": "Мы идёт домой."}


def write(path, rows):
    """Rows as the file's name says."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(name, data, num_fewshot=0):
    return harness.load([HUB / f"{name}.yaml"], num_fewshot=num_fewshot, seed=0, data=data)[name]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_of_every_kind_are_the_task(tmp_path, kind):
    task = load("ruxnli", {"ruxnli": write(tmp_path / f"items.{kind}", NLI)})
    assert [task.doc_to_target(item) for item in task.eval_docs] == [1, 2, 0]
    task.build_all_requests(limit=1)
    assert [request.args for request in task.instances] == [
        ("", f" Он дома., правильно? {word}, Он один.") for word in ("Да", "Так", "Нет")
    ]


def test_examples_come_from_the_pool_that_is_given(tmp_path):
    data = {"ruxnli": write(tmp_path / "a.jsonl", NLI[:1]), "ruxnli.train": write(tmp_path / "b.jsonl", NLI[1:])}
    task = load("ruxnli", data, num_fewshot=1)
    task.build_all_requests()
    assert task.instances[0].args[0] == " Идёт дождь., правильно? Нет, Сухо.\n\n"
    with pytest.raises(UserError, match=r"data: ruxnli without ruxnli\.train, where --num_fewshot=1 has its examples"):
        load("ruxnli", {"ruxnli": tmp_path / "a.jsonl"}, num_fewshot=1)


@pytest.mark.parametrize("pattern", ["", "*.csv"])
def test_a_folder_or_a_pattern_is_one_set_of_parts(tmp_path, pattern):
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs" / "two.csv", [PAIR])
    write(tmp_path / "pairs" / "one.csv", [{**PAIR, "source_sentence": "Они идут."}] * 2)
    (tmp_path / "pairs" / "README.md").write_text("not items")
    task = load("rublimp", {"rublimp": tmp_path / "pairs" / pattern})
    assert task.eval_docs["part"] == ["one", "one", "two"]
    named = items.inputs({"rublimp": tmp_path / "pairs" / pattern, "ruxnli.train": tmp_path / "pairs" / "one.csv"})
    assert named == {
        "data.rublimp/one.csv": tmp_path / "pairs" / "one.csv",
        "data.rublimp/two.csv": tmp_path / "pairs" / "two.csv",
        "data.ruxnli.train": tmp_path / "pairs" / "one.csv",
    }


def test_labels_of_terra_are_words_or_numbers(tmp_path):
    rows = [{"premise": "Он дома.", "hypothesis": "Он в пути.", "label": "not_entailment"}]
    task = load("terra", {"terra": write(tmp_path / "words.jsonl", rows)})
    assert task.doc_to_target(task.eval_docs[0]) == 1
    rows[0]["label"] = 1
    task = load("terra", {"terra": write(tmp_path / "numbers.jsonl", rows)})
    assert task.doc_to_target(task.eval_docs[0]) == 1


def test_questions_of_the_russian_tasks(tmp_path):
    rows = json.loads((ROOT / "tests/hub_rows.json").read_text())
    asked = {}
    for name in ("parus", "terra", "rucola"):
        task = load(name, {name: write(tmp_path / f"{name}.jsonl", rows[name]["validation"])})
        task.build_all_requests()
        asked[name] = [request.args for request in task.instances]
    assert asked["parus"] == [("Стакан разбился, потому что", f" его {what}.") for what in ("помыли", "уронили")]
    assert asked["terra"] == [("Он дома.\nВопрос: Он в пути. Да или нет?\nОтвет:", word) for word in (" Да", " Нет")]
    question = "Мы идём домой.\nВопрос: Правильно ли составлено это предложение?\nОтвет:"
    assert asked["rucola"] == [(question, " Нет"), (question, " Да")]
    effect = {"premise": "Я потерялся.", "choice1": "А", "choice2": "Б", "question": "effect", "label": 0}
    task = load("parus", {"parus": write(tmp_path / "effect.jsonl", [effect])})
    assert task.doc_to_text(task.eval_docs[0]) == "Я потерялся, поэтому"


@pytest.mark.parametrize(
    ("key", "rows", "message"),
    [
        ("ruxnly", NLI, r"data: no task 'ruxnly' among the tasks, did you mean 'ruxnli'\?"),
        ("ruxnli.validatoin", NLI, r"reads validation and train, did you mean 'validation'\?"),
        ("ruxnli.train", NLI, r"data: ruxnli\.train without ruxnli\.validation, the items that are scored"),
        ("ruxnli", [{"premise": "а", "label": 1}], r"items\.jsonl: no column 'hypothesis'; there are premise, label"),
        ("ruxnli", [{"premise": "а", "hypothesis": "б"}], r"items\.jsonl: no column 'label'"),
        ("ruxnli", [*NLI, {**NLI[0], "label": 3}], r"data: ruxnli: item 4: the right answer 3 is none of 3 choices"),
        ("ruxnli", [{**NLI[0], "label": "neutral"}], r"item 1: the right answer 'neutral' is none of 3 choices"),
        ("ruxnli", [NLI[0], {**NLI[0], "premise": None}], r"data: ruxnli: item 2: TypeError"),
        ("ruxnli", [], r"data: ruxnli: .*items\.jsonl: no items there"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, key, rows, message):
    with pytest.raises(UserError, match=message) as error:
        load("ruxnli", {key: write(tmp_path / "items.jsonl", rows)})
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"data: ruxnli: .*nothing\.jsonl: no such file or files"):
        items.inputs({"ruxnli": tmp_path / "nothing.jsonl"})
    (tmp_path / "items.txt").write_text("?")
    with pytest.raises(UserError, match=r"items\.txt: not a kind of file that can be read; one of \.jsonl, "):
        items.inputs({"ruxnli": tmp_path / "items.txt"})
    (tmp_path / "items.jsonl").write_text('{"premise": \n')
    with pytest.raises(UserError, match=r"items\.jsonl: can't be read as json"):
        load("ruxnli", {"ruxnli": tmp_path / "items.jsonl"})
    datasets.Dataset.from_list([NLI[0]]).select([]).to_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"items\.parquet: can't be read as parquet .*no data"):
        load("ruxnli", {"ruxnli": tmp_path / "items.parquet"})
    for key in ("ruxnli", "ruxnli.validation"):
        write(tmp_path / f"{key}.jsonl", NLI)
    with pytest.raises(UserError, match=r"ruxnli\.validation and ruxnli are the same items"):
        load("ruxnli", {key: tmp_path / f"{key}.jsonl" for key in ("ruxnli", "ruxnli.validation")})


def test_the_hub_s_own_parquet_has_splits_by_folder_or_by_name(tmp_path):
    """Both layouts of a repository's conversion; main holds a script, which datasets would refuse to run."""
    for layout in ("parus/{}/0000.parquet", "terra/russian_super_glue-{}.parquet"):
        for split in ("train", "validation", "test"):
            (tmp_path / layout.format(split)).parent.mkdir(parents=True, exist_ok=True)
            write(tmp_path / layout.format(split), [{"split": split}])
    for name in ("parus", "terra"):
        found = datasets.load_dataset(str(tmp_path), data_dir=name, cache_dir=str(tmp_path / "cache"))
        assert {split: rows["split"] for split, rows in found.items()} == {
            split: [split] for split in ("train", "validation", "test")
        }


def test_accuracy_by_bytes_by_hand():
    logged = {"doc_id": 0, "doc": {}, "target": 1, "acc": 0.0, "filtered_resps": [(-4.0, False), (-6.0, False)]}
    record = harness._record(logged, ["да", "дадада"])  # -4 / 4 bytes, -6 / 12 bytes
    assert (record["prediction"], record["prediction_bytes"]) == (0, 1)
    record = harness._record(logged, ["abcd", "дддд"])  # as many characters, but 4 and 8 bytes
    assert (record["prediction"], record["prediction_bytes"]) == (0, 1)


def test_both_accuracies_are_those_of_the_items(tmp_path):
    tokenizer = tiny_model.tokenizer()
    model = tiny_model.model(len(tokenizer))
    files = sorted((ROOT / "configs/eval/builtin").glob("*.yaml"))
    tasks = harness.load(files, num_fewshot=0, seed=0)
    results, samples = harness.run(model, tokenizer, tasks, limit=12, batch_tokens=3000)
    differing = set()
    for name, lines in samples.items():
        by_bytes = [line["prediction_bytes"] == line["target"] for line in lines]
        assert results[name]["acc_bytes"]["value"] == sum(by_bytes) / len(lines)
        bounds = results[name]["acc_bytes"]
        assert 0 <= bounds["low"] <= bounds["value"] <= bounds["high"] <= 1
        assert bounds["low"] < bounds["high"]
        if any(line["prediction_bytes"] != line["prediction"] for line in lines):
            differing.add(name)
    assert "ruxnli" in differing  # a random model's choice is the shortest one
    assert not differing & {"ru_mmlu", "ru_mmlu_pro"}
