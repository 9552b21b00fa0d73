"""filter: each rule on one tiny document, the damage, the measures, and the script with a random two-layer encoder."""

import importlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, PreTrainedTokenizerFast

from lib import corruption, languages, quality, rules, sieve
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "data" / "builtin" / "text"
LIMITS = yaml.safe_load((ROOT / "configs" / "demo" / "filter.yaml").read_text(encoding="utf-8"))["limits"]
RU, EN = languages.load("ru"), languages.load("en")
GOOD = (
    "Прилив наступает дважды в сутки: Луна притягивает воду, и море медленно поднимается по берегу. "
    "Когда Луна и Солнце стоят на одной линии, разница между приливом и отливом больше всего."
)
CRITERIA = ("informativeness", "usefulness", "grammar", "style", "safety")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def good_documents(count):
    return [document | {"language": "ru", "source": "made"} for document in lines(TEXT / "ru.jsonl")[:count]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    raw.train_from_iterator(
        [document["text"] for document in lines(TEXT / "ru.jsonl")],
        trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=2, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (GOOD, RU, None),
        ("Подробности позже.", RU, "too_short"),
        ("Run the setup program and restart the service to apply changes. " * 1 + "Спасибо за внимание, команда! " * 2, RU, "low_cyrillic"),
        ("Чтобы обновить программу, скачайте её с сайта и запустите установку от имени администратора." + " Thanks!", EN, "low_latin"),
        (GOOD.encode("utf-8").decode("cp1251", "replace"), RU, "mojibake"),
        (GOOD.encode("cp1251").decode("latin-1"), RU, "mojibake"),
        (GOOD.encode("utf-8").decode("latin-1"), RU, "mojibake"),
        (GOOD.swapcase(), RU, "mojibake"),
        ("12.04 | 15 % | 1 200 000 | +3,5 | (0,2) || " * 3 + "рост и падение цен", RU, "symbols"),
        (f"Главная\n\nКонтакты\n\nВсе права защищены, копирование запрещено. © 2019 ООО «Ромашка»\n\n{GOOD[:60]}", RU, "boilerplate"),
        ("Купите слона прямо сейчас, пока он ещё есть.\nА зачем он мне в городе?\n" * 3, RU, "repeated_lines"),
        ("очень вкусный горячий чай с лимоном и " * 6, RU, "repetition"),
    ],
)  # fmt: skip
def test_one_document_for_each_reason(text, language, reason):
    assert rules.broken(text, language, LIMITS) == reason


def test_the_built_in_text_keeps_the_rules_and_the_spoilt_text_breaks_them():
    for name, language in (("ru", RU), ("en", EN)):
        assert {rules.broken(document["text"], language, LIMITS) for document in lines(TEXT / f"{name}.jsonl")} == {
            None
        }
    for document in lines(TEXT / "ru_spoilt.jsonl"):
        found = rules.broken(document["text"], RU, LIMITS)
        if document["defect"] in ("shuffled", "typos"):  # for the model
            assert found is None
        elif document["defect"] == "repetition":
            assert found in ("repetition", "repeated_lines")
        else:
            assert found == document["defect"]


def test_measures_by_hand():
    assert rules.symbol_share("ab 1!") == 0.5
    assert rules.repetition_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert rules.repetition_share("a b c") == 0
    assert rules.repeated_line_share("ab\ncd\nab\n") == pytest.approx(1 / 3)
    assert rules.boilerplate_share("Главная\nтекст", RU.boilerplate_pattern) == pytest.approx(7 / 12)
    assert rules.mojibake_share("С уважением, Рёрих. «С» — предлог; Эль-Ниньо — El Niño.") == 0


def test_a_rule_without_a_limit_is_not_applied_and_an_unknown_one_is_refused():
    assert rules.broken("мало", RU, {}) is None
    with pytest.raises(UserError, match="unknown rule 'too_shrt', did you mean 'too_short'"):
        rules.check({"too_shrt": 1})


@pytest.mark.parametrize("kind", sorted(corruption.KINDS))
def test_damage_changes_the_text_and_costs_as_stated(kind):
    text = lines(TEXT / "ru.jsonl")[0]["text"]
    spoilt = [corruption.KINDS[kind](text, 0.9, random.Random(3), RU, "Another text in English.") for _ in range(2)]
    assert spoilt[0] == spoilt[1] != text
    assert corruption.scores(kind, 1.0) == [5 - cost for cost in corruption.COSTS[kind]]
    assert corruption.scores(kind, 0.0) == corruption.scores() == [5.0] * 5
    assert min(corruption.scores(kind, 1.0)) >= 1
    for empty in ("", " ", "слово"):
        corruption.KINDS[kind](empty, 1.0, random.Random(0), RU, "")


def test_overall_score_is_the_mean_but_at_most_a_point_above_safety():
    scores = np.array([[5, 5, 5, 5, 5], [4, 4, 3, 4, 5], [5, 5, 5, 5, 1.5]])
    assert quality.overall(scores) == pytest.approx([5, 4, 2.5])


def test_division_keeps_a_documents_examples_together():
    examples = [quality.Example("т", [5.0] * 5, True, group) for group in range(20) for _ in range(2)]
    parts = quality.divide(examples, seed=0)
    assert [len(part) for part in parts] == [26, 6, 8]
    groups = [{e.group for e in part} for part in parts]
    assert set().union(*groups) == set(range(20))
    assert sum(map(len, groups)) == 20


def test_held_out_damage_uses_other_phrases():
    texts = [(document["text"], "ru", "made") for document in lines(TEXT / "ru.jsonl")] * 5
    training, _, held_out = quality.divide(quality.weak_labels(texts, {"ru": RU}, max_chars=400, seed=0), seed=0)
    parts = training, held_out
    found = [{s for s in RU.spam for e in part if e.kind == "spam" and s.lower() in e.text.lower()} for part in parts]
    assert all(found)
    assert not found[0] & found[1]


def test_sample_hears_small_sources_and_takes_only_what_keeps_the_rules():
    big = [{"text": GOOD, "language": "ru", "source": "big"}] * 50
    small = [{"text": GOOD, "language": "ru", "source": "small"}] * 3 + [
        {"text": "мало", "language": "ru", "source": "small"}
    ]
    chosen = sieve.sample([*big, *small], 8, LIMITS, None, seed=0)
    assert Counter(source for _, _, source in chosen) == {"big": 5, "small": 3}
    assert {text for text, _, _ in chosen} == {GOOD}


def run(script, documents, encoder, out, *flags):
    flags = [f"--documents={documents}", f"--encoder={encoder}", f"--out={out}", *flags]
    one_thread = {"OMP_NUM_THREADS": "1"}  # for so small a model a second one only waits
    return script("filter", f"--config={ROOT}/configs/test/filter.yaml", "--precision=fp32", *flags, env=one_thread)


def test_script_exactly(script, encoder, tmp_path):
    bad = [{"id": "bad", "text": "Мало.", "language": "ru", "source": "made"}]
    source = write(tmp_path / "in.jsonl", good_documents(10) + bad)
    out = tmp_path / "filter"
    done = run(script, source, encoder, out)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    model = {
        f"model/{name}"
        for name in (
            "config.json",
            "filter.json",
            "model.onnx",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    }
    assert files == {"manifest.json", "receipts.json", "documents/00000.parquet", "removed/00000.parquet"} | model
    kept = pq.read_table(out / "documents").to_pylist()
    assert [r["id"] for r in kept] == [f"ru-{n:03}" for n in range(1, 11)]
    assert sum(r["split"] == "held_out" for r in kept) == 2  # a fifth of ten
    assert all(1 <= r["score"] <= 5 for r in kept)
    assert pq.read_table(out / "removed").to_pylist() == [bad[0] | {"reason": "too_short", "score": None}]
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert (results["documents_in"], results["documents_kept"], results["documents_removed"]) == (
        11,
        10,
        {"too_short": 1},
    )
    assert results["by_source"] == {"made": {"kept": 10, "too_short": 1}}
    assert results["labels"] == "weak"
    assert set(results["evaluation"]["criteria"]) == set(CRITERIA)
    assert "kept 10 of 11 documents" in done.stdout

    # Any other tool can load the trained filter, and it gives the same score.
    loaded = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model")
    assert [loaded.config.id2label[index] for index in range(6)] == [*CRITERIA, "overall"]
    with torch.inference_mode():
        encoded = tokenizer(kept[0]["text"], truncation=True, max_length=64, return_tensors="pt")
        latent = loaded(encoded["input_ids"], encoded["attention_mask"]).logits[0, 5]
    score = 1 + (latent - torch.tensor(loaded.config.cuts)[5]).sigmoid().sum()
    assert kept[0]["score"] == pytest.approx(score.item(), abs=1e-5)

    # The same input gives the same output.
    assert run(script, source, encoder, tmp_path / "again").returncode == 0
    assert pq.read_table(tmp_path / "again" / "documents").to_pylist() == kept

    # The trained filter does so without training, in two processes, by torch and by onnxruntime in int8.
    config = f"--config={ROOT}/configs/test/filter.yaml"
    flags = [f"--documents={source}", f"--model={out / 'model'}", "--processes=2"]
    for precision, gap in (("fp32", 1e-6), ("int8", 0.02)):
        applied = tmp_path / precision
        done = script("filter", config, f"--out={applied}", f"--precision={precision}", *flags)
        assert done.returncode == 0, done.stderr
        found = pq.read_table(applied / "documents").to_pylist()
        assert [r["id"] for r in found] == [r["id"] for r in kept]
        assert [r["score"] for r in found] == pytest.approx([r["score"] for r in kept], abs=gap)
        assert not (applied / "model").exists()


def test_a_run_killed_after_training_goes_on_without_it(encoder, tmp_path, monkeypatch):
    module = importlib.import_module("filter")
    settings = yaml.safe_load((ROOT / "configs" / "test" / "filter.yaml").read_text(encoding="utf-8"))
    settings |= {"precision": "fp32", "documents": write(tmp_path / "in.jsonl", good_documents(10)), "encoder": encoder}
    out = tmp_path / "out"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sieve, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            module.main(out=out, **settings)
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr(quality, "train", killed)
        patched.setattr(sieve, "verdicts", killed)
        module.main(out=out, **settings)
    assert len(pq.read_table(out / "documents")) == 10
    assert not (out / "verdicts").exists()


def test_script_with_annotations_and_a_threshold(script, encoder, tmp_path):
    documents = good_documents(12)
    for document in documents[6:]:
        document["text"] = corruption.symbols(document["text"], 0.5, random.Random(0))
    scored = [d | dict.fromkeys(CRITERIA, 5 if n < 6 else 1) for n, d in enumerate(documents)]
    annotations = write(tmp_path / "annotations.jsonl", scored * 3)
    source = write(tmp_path / "in.jsonl", documents)
    out = tmp_path / "filter"
    flags = [f"--annotations={annotations}", "--limits={}", "--epochs=60", "--learning_rate=1e-3", "--target=score=3"]
    done = run(script, source, encoder, out, *flags)
    assert done.returncode == 0, done.stderr
    assert {r["id"] for r in pq.read_table(out / "documents").to_pylist()} == {d["id"] for d in documents[:6]}
    removed = pq.read_table(out / "removed").to_pylist()
    assert {(r["reason"], r["score"] < 3) for r in removed} == {("low_quality", True)}
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert results["labels"] == "annotations"
    assert results["evaluation"]["auc"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": [{"id": "1", "text": "Мало.", "language": "ru"}]}, "the rules leave no document (too_short 1)"),
        ({"documents": [{"id": "1", "text": GOOD, "language": "xx"}]}, "no settings for language 'xx'"),
        ({"documents": good_documents(3)}, "only 3 documents pass the rules"),
        ({"model_type": "none"}, "no config.json, so not a Hugging Face model folder"),
        ({"model_type": "llama"}, "a 'llama' model, expected a BERT encoder"),
        ({"settings": {"layers": 3}}, "--layers=3:"),
        ({"settings": {"target": "score=5"}}, "no document is left; --target=score=5 asks for 5.000 of 5"),
        ({"settings": {"target": "keep=0.6"}}, "--target=keep=0.6: expected one of score=NUMBER, keep_share=NUMBER"),
        ({"settings": {"target": "precision=95"}}, "--target=precision=95: expected a number from 0 to 1"),
        ({"settings": {"max_tokens": 513}}, "--max_tokens=513:"),
        ({"settings": {"model": Path("nowhere")}}, "either --encoder to train a filter, or --model"),
        ({"settings": {"model": Path("nowhere"), "encoder": None}}, "--model=nowhere: no readable filter.json"),
        ({"settings": {"limits": {"too_shrt": 5}}}, "unknown rule 'too_shrt', did you mean 'too_short'?"),
        ({"settings": {"epochs": 0}}, "--epochs=0: at least 1"),
        ({"annotations": {"grammar": 4, "style": 4}}, "missing informativeness, usefulness, safety"),
        ({"annotations": dict.fromkeys(CRITERIA, 7)}, "informativeness is 7, expected a number from 1 to 5"),
        ({"annotations": dict.fromkeys(CRITERIA, 3)}, "1 annotated texts; at least 5 are needed"),
        ({"lines": '{"text": 1'}, "in.jsonl:1: not valid JSON"),
    ],
)
def test_errors_name_what_is_wrong_and_leave_nothing(encoder, tmp_path, change, message):
    source = write(tmp_path / "in.jsonl", change.get("documents", good_documents(10)))
    if "lines" in change:
        source.write_text(change["lines"], encoding="utf-8")
    folder = encoder
    if "model_type" in change:
        folder = tmp_path / "encoder"
        folder.mkdir()
        if change["model_type"] != "none":
            (folder / "config.json").write_text(json.dumps({"model_type": change["model_type"]}), encoding="utf-8")
    settings = yaml.safe_load((ROOT / "configs" / "test" / "filter.yaml").read_text(encoding="utf-8"))
    settings |= change.get("settings", {})
    if "annotations" in change:
        settings["annotations"] = write(tmp_path / "a.jsonl", [{"id": "1", "text": GOOD} | change["annotations"]])
    with pytest.raises(UserError) as raised:
        settings = {"encoder": folder} | settings
        importlib.import_module("filter").main(documents=source, out=tmp_path / "out", **settings)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_unknown_flag(script, encoder, tmp_path):
    source = write(tmp_path / "in.jsonl", good_documents(10))
    done = run(script, source, encoder, tmp_path / "out", "--targte=score=3")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == ("error: --targte: unknown setting 'targte', did you mean 'target'?")
    assert not (tmp_path / "out").exists()
