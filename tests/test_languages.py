"""Languages: the two files as they are, and each mistake that one can make in a file."""

import pytest
import yaml

from lib import languages
from lib.errors import UserError


def test_the_projects_languages():
    russian = languages.load("ru")
    assert russian.example == "Машинное обучение изменяет мир"
    assert (russian.name, russian.native, russian.script) == ("Russian", "русский", "Cyrillic")
    assert len(russian.alphabet) == 33
    assert len(languages.load("en").alphabet) == 26


def test_share_of_a_script():
    assert languages.script_share("мир ab", "Cyrillic") == pytest.approx(3 / 5)
    assert languages.script_share("мир 123, 45!", "Cyrillic") == 1
    assert languages.script_share("123", "Cyrillic") == 0
    assert languages.script_share("ёЁй", "Cyrillic") == 1


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
        ({"skript": "Latin"}, "unknown setting 'skript', did you mean 'script'?"),
        ({"example": None}, "example: expected text"),
        ({"menu": "Home"}, "menu: expected a list of texts"),
        ({"boilerplate": ["("]}, "'(' is not a regular expression"),
        ({"boilerplate": [r"\bЖ\W"]}, "write it in lower case"),
        ({"phone_region": "Russia"}, "phone_region: expected two capital letters"),
        ({"phone_words": "tel"}, "phone_words: expected a list of texts"),
        ({"blocked": ["casino"]}, "unknown setting 'blocked'"),
        ({"alphabet": "abcд"}, "'д' is not a letter of the Latin script"),
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
    with pytest.raises(UserError, match="missing native, script"):
        languages.load("xx", tmp_path)
    with pytest.raises(UserError, match=r"no settings for language 'yy': write .*known: xx"):
        languages.load("yy", tmp_path)


@pytest.mark.parametrize("code", ["ru", "en"])
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


def test_the_language_is_told_from_its_neighbours():
    russian = "Все люди рождаются свободными и равными в своём достоинстве и правах."
    assert languages.probability(russian, "ru") > 0.9
    assert languages.probability("Всі люди народжуються вільними і рівними у своїй гідності та правах.", "ru") < 0.1
    assert languages.probability(russian, "en") < 0.1
    assert languages.probability(russian, "zzz") == 1  # a language that the identifier does not know
    # The beginning tells.
    english = "All human beings are born free and equal in dignity and rights. "
    assert languages.probability(russian * 8 + english * 500, "ru") > 0.9
    assert languages.probability(english * 8 + russian * 500, "en") > 0.9
