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
        scripts: the scripts it is written in, as Unicode names their letters (Cyrillic, Latin, Greek, Georgian, ...).
        alphabet: its lower-case letters in order, one script's after another's.
        example: the sentence that comparisons of tokenizers show.
        boilerplate: regular expressions, case ignored; a paragraph in which one is found says nothing of its own.
        menu: texts of a site's navigation, to spoil text with.
        spam: sentences no corpus should hold, to spoil text with.
        phone_region: the country (ISO 3166, two letters) whose telephone numbers are written without a prefix.
        phone_words: beginnings of words that stand before telephone numbers.
        stop_words: words of grammar, of which ordinary text has many; none where nobody has listed them.
        latin_words: lower-case words that a language in other letters leaves in Latin ones.
        told_with: codes of languages that short texts can't be told from; what is said of them counts for this one.
        blocked: entries of block lists: words, phrases, domains.
    """

    code: str
    name: str
    native: str
    scripts: tuple[str, ...]
    alphabet: str
    example: str
    boilerplate: tuple[str, ...]
    menu: tuple[str, ...]
    spam: tuple[str, ...]
    phone_region: str = ""
    phone_words: tuple[str, ...] = ()
    stop_words: tuple[str, ...] = ()
    latin_words: tuple[str, ...] = ()
    told_with: tuple[str, ...] = ()
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
    def grammar(self) -> frozenset[str]:
        """The stop words as `words` gives a text's."""
        return frozenset(word for entry in self.stop_words for word in words(entry))

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
    fields = [field for field in dataclasses.fields(Language) if field.name not in ("code", "blocked")]
    given = read_fields(path, fields)
    check_patterns(path, "boilerplate", given["boilerplate"])
    if not re.fullmatch("[A-Z]{2}|", given.get("phone_region", "")):
        raise UserError(f"{path}: phone_region: expected two capital letters as in RU, got {given['phone_region']!r}")
    if foreign := [letter for letter in given["alphabet"] if not in_script(letter, *given["scripts"])]:
        raise UserError(f"{path}: alphabet: '{foreign[0]}' is not a letter of {' or '.join(given['scripts'])} script")
    own = folder / f"{code}.blocked.txt"
    lists = [*([own] if own.is_file() else []), *block_lists]
    return Language(code, **given, blocked=tuple(entry for file in lists for entry in read_block_list(file)))


def read_fields(path: Path, fields: Sequence[dataclasses.Field]) -> dict[str, str | tuple[str, ...]]:
    """A language's YAML, each key checked against the field of its name: text, or a list of texts as a tuple.

    Raises:
        UserError: an unknown, missing or mistyped key.
    """
    given = cli.load_yaml(path)
    hints = {field.name: field.type for field in fields}
    for key in given:
        if key not in hints:
            raise UserError(f"{path}: unknown setting '{key}'{cli.closest(str(key), hints)}")
    if missing := [f.name for f in fields if f.name not in given and f.default is dataclasses.MISSING]:
        raise UserError(f"{path}: missing {', '.join(missing)}")
    for key, value in given.items():
        if hints[key] is str and not (isinstance(value, str) and value):
            raise UserError(f"{path}: {key}: expected text, got {value!r}")
        if hints[key] is not str and not (isinstance(value, list) and all(isinstance(t, str) and t for t in value)):
            raise UserError(f"{path}: {key}: expected a list of texts, got {value!r}")
    return {key: value if isinstance(value, str) else tuple(value) for key, value in given.items()}


def check_patterns(path: Path, key: str, patterns: Iterable[str]) -> None:
    """Refuse what is no regular expression, and one with capitals: they are searched for in lower-case text.

    Raises:
        UserError: naming the file, its key and the pattern.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: {key}: '{pattern}' is not a regular expression ({error})") from None
        if (plain := re.sub(r"\\.", "", pattern)) != plain.lower():
            raise UserError(f"{path}: {key}: '{pattern}': write it in lower case; the text's case does not matter")


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


def in_script(letter: str, *scripts: str) -> bool:
    """Whether a character is a letter of one of the scripts, by its Unicode name (`CYRILLIC SMALL LETTER A`)."""
    return letter.isalpha() and unicodedata.name(letter, "").startswith(tuple(f"{s.upper()} " for s in scripts))


def script_share(text: str, *scripts: str) -> float:
    """Share of the text's letters that are of one of the scripts; 0 for a text without letters."""
    ours = _script_table(*scripts)[_code_points(text)]
    letters = int(np.count_nonzero(ours))
    return int(np.count_nonzero(ours == 2)) / letters if letters else 0.0


def character_kinds(text: str) -> np.ndarray:
    """uint8 array: LETTER (also the stress mark on one), SPACE or OTHER for each of the text's characters."""
    return _kind_table()[_code_points(text)]


def probability(text: str, code: str, told_with: Sequence[str] | None = None) -> float:
    """How probable it is that a text is in the language, by its first TELLING_CHARS characters; 1 for an unknown language.

    py3langid, with all of its 140 languages. On the texts described at TELLING_CHARS it is right in 0.999 at 340
    microseconds a text; lingua with eight languages to choose from in 0.993 at 450, with its 75 in 0.985 at 840 (it takes Russian
    pages with some English in them for English). Its model comes with the package: nothing is downloaded.

    Args:
        text: any text.
        code: ISO 639 code.
        told_with: codes whose probabilities count too (`Language.told_with`); if not given, those of the language's file.
    """
    identifier = _identifier()
    if code not in identifier.labels:
        return 1.0
    found = dict(identifier.rank(text.strip()[:TELLING_CHARS]))
    meant = {code, *(_told_with(code) if told_with is None else told_with)}
    return float(min(1.0, sum(found.get(each, 0.0) for each in meant)))


@functools.cache
def _told_with(code: str) -> tuple[str, ...]:
    return load(code).told_with if (FOLDER / f"{code}.yaml").is_file() else ()


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
def _script_table(*scripts: str) -> np.ndarray:
    """2 for the scripts' letters, 1 for others, 0 for what is no letter."""
    table = (_kind_table() == LETTER).astype(np.uint8)
    table[0x301] = 0
    for point in np.flatnonzero(table).tolist():
        table[point] += in_script(chr(point), *scripts)
    return table


def _either(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)"
