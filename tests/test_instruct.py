"""instruct.py: each reason to leave a dialogue out, what the table of sources says, and evaluation items found in text."""

import json
from pathlib import Path

import pytest
import tiny_model
from conftest import ROOT

from lib import contamination, curation, rewards

TASK = ROOT / "configs" / "eval" / "builtin" / "ru_mmlu.yaml"


def dialogue(name, *turns, language="ru"):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"id": name, "messages": messages, "language": language}


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def build(script, tmp_path):
    """Run the script on sets of dialogues; (kept, removed, results)."""

    def run(sets, *flags):
        files = [write(tmp_path / f"{name}.jsonl", records) for name, records in sets.items()]
        out = tmp_path / "out"
        paths = (f"--instructions={','.join(map(str, files))}", f"--out={out}")
        done = script("instruct", *paths, "--held_out_share=0", *flags)
        assert done.returncode == 0, done.stderr
        results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
        return lines(out / "instructions.jsonl"), lines(out / "removed.jsonl"), results

    return run


def test_prompts_are_compared_by_all_that_the_user_says(build):
    question = "Напиши короткий рассказ о море и о том, кто его любит."
    sets = {
        "a": [dialogue("a1", question, "Жил-был…"), dialogue("a2", "Привет", "Здравствуйте")],
        "b": [
            dialogue("b1", question.replace("короткий", "коротких"), "Другой ответ"),
            dialogue("b2", "ПРИВЕТ", "И вам"),
            dialogue("b3", question, "Рассказ", "А теперь расскажи о горах, снегах и лавинах", "Хорошо"),
        ],
    }
    kept, removed, results = build(sets)
    assert [record["id"] for record in kept] == ["a1", "a2", "b3"]
    assert kept[2] == {**sets["b"][2], "source": "b"}
    assert [(r["id"], r["twin_id"], r["reason"]) for r in removed] == [
        ("b1", "a1", "near_duplicate"),
        ("b2", "a2", "exact_duplicate"),
    ]
    assert 0.8 <= removed[0]["similarity"] < 1
    a, b = results["sources"]
    assert a | {"characters": 0} == {
        "source": "a", "languages": {"ru": 2}, "dialogues": 2, "removed": {}, "held_out": 0, "kept": 2, "answers": 2, "characters": 0,
    }  # fmt: skip
    assert b["removed"] == {"exact_duplicate": 1, "near_duplicate": 1}
    assert (b["kept"], b["answers"]) == (1, 2)


def test_a_dialogue_in_another_language_than_it_says(build):
    english = ("Where does the river begin?", "It begins in the mountains, where the snow melts in spring.")
    russian = ("Где начинается река?", "Она начинается в горах, где весной тает снег и бегут ручьи.")
    given = [dialogue("1", *english), dialogue("2", *russian), dialogue("3", *english, language="en")]
    given += [
        {k: v for k, v in dialogue("4", *english).items() if k != "language"} | {"messages": given[1]["messages"][:0]}
    ]
    given[3]["messages"] = dialogue("4", "Why is it cold there?", "Because the mountains are high.")["messages"]
    kept, removed, _ = build({"a": given})
    assert [record["id"] for record in kept] == ["2", "3", "4"]  # the last names none
    assert [(r["id"], r["reason"]) for r in removed] == [("1", "wrong_language")]


def test_words_of_an_evaluation_item(build):
    item = lines(ROOT / "data" / "builtin" / "demo" / "ru_mmlu.jsonl")[5]
    given = [
        dialogue("1", f"Скажи: {item['question'].lower()}", "Не знаю."),
        dialogue("2", "Расскажи о реках Сибири.", "Их много."),
    ]
    kept, removed, results = build({"a": given}, f"--tasks={TASK}", "--ngram=5")
    assert [record["id"] for record in kept] == ["2"]
    assert removed[0]["reason"] == "contaminated"
    assert (removed[0]["item"]["task"], removed[0]["item"]["item"]) == ("ru_mmlu", 5)
    checked = results["contamination"]["ru_mmlu"]
    assert (checked["items"], checked["dialogues"]) == (160, 1)


def test_words_of_an_item_of_a_local_file(build, tmp_path):
    item = lines(ROOT / "data" / "builtin" / "demo" / "ru_mmlu.jsonl")[5]
    mine = item | {"question": "Кто из птиц моей коллекции громче всех поёт по утрам?"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(mine, ensure_ascii=False) + "\n", encoding="utf-8")
    given = [dialogue("1", item["question"], "Не знаю."), dialogue("2", mine["question"], "Соловей.")]
    kept, removed, results = build(
        {"a": given}, f"--tasks={TASK}", f"--data={{ru_mmlu: {tmp_path / 'mine.jsonl'}}}", "--ngram=5"
    )
    assert [record["id"] for record in kept] == ["1"]
    assert [record["id"] for record in removed] == ["2"]
    assert results["contamination"]["ru_mmlu"]["items"] == 1


def test_runs_of_words_and_whole_short_texts_but_not_a_tasks_wording():
    items = [
        ("t", n, [f"Ответь на вопрос и выбери один верный вариант из списка: {word}"]) for n, word in enumerate("абвгд")
    ]
    items += [("t", 9, ["Кто написал этот большой роман?"]), ("t", 10, ["Да"])]
    index = contamination.Index(items, size=6)
    assert index.find("Ответь на вопрос и выбери один верный вариант из списка") is None
    assert index.find("Так кто написал этот большой роман, скажи?") == ("t", 9, "кто написал этот большой роман")
    assert index.find("Кто написал этот роман?") is None
    assert index.find("один верный вариант из списка: в") == ("t", 2, "один верный вариант из списка в")
    assert dict(index.too_short) == {"t": 1}
    assert list(contamination.texts_of({"a": "x", "b": ["y", {"c": "z"}], "n": 3})) == ["x", "y", "z"]


def test_the_poorest_answers_go_language_by_language(build, tmp_path, monkeypatch):
    """A real model folder; its rewards are taken as they are."""
    folder = tmp_path / "reward"
    reward_model(folder)
    given = [dialogue(f"ru{n}", f"Вопрос номер {n} о реках и горах", f"Ответ {'да ' * n}") for n in range(10)]
    given += [
        dialogue(f"en{n}", f"Question {n} of rivers and hills", f"Answer {'yes ' * n}", language="en")
        for n in range(10)
    ]
    given[3] = dialogue("two", "Первый вопрос", "Ответ", "Второй вопрос", "Другой ответ")
    flags = (f"--reward={folder}", "--min_probability=0", "--threshold=1")
    kept, removed, results = build({"a": given}, *flags, "--target=keep_share=0.7")
    assert len(kept) + len(removed) == 20
    assert results["removed"] == {"low_reward": len(removed)}
    for code in ("ru", "en"):
        rewards_of = [[r["reward"] for r in part if r["language"] == code] for part in (kept, removed)]
        assert 6 <= len(rewards_of[0]) <= 8
        assert min(rewards_of[0]) >= max(rewards_of[1])
    model, tokenizer = rewards.load(folder)
    asked = rewards.turns(next(record for record in given if record["id"] == "two")["messages"])
    assert [prompt for prompt, _ in asked] == ["Первый вопрос", "Первый вопрос\n\nОтвет\n\nВторой вопрос"]
    scores = rewards.score(model.eval(), tokenizer, asked, 64)
    found = next(record for record in [*kept, *removed] if record["id"] == "two")
    assert found["reward"] == pytest.approx(float(scores.min()), abs=1e-3)
    threshold = sorted(record["reward"] for record in [*kept, *removed])[12]
    kept, removed, _ = build({"a": given}, *flags, f"--target=score={threshold}")
    assert all(record["reward"] >= threshold for record in kept)
    assert all(record["reward"] < threshold for record in removed)
    assert len(removed) == 12


def reward_model(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = tiny_model.tokenizer()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": 1,
    }
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **shape)
    folder.mkdir()
    rewards.save(BertForSequenceClassification(config), tokenizer, folder, {"max_tokens": 64})


def test_sources_are_taken_by_their_weights(build):
    sets = {
        name: [dialogue(f"{name}{n}", f"Вопрос {name} {n} о числе {n * n}", "Ответ") for n in range(60)]
        for name in "abc"
    }
    flags = ("--min_probability=0", "--threshold=1", "--weights={'a': 2.5, 'b': 0.5}")
    kept, removed, results = build(sets, *flags)
    taken = [sum(record["source"] == name for record in kept) for name in "abc"]
    assert 120 < taken[0] < 180
    assert 15 < taken[1] < 45
    assert taken[2] == 60
    assert {r["reason"] for r in removed} == {"not_sampled"}
    assert [source["kept"] for source in results["sources"]] == taken
    assert results["instructions_kept"] == sum(taken)
    assert build(sets, *flags)[0] == kept


def test_what_is_held_out_is_not_trained_on_and_counted_apart(build, tmp_path):
    sets = {
        name: [dialogue(f"{name}{n}", f"Вопрос {name} {n} о числе {n * n}", "Ответ") for n in range(100)]
        for name in "ab"
    }
    flags = ("--min_probability=0", "--threshold=1", "--held_out_share=0.2", "--weights={'b': 2}")
    kept, removed, results = build(sets, *flags)
    held = lines(tmp_path / "out" / "held_out.jsonl")
    names = [record["id"] for record in held]
    assert 20 < len(names) < 60
    assert removed == []
    trained = {record["id"] for record in kept}
    assert trained.isdisjoint(names)
    assert len(trained) + len(set(names)) == 200
    assert results["instructions_held_out"] == len(names)  # each once, although b counts twice
    assert [source["held_out"] for source in results["sources"]] == [sum(n[0] == name for n in names) for name in "ab"]
    assert results["instructions_kept"] == len(kept) == sum(source["kept"] for source in results["sources"])
    assert [{**by_id, "source": name[0]} for name in names for by_id in sets[name[0]] if by_id["id"] == name] == held


def test_a_dialogues_lot_is_its_prompts_alone():
    given = [dialogue(str(n), f"Вопрос {n}", "Ответ", "И ещё", "Да") for n in range(500)]
    held = curation.held_out(given, range(500), 0.2)
    assert 70 < len(held) < 130
    # Other answers, another order, half of the set.
    some = [dialogue("x", f"Вопрос {n}", "Иначе", "И ещё", "Нет") for n in range(250)][::-1]
    assert curation.held_out(some, range(250), 0.2) == {249 - row for row in held if row < 250}
    assert curation.held_out(given, [*held], 0.2) == held < curation.held_out(given, range(500), 0.4)
    assert curation.held_out(given, range(500), 0) == set()
    other = [dialogue("x", f"Вопрос {n}", "Ответ", "И всё", "Да") for n in range(500)]
    assert curation.held_out(other, range(500), 0.2) != held


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--held_out_share=1", "at least 0 and below 1"),
        ("--threshold=2", "a similarity above 0"),
        ("--shingle_size=0", "at least 1"),
        ("--ngram=3", "at least 5"),
        ("--target=keep_share=2", "expected keep_share=SHARE"),
        ("--target=precision=0.5", "expected keep_share=SHARE"),
        ("--weights={'z': 1}", "no source z"),
        ("--weights={'a': -1}", "a is below 0"),
    ],
)
def test_wrong_settings_are_named(script, tmp_path, flag, said):
    file = write(tmp_path / "a.jsonl", [dialogue("1", "Привет", "Да")])
    refused = script("instruct", f"--instructions={file}", flag, f"--out={tmp_path / 'out'}")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_broken_line_stops_or_is_counted(script, tmp_path):
    file = write(tmp_path / "a.jsonl", [dialogue("1", "Привет", "Да"), {"messages": []}])
    out = f"--out={tmp_path / 'out'}"
    refused = script("instruct", f"--instructions={file}", out)
    assert refused.returncode == 2
    assert "a.jsonl:2" in refused.stderr
    assert script("instruct", f"--instructions={file}", out, "--on_error=skip").returncode == 0
    results = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert results["skipped"] == {"broken_dialogue": 1}
