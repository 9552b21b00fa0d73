import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import tiny_model
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

import eval as script
from lib import documents, generation, harness, summary, unseen
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BUILTIN = sorted((ROOT / "configs/eval/builtin").glob("*.yaml"))
TEXTS = {"ru": "Поезд остановился посреди поля, и стоянка продлится час.", "en": "The old letters are on the table."}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model folder and its base's, held-out documents and dialogues, prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model.save(folder / "model")
    tiny_model.save(folder / "base", scale=1.1)
    with documents.writing(folder / "held_out") as writer:
        for number in range(4):
            for language, text in TEXTS.items():
                writer.write({"id": f"{language}-{number}", "text": text * number, "source": "s", "language": language})
    lines = [{"id": f"q{n}", "category": "recipes", "prompt": "Как сварить борщ?" * n} for n in (3, 1, 2)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    talks = [
        {
            "id": f"t{n}",
            "language": code,
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text * n}],
        }
        for n in (1, 2)
        for code, text in TEXTS.items()
    ]
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    return folder


def run(inputs, out, *flags, where=ROOT):
    command = [sys.executable, ROOT / "scripts/eval.py", f"--model={inputs / 'model'}", f"--out={out}"]
    command += [f"--held_out={inputs / 'held_out'}", "--window=512", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, check=False)


def test_script_writes_scores_samples_and_generations(inputs, tmp_path):
    tasks = f"--tasks={BUILTIN[0]},{BUILTIN[1]}"
    held = (f"--base={inputs / 'base'}", f"--instructions={inputs / 'talks.jsonl'}", "--speed_characters=100")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"id": "local-1", "good": "Да, да.", "bad": "Нет."}\n')
    flags = (
        tasks,
        *held,
        f"--data={{minimal_pairs: {pairs}}}",
        f"--prompts={inputs / 'prompts.jsonl'}",
        "--limit=2",
        "--max_new_tokens=4",
        "--num_fewshot=1",
    )
    done = run(inputs, tmp_path / "eval/cpt", *flags, where=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "eval/cpt"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "manifest.json",
        "documents.jsonl",
        "dialogues.jsonl",
        "generations.jsonl",
        "samples/minimal_pairs.jsonl",
        "samples/ru_mmlu.jsonl",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    given = {"path": str(pairs), "sha256": hashlib.sha256(pairs.read_bytes()).hexdigest()}
    assert manifest["inputs"]["data.minimal_pairs"] == given
    assert json.loads((out / "samples/minimal_pairs.jsonl").read_text())["id"] == "local-1"
    results = manifest["results"]
    assert results["checkpoint"] == "cpt"
    assert set(results["bits_per_byte"]) == set(results["fertility"]) == {"ru", "en"}
    rates = results["fertility"]["ru"]
    assert [f"{rates['tokens_per_word']:.2f}", f"{rates['words_whole']:.1%}"] == next(
        line.split()[4:6] for line in done.stdout.splitlines() if line.startswith("ru ")
    )
    score = results["bits_per_byte"]["ru"]
    assert score["documents"] == 3  # the empty one is left out
    assert score["bytes"] == 6 * len(TEXTS["ru"].encode())
    assert score["low"] <= score["value"] <= score["high"]
    talks = [json.loads(line) for line in (out / "dialogues.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in talks if line["language"] == "ru") == ["t1", "t2"]
    spent = results["instructions"]["ru"]
    assert spent["bytes"] == 3 * len(TEXTS["ru"].encode())
    assert spent["value"] == pytest.approx(
        sum(line["bits"] for line in talks if line["language"] == "ru") / spent["bytes"]
    )
    assert results["kl_to_base"]["language"] == "en"
    assert results["kl_to_base"]["compared"] == 1
    assert results["kl_to_base"]["documents"] == 3
    assert results["kl_to_base"]["value"] > 0.01
    assert results["context"]["tokens"] == 2048
    assert results["context"]["characters"]["ru"] == int(2048 * rates["characters_per_token"])
    for part in ("prompt", "generation"):
        assert results["speed"]["languages"]["en"][part]["characters_per_second"] > 0
    assert results["tasks"]["ru_mmlu"]["items"] == 2
    assert results["tasks"]["ru_mmlu"]["chance"] == 0.25
    assert {name: task["shots"] for name, task in results["tasks"].items()} == {"minimal_pairs": 0, "ru_mmlu": 1}
    answers = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["q3", "q1"]
    assert set(answers[0]) == {"id", "category", "prompt", "language", "completion", "tokens", "finished", "flags"}
    assert {answer["language"] for answer in answers} == {"ru"}
    for answer in answers:
        assert ("unfinished" in answer["flags"]) or answer["finished"]
    for flag, rate in results["flaws"].items():
        assert rate["items"] == 2
        assert rate["value"] == sum(flag in answer["flags"] for answer in answers) / 2
        assert rate["low"] <= rate["value"] <= rate["high"]
    each = [json.loads(line) for line in (out / "documents.jsonl").read_text().splitlines()]
    assert {line["id"] for line in each if line["language"] == "ru"} == {"ru-1", "ru-2", "ru-3"}
    ours = [line for line in each if line["language"] == "ru"]
    assert sum(line["bytes"] for line in ours) == score["bytes"]
    assert sum(line["tokens"] for line in ours) == score["tokens"]
    assert sum(line["bits"] for line in ours) / score["bytes"] == pytest.approx(score["value"])
    assert {line["id"]: line["bytes"] for line in ours}["ru-2"] == 2 * len(TEXTS["ru"].encode())
    assert done.stdout.splitlines()[-1].startswith("flaws         empty ")
    assert f"\nru            {spent['value']:.4f} [" in done.stdout
    assert f"  {spent['perplexity_per_token']:.2f}  " in done.stdout
    assert f"\nKL to base    {results['kl_to_base']['value']:.4f} [" in done.stdout
    assert "\nreading       en " in done.stdout
    items = [json.loads(line) for line in (out / "samples/ru_mmlu.jsonl").read_text().splitlines()]
    assert len(items) == 2
    for item in items:
        assert item["correct"] == (item["prediction"] == item["target"])
        assert len(item["log_probabilities"]) == 4
    assert "ru_mmlu" in done.stdout
    assert "characters/s" in done.stdout


def test_the_table_shows_accuracy_by_bytes_where_it_is_another_one():
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "chance": 0.5, "items": 4, "shots": 0}
    same = score | {"acc_bytes": {"value": 0.5, "low": 0.25, "high": 0.75}}
    other = score | {"acc_bytes": {"value": 0.75, "low": 0.5, "high": 0.9}}
    results = {"checkpoint": "cpt", "parameters": 1, "vocabulary": 2, "bits_per_byte": {}, "tasks": {"a": same}}
    assert summary.table(results).splitlines()[2:] == [
        "task          accuracy                          chance        items     examples",
        "a             50.0% [25.0%, 75.0%]               50.0%            4            0",
    ]
    head, a, b = summary.table(results | {"tasks": {"a": same, "b": other}}).splitlines()[2:]
    assert head.endswith("examples   by log p / byte")
    assert a.endswith("4            0")
    assert b.endswith("4            0   75.0% [50.0%, 90.0%]")


def test_script_refuses_a_missing_task_file(inputs, tmp_path):
    done = run(inputs, tmp_path / "out", "--tasks=configs/eval/nothing.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: configs/eval/nothing.yaml: no such task file")
    assert not (tmp_path / "out").exists()


def test_a_window_wider_than_the_model_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match=r"--window=4096: .* was made for 2,048 tokens at most"):
        script.main(model=inputs / "model", held_out=inputs / "held_out", out=tmp_path / "out", window=4096)
    assert not (tmp_path / "out").exists()


def test_prompts_and_documents_are_checked(inputs, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "1", "category": "c", "prompt": "п"}\n{"id": "2", "prompt": "п"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: no text field 'category'"):
        generation.read_prompts(tmp_path / "p.jsonl")
    with documents.writing(tmp_path / "empty"):
        pass
    with pytest.raises(UserError, match="no documents with text"):
        unseen.texts(tmp_path / "empty", 2, 100, 0)


def test_documents_are_drawn_whatever_their_order(tmp_path):
    for name, order in (("a", range(9)), ("b", reversed(range(9)))):
        with documents.writing(tmp_path / name) as writer:
            for number in order:
                writer.write({"id": str(number), "text": f"текст {number}", "source": "s", "language": "ru"})
    drawn = unseen.texts(tmp_path / "a", 4, 100, 0)
    assert len(set(drawn["ru"].ids)) == 4
    assert unseen.texts(tmp_path / "b", 4, 100, 0) == drawn
    assert unseen.texts(tmp_path / "a", 4, 100, 1) != drawn
    assert drawn["ru"].found == [f"текст {name}" for name in drawn["ru"].ids]
    cut = unseen.texts(tmp_path / "a", 99, 5, 0)["ru"]
    assert sorted(cut.ids) == [str(number) for number in range(9)]
    assert cut.found == ["текст"] * 9


def test_dialogues_are_drawn_by_language_and_called_by_their_place_without_an_id(tmp_path):
    talks = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "Да"}] for n in range(6)]
    lines = [{"messages": talk, "language": "ru" if n % 2 else "English"} for n, talk in enumerate(talks)]
    del lines[5]["language"]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    drawn = unseen.talks(tmp_path / "talks.jsonl", 2, 0)
    assert {language: len(found.ids) for language, found in drawn.items()} == {"en": 2, "ru": 2, "unnamed": 1}
    assert all(talks[int(name)] == talk for found in drawn.values() for name, talk in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("раз два три", "раз два три"),
        ("раз два три ", "раз два три"),
        ("раз два три!", "раз два"),
        ("раз  два три", "раз  два"),
        ("разДваТриЧетыре", "разДваТриЧе"),
    ],
)
def test_shorten_ends_between_words(text, kept):
    assert unseen.shorten(text, 11) == kept


@pytest.mark.parametrize("shots", [0, 2])
def test_scores_are_those_of_the_harness(model, tokenizer, shots):
    tasks = harness.load(BUILTIN, num_fewshot=shots, seed=0)
    assert list(tasks) == ["minimal_pairs", "ru_mmlu", "ru_mmlu_pro", "ruxnli"]
    ours, samples = harness.run(model, tokenizer, tasks, limit=4, batch_tokens=3000)
    tasks = harness.load(BUILTIN, num_fewshot=shots, seed=0)
    plain = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=3)
    drawn = {name: harness.draw(len(task.eval_docs), 4, 0) for name, task in tasks.items()}
    theirs = evaluate(plain, {"tasks": tasks}, samples=drawn, bootstrap_iters=0, log_samples=True)
    for name in tasks:
        assert ours[name]["value"] == theirs["results"][name]["acc,none"]
        assert ours[name]["acc_bytes"]["value"] == theirs["results"][name]["acc_bytes,none"]
        for mine, other in zip(samples[name], theirs["samples"][name], strict=True):
            assert mine["id"] == other["doc"]["id"]
            expected = [response[0] for response in other["filtered_resps"]]
            assert mine["log_probabilities"] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_prompts_of_the_builtin_tasks(model, tokenizer):
    tasks = harness.load(BUILTIN, num_fewshot=1, seed=0)
    asked = {}
    for name, task in tasks.items():
        task.build_all_requests(limit=1)
        asked[name] = [instance.args for instance in task.instances]
    assert asked["minimal_pairs"] == [("", "На столе лежит старые письма."), ("", "На столе лежат старые письма.")]
    assert asked["ru_mmlu"][0] == (
        "Какая планета ближе всех к Солнцу?\nA. Марс\nB. Венера\nC. Земля\nD. Меркурий\nОтвет: D\n\n"
        "Какая из перечисленных планет вращается вокруг оси в сторону, обратную вращению Земли?\n"
        "A. Венера\nB. Марс\nC. Сатурн\nD. Меркурий\nОтвет:",
        " A",
    )
    context, last = asked["ru_mmlu_pro"][9]
    assert context.endswith("\nI. 35/132\nJ. 7/12\nОтвет:")
    assert last == " J"
    premise = "Город основали в устье реки купцы, а крепость вокруг него построили только спустя сто лет."
    assert [continuation for _, continuation in asked["ruxnli"]] == [
        f" {premise}, правильно? {word}, Первые сто лет город обходился без крепости." for word in ("Да", "Так", "Нет")
    ]
    assert "правильно? Да, По словам проводницы" in asked["ruxnli"][0][0]


def test_right_answers_are_where_the_items_say():
    tasks = harness.load(BUILTIN, num_fewshot=0, seed=0)
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    assert all(labels[item["label"]] == tasks["ruxnli"].doc_to_target(item) for item in tasks["ruxnli"].eval_docs)
    item = tasks["ru_mmlu_pro"].eval_docs[0]
    assert tasks["ru_mmlu_pro"].doc_to_target(item) == item["answer_index"] == 7


def test_equal_sentences_are_no_success(model, tokenizer, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"id": "1", "good": "Да.", "bad": "Да."}\n')
    text = BUILTIN[0].read_text().replace("data/builtin/demo/minimal_pairs.jsonl", str(data))
    (tmp_path / "pairs.yaml").write_text(text)
    tasks = harness.load([tmp_path / "pairs.yaml"], num_fewshot=0, seed=0)
    results, samples = harness.run(model, tokenizer, tasks, limit=None, batch_tokens=100)
    assert samples["minimal_pairs"][0]["correct"] is False
    assert results["minimal_pairs"]["value"] == 0


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="6 examples for --num_fewshot=7"):
        harness.load([ROOT / "configs/eval/builtin/ruxnli.yaml"], num_fewshot=7, seed=0)
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"list\.yaml: not a task file"):
        harness.load([tmp_path / "list.yaml"], num_fewshot=0, seed=0)
    (tmp_path / "nameless.yaml").write_text("dataset_path: json\n")
    with pytest.raises(UserError, match="no 'task: <name>'"):
        harness.load([tmp_path / "nameless.yaml"], num_fewshot=0, seed=0)
    (tmp_path / "lost.yaml").write_text("task: a\ndataset_kwargs: {data_files: {test: data/nothing.jsonl}}\n")
    with pytest.raises(UserError, match=r"its data file data/nothing\.jsonl does not exist"):
        harness.load([tmp_path / "lost.yaml"], num_fewshot=0, seed=0)
    with pytest.raises(UserError, match="a second task named 'ru_mmlu'"):
        harness.load([BUILTIN[1], BUILTIN[1]], num_fewshot=0, seed=0)


def test_a_record_holds_indices_of_choices():
    logged = {"doc_id": 7, "doc": {"question": "?"}, "target": "B", "acc": 1.0}
    logged["filtered_resps"] = [(-2.0, False), (-1.0, True), (-3.0, False)]
    predictions = {"prediction": 1, "prediction_bytes": 1}
    expected = {"id": 7, **predictions, "target": 1, "correct": True, "log_probabilities": [-2.0, -1.0, -3.0]}
    assert harness._record(logged, ["A", "B", "C"]) == expected
    assert harness._record({**logged, "doc": {"id": "x"}, "target": 0, "acc": 0.0}, ["A", "B", "C"])["id"] == "x"


def test_an_overlong_context_loses_its_beginning(model, tokenizer):
    scorer = harness.Scorer(model, tokenizer, 100)
    scorer._max_length = 5
    assert scorer._last([1, 2, 3, 4, 5, 6], [7, 8]) == [3, 4, 5, 6]  # the model reads 3 4 5 6 7
    assert scorer._last([1, 2], [7, 8]) == [1, 2]


def test_examples_come_from_the_same_subject():
    pool = [{"subject": "law", "n": 1}, {"subject": "art", "n": 2}, {"subject": "law", "n": 3}]
    task = SimpleNamespace(fewshot_context=lambda doc, shots: sampler.sample(shots))
    sampler = harness.SameSubject(pool)
    sampler.follow(task)
    assert task.fewshot_context({"subject": "law"}, 1) == [pool[0]]
    assert task.fewshot_context({"subject": "law"}, 5) == [pool[0], pool[2]]
    assert task.fewshot_context({"subject": "art"}, 5) == [pool[1]]


def test_a_dataset_of_parts_becomes_one_test_set(tmp_path):
    """A local repository of RuBLiMP's layout: a configuration for each phenomenon, one split."""
    head = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: [{{split: train, path: {name}.jsonl}}]\n" for name in ("one", "two")
    )
    (tmp_path / "README.md").write_text(head + "---\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"source_sentence": "Да.", "target_sentence": "Дa."}\n' * 2)
    found = harness.all_configurations(path=str(tmp_path), split="train", version=1.0)["test"]
    assert found["part"] == ["one", "one", "two", "two"]


@pytest.mark.parametrize("file", sorted((ROOT / "configs/eval/hub").glob("*.yaml")), ids=lambda file: file.stem)
def test_hub_tasks_read_rows_of_their_datasets(file, monkeypatch, model, tokenizer):
    """Each hub task on two rows with the columns of the hub's data set (as their cards and the harness give them)."""
    from lm_eval.tasks import _yaml_loader

    config = _yaml_loader.load_yaml(file)
    rows = json.loads((ROOT / "tests/hub_rows.json").read_text())[config["task"]]
    splits = {name: datasets.Dataset.from_list(items) for name, items in rows.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    monkeypatch.setattr(harness, "all_configurations", lambda **_: datasets.DatasetDict(splits))
    tasks = harness.load([file], num_fewshot=1, seed=0)
    results, samples = harness.run(model, tokenizer, tasks, limit=None, batch_tokens=1000)
    assert "None" not in tasks[config["task"]].instances[0].args[0]
    assert results[config["task"]]["items"] == 1
    assert samples[config["task"]][0]["target"] == 1


def test_prompts_are_padded_on_the_left():
    ids, mask = generation.pad_left([[1, 2, 3], [4]], 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_chat_template_is_applied_where_there_is_one(tokenizer):
    opened = tokenizer.decode(generation.encode_prompt(tokenizer, "Привет"))
    assert opened == "<|im_start|>user\nПривет<|im_end|>\n<|im_start|>assistant\n"
    plain = tiny_model.tokenizer(chat=None)
    assert plain.decode(generation.encode_prompt(plain, "Привет")) == "Привет"


def test_batched_answers_are_those_given_alone(model, tokenizer):
    prompts = ["Как сварить борщ?", "Да", "Какая планета ближе всех к Солнцу, а какая дальше?"]
    answers = generation.complete(model, tokenizer, prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = generation.encode_prompt(tokenizer, prompt)
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 6 and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
        assert answer.text == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert answer.tokens == len(ids) - start


def test_an_answer_ends_at_its_end_token(tokenizer):
    words = tokenizer("Да", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    assert generation._completion(tokenizer, [*words, end, end, end], {end}) == ("Да", len(words) + 1, True)
    assert generation._completion(tokenizer, words, {end}) == ("Да", len(words), False)
