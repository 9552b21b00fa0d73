"""Translation: masks, records, checks, and the script against a real server with its real faults."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import api_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, TEXT

from lib import api, cli, dialogues, documents, phrases, placeholders, records, stage, translation
from lib.errors import UserError

EN, RU = phrases.load("en"), phrases.load("ru")
RULES = translation.Rules(EN, RU)
DEMO = ROOT / "data" / "builtin" / "demo"
WORD = re.compile(r"⟦[^⟦⟧]*⟧|[A-Za-z]+")
# Real Russian words by their length, so that what is made of them looks like Russian and is about as long as the English.
VOCABULARY: dict[int, list[str]] = {}
for _word in sorted(
    {w for d in documents.read(TEXT / "ru.jsonl", language="ru") for w in re.findall(r"\b[а-яё]+\b", d["text"])}
):
    VOCABULARY.setdefault(len(_word), []).append(_word)


def in_russian(text):
    """What the test's translator makes of a text: each word another one, always the same; markers stay."""

    def word(match):
        if match[0].startswith("⟦"):
            return match[0]
        near = VOCABULARY[min(max(len(match[0]), 3), 12)]
        return near[zlib.crc32(match[0].lower().encode()) % len(near)]

    return WORD.sub(word, text)


def asked(body):
    """The texts that a request wants translated; None if it wants an answer."""
    if "response_format" not in body:
        return None
    given = json.loads(api_server.asked_text(body))
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["additionalProperties"] is False
    assert schema["schema"]["required"] == list(schema["schema"]["properties"]) == list(given)
    return given


ANSWER = "Вот ответ на вопрос, и он написан по-русски: всё очень просто, если подумать как следует."


def answer(body):
    """Translations, or an answer that names what it answers."""
    given = asked(body)
    if given is None:
        return f"{ANSWER} [{body['messages'][-1]['content']}]"
    return json.dumps({name: in_russian(text) for name, text in given.items()}, ensure_ascii=False)


def chat(*turns, **more):
    """A conversation: the last turn is the assistant's; an odd number of turns begins with a system message."""
    roles = [*(["system"] if len(turns) % 2 else []), *["user", "assistant"] * (len(turns) // 2)]
    return {
        "messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)],
        "language": "en",
        **more,
    }


def made(number):
    return chat(
        f"Please tell me something about topic number {number}.",
        f"There is a lot to say on that: {number}.",
        id=f"c{number}",
    )


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(record):
    return [message["content"] for message in record["messages"]]


def manifest(out):
    return stage.read_manifest(out)["results"]


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def translate(script, tmp_path):
    """Run translate.py on a file, a folder or records against a server; the key is nowhere to be found afterwards."""

    def run(server, items, *flags, out="translated", env=None):
        source = items if isinstance(items, Path) else tmp_path / "in.jsonl"
        if not source.exists():
            write(source, items)
        environment = dict.fromkeys(api.VARIABLES, "") | (server.environment if server else {}) | (env or {})
        config = f"--config={ROOT}/configs/test/translate.yaml"
        done = script("translate", config, f"--items={source}", f"--out={tmp_path / out}", *flags, env=environment)
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            assert api_server.KEY.encode() not in path.read_bytes(), path
        assert api_server.KEY not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_no_log_has_the_key_however_talkative(translate):
    """The client's own log at debug level, through failures and a success; `translate` looks for the key."""
    with api_server.serving(answer, fault=lambda text, nth: {1: "broken", 2: "no_json"}.get(nth)) as server:
        done = translate(server, [made(n) for n in range(3)], env={"OPENAI_LOG": "debug"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("DEBUG") > 9


# Masks.


@pytest.mark.parametrize(
    ("text", "kinds", "held"),
    [
        ("Run this:\n```python\nprint(1)\n```\nand see", "code", ["```python\nprint(1)\n```"]),
        ("~~~\n$x$ 5\n~~~\nand see", "code", ["~~~\n$x$ 5\n~~~"]),
        ("See\n```\nnever closed 12", "code", ["```\nnever closed 12"]),
        ("the `len(x) > 2` call and ``a`b``", "code code", ["`len(x) > 2`", "``a`b``"]),
        ("see <pre>a 1</pre> there", "code", ["<pre>a 1</pre>"]),
        ("let $x^2 + 1$ be", "formula", ["$x^2 + 1$"]),
        ("so $$\na = 1\n$$ holds", "formula", ["$$\na = 1\n$$"]),
        (r"so \(a\) and \[b\] hold", "formula formula", [r"\(a\)", r"\[b\]"]),
        (r"\begin{align*}a &= 1\\b\end{align*} is", "formula", [r"\begin{align*}a &= 1\\b\end{align*}"]),
        (r"a \frac{a}{b} and \alpha too", "formula formula", [r"\frac{a}{b}", r"\alpha"]),
        ("see https://a.org/b?c=1, please", "address", ["https://a.org/b?c=1"]),
        ("see (www.a.org/b).", "address", ["www.a.org/b"]),
        ("write to a.b@c.org.", "address", ["a.b@c.org"]),
        ("make it <b>bold</b>, {name}", "markup markup markup", ["<b>", "</b>", "{name}"]),
        ("use --dry_run=true or -v here", "option option", ["--dry_run=true", "-v"]),
        ("Either (A) or (C) is", "option option", ["A", "C"]),
        ("A. a cat\nB) a dog", "option option", ["A", "B"]),
        ("Why is option B wrong? The answer is C.", "option option", ["B", "C"]),
        ("about 1,000.5 of -3 in 1990s", "number number number", ["1,000.5", "-3", "1990"]),
        ("on 12/05/2020 at 10:30, 50% of 3.1e-8", "number number number number", ["12/05/2020", "10:30", "50", "3.1e-8"]),
        ("that 2 + 2 = 4 and [5, 3, 1]", "number number", ["2 + 2 = 4", "[5, 3, 1]"]),
        ("it has ⟦m1⟧ itself", "bracket bracket", ["⟦", "⟧"]),
    ],
)  # fmt: skip
def test_each_kind_is_masked_and_put_back(text, kinds, held):
    masked = EN.mask(text)
    assert list(masked.held.values()) == held
    assert masked.kinds == Counter(kinds.split())
    assert len(placeholders.PLACEHOLDER.findall(masked.text)) == len(held)
    assert placeholders.restore(masked.text, masked.held) == text
    assert not any(thing in placeholders.prose(masked.text).split() for thing in held)


@pytest.mark.parametrize(
    "text",
    [
        "So do I. The cat sat (with Anna) on a well-known mat - or not -- who knows.",
        "H2O, COVID-19 and mp3 are names.",
        "Answer: A cat is an animal. It isn't a < b or b > a.",
        "It's `quoted' and it's fine; C:\\new is a path.",
    ],
)
def test_other_text_stays(text):
    masked = EN.mask(text)
    assert (masked.text, masked.held) == (text, {})


def test_prices_are_numbers_and_no_formula():
    assert EN.mask("from $5 to $10 or US$").held == {1: "5", 2: "10"}


def test_what_stands_in_a_placeholder():
    text = 'Take 42, `a\\b`, https://a.org and <a href="x">.'
    assert EN.mask(text, 7).text == "Take ⟦m7=42⟧, ⟦m8=code⟧, ⟦m9=address⟧ and ⟦m10=markup⟧."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("взять ⟦m1=5⟧", "⟦m2...⟧ is missing"),
        ("взять ⟦m1=5⟧ ⟦m2⟧ ⟦m1=5⟧", "⟦m1...⟧ occurs 2 times"),
        ("взять ⟦m1=5⟧ ⟦m2⟧ ⟦m3⟧", "⟦m3⟧ does not belong here"),
        ("взять ⟦m1=7⟧ ⟦m2=5⟧", "⟦m1=7⟧ stands for 5"),
        ("взять ⟦m1=5⟧ ⟦m2⟧ ⟦", "a bracket ⟦ that belongs to no marker"),
        ("взять 5 ⟦m2⟧", "⟦m1...⟧ is missing"),
        (f"взять ⟦m1⟧ ⟦m2⟧ ⟦m{'1' * 5000}⟧", "a bracket ⟦"),
    ],
)
def test_lost_masks(text, problem):
    held = EN.mask("take 5 of 7").held
    with pytest.raises(ValueError, match=re.escape(problem)):
        placeholders.restore(text, held)


@pytest.mark.parametrize("text", ["⟦m2=7⟧ и ⟦m1=5⟧", "⟦ m2 ⟧ и ⟦м1=5⟧", "⟦m2⟧ и ⟦m1⟧", "⟦m2=7 штук⟧ и ⟦m1 = 5⟧"])
def test_masks_that_were_moved_or_touched_are_put_back(text):
    assert placeholders.restore(text, EN.mask("take 5 of 7").held) == "7 и 5"


def test_real_text_comes_back_as_it_was():
    english = [d["text"] for d in documents.read(TEXT / "en.jsonl", language="en")]
    english += [text for r in lines(DEMO / "instruct.jsonl") if r["lang"] == "en" for text in contents(r)]
    kinds, left, there = Counter(), 0, 0
    for text in english:
        masked = EN.mask(text)
        assert placeholders.restore(masked.text, masked.held) == text
        left += placeholders.letters(masked.text)
        there += placeholders.letters(text)
        kinds += masked.kinds
    assert kinds["number"] > 100
    assert 0.95 * there < left < there  # most of it is to be translated


def test_nothing_that_opens_and_never_closes_takes_long():
    for text in ("$ " * 9999, "$$" * 9999, "\\(" * 9999, "\\[ " * 9999, "\\begin{a}" * 3000, "`a" * 9999, "<pre>" * 3000,
                 "```\n" * 9999, "{{" * 9999, "a@" * 9999, "[1," * 9999, "1 + " * 9999, "http://" * 3000, "<a " * 9999,
                 "option (" * 9999):  # fmt: skip
        masked = EN.mask(text)
        assert placeholders.restore(masked.text, masked.held) == text


def test_text_put_back_is_not_looked_at_again():
    masked = EN.mask("take `⟦m2⟧` and 5")
    assert placeholders.restore(masked.text, masked.held) == "take `⟦m2⟧` and 5"


# Phrases.


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("\u201cI\u2019m sorry, I can\u2019t translate this.\u201d", True),
        ("I'm unable to do that.", True),
        ("I'm sorry, but I was late.", False),
        ("Sorry, I can\u2019t do that.", True),
        ("As an AI language model, I cannot help.", True),
        ("Извините, но я не могу помочь с этим.", True),
        ("К сожалению, я не могу перевести этот текст.", True),
        ("Я не могу ответить на этот вопрос.", True),
        ("Как языковая модель, я не имею мнения.", True),
        ("I can help with that.", False),
        ("He said: I'm sorry, but I can't come.", False),
        ("Не могу не согласиться.", False),
        ("Как языковая модель учится?", False),
    ],
)
def test_refusals(text, refuses):
    assert (EN.refuses(text) or RU.refuses(text)) is refuses


@pytest.mark.parametrize(
    ("code", "text", "refuses"),
    [
        ("be", "Выбачайце, але я не магу дапамагчы з гэтым.", True),
        ("be", "Як моўная мадэль, я не маю ўласнай думкі.", True),
        ("be", "Не магу не згадзіцца.", False),
        ("kk", "Кешіріңіз, мен бұл сұраққа жауап бере алмаймын.", True),
        ("kk", "Тілдік модель ретінде мен оны айта алмаймын.", True),
        ("kk", "Мен бұл кітапты оқып шықтым.", False),
        ("sr", "Извините, али не могу да помогнем.", True),
        ("sr", "Nažalost, ne mogu da prevedem ovaj tekst.", True),
        ("sr", "Ne mogu da zaspim kad je vruće.", False),
    ],
)
def test_refusals_in_other_languages(code, text, refuses):
    assert phrases.load(code).refuses(text) is refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refusal": []}, "unknown setting 'refusal', did you mean 'refusals'?"),
        ({"refusals": ["("]}, "'(' is not a regular expression"),
        ({"refusals": "no"}, "refusals: expected a list of texts"),
        ({"refusals": ["It REFUSES"]}, "write it in lower case"),
        ({"option_words": None}, "option_words: expected a list of texts"),
        ({"answer_request": ""}, "answer_request: expected text"),
    ],
)
def test_mistakes_in_a_languages_file(tmp_path, change, message):
    content = yaml.safe_load((phrases.FOLDER / "ru.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "ru.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        phrases.load("ru", tmp_path)
    assert message in str(raised.value)


def test_a_language_without_a_file(tmp_path):
    with pytest.raises(UserError, match=r"no settings for translating 'ru': write .*ru\.yaml"):
        phrases.load("ru", tmp_path)


# Records.


def item_of(record, **options):
    return records.item_of(record, Path("in.jsonl"), EN, RU, **options)


MMLU = {"question": "What is 2 of 3?", "subject": "maths", "choices": ["One cat", "4", "Two dogs", "No"], "answer": 2}
PRO = {
    "question_id": 70, "question": "Which option is right?", "options": ["This one", "That one", "12 km", None, ""],
    "answer": "C", "answer_index": 2, "cot_content": "", "category": "physics", "src": "x",
}  # fmt: skip
ARC = {
    "id": "a",
    "question": "Which?",
    "choices": {"text": ["The sun", "The moon"], "label": ["A", "B"]},
    "answerKey": "B",
}
OKAPI = {
    "instruction": "Which?",
    "option_a": "Red",
    "option_b": "Blue",
    "option_c": "Green",
    "option_d": "9",
    "answer": "B",
}
XNLI = {"premise": "A man sleeps.", "hypothesis": "He is awake.", "label": "contradiction"}
PREFERENCE = {
    "id": "p",
    "lang": "en",
    "prompt": "Why?",
    "chosen": "Because of that.",
    "rejected": "No.",
    "flaw": "too_terse",
}


@pytest.mark.parametrize(
    ("record", "names", "kept"),
    [
        (MMLU, ["question", "choices_1", "choices_3", "choices_4"], ["subject", "answer"]),
        (PRO, ["question", "options_1", "options_2", "options_3"], ["question_id", "answer", "answer_index", "category", "src"]),
        (ARC, ["question", "choices_text_1", "choices_text_2"], ["id", "answerKey"]),
        (OKAPI, ["instruction", "option_a", "option_b", "option_c"], ["answer", "option_d"]),
        (XNLI, ["premise", "hypothesis"], ["label"]),
        (PREFERENCE, ["prompt", "chosen", "rejected"], ["id", "flaw"]),
    ],
)  # fmt: skip
def test_shapes_of_benchmark_items(record, names, kept):
    before = json.dumps(record)
    item = item_of(record)
    assert [part.name for part in item.asked] == names
    texts = {part.name: in_russian(part.text) for part in item.asked}
    done = records.translated(item, texts, "ru")
    assert json.dumps(record) == before
    assert list(done) == list(record)
    assert {key: done[key] for key in kept} == {key: record[key] for key in kept}
    assert sorted(re.findall("[а-яё][а-яё ]+", json.dumps(done, ensure_ascii=False))) == sorted(
        found for text in texts.values() for found in re.findall("[а-яё][а-яё ]+", text)
    )
    if "lang" in record:
        assert done["lang"] == "ru"


def test_named_columns():
    item = item_of(PRO | {"cot_content": "Let us think."}, columns=["question", "cot_content"])
    assert [part.name for part in item.asked] == ["question", "cot_content"]
    assert item_of(PRO, columns=["cot"]) == "no column 'cot'"
    assert item_of(PRO, columns=["src.x"]) == "no column 'src.x'"
    assert item_of(PRO, columns=["answer_index"]) == "'answer_index' holds int, not text"
    assert item_of(PRO, columns=["cot_content"]) == "no text in cot_content"


def test_no_two_texts_share_a_placeholder():
    item = item_of({"question": "Of 2 and 3?", "options": ["only 5", "7 too", "8"], "answer_index": 0})
    assert [sorted(part.masked.held) for part in item.parts] == [[1, 2], [3], [4], [5]]


def test_conversations():
    record = chat("Be kind.", "Hello, who are you?", "A bot.", " And what is 5? ", "A number.", id="x", source="s")
    item = item_of(record)
    assert [part.name for part in item.parts] == ["1_system", "2_user", "3_assistant", "4_user", "5_assistant"]
    done = records.translated(item, {"4_user": " Что? ", "5_assistant": "Число."}, "ru")
    assert contents(done) == ["Be kind.", "Hello, who are you?", "A bot.", " Что? ", "Число."]
    assert (done["language"], done["id"], done["source"]) == ("ru", "x", "s")
    assert "language" not in records.translated(item_of({"messages": record["messages"]}), {}, "ru")


def test_conversations_of_other_shape_keep_it():
    record = {"messages": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes.", "weight": 1}]}
    done = records.translated(item_of(record), {"1_user": "Привет?", "2_assistant": "Да."}, "ru")
    assert done == {"messages": [{"from": "human", "value": "Привет?"}, {"from": "gpt", "value": "Да.", "weight": 1}]}
    anew = item_of(record, answers="generate")
    assert [part.name for part in anew.parts] == ["1_user"]
    assert records.translated(anew, {"1_user": "Привет?"}, "ru", "Нет.")["messages"][1] == {
        "from": "gpt", "value": "Нет.", "weight": 1,
    }  # fmt: skip


def test_the_answer_may_be_missing_if_it_is_made_anew():
    record = {"messages": [{"role": "user", "content": "Hello?"}]}
    assert item_of(record) == "the last message is not the assistant's"
    item = item_of(record, answers="generate")
    assert contents(records.translated(item, {"1_user": "Привет?"}, "ru", "Да.")) == ["Привет?", "Да."]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": []}, "no list in 'messages'"),
        ({"messages": "x"}, "no list in 'messages'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message is not the assistant's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message of unknown role 'tool'"),
        ({"messages": ["x"]}, "a message that is no mapping"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}, "a message without text"),
        ({"text": "x"}, "no known columns"),
        ({"question": 5, "choices": ["x"]}, "'question' holds int, not text"),
        (MMLU | {"note": "\ud800"}, "half a character"),
    ],
)  # fmt: skip
def test_what_is_no_item(record, problem):
    assert item_of(record).startswith(problem)


def test_only_a_conversation_is_answered_anew():
    assert item_of(MMLU, answers="generate").startswith("no 'messages'")


def test_the_language_of_a_record():
    assert item_of(MMLU | {"lang": "ru"}).done
    assert item_of(MMLU | {"language": "Russian"}).done
    assert item_of(MMLU | {"language": "de"}).reason == "other_language"
    for named in ({"language": "en"}, {"lang": "English"}, {}):
        item = item_of(MMLU | named)
        assert (item.done, item.reason, bool(item.asked)) == (False, None, True)


# Answers.

ENGLISH = (
    "The quick brown fox jumps over the lazy dog while the old farmer looks on from his wooden porch and thinks about "
    "the harvest, the weather and the long winter that is coming."
)
UKRAINIAN = (
    "Швидка руда лисиця стрибає через ледачого пса, а старий селянин дивиться зі свого дерев'яного ґанку й думає про "
    "врожай, погоду та довгу зиму, що наближається до села."
)


def say(item, **texts):
    given = {part.name: in_russian(part.masked.text) for part in item.asked} | texts
    return json.dumps(given, ensure_ascii=False)


LONG = chat("Please retell this story in your own words.", ENGLISH)
NUMBERS = {"question": "How many are 2 and 3 of them?", "options": ["only 5", "7 too"], "answer_index": 0}
MICROBES = {
    "question": "Which of these microbes is a round one?",
    "options": ["Staphylococcus aureus", "Escherichia coli", "None of these two is a round one"],
    "answer_index": 0,
}
SAFE = chat("Please tell me how to do some harm.", "I'm sorry, but I can't help with that.")


@pytest.mark.parametrize(
    ("record", "texts", "reason", "problem"),
    [
        (LONG, {"2_assistant": "I'm sorry, but I can't translate this."}, "refusal", "2_assistant: it refuses"),
        (LONG, {"1_user": "К сожалению, я не могу помочь."}, "refusal", "1_user: it refuses"),
        (NUMBERS, {"question": "Сколько будет ⟦m1=2⟧ и три?"}, "mask_lost", "question: the marker ⟦m2...⟧ is missing"),
        (NUMBERS, {"options_1": "тоже ⟦m4=7⟧", "options_2": "лишь ⟦m3=5⟧"}, "mask_lost", "options_1: the marker ⟦m4=7⟧"),
        (LONG, {"2_assistant": ENGLISH}, "untranslated", "2_assistant: most of it is still"),
        (LONG, {"2_assistant": ENGLISH[:100] + in_russian(ENGLISH)[100:]}, "untranslated", "2_assistant: most of it"),
        (chat("Hi!", "Hello!"), {"1_user": "hi", "2_assistant": "Hello!"}, "untranslated", "it is the source as it was"),
        (LONG, {"2_assistant": " ".join(ENGLISH.split()[::-1])}, "wrong_language", "2_assistant: most of it is not in Cyrillic"),
        (LONG, {"2_assistant": UKRAINIAN}, "wrong_language", "2_assistant: it does not look like Russian"),
        (MMLU, {"question": "Quel est le ⟦m1=2⟧ de ⟦m2=3⟧, vraiment?", "choices_1": "Un chat"}, "wrong_language", "the item"),
        (LONG, {"2_assistant": in_russian(ENGLISH)[:40]}, "length_ratio", "times as long as the source is too short"),
        (LONG, {"2_assistant": in_russian(ENGLISH) * 3}, "length_ratio", "times as long as the source is too long"),
        (MMLU, {"choices_1": "Два", "choices_3": "Два"}, "same_options", "choices_1 and choices_3 differ in the source"),
        (MMLU, {"choices_4": "4"}, "same_options", "choices_2 and choices_4 differ"),
    ],
)  # fmt: skip
def test_each_reason(record, texts, reason, problem):
    item = item_of(record)
    assert translation.read_translation(say(item), item, RULES)
    with pytest.raises(api.Unusable) as raised:
        translation.read_translation(say(item, **texts), item, RULES)
    assert (raised.value.reason, raised.value.final) == (reason, reason == "refusal")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        # A source that refuses, options that stay names, a moved marker, one word.
        (SAFE, {"2_assistant": "Извините, но я не могу помочь с этим."}),
        (MICROBES, {"options_1": "Staphylococcus aureus", "options_2": "Escherichia coli"}),
        (NUMBERS, {"question": "Из ⟦m2=3⟧ и ⟦m1⟧ сколько?"}),
        (chat("Hello?", "NaCl"), {"2_assistant": "NaCl"}),
    ],
)
def test_what_passes(record, texts):
    item = item_of(record)
    found = translation.read_translation(say(item, **texts), item, RULES)
    assert all(found[name] == placeholders.restore_known(text, _held(item)) for name, text in texts.items())


def _held(item):
    return {number: thing for part in item.parts for number, thing in part.masked.held.items()}


def test_same_options_may_stay_the_same():
    item = item_of(MMLU | {"choices": ["One cat", "One cat", "a", "b"]})
    assert translation.read_translation(say(item), item, RULES)


def test_an_answer_is_found_in_talk():
    item = item_of(MMLU)
    good = say(item)
    for said in (f"<think>{say(item, question='Нет')}</think>\n{good}", f"Sure!\n```json\n{good}\n```\nAnything else?"):
        assert translation.read_translation(said, item, RULES)["question"].endswith("3?")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("Что два?", "it holds no JSON object"),
        ('{"question": "Что?"}', "choices_1: no text"),
        (
            json.dumps(dict.fromkeys(["question", "choices_1", "choices_3"], "а") | {"choices_4": " "}),
            "choices_4: no text",
        ),
        (
            json.dumps(dict.fromkeys(["question", "choices_1", "choices_3"], "а") | {"choices_4": 5}),
            "choices_4: no text",
        ),
        (json.dumps(dict.fromkeys(["question", "choices_1", "choices_3", "choices_4", "x"], "а")), "x: nobody asked"),
        (json.dumps(dict.fromkeys(["question", "choices_1", "choices_3", "choices_4"], "\ud800")), "question: half a"),
    ],
)
def test_what_is_no_translation(said, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        translation.read_translation(said, item_of(MMLU), RULES)
    assert not isinstance(raised.value, api.Unusable)


def test_a_refusal_without_json():
    with pytest.raises(api.Unusable) as raised:
        translation.read_translation("I'm sorry, but I can't translate this text.", item_of(MMLU), RULES)
    assert (raised.value.reason, raised.value.final) == ("refusal", True)


def test_white_space_around_a_text_stays():
    item = item_of(chat("Hello, my friend. \n", "\n  Good day."))
    found = translation.read_translation(say(item, **{"1_user": "Привет, друг."}), item, RULES)
    assert found["1_user"] == "Привет, друг. \n"
    assert found["2_assistant"].startswith("\n  ")


def test_generated_answers():
    assert translation.read_answer(f"<think>Hm.</think>\n {ANSWER} \n", RULES) == ANSWER
    # Code is no English.
    assert translation.read_answer("Вот:\n```\nfor word in sorted(words): print(word)\n```", RULES)
    for said, reason in (
        ("Извините, но я не могу ответить.", "refusal"),
        (ENGLISH, "wrong_language"),
        (UKRAINIAN, "wrong_language"),
    ):
        with pytest.raises(api.Unusable) as raised:
            translation.read_answer(said, RULES)
        assert raised.value.reason == reason
    with pytest.raises(ValueError, match="it is empty"):
        translation.read_answer("<think>Hm.</think>", RULES)


def test_what_is_asked():
    question = translation.question(item_of(NUMBERS), RULES)
    system, user = question.messages
    assert "from English into Russian (русский)" in system["content"]
    assert json.loads("\n".join(user["content"].split("\n")[1:-1])) == {
        "question": "How many are ⟦m1=2⟧ and ⟦m2=3⟧ of them?",
        "options_1": "only ⟦m3=5⟧",
        "options_2": "⟦m4=7⟧ too",
    }
    # Texts of 100 tokens may be answered in three times as many and a few more.
    payload = "\n".join(user["content"].split("\n")[1:-1])
    assert question.answer_tokens == 200 + round(3 * api.estimate_tokens(payload))


def test_the_wish_for_a_language_joins_the_system_message():
    item = item_of(chat("Be kind.", "Hello?", "Yes."), answers="generate")
    messages = translation.answer_question(item, {"1_system": "Будь добр.", "2_user": "Привет?"}, RULES).messages
    assert messages == [
        {"role": "system", "content": "Будь добр.\n\nОтвечай на русском языке."},
        {"role": "user", "content": "Привет?"},
    ]


# The script.

RICH = chat(
    "You are a helpful teacher of programming.",
    "Explain what `sum(x)` does with [1, 2, 3], see https://docs.example.org/sum?x=1 please.",
    "It adds the numbers up:\n```python\nprint(sum([1, 2, 3]))  # 6\n```\nThat is $\\sum_i x_i$, or 6 in all.",
    "And with --start=10, is it option (B) or (C)?",
    "It is 16, so the answer is C.",
    id="rich",
    source="made",
)


def test_instructions(translate, tmp_path):
    folder = tmp_path / "fetched"
    found = [RICH, *map(made, range(20))]
    write(folder / "instructions.jsonl", found)
    (folder / "manifest.json").write_text("{}")
    with api_server.serving(answer) as server:
        done = translate(server, folder, "--input_price=1", "--output_price=5")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "translated"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"manifest.json", "journal.jsonl", "instructions.jsonl", "removed/rejects.jsonl"}
    assert not (tmp_path / "translated.partial").exists()

    ours = lines(out / "instructions.jsonl")
    assert len(server.asked) == len(ours) == 21
    for record, source in zip(ours, found, strict=True):
        assert record["language"] == "ru"
        assert [m["role"] for m in record["messages"]] == [m["role"] for m in source["messages"]]
        assert {k: v for k, v in record.items() if k not in ("messages", "language")} == {
            k: v for k, v in source.items() if k not in ("messages", "language")
        }
        for ours_text, source_text in zip(contents(record), contents(source), strict=True):
            assert ours_text == placeholders.restore(in_russian(EN.mask(source_text).text), EN.mask(source_text).held)
            assert not re.search("[a-z]", placeholders.prose(EN.mask(ours_text).text))
    rich = "\n".join(contents(ours[0]))
    for kept in (
        "`sum(x)`",
        "[1, 2, 3]",
        "https://docs.example.org/sum?x=1",
        "$\\sum_i x_i$",
        "--start=10",
        "(B)",
        "(C)",
        " C.",
    ):
        assert kept in rich
    assert "```python\nprint(sum([1, 2, 3]))  # 6\n```" in rich
    # What comes after reads it.
    assert [record["id"] for record in dialogues.read(out)] == [record["id"] for record in found]

    results = manifest(out)
    assert results["records"] == results["accepted"] == results["translated"] == 21
    assert results["removed"] == {}
    assert results["masked"] == {"number": 43, "code": 2, "formula": 1, "address": 1, "option": 4}
    usage = results["usage"]
    assert usage["replies"] == 21
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] + 5 * usage["completion_tokens"]) / 1e6, abs=1e-6)
    assert results["estimate"]["requests"] == 21
    assert done.stdout.startswith("kept 21 of 21 records (100.0%) | 21 replies, ")


def test_benchmark_items_keep_their_keys_and_files(translate, tmp_path):
    folder = tmp_path / "mmlu"
    write(folder / "dev.jsonl", [MMLU, PRO | {"question": "Why is it so?"}, ARC, OKAPI])
    schema = pa.schema(
        [
            ("question", pa.string()),
            ("subject", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.int8()),
        ],
        metadata={"huggingface": "kept"},
    )
    rows = [MMLU | {"question": f"What is {n} of these things?", "answer": n % 4} for n in range(9)]
    (folder / "all").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "all" / "test-0.parquet")
    with api_server.serving(answer) as server:
        done = translate(server, folder)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "translated"
    table = pq.read_table(out / "items" / "all" / "test-0.parquet")
    assert table.schema.equals(pq.read_schema(folder / "all" / "test-0.parquet"), check_metadata=True)
    assert table.schema.metadata[b"huggingface"] == b"kept"
    for ours, source in zip(table.to_pylist(), rows, strict=True):
        assert (ours["answer"], ours["subject"]) == (source["answer"], source["subject"])
        assert len(ours["choices"]) == 4
        assert ours["choices"][1] == "4"
        assert ours["choices"][0] == in_russian("One cat")
        assert re.findall(r"\d+", ours["question"]) == re.findall(r"\d+", source["question"])
        assert not re.search("[A-Za-z]", ours["question"])
    mmlu, pro, arc, okapi = lines(out / "items" / "dev.jsonl")
    assert mmlu["answer"] == 2
    assert {k: pro[k] for k in pro if k not in ("question", "options")} == {
        k: PRO[k] for k in PRO if k not in ("question", "options")
    }
    assert pro["options"] == [in_russian("This one"), in_russian("That one"), f"12 {in_russian('km')}", None, ""]
    assert arc["choices"] == {"text": [in_russian("The sun"), in_russian("The moon")], "label": ["A", "B"]}
    assert (okapi["answer"], okapi["option_d"]) == ("B", "9")
    assert manifest(out)["translated"] == 13


def test_the_projects_own_items_are_in_the_language_already(translate, tmp_path):
    items = DEMO / "instruct.jsonl"
    russian = sum(record["lang"] == "ru" for record in lines(items))
    with api_server.serving(answer) as server:
        done = translate(server, items, "--max_items=350")
    assert done.returncode == 0, done.stderr
    results = manifest(tmp_path / "translated")
    assert results["already_translated"] == russian == 320
    assert results["translated"] + sum(results["removed"].values()) == 30 == len({r["text"] for r in server.asked})
    ours = lines(tmp_path / "translated" / "instructions.jsonl")
    assert ours[:320] == lines(items)[:320]
    assert {record["lang"] for record in ours} == {"ru"}


def spoil(kind, given):
    """A translator's mistakes."""
    good = {name: in_russian(text) for name, text in given.items()}
    last = list(given)[-1]
    marker = placeholders.PLACEHOLDER.search(given[last])
    return {
        "refusing": {**good, last: "Извините, но я не могу перевести этот текст."},
        "losing": {**good, last: placeholders.PLACEHOLDER.sub("", good[last])},
        "copying": dict(given),
        "strange": {**good, last: " ".join(reversed(given[last].split()))},
        "short": {**good, last: f"Да {marker and marker[0]}."},
        "equal": dict.fromkeys(given, "Одно и то же"),
        "chatty": "This can't be put into words.",
    }.get(kind, good)


SPOILT = {
    "refusing": ("refusal", 1), "losing": ("mask_lost", 2), "copying": ("untranslated", 2), "strange": ("wrong_language", 2),
    "short": ("length_ratio", 2), "equal": ("same_options", 2), "chatty": ("invalid_answer", 2), "fine": (None, 1),
}  # fmt: skip


def spoilt(kind):
    """A record whose translation goes wrong in one way."""
    if kind == "equal":
        return {
            "id": kind,
            "question": "This is the equal one?",
            "options": ["First thing", "Other thing"],
            "answer_index": 1,
        }
    return chat(
        f"This is the {kind} one?", f"And here is number 7 with a rather long text around it: {ENGLISH}", id=kind
    )


def test_rejects_keep_their_reason_and_both_texts(translate, tmp_path):
    def mistaken(body):
        given = asked(body)
        kind = re.search(r"the (\w+) one", next(iter(given.values())))[1]
        said = spoil(kind, given)
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)

    # Among good ones, so that not all that is kept is one.
    german = chat("Wie geht es dir heute?", "Danke, gut.", id="german") | {"language": "de"}
    with api_server.serving(mistaken) as server:
        done = translate(server, [*map(spoilt, SPOILT), german])
    assert done.returncode == 0, done.stderr
    out = tmp_path / "translated"
    rejects = {reject["record"]["id"]: reject for reject in lines(out / "removed" / "rejects.jsonl")}
    expected = {kind: reason for kind, (reason, _) in SPOILT.items() if reason} | {"german": "other_language"}
    assert {kind: reject["reason"] for kind, reject in rejects.items()} == expected
    for kind, reject in rejects.items():
        assert reject["record"] == (german if kind == "german" else spoilt(kind))
        assert reject["file"] == "in.jsonl"
        if kind not in ("german", "chatty"):
            assert reject["problem"]
            assert reject["source"]["question" if kind == "equal" else "1_user"] == f"This is the {kind} one?"
            assert list(reject["translation"]) == list(reject["source"])
    assert rejects["short"]["translation"]["2_assistant"] == "Да 7."
    assert "7" not in rejects["losing"]["translation"]["2_assistant"]
    assert rejects["chatty"]["said"] == "This can't be put into words."
    results = manifest(out)
    assert results["removed"] == Counter(expected.values())
    assert results["accepted"] == results["translated"] == 1
    assert [record["id"] for record in lines(out / "instructions.jsonl")] == ["fine"]
    assert not (out / "items").exists()
    assert "mask_lost 1" in done.stdout

    times = Counter(re.search(r"the (\w+) one", request["text"])[1] for request in server.asked)
    assert times == {kind: times for kind, (_, times) in SPOILT.items()}
    again = [r["body"]["messages"] for r in server.asked if "the losing one" in r["text"]][1]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert "2_assistant: the marker ⟦m1...⟧ is missing" in again[-1]["content"]


def test_a_second_reply_may_be_better(translate, tmp_path):
    def improving(body):
        given = asked(body)
        if len(body["messages"]) > 2:
            return answer(body)
        return json.dumps(spoil("losing", given), ensure_ascii=False)

    with api_server.serving(improving) as server:
        done = translate(server, [made(n) for n in range(5)])
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == 10
    assert manifest(tmp_path / "translated")["accepted"] == 5


FAULTS = {
    0: "rate_limit",
    1: "broken",
    2: "unavailable",
    3: "no_json",
    4: "empty",
    5: "cut",
    6: "silence",
    7: "surrogate",
}


def test_faults(translate, tmp_path):
    def number(text):
        return int(re.search(r"topic number ⟦m1=(\d+)⟧", text)[1])

    def fault(text, nth):
        if nth > 1 and number(text) not in (10, 11):
            return None
        return {**FAULTS, 8: "refusal", 9: "too_long", 10: "broken", 11: "no_json"}.get(number(text))

    with api_server.serving(answer, fault=fault) as server:
        done = translate(server, [made(n) for n in range(30)], "--timeout=1.5", "--retries=1")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "translated"
    rejects = {reject["record"]["id"]: reject for reject in lines(out / "removed" / "rejects.jsonl")}
    assert {name: reject["reason"] for name, reject in rejects.items()} == {
        "c8": "refusal", "c9": "too_long", "c10": "server_error", "c11": "malformed_reply",
    }  # fmt: skip
    assert rejects["c8"]["said"] == "I can't help with that."
    assert rejects["c8"]["translation"] == {}
    times = Counter(number(request["text"]) for request in server.asked)
    assert times == {n: 4 if n in (10, 11) else 2 if n in FAULTS else 1 for n in range(30)}
    results = manifest(out)
    assert results["usage"]["retried"] == {
        "rate_limited": 1, "server_error": 4, "malformed_reply": 5, "connection_lost": 1, "timeout": 1,
    }  # fmt: skip
    assert results["accepted"] == 26
    # Paid for is what was answered, and what was refused.
    assert results["usage"]["replies"] == len(lines(out / "journal.jsonl")) == 28


@pytest.mark.parametrize("answers", ["translate", "generate"])
def test_kill_and_resume_pays_once(translate, tmp_path, answers):
    found = [made(n) for n in range(60)]
    requests = 60 if answers == "translate" else 120
    source = write(tmp_path / "in.jsonl", found)
    with api_server.serving(answer, seconds=0.05) as server:
        command = [
            *(sys.executable, str(ROOT / "scripts" / "translate.py"), f"--config={ROOT}/configs/test/translate.yaml"),
            *(f"--items={source}", f"--out={tmp_path / 'translated'}", f"--answers={answers}"),
        ]
        process = subprocess.Popen(
            command, env={**os.environ, **server.environment}, cwd=ROOT, stderr=subprocess.DEVNULL
        )
        journal = tmp_path / "translated.partial" / "journal.jsonl"
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= requests * 2 // 3):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "translated").exists()
        before = [
            json.loads(line)["id"] for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
        assert requests * 2 // 3 <= len(before) < requests
        with journal.open("a") as file:
            file.write('{"id": "torn')
        time.sleep(0.3)
        server.asked.clear()
        done = translate(server, found, f"--answers={answers}", "--parallel=3")
        assert done.returncode == 0, done.stderr
        assert len(server.asked) == len({request["text"] for request in server.asked}) == requests - len(before)
    out = tmp_path / "translated"
    assert [record["id"] for record in lines(out / "instructions.jsonl")] == [record["id"] for record in found]
    kept = [reply["id"] for reply in lines(out / "journal.jsonl")]
    assert kept[: len(before)] == before
    assert len(kept) == len(set(kept)) == requests
    assert manifest(out)["usage"]["replies"] == requests


def test_a_resumed_run_has_the_same_settings_and_model(translate, tmp_path):
    found = [made(n) for n in range(12)]
    with api_server.serving(answer, fault=lambda text, nth: "no_quota" if len(server.asked) >= 5 else None) as server:
        assert translate(server, found, "--parallel=1").returncode == 2
        for flags, environment, word in (
            (["--temperature=1"], {}, "temperature: 0.0 then, 1.0 now"),
            (["--answers=generate"], {}, "answers: translate then, generate now"),
            ([], {"OPENAI_MODEL": "judge-2"}, "model: judge-1 then, judge-2 now"),
        ):
            done = translate(server, found, *flags, env=environment)
            assert done.returncode == 2
            assert word in last_line(done)
        assert len(server.asked) == 6
    with api_server.serving(answer) as server:
        # The limits may be others, and so may the checks: the first five pass by them too.
        given = ["--parallel=2", "--retries=1", "--attempts=3", "--max_length_ratio=3"]
        assert translate(server, found, *given).returncode == 0
    assert len(server.asked) == 7


def test_answers_made_anew(translate, tmp_path):
    def grumpy(body):
        question = api_server.asked_text(body)
        if "response_format" not in body and " 13" in question:
            return ENGLISH
        if "response_format" not in body and " 14" in question:
            return "Извините, но я не могу ответить."
        return answer(body)

    longer = chat(
        "Be kind to people.", "Hello, who are you?", "A bot.", "And what is 5 of it?", "A number.", id="longer"
    )
    bare = {"id": "bare", "language": "en", "messages": [{"role": "user", "content": "What is there to say?"}]}
    coded = chat("`f(1)`", "It does nothing at all.", id="coded")

    def fault(text, nth):
        """Once in each of the two rounds."""
        return "broken" if nth == 1 and (text == "`f(1)`" or "who are you" in text) else None

    with api_server.serving(grumpy, fault=fault) as server:
        done = translate(server, [longer, bare, coded, *(made(n) for n in range(10, 16))], "--answers=generate")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "translated"
    ours = {record["id"]: record for record in lines(out / "instructions.jsonl")}
    assert set(ours) == {"longer", "bare", "coded", "c10", "c11", "c12", "c15"}

    def texts(body):
        return asked(body) or {}

    # The old last answers went nowhere; earlier ones are translated.
    sent = [text for request in server.asked for text in texts(request["body"]).values()]
    assert not any("There is a lot to say" in text or text == "A number." for text in sent)
    assert contents(ours["longer"])[2] == in_russian("A bot.")
    assert contents(ours["longer"])[-1] == f"{ANSWER} [{contents(ours['longer'])[-2]}]"
    assert contents(ours["bare"]) == [
        in_russian("What is there to say?"),
        f"{ANSWER} [{in_russian('What is there to say?')}]",
    ]
    assert ours["bare"]["messages"][-1]["role"] == "assistant"
    assert contents(ours["coded"]) == ["`f(1)`", f"{ANSWER} [`f(1)`]"]
    answered = [r["body"] for r in server.asked if "response_format" not in r["body"]]
    assert {body["messages"][0]["role"] for body in answered} == {"system"}
    assert all("Отвечай на русском языке." in body["messages"][0]["content"] for body in answered)
    assert {body["max_completion_tokens"] for body in answered} == {300}

    rejects = {reject["record"]["id"]: reject for reject in lines(out / "removed" / "rejects.jsonl")}
    assert {name: reject["reason"] for name, reject in rejects.items()} == {"c13": "wrong_language", "c14": "refusal"}
    assert rejects["c13"]["said"] == ENGLISH
    assert list(rejects["c13"]["translation"]) == ["1_user"]
    results = manifest(out)
    # 8 of 9 prompts hold something to translate, 9 answers, one of them asked for twice.
    assert results["usage"]["replies"] == len(server.asked) - 2 == 8 + 9 + 1
    assert results["usage"]["retried"] == {"server_error": 2}
    assert results["estimate"]["requests"] == 8 + 9
    assert results["translated"] == 7


def test_nothing_is_asked_twice_or_for_nothing(translate, tmp_path):
    bare = {"question": "2 + 2 = ?", "options": ["3", "4"], "answer_index": 1}
    russian = chat("Привет, как дела сегодня?", "Хорошо, спасибо.", id="ru") | {"language": "ru"}
    found = [made(1), made(1) | {"id": "twin"}, made(2), bare, russian]
    with api_server.serving(answer) as server:
        done = translate(server, found)
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == 2
    out = tmp_path / "translated"
    ours = lines(out / "instructions.jsonl")
    assert [record["id"] for record in ours] == ["c1", "twin", "c2", "ru"]
    assert ours[0]["messages"] == ours[1]["messages"] != ours[2]["messages"]
    assert ours[3] == russian
    assert lines(out / "items" / "in.jsonl") == [bare]
    results = manifest(out)
    assert {k: results[k] for k in ("translated", "already_translated", "nothing_to_translate")} == {
        "translated": 3, "already_translated": 1, "nothing_to_translate": 1,
    }  # fmt: skip
    assert "5 records, 3 to ask about, 1 in the language already" in done.stderr


def test_requests_per_minute(translate):
    with api_server.serving(answer) as server:
        done = translate(server, [made(n) for n in range(12)], "--requests_per_minute=600", "--parallel=12")
    assert done.returncode == 0, done.stderr
    times = sorted(request["time"] for request in server.asked)
    assert times[-1] - times[0] >= 0.7  # eleven tenths of a second, less what a busy machine delays the first by


@pytest.mark.parametrize(("answers", "requests"), [("translate", 30), ("generate", 60)])
def test_dry_run_sends_and_writes_nothing(script, tmp_path, answers, requests):
    source = write(tmp_path / "in.jsonl", [made(n) for n in range(30)])
    flags = [f"--items={source}", "--dry_run=true", "--input_price=1", "--output_price=2", f"--answers={answers}"]
    with api_server.serving(answer) as server:
        done = script("translate", *flags, env=server.environment)
        assert server.asked == []
    assert done.returncode == 0, done.stderr
    assert f"30 records, 30 to ask about, 0 in the language already | {requests} requests, about " in done.stdout
    assert "of answers: $0." in done.stdout
    assert list(tmp_path.iterdir()) == [source]
    # Nor does it need a server.
    assert script("translate", *flags, env=dict.fromkeys(api.VARIABLES, "")).stdout == done.stdout


def test_max_cost_counts_the_answers_to_come(translate, tmp_path):
    found = [made(n) for n in range(10)]
    # 10 translations of about 60 tokens and 10 new answers of up to 300: half a cent would do for the first alone.
    prices = ["--input_price=0", "--output_price=1", "--answer_tokens=1", "--answer_factor=1"]
    with api_server.serving(answer) as server:
        done = translate(server, found, *prices, "--max_cost=0.003", "--answers=generate")
        assert done.returncode == 2
        assert "--max_cost=0.003: $0.0000 spent and an estimated $0.00" in last_line(done)
        assert server.asked == []
        assert translate(server, found, *prices, "--max_cost=0.003", out="other").returncode == 0
        assert manifest(tmp_path / "other")["usage"]["cost"] <= 0.003


def test_nothing_translated_is_an_error(translate, tmp_path):
    with api_server.serving(lambda body: "I'm sorry, but I can't translate that.") as server:
        done = translate(server, [made(n) for n in range(6)])
    assert done.returncode == 2
    assert last_line(done).startswith("error: nothing was translated (refusal 6)")
    assert not (tmp_path / "translated").exists()
    assert len(lines(tmp_path / "translated.partial" / "removed" / "rejects.jsonl")) == 6


@pytest.mark.parametrize("missing", api.VARIABLES)
def test_environment_is_needed(translate, tmp_path, missing):
    with api_server.serving(answer) as server:
        done = translate(server, [made(1)], env={missing: " "})
        assert server.asked == []
    assert done.returncode == 2
    assert last_line(done).startswith(f"error: set {missing} in the environment")
    assert list(tmp_path.glob("translated*")) == []


def test_broken_records_stop_or_are_counted(translate, tmp_path):
    found = [made(1), {"text": "no item"}, made(2)]
    with api_server.serving(answer) as server:
        done = translate(server, found)
        assert done.returncode == 2
        assert f"{tmp_path / 'in.jsonl'}:2: no known columns (known: messages, question + choices.text, " in last_line(
            done
        )
        assert server.asked == []
        done = translate(server, found, "--on_error=skip")
        assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "translated")["skipped"] == {"broken_record": 1}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--answers=invent", "--answers: input should be 'translate' or 'generate'"),
        ("--max_items=0", "--max_items=0: at least 1"),
        ("--generated_tokens=0", "--generated_tokens=0: at least 1"),
        ("--answer_factor=-1", "--answer_factor=-1.0: not negative"),
        ("--min_script_share=2", "--min_script_share=2.0: from 0 to 1"),
        ("--min_length_ratio=3", "--min_length_ratio=3.0, --max_length_ratio=2.5: the first has to be the smaller one"),
        ("--language=en", "--language=en is --source_language too"),
        ("--language=xx", "no settings for language 'xx'"),
        ("--parallel=0", "--parallel=0: at least 1"),
        ("--max_cost=1", "--max_cost needs --input_price and --output_price"),
        ("--items=nowhere", "nowhere: no such file or folder"),
        ("--out=", "missing --out"),
        ("--colums=question", "unknown setting 'colums', did you mean 'columns'?"),
    ],
)
def test_wrong_settings(flag, message, tmp_path, monkeypatch):
    main = importlib.import_module("translate").main
    for name, value in zip(api.VARIABLES, ("http://127.0.0.1:9/v1", "m", "k"), strict=True):
        monkeypatch.setenv(name, value)
    flags = {"items": str(write(tmp_path / "in.jsonl", [made(1)])), "out": str(tmp_path / "out")}
    key, value = flag.removeprefix("--").split("=")
    flags |= {key: value}
    given = [f"--{k}={v}" for k, v in flags.items() if v]
    monkeypatch.setattr(sys, "argv", ["translate.py", *given])
    with pytest.raises(UserError) as raised:
        main(**cli.resolve(main, cli._collect(main, given, "translate.py")))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.glob("out*")) == []
