"""lib/flaws.py: each flag by examples worked out by hand, what has it and what nearly has it."""

import dataclasses
import json

import pytest
from conftest import ROOT

from lib import flaws, generation, languages
from lib.errors import UserError

RU, EN = languages.load("ru"), languages.load("en")
GOOD = "Смешайте творог с яйцом, добавьте муку и обжарьте сырники на слабом огне с двух сторон."


def found(text, language=RU, finished=True):
    return flaws.find(text, language, finished=finished)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Добавьте the молоко и перемешайте.", ["the"]),
        ("Кот сидит on the table и смотрит.", ["on", "the", "table"]),
        ("However, кот остался дома.", ["However"]),
        (
            "Он сказал: «I will go home right now my friend» и ушёл.",
            ["will", "go", "home", "right", "now", "my", "friend"],
        ),
        ("Это очень important вопрос.", ["important"]),
        ("Он сказал: «Мне нужен new телефон» и ушёл.", ["new"]),  # said in the language, no title
        ("Кот (он был очень very стар) спал.", ["very"]),
        ("The iPhone is дорог.", ["is"]),
        ("Python is a язык.", ["is"]),
        ("Сериал Game of Thrones хорош.", []),  # a small word inside a name
        ("The Beatles записали альбом в Abbey Road.", []),
        ("Купите iPhone, USB-кабель и витамин C.", []),
        ("Возьмите 500 ml воды, 2 kg муки и флешку на 16 GB.", []),
        ("Обучение (machine learning) и удар (от англ. cover drive).", []),
        ('Слово «house» значит дом, а "table" стол.', []),
        ("Откройте main.py, вызовите print(x) и my_function, см. example.com/page.", []),
        ("Наберите `git commit` в терминале.\n```\nimport os\nfor x in y:\n    pass\n```\nГотово.", []),
        ("Напишите e-mail или закажите online, сделайте web-сайт.", []),
        ("Пусть $x = \\frac{a}{b}$ и x больше y.", []),
    ],
)
def test_english_words(text, words):
    assert flaws.english_words(flaws.prose(text), RU) == words
    assert ("english_words" in found(text)) == bool(words)


def test_english_words_are_no_flaw_of_an_english_answer():
    assert flaws.english_words("The table is old.", EN) == []
    assert found("The table is old, but it will do.", EN) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Это cоме слово.", ["cоме"]),  # the first letter is Latin
        ("Прекрасныe дни.", ["Прекрасныe"]),  # the last letter is Latin
        ("Мeditация помогает.", ["Мeditация"]),
        ("рыть地道", ["рыть地道"]),
        ("Вот 3D-модель, IP-адрес и Windows'ом.", []),
        ("Шлите SMSки и 5кг, x2.", []),
        ("Смс и sms пишут по-разному.", []),
        ("Наберите `cоме`.", []),  # code
    ],
)
def test_mixed_script(text, words):
    assert flaws.mixed_words(flaws.prose(text), RU) == words
    assert ("mixed_script" in found(text)) == bool(words)


def test_mixed_script_goes_by_the_language_asked():
    assert flaws.mixed_words("The tаble is old.", EN) == ["tаble"]  # with a Cyrillic letter


UKRAINIAN = "У контексті цього питання це може означати компанію, яка спеціалізується на розробці та продажу ігор для консолей та інших пристроїв."


@pytest.mark.parametrize(
    ("text", "language", "wrong"),
    [
        ("You should mix the eggs with cottage cheese.", RU, True),
        ("Yes, of course.", RU, True),
        (UKRAINIAN, RU, True),
        ("很好,我们先把鸡蛋和奶酪混合在一起,然后用小火慢慢地煎。", RU, True),
        (GOOD, EN, True),
        (GOOD, RU, False),
        ("HTML", RU, False),  # a name is an answer
        ("Роман «Die Leiden des jungen Werther» Гёте.", RU, False),
        ("Вот код:\n```\nimport numpy as np\nprint(np.zeros(3))\nfor row in rows:\n    print(row)\n```", RU, False),
        ("Нажмите Settings, General и About.", RU, False),
        ("42", RU, False),
    ],
)
def test_wrong_language(text, language, wrong):
    assert ("wrong_language" in found(text, language)) == wrong


def test_an_answer_wholly_in_english_has_one_flag_not_two():
    assert found("You should mix the eggs with cottage cheese.") == ["wrong_language"]


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("Я не знаю, что делать. " * 4, True),
        ("да, да, да, да, да, да, да", True),
        ("Хорошо" + "о" * 20 + ".", True),
        ("Ха" + "ха" * 8, True),
        ("- соль\n- соль\n- соль\n- вода", True),
        (GOOD, False),
        ("Да, да, конечно.", False),
        ("Число 1000000000000 велико, ха-ха, ооочень.", False),
        ("Добавьте соль по вкусу. Затем добавьте перец по вкусу. Подавайте со сметаной и с зеленью.", False),
    ],
)
def test_repetition(text, repeated):
    assert ("repetition" in found(text)) == repeated


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (GOOD, True),
        ("Он спросил: «Кто там, за дверью, так поздно?»", True),
        ("Удачи вам на всех ваших экзаменах 😊", True),
        ("**Смешайте всё и выпекайте до готовности.**", True),
        ("Вам понадобится вот что:\n\n1. мука\n2. яйца", True),
        ("Париж", True),
        ("Вот программа, которую вы просили написать:\n```\nx = 1\n```", True),
        ("Пусть вам всегда и во всём везёт!\n\n[Ваше имя]", True),
        ("Смешайте творог с яйцом, добавьте муку и", False),
        ("Вам понадобятся такие вот продукты для теста:", False),
        ("Сначала смешайте творог с яйцом.\nПотом добавьте муку, соль,", False),
    ],
)
def test_unfinished(text, ended):
    assert ("unfinished" in found(text)) != ended
    assert "unfinished" in found(text, finished=False)


def test_silence_is_a_flaw_of_its_own():
    assert found(" \n") == ["empty"]
    assert found("", finished=False) == ["empty", "unfinished"]
    assert found(GOOD) == []


def test_several_flags_come_in_their_order():
    assert found("Возьмите the cоме и", finished=False) == ["english_words", "mixed_script", "unfinished"]
    assert list(flaws.FLAGS)[2:4] == ["english_words", "mixed_script"]


def test_rates_have_wilson_intervals_and_count_only_answers_that_can_have_the_flag():
    answers = [(["unfinished"], RU), (["unfinished", "english_words"], RU), ([], RU), (["unfinished"], EN)]
    rates = flaws.rates(answers)
    assert list(rates) == list(flaws.FLAGS)
    assert (rates["unfinished"]["value"], rates["unfinished"]["items"]) == (0.75, 4)
    # Wilson by hand: z² = 3.8415; centre (3 + z²/2) / (4 + z²) = 0.62753; half 0.32692
    assert rates["unfinished"]["low"] == pytest.approx(0.3006, abs=1e-4)
    assert rates["unfinished"]["high"] == pytest.approx(0.9544, abs=1e-4)
    assert (rates["english_words"]["value"], rates["english_words"]["items"]) == (1 / 3, 3)
    assert rates["empty"]["value"] == rates["empty"]["low"] == 0
    assert "english_words" not in flaws.rates([([], EN)])
    assert flaws.rates([]) == {}


def test_the_language_asked_is_the_prompts_unless_it_says_another(tmp_path):
    lines = [
        {"prompt": "Переведи на английский: «Кошка спит»."},
        {"prompt": "Переведи на английский: «Кошка спит».", "language": "en"},
        {"prompt": "Write a recipe of pancakes."},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": "1", "category": "c"} | line) + "\n" for line in lines), encoding="utf-8")
    prompts = generation.read_prompts(file)
    assert [flaws.asked_in(prompt).code for prompt in prompts] == ["ru", "en", "en"]
    with pytest.raises(UserError, match="no settings for language 'xx'"):
        flaws.asked_in({"prompt": "?", "language": "xx"})
    file.write_text('{"id": "1", "category": "c", "prompt": "?", "language": 7}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: no text field 'language'"):
        generation.read_prompts(file)


def test_the_built_in_prompts_ask_for_russian():
    prompts = generation.read_prompts(ROOT / "data" / "builtin" / "demo" / "qualitative_prompts.jsonl")
    assert {flaws.asked_in(prompt).code for prompt in prompts} == {"ru"}


def test_a_word_of_two_scripts_that_are_both_the_languages():
    serbian = languages.load("sr")
    assert flaws.mixed_words("Обе азбуке, oba pisma, и SMSови.", serbian) == []
    assert flaws.mixed_words("Мешана rечи и реch.", serbian) == ["rечи", "реch"]
    assert not flaws.applies("english_words", serbian)
    assert "wrong_language" not in flaws.find("Pas spava na pragu, a mačka gleda kroz prozor.", serbian, finished=True)
    assert "wrong_language" in flaws.find("Ο σκύλος κοιμάται στο κατώφλι του σπιτιού.", serbian, finished=True)


def test_words_that_stay_in_latin_letters_are_the_languages():
    said = "Адрас e-mail напішыце тут."
    assert flaws.english_words(said, languages.load("be")) == []
    assert flaws.english_words(said, dataclasses.replace(languages.load("be"), latin_words=())) == ["e-mail"]


def test_a_prompt_is_in_the_target_language_or_in_english():
    question = {"prompt": "Чаму неба блакітнае?"}
    assert flaws.asked_in(question, ("be", "en")).code == "be"
    assert flaws.asked_in({"prompt": "Why is the sky blue?"}, ("be", "en")).code == "en"
    assert flaws.asked_in(question | {"language": "kk"}, ("be", "en")).code == "kk"
