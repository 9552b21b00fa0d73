"""reward.py: pairs of all shapes, what an encoder is shown, the loss, and what a model that can't tell is said to be worth."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from lib import pairwise, preferences, rewards
from lib.errors import UserError
from lib.preferences import Pair

DEMO = ROOT / "data" / "builtin" / "demo" / "preferences.jsonl"
WORDS = [
    "река",
    "гора",
    "поле",
    "лес",
    "море",
    "город",
    "дом",
    "окно",
    "стол",
    "книга",
    "песня",
    "ветер",
    "снег",
    "дождь",
    "трава",
    "камень",
]


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def pair(**columns):
    return preferences.normalise(columns, {})


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def encoder(request, tmp_path_factory):
    """A random encoder whose tokenizer knows words and pairs of texts."""
    folder = tmp_path_factory.mktemp("encoder")
    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    raw.train_from_iterator(
        [" ".join(WORDS), "query passage : […] плохо хорошо"], trainers.WordLevelTrainer(special_tokens=special)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shape |= {"vocab_size": len(tokenizer), "pad_token_id": 1, "max_position_embeddings": 80, "initializer_range": 0.3}
    made = BertModel(BertConfig(**shape)) if request.param == "bert" else XLMRobertaModel(XLMRobertaConfig(**shape))
    made.save_pretrained(folder)
    return folder


def telling_pairs(count, seed=0):
    """Pairs of equal length, of which the better says so; two to a prompt."""
    rng = random.Random(seed)

    def text(size):
        return " ".join(rng.choices(WORDS, k=size))

    found = []
    for _ in range(count // 2):
        prompt = text(4)
        for _ in range(2):
            size = rng.randint(3, 12)
            found.append(Pair(prompt, f"{text(size)} хорошо {text(3)}", f"{text(size)} плохо {text(3)}", "ru"))
    return found


def test_pairs_of_all_shapes():
    said = [{"role": "user", "content": "Раз?"}, {"role": "assistant", "content": "Два."}]
    expected = {"prompt": "Раз?", "chosen": "Два.", "rejected": "Три."}
    worse = [said[0], {"role": "assistant", "content": "Три."}]
    assert pair(prompt="Раз?", chosen="Два. ", rejected="Три.") == expected
    assert pair(prompt=said[:1], chosen=said[1:], rejected=worse[1:]) == expected
    assert pair(chosen=said, rejected=worse) == expected
    assert pair(prompt="\n\nHuman: Раз? \n\nAssistant: ", chosen="Два.", rejected="Три.") == expected
    several = pair(chosen=[*said, said[0], said[1]], rejected=[*said, said[0], worse[1]])
    assert several["prompt"] == "Раз?\n\nДва.\n\nРаз?"
    ranked = [{"answer": "Три.", "rank": 3.0}, {"answer": "Два.", "rank": 1.0}, {"answer": "-", "rank": 2.0}]
    assert preferences.normalise({"q": "Раз?", "a": ranked}, {"prompt": "q", "answers": "a"}) == expected


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "п", "chosen": "а"}, "no answer in 'rejected'"),
        ({"prompt": "п", "chosen": " ", "rejected": "а"}, "no answer in 'chosen'"),
        ({"prompt": "п", "chosen": [], "rejected": "а"}, "no answer in 'chosen'"),
        ({"prompt": "", "chosen": "а", "rejected": "б"}, "no text in 'prompt'"),
        ({"prompt": 3, "chosen": "а", "rejected": "б"}, "no text in 'prompt'"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, record, problem):
    good = {"prompt": "п", "chosen": "а", "rejected": "б", "lang": "ru"}
    file = write(tmp_path / "pairs.jsonl", [good, {**good, "rejected": "а"}, record | {"lang": "ru"}])
    with pytest.raises(UserError, match=f"pairs.jsonl:3: {problem}"):
        list(preferences.read(file, tell=str))
    skipped = Counter()
    assert list(preferences.read(file, tell=str, on_error="skip", skipped=skipped)) == [Pair("п", "а", "б", "ru")]
    assert skipped == {"same_answers": 1, "broken_record": 1}


def test_the_demos_preferences_are_read_and_divided_by_prompts():
    pairs = list(preferences.read(DEMO, tell=lambda _: "und"))
    assert Counter(p.language for p in pairs).keys() == {"ru", "en"}
    twice = [*pairs, *(p._replace(prompt=p.prompt.upper(), chosen=p.chosen + "!") for p in pairs)]
    kept, taken = preferences.divide(twice, 0.25, seed=0)
    assert len(kept) + len(taken) == len(twice)
    assert 0.2 < len(taken) / len(twice) < 0.3
    assert not {p.prompt.lower() for p in kept} & {p.prompt.lower() for p in taken}
    assert preferences.without_prompts_of(twice, taken) == kept


def test_the_encoder_sees_prompt_and_answer_and_both_ends_of_a_long_one(encoder):
    _, tokenizer = rewards.load(encoder)
    long = " ".join(WORDS * 10)
    short, cut, both = rewards._encode(tokenizer, [("река", "гора лес"), ("река", long), (long, long)], 40)
    assert tokenizer.decode(short) == "<s> query : река </s> </s> passage : гора лес </s>"
    shown = tokenizer.decode(cut).split()
    assert 30 <= len(cut) <= 40
    assert shown[shown.index("passage") + 2 :][:3] == WORDS[:3]
    assert shown[-4:-1] == WORDS[-3:]
    assert len(both) <= 40
    assert tokenizer.decode(both).split("passage")[0].count("река") >= 1
    assert len(tokenizer.decode(both).split("passage")[1].split()) > 15


def test_a_model_learns_what_tells_and_only_that(encoder):
    model, tokenizer = rewards.load(encoder)
    words = model.base_model.embeddings.word_embeddings.weight.detach().clone()
    given = {"epochs": 20, "learning_rate": 2e-3, "max_tokens": 60, "length_bonus": 0.0, "seed": 0}
    losses = rewards.train(model, tokenizer, telling_pairs(200), **given)
    assert losses[0] == pytest.approx(math.log(2), abs=0.2)
    assert losses[-1] < 0.2
    judged = telling_pairs(40, seed=1)
    chosen, rejected = (
        rewards.score(model, tokenizer, [(p.prompt, getattr(p, side)) for p in judged], 60)
        for side in ("chosen", "rejected")
    )
    assert (chosen > rejected).mean() > 0.9
    assert torch.equal(model.base_model.embeddings.word_embeddings.weight, words)


def test_a_score_does_not_depend_on_what_else_is_asked(encoder):
    model, tokenizer = rewards.load(encoder)
    model.eval()
    asked = [("река", " ".join(WORDS[:n])) for n in range(1, 16)]
    together = rewards.score(model, tokenizer, asked, 60)
    alone = [rewards.score(model, tokenizer, [one], 60)[0] for one in asked]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_saved_model_is_one_for_transformers_and_cooled_in_itself(encoder, tmp_path):
    model, tokenizer = rewards.load(encoder, layers=1)
    model.eval()
    asked = [("река", "гора"), ("лес", "море дом")]
    before = rewards.score(model, tokenizer, asked, 60)
    rewards.cool(model, 4.0)
    rewards.save(model, tokenizer, tmp_path, {"max_tokens": 60})
    again, _ = rewards.load(tmp_path)
    assert rewards.score(again.eval(), tokenizer, asked, 60) == pytest.approx(before / 4, abs=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 1
    assert rewards.facts(tmp_path) == {"max_tokens": 60}
    with pytest.raises(UserError, match="not a reward model"):
        rewards.facts(encoder)


def test_what_length_explains_is_not_learnt_again():
    """Of pairs whose longer answer always wins by its length alone, nothing is left for the rewards."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 1000, (4000, 2))
    gaps = np.log(sizes[:, 0] / sizes[:, 1])
    first = rng.random(len(sizes)) < 1 / (1 + np.exp(-1.5 * gaps))
    texts = [("а" * one, "а" * two) for one, two in sizes.tolist()]
    pairs = [Pair("п", *(found if won else found[::-1]), "ru") for found, won in zip(texts, first, strict=True)]
    assert preferences.length_bonus(pairs) == pytest.approx(1.5, abs=0.15)


def test_the_length_bonus_is_added_to_the_difference_while_training(encoder):
    """With the bonus the longer answer's victory is expected, so its loss is small from the start."""
    pairs = [Pair("река", " ".join(WORDS), "гора", "ru")] * 8
    losses = []
    for bonus in (0.0, 3.0):
        model, tokenizer = rewards.load(encoder)
        given = {"epochs": 1, "learning_rate": 1e-9, "max_tokens": 60, "seed": 0}
        losses += rewards.train(model, tokenizer, pairs, length_bonus=bonus, **given)
    gap = -math.log(math.expm1(losses[0]))  # of the rewards: the loss is log(1 + exp(-gap))
    expected = gap + 3 * math.log(len(" ".join(WORDS)) / len("гора"))
    assert losses[1] == pytest.approx(math.log1p(math.exp(-expected)), abs=2e-4)


def test_figures_by_hand():
    pairs = [
        Pair("а", "длинный", "да", "ru"),
        Pair("б", "да", "длинный", "ru"),
        Pair("в", "yes", "longer", "en"),
        Pair("в", "same", "size", "en"),
    ]
    found = pairwise.evaluate(pairs, np.array([1.0, 0, 2, 0]), np.array([0.0, 1, 0, 0]), seed=0)
    assert list(found) == ["all", "en", "ru"]
    assert [found[name]["accuracy"]["value"] for name in found] == [0.625, 0.75, 0.5]
    assert [found[name]["longer_wins"]["value"] for name in found] == [0.375, 0.25, 0.5]
    assert found["all"]["gain"]["value"] == 0.25
    assert found["ru"]["accuracy_where_the_longer_is_better"] == 1
    assert found["ru"]["accuracy_where_the_shorter_is_better"] == 0
    assert found["en"]["accuracy"]["low"] == found["en"]["accuracy"]["high"] == 0.75  # one prompt is one draw
    assert found["all"]["accuracy"]["low"] < 0.625 < found["all"]["accuracy"]["high"]


def test_calibration_and_temperature():
    """A model that is as often right as it says has no error and temperature 1; one that boasts twice, 2."""
    rng = np.random.default_rng(0)
    gaps = np.abs(rng.normal(0, 2, 20_000))
    gaps *= np.where(rng.random(len(gaps)) < 1 / (1 + np.exp(-gaps)), 1, -1)
    assert pairwise.temperature(gaps) == pytest.approx(1, abs=0.05)
    assert pairwise.temperature(2 * gaps) == pytest.approx(2, abs=0.1)
    assert pairwise._calibration(gaps)["error"] < 0.01
    assert pairwise._calibration(3 * gaps)["error"] > 0.08


def test_the_script_and_its_refusals(script, encoder, tmp_path):
    out = tmp_path / "reward"
    given = [f"--preferences={DEMO}", f"--encoder={encoder}", "--epochs=1", "--max_tokens=64"]
    done = script("reward", *given, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "held-out pairs right, the longer answer" in done.stdout
    results = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["results"]
    assert results["pairs"]["training"] > results["pairs"]["held_out"] > results["pairs"]["calibration"] > 0
    lines = [json.loads(line) for line in (out / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    right = np.mean([line["reward_chosen"] > line["reward_rejected"] for line in lines])
    assert results["evaluation"]["all"]["accuracy"]["value"] == pytest.approx(right, abs=0.02)
    judged = write(tmp_path / "judged.jsonl", [{k: line[k] for k in Pair._fields} for line in lines])
    again = script("reward", *given, f"--held_out={judged}", f"--out={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    pairs = json.loads((tmp_path / "again" / "manifest.json").read_text(encoding="utf-8"))["results"]["pairs"]
    assert pairs["held_out"] == pairs["prompt_held_out"] == len(lines)
    for flags, said in (
        ([*given, "--held_out_share=0"], "--held_out_share=0"),
        ([*given, "--layers=9"], "has 2 layers"),
        ([*given[1:], f"--preferences={judged}", f"--held_out={judged}"], "0 pairs to train on"),
        ([given[0], f"--encoder={tmp_path}"], "not a model folder"),
    ):
        refused = script("reward", *flags, f"--out={tmp_path / 'no'}")
        assert refused.returncode == 2
        assert said in refused.stderr
        assert not (tmp_path / "no").exists()
