"""Languages: the files as they are, each mistake that one can make in a file, and what is told of languages with many neighbours."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from lib import documents, languages, rules
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CODES = sorted(path.stem for path in languages.FOLDER.glob("*.yaml"))
# The first sentence of the Universal Declaration of Human Rights, first article.
SENTENCES = {
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "be": "Усе людзі нараджаюцца свабоднымі і роўнымі ў сваёй годнасці і правах.",
    "kk": "Барлық адамдар тумысынан азат және қадір-қасиеті мен құқықтары тең болып дүниеге келеді.",
    "sr": "Сва људска бића рађају се слободна и једнака у достојанству и правима.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права.",
    "mk": "Сите човечки суштества се раѓаат слободни и еднакви по достоинство и права.",
}
SERBIAN_IN_LATIN = "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima."
# Serbian letter by letter.
LATIN = dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš", strict=True)) | {
    "љ": "lj",
    "њ": "nj",
    "џ": "dž",
}


def test_the_projects_languages():
    russian = languages.load("ru")
    assert russian.example == "Машинное обучение изменяет мир"
    assert (russian.name, russian.native, russian.scripts) == ("Russian", "русский", ("Cyrillic",))
    assert len(russian.alphabet) == 33
    assert len(languages.load("en").alphabet) == 26
    assert {"be", "en", "kk", "ru", "sr"} <= set(CODES)
    assert len(languages.load("be").alphabet) == 32
    assert len(languages.load("kk").alphabet) == 42
    assert len(languages.load("sr").alphabet) == 30 + 27  # lj, nj and dž are two letters each


@pytest.mark.parametrize("code", CODES)
def test_a_languages_file_is_whole_and_agrees_with_itself(code):
    language = languages.load(code)
    assert len(set(language.alphabet)) == len(language.alphabet)
    said = [language.example, *language.stop_words, *language.menu, *language.spam]
    letters = {letter for letter in "".join(said).lower() if languages.in_script(letter, *language.scripts)}
    # Names of products stand in Latin letters, which are Serbian's own but for a few.
    strange = letters - set(language.alphabet)
    assert not strange, strange
    assert languages.script_share(language.example, *language.scripts) == 1
    for entries in (language.stop_words, language.menu, language.spam, language.boilerplate):
        assert len(set(entries)) == len(entries) > 10
    for word in language.stop_words:
        assert word == word.lower()
        assert len(re.findall(r"\w+", word)) == 1
    assert len(language.phone_region) == 2
    assert language.phone_words
    assert bool(language.latin_words) == (language.scripts != ("Latin",))
    # What the site's navigation says is boilerplate, but for the names of goods and the like; "Home" in any case.
    assert language.has_boilerplate(language.menu[0])
    assert sum(map(language.has_boilerplate, language.menu)) >= 6 * len(language.scripts)
    assert not any(map(language.has_boilerplate, language.spam))


def test_serbian_is_the_same_in_both_scripts():
    serbian = languages.load("sr")
    for entries in (serbian.menu, serbian.spam, serbian.stop_words, serbian.phone_words):
        cyrillic = [entry for entry in entries if languages.script_share(entry, "Cyrillic") > 0.5]
        spelt = {"".join(LATIN.get(letter, letter) for letter in entry.lower()) for entry in cyrillic}
        assert len(cyrillic) > 3
        assert spelt <= {entry.lower() for entry in entries}


def test_share_of_a_script():
    assert languages.script_share("мир ab", "Cyrillic") == pytest.approx(3 / 5)
    assert languages.script_share("мир 123, 45!", "Cyrillic") == 1
    assert languages.script_share("123", "Cyrillic") == 0
    assert languages.script_share("ёЁй", "Cyrillic") == 1
    assert languages.script_share("мир ab αβγ", "Cyrillic", "Latin") == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("© 2019 ООО «Ромашка»", True),
        ("Все права защищены.", True),
        ("Главная", True),
        ("Главная | Новости | О нас | Контакты", True),
        ("Главная мысль статьи в том, что права надо защищать.", False),
        ("Роман «Идиот», повесть «Нос» и рассказ «Тоска» написаны в России.", False),
    ],
)
def test_russian_boilerplate(text, found):
    assert bool(languages.load("ru").boilerplate_pattern.search(text)) is found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skripts": ["Latin"]}, "unknown setting 'skripts', did you mean 'scripts'?"),
        ({"scripts": "Latin"}, "scripts: expected a list of texts"),
        ({"stop_words": [1]}, "stop_words: expected a list of texts"),
        ({"example": None}, "example: expected text"),
        ({"menu": "Home"}, "menu: expected a list of texts"),
        ({"boilerplate": ["("]}, "'(' is not a regular expression"),
        ({"boilerplate": [r"\bЖ\W"]}, "write it in lower case"),
        ({"phone_region": "Russia"}, "phone_region: expected two capital letters"),
        ({"phone_words": "tel"}, "phone_words: expected a list of texts"),
        ({"blocked": ["casino"]}, "unknown setting 'blocked'"),
        ({"alphabet": "abcд"}, "'д' is not a letter of Latin script"),
    ],
)
def test_mistakes_in_a_file(tmp_path, change, message):
    content = yaml.safe_load((languages.FOLDER / "en.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "xx.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        languages.load("xx", tmp_path)
    assert message in str(raised.value)


def test_missing_key_and_missing_file(tmp_path):
    (tmp_path / "xx.yaml").write_text("name: X\n", encoding="utf-8")
    with pytest.raises(UserError, match="missing native, scripts"):
        languages.load("xx", tmp_path)
    with pytest.raises(UserError, match=r"no settings for language 'yy': write .*known: xx"):
        languages.load("yy", tmp_path)


@pytest.mark.parametrize("code", CODES)
def test_boilerplate_is_found_alike_by_one_pattern_and_by_each_alone(code):
    language = languages.load(code)
    phrases = [
        *("Все ПРАВА защищены.", "Главная", "ГЛАВНАЯ мысль", "a | b | c | d", "© 2020", "(C) 1999", "Copyright", "Нет комментариев"),
        *("Home", "home page of", "We use Cookies", "GPL version 2", "Report bugs to", "Terms and Conditions", "текст", "", "\n\n"),
    ]  # fmt: skip
    found = [language.has_boilerplate(phrase) for phrase in phrases]
    assert found == [bool(language.boilerplate_pattern.search(phrase)) for phrase in phrases]
    assert len(set(found)) == 2


def test_block_lists(tmp_path):
    (tmp_path / "xx.yaml").write_text((languages.FOLDER / "en.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert languages.load("xx", tmp_path).blocked == ()
    (tmp_path / "xx.blocked.txt").write_text("Bad Word # why\n\n# only a comment\nЁлка\n", encoding="utf-8")
    more = tmp_path / "more.txt"
    more.write_text("site.com\n", encoding="utf-8")
    language = languages.load("xx", tmp_path, block_lists=[more])
    assert language.blocked == ("Bad Word", "Ёлка", "site.com")
    assert language.blocked_by_first_word == {"bad": [("bad", "word")], "елка": [("елка",)], "site": [("site", "com")]}
    for content, message in (
        (b"a\n---\n", "more.txt:2: '---' has no word"),
        (b"\xff", "more.txt: not UTF-8 at byte 0"),
    ):
        more.write_bytes(content)
        with pytest.raises(UserError, match=message):
            languages.load("xx", tmp_path, block_lists=[more])
    with pytest.raises(UserError, match=r"gone\.txt: no such block list"):
        languages.load("xx", tmp_path, block_lists=[tmp_path / "gone.txt"])


@pytest.mark.parametrize("code", ["../languages/ru", "RU", "r", "ru\x00", ""])
def test_a_code_that_is_none(code):
    with pytest.raises(UserError, match="no settings for language"):
        languages.load(code)


@pytest.mark.parametrize("code", SENTENCES)
def test_a_language_is_told_from_its_neighbours_by_a_sentence(code):
    told = {other: languages.probability(SENTENCES[code], other) for other in (*SENTENCES, "en")}
    assert told[code] > 0.5
    assert all(value < 0.2 for other, value in told.items() if other != code)
    assert languages.probability(SENTENCES[code], "zzz") == 1  # a language that the identifier does not know


def test_serbian_in_latin_letters_counts_although_it_can_not_be_told_from_croatian():
    assert languages.probability(SERBIAN_IN_LATIN, "sr", ()) < 0.5
    assert languages.probability(SERBIAN_IN_LATIN, "sr") > 0.9
    assert languages.probability(SERBIAN_IN_LATIN, "sr") <= 1
    serbian = languages.load("sr")
    limits = {"wrong_language": 0.5, "low_script": 0.5}
    assert rules.broken(SERBIAN_IN_LATIN, serbian, limits) is None
    assert rules.broken(SENTENCES["sr"], serbian, limits) is None
    assert rules.broken(SENTENCES["mk"], serbian, limits) == "wrong_language"
    assert rules.broken("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι", serbian, limits) == "low_cyrillic_or_latin"
    # A file of one's own says it for itself.
    alone = dataclasses.replace(serbian, told_with=())
    assert rules.broken(SERBIAN_IN_LATIN, alone, limits) == "wrong_language"


def test_the_beginning_tells():
    russian, english = SENTENCES["ru"], "All human beings are born free and equal in dignity and rights. "
    assert languages.probability(russian * 8 + english * 500, "ru") > 0.9
    assert languages.probability(english * 8 + russian * 500, "en") > 0.9


@pytest.mark.parametrize("code", ["be", "kk", "sr"])
def test_ordinary_text_breaks_no_rule(code):
    limits = yaml.safe_load((ROOT / "configs" / "demo" / "filter.yaml").read_text(encoding="utf-8"))["limits"]
    language = languages.load(code)
    found = list(documents.read(ROOT / "data" / "builtin" / "languages" / f"{code}.jsonl", language=code))
    assert len(found) == 12
    for document in found:
        assert (
            rules.broken(document["text"], language, limits | {"wrong_language": 0.9, "few_stop_words": 0.02}) is None
        )
        letters = {c for c in document["text"].lower() if languages.in_script(c, *language.scripts)}
        assert letters <= set(language.alphabet)
