"""scripts/leaks.py: evaluation items that occur in the training text, and the report's accuracy without them."""

import json

import pytest
from conftest import ROOT

from lib import contamination, documents, harness, page
from lib.paired import Details, Item

TASK = "configs/eval/builtin/ru_mmlu.yaml"
QUESTIONS = [json.loads(line) for line in (ROOT / "data/builtin/demo/ru_mmlu.jsonl").read_text().splitlines()]


def test_all_items_of_a_text_are_found_and_those_of_two_tasks():
    items = [
        ("a", 0, ["Кто написал этот большой роман?"]),
        ("a", 1, ["Сколько ног у самого большого паука?"]),
        ("b", 0, ["Кто написал этот большой роман?"]),
        ("b", 1, ["Сколько глаз у самого большого паука?"]),
    ]
    index = contamination.Index(items, size=6)
    text = "Сколько ног у самого большого паука, и кто написал этот большой роман, не знаю."
    assert index.find_all(text) == {
        ("a", 0): "кто написал этот большой роман",
        ("b", 0): "кто написал этот большой роман",
        ("a", 1): "сколько ног у самого большого паука",
    }
    assert index.find_all("Кто написал этот роман?") == {}
    assert index.find("Кто написал этот большой роман?") == ("a", 0, "кто написал этот большой роман")


def test_both_items_that_share_words_are_found():
    items = [("a", n, [f"Кто написал этот большой роман, {name}?"]) for n, name in enumerate(("Гоголь", "Чехов"))]
    index = contamination.Index(items, size=5)
    assert set(index.find_all("кто написал этот большой роман")) == {("a", 0), ("a", 1)}


@pytest.fixture
def evaluation(tmp_path):
    """What leaks.py reads of an evaluation of six items of a local file: the project's, in another order."""
    local = tmp_path / "items.jsonl"
    items = QUESTIONS[::-1]
    local.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    folder = tmp_path / "base"
    (folder / "samples").mkdir(parents=True)
    settings = {"tasks": [TASK], "limit": 6, "seed": 0, "data": {"ru_mmlu": str(local)}}
    (folder / "manifest.json").write_text(json.dumps({"settings": settings}))
    drawn = [items[number]["id"] for number in harness.draw(len(QUESTIONS), 6, 0)]
    lines = [{"id": name, "target": 0, "correct": False} for name in drawn]
    (folder / "samples" / "ru_mmlu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, drawn


def test_the_script_finds_the_items_that_were_scored_in_what_was_trained_on(script, evaluation, tmp_path):
    folder, drawn = evaluation
    asked = {item["id"]: item["question"] for item in QUESTIONS}
    other = next(item for item in QUESTIONS if item["id"] not in drawn and len(item["question"].split()) > 8)
    texts = [
        ("good", "Река течёт медленно, и берега её низки.", "train"),
        ("leak", f"Спросили: {asked[drawn[2]].upper()} И не ответили.", "train"),
        ("again", asked[drawn[2]], "train"),
        ("held", asked[drawn[3]], "held_out"),
        ("unscored", other["question"], "train"),
    ]
    import pyarrow as pa

    with documents.writing(tmp_path / "documents", extra=[("split", pa.string())]) as writer:
        for name, text, split in texts:
            writer.write({"id": name, "text": text, "source": "s", "language": "ru", "split": split})
    flags = (f"--evaluation={folder}", f"--training={tmp_path / 'documents'}", f"--out={tmp_path / 'out'}", "--ngram=5")
    done = script("leaks", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "leaks: in 4 documents, items of ru_mmlu 1 of 6"
    (line,) = [json.loads(each) for each in (tmp_path / "out" / "leaks.jsonl").read_text().splitlines()]
    assert (line["task"], line["id"], line["document"]) == ("ru_mmlu", drawn[2], "leak")
    results = json.loads((tmp_path / "out" / "manifest.json").read_text())["results"]
    assert results["documents"] == 4
    assert (results["tasks"]["ru_mmlu"]["items"], results["tasks"]["ru_mmlu"]["found"]) == (6, 1)


def test_too_few_words_are_refused(script, tmp_path):
    done = script(
        "leaks", f"--evaluation={tmp_path}", f"--training={tmp_path}", f"--out={tmp_path / 'out'}", "--ngram=4"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --ngram=4: at least 5, fewer words mean nothing"


def test_accuracy_without_the_items_found():
    items = {
        "base": Details({}, {"quiz": [Item(str(n), "0", n < 2) for n in range(4)]}, [], {}),
        "sft": Details({}, {}, [], {}),
    }
    found = [{"task": "quiz", "id": "0"}, {"task": "other", "id": "1"}]
    (row,) = page.leaks({"quiz": {"items": 4, "too_short": 0, "found": 1}}, found, items)
    assert (row["task"], row["found"], list(row["accuracies"])) == ("quiz", 1, ["base"])
    both = row["accuracies"]["base"]
    assert (both["all"]["value"], both["all"]["items"]) == (0.5, 4)
    assert (both["without"]["value"], both["without"]["items"]) == (pytest.approx(1 / 3), 3)
