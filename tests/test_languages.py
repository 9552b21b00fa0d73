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
