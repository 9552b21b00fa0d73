"""Languages: what the pipeline has to know about one, read from `configs/languages/<code>.yaml`.

Beside it there may be a block list, `<code>.blocked.txt`: words, phrases and domains that speak against a document, one a line.
"""

import dataclasses
import functools
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib import cli
from lib.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "languages"
OTHER, LETTER, SPACE = range(3)  # kinds of characters
# Characters at a document's beginning by which its language is told. Of 1,500 texts in eight languages (Russian, Ukrainian,
# Belarusian, Bulgarian, Serbian, Macedonian, Kazakh, English) 200 characters suffice for 0.998 and 500 for 0.999.
TELLING_CHARS = 500
_WORD = re.compile(r"\w+")


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
        phone_region: the country (ISO 3166, two letters) whose telephone numbers are written without a prefix.
        phone_words: beginnings of words that stand before telephone numbers.
        blocked: entries of block lists: words, phrases, domains.
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
    phone_region: str = ""
    phone_words: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @functools.cached_property
    def boilerplate_pattern(self) -> re.Pattern[str]:
        """All boilerplate patterns as one."""
        return re.compile(_either(self.boilerplate), re.IGNORECASE | re.MULTILINE)

    def has_boilerplate(self, text: str) -> bool:
        """Whether `boilerplate_pattern` is found, in a third of its time: each pattern alone, in lower-case text."""
        text = text.lower()
        return any(pattern.search(text) for pattern in self._lower_boilerplate)

    @functools.cached_property
    def _lower_boilerplate(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern, re.MULTILINE) for pattern in self.boilerplate)

    @functools.cached_property
    def phone_words_pattern(self) -> re.Pattern[str]:
        """One of the words that announce a telephone number, and no other number since."""
        return re.compile(rf"\b(?:{_either(map(re.escape, self.phone_words))})\D*$", re.IGNORECASE)

    @functools.cached_property
    def blocked_by_first_word(self) -> Mapping[str, Sequence[tuple[str, ...]]]:
        """The entries of the block lists as words, by their first one."""
        entries: dict[str, list[tuple[str, ...]]] = {}
        for entry in sorted({tuple(words(entry)) for entry in self.blocked} - {()}):
            entries.setdefault(entry[0], []).append(entry)
        return entries


def load(code: str, folder: Path | None = None, *, block_lists: Sequence[Path] = ()) -> Language:
    """The language of an ISO code.

    Args:
        code: ISO 639 code.
        folder: of the languages' files; by default the project's.
        block_lists: further block lists beside the language's own.

    Raises:
        UserError: no such file, an unknown, missing or mistyped key, a bad pattern, letters of another script.
    """
    folder = FOLDER if folder is None else folder
    path = folder / f"{code}.yaml"
    if not re.fullmatch("[a-z]{2,3}", code) or not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise UserError(f"no settings for language '{code}': write {path} (known: {', '.join(known) or 'none'})")
    given = cli.load_yaml(path)
    fields = {field.name: field for field in dataclasses.fields(Language) if field.name not in ("code", "blocked")}
    hints = {name: field.type for name, field in fields.items()}
    for key in given:
        if key not in hints:
            raise UserError(f"{path}: unknown setting '{key}'{cli.closest(str(key), hints)}")
    if missing := [key for key in hints if key not in given and fields[key].default is dataclasses.MISSING]:
        raise UserError(f"{path}: missing {', '.join(missing)}")
    for key, hint in ((key, hint) for key, hint in hints.items() if key in given):
        if hint is str and not (isinstance(given[key], str) and given[key]):
            raise UserError(f"{path}: {key}: expected text, got {given[key]!r}")
        if hint is not str and not (isinstance(given[key], list) and all(isinstance(t, str) for t in given[key])):
            raise UserError(f"{path}: {key}: expected a list of texts, got {given[key]!r}")
    for pattern in given["boilerplate"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: boilerplate: '{pattern}' is not a regular expression ({error})") from None
        if (plain := re.sub(r"\\.", "", pattern)) != plain.lower():
            raise UserError(
                f"{path}: boilerplate: '{pattern}': write it in lower case; the text's case does not matter"
            )
    if not re.fullmatch("[A-Z]{2}|", given.get("phone_region", "")):
        raise UserError(f"{path}: phone_region: expected two capital letters as in RU, got {given['phone_region']!r}")
    if foreign := [letter for letter in given["alphabet"] if not in_script(letter, given["script"])]:
        raise UserError(f"{path}: alphabet: '{foreign[0]}' is not a letter of the {given['script']} script")
    own = folder / f"{code}.blocked.txt"
    lists = [*([own] if own.is_file() else []), *block_lists]
    values = {key: value if isinstance(value, str) else tuple(value) for key, value in given.items()}
    return Language(code, **values, blocked=tuple(entry for file in lists for entry in read_block_list(file)))


def read_block_list(path: Path) -> list[str]:
    """The entries of a block list: one a line; what follows a '#' is a comment.

    Raises:
        UserError: no such file, not UTF-8, or a line without a letter or digit.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such block list") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    entries = [line.split("#")[0].strip() for line in lines]
    for number, entry in enumerate(entries, start=1):
        if entry and not words(entry):
            raise UserError(f"{path}:{number}: '{entry}' has no word; the rule compares words")
    return [entry for entry in entries if entry]


def words(text: str) -> list[str]:
    """The words of a text as block lists compare them: lower case, ё as е, whatever stands between them."""
    return _WORD.findall(text.lower().replace("ё", "е"))


def in_script(letter: str, script: str) -> bool:
    """Whether a character is a letter of a script, by its Unicode name (`CYRILLIC SMALL LETTER A`)."""
    return letter.isalpha() and unicodedata.name(letter, "").startswith(script.upper() + " ")


def script_share(text: str, script: str) -> float:
    """Share of the text's letters that are of the script; 0 for a text without letters."""
    ours = _script_table(script)[_code_points(text)]
    letters = int(np.count_nonzero(ours))
    return int(np.count_nonzero(ours == 2)) / letters if letters else 0.0


def character_kinds(text: str) -> np.ndarray:
    """uint8 array: LETTER (also the stress mark on one), SPACE or OTHER for each of the text's characters."""
    return _kind_table()[_code_points(text)]


def probability(text: str, code: str) -> float:
    """How probable it is that a text is in the language, by its first TELLING_CHARS characters; 1 for an unknown language.

    py3langid, with all of its 140 languages. On the texts described at TELLING_CHARS it is right in 0.999 at 340
    microseconds a text; lingua with eight languages to choose from in 0.993 at 450, with its 75 in 0.985 at 840 (it takes Russian
    pages with some English in them for English). Its model comes with the package: nothing is downloaded.
    """
    identifier = _identifier()
    if code not in identifier.labels:
        return 1.0
    return dict(identifier.rank(text.strip()[:TELLING_CHARS]))[code]


@functools.cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second and a half, which few stages need

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@functools.cache
def _kind_table() -> np.ndarray:
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        kinds[point] = LETTER if character.isalpha() else SPACE if character.isspace() else OTHER
    kinds[0x301] = LETTER
    return kinds


@functools.cache
def _script_table(script: str) -> np.ndarray:
    """2 for the script's letters, 1 for others, 0 for what is no letter."""
    table = (_kind_table() == LETTER).astype(np.uint8)
    table[0x301] = 0
    for point in np.flatnonzero(table).tolist():
        table[point] += in_script(chr(point), script)
    return table


def _either(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)"
