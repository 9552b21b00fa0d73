"""Languages: what the pipeline has to know about one, read from `configs/languages/<code>.yaml`."""

import dataclasses
import functools
import re
import unicodedata
from collections import Counter
from pathlib import Path

from lib import cli
from lib.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "languages"


@dataclasses.dataclass(frozen=True)
class Language:
    """One language's file, checked.

    Attributes:
        code: ISO 639 code, the file's name.
        name: its English name.
        native: its own name.
        script: the script, as Unicode names its letters (Cyrillic, Latin, Greek, Georgian, ...).
        alphabet: its lower-case letters in order.
        example: the sentence that comparisons of tokenizers show.
        boilerplate: regular expressions, case ignored; a paragraph in which one is found says nothing of its own.
        menu: texts of a site's navigation, to spoil text with.
        spam: sentences no corpus should hold, to spoil text with.
    """

    code: str
    name: str
    native: str
    script: str
    alphabet: str
    example: str
    boilerplate: tuple[str, ...]
    menu: tuple[str, ...]
    spam: tuple[str, ...]

    @functools.cached_property
    def boilerplate_pattern(self) -> re.Pattern[str]:
        """All boilerplate patterns as one."""
        return re.compile(
            "|".join(f"(?:{pattern})" for pattern in self.boilerplate) or r"(?!)", re.IGNORECASE | re.MULTILINE
        )


def load(code: str, folder: Path | None = None) -> Language:
    """The language of an ISO code.

    Raises:
        UserError: no such file, an unknown, missing or mistyped key, a bad pattern, letters of another script.
    """
    folder = FOLDER if folder is None else folder
    path = folder / f"{code}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise UserError(f"no settings for language '{code}': write {path} (known: {', '.join(known) or 'none'})")
    given = cli.load_yaml(path)
    hints = {field.name: field.type for field in dataclasses.fields(Language) if field.name != "code"}
    for key in given:
        if key not in hints:
            raise UserError(f"{path}: unknown setting '{key}'{cli.closest(str(key), hints)}")
    if missing := [key for key in hints if key not in given]:
        raise UserError(f"{path}: missing {', '.join(missing)}")
    for key, hint in hints.items():
        if hint is str and not (isinstance(given[key], str) and given[key]):
            raise UserError(f"{path}: {key}: expected text, got {given[key]!r}")
        if hint is not str and not (isinstance(given[key], list) and all(isinstance(t, str) for t in given[key])):
            raise UserError(f"{path}: {key}: expected a list of texts, got {given[key]!r}")
    for pattern in given["boilerplate"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: boilerplate: '{pattern}' is not a regular expression ({error})") from None
    if foreign := [letter for letter in given["alphabet"] if not in_script(letter, given["script"])]:
        raise UserError(f"{path}: alphabet: '{foreign[0]}' is not a letter of the {given['script']} script")
    return Language(code, **{key: v if isinstance(v, str) else tuple(v) for key, v in given.items()})


@functools.lru_cache(maxsize=100_000)
def in_script(letter: str, script: str) -> bool:
    """Whether a character is a letter of a script, by its Unicode name (`CYRILLIC SMALL LETTER A`)."""
    return letter.isalpha() and unicodedata.name(letter, "").startswith(script.upper() + " ")


def script_share(text: str, script: str) -> float:
    """Share of the text's letters that are of the script; 0 for a text without letters."""
    letters = {character: count for character, count in Counter(text).items() if character.isalpha()}
    ours = sum(count for character, count in letters.items() if in_script(character, script))
    return ours / total if (total := sum(letters.values())) else 0.0
