"""What translating has to know about a language, read from `configs/languages/translate/<code>.yaml`.

Apart from the language's own file, which the filter and the tokenizer depend on: a phrase added here retrains nothing.
"""

import dataclasses
import functools
import re
from pathlib import Path

from lib import cli, languages, placeholders
from lib.errors import UserError

FOLDER = languages.FOLDER / "translate"


@dataclasses.dataclass(frozen=True)
class Phrases:
    """A language's file, checked.

    Attributes:
        language: the language.
        refusals: regular expressions of how a model begins to refuse, lower case.
        option_words: words right before the letter of an option.
        answer_words: the same, where punctuation or the end has to follow the letter.
        answer_request: a sentence that asks for an answer in the language.
    """

    language: languages.Language
    refusals: tuple[str, ...]
    option_words: tuple[str, ...]
    answer_words: tuple[str, ...]
    answer_request: str

    @functools.cached_property
    def _refusal(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.refusals) or "(?!)")

    def refuses(self, text: str) -> bool:
        """Whether a text begins like a model's refusal."""
        plain = re.sub(r"\A\W+", "", text[:300]).lower().replace("ё", "е").replace("\u2019", "'")
        return bool(self._refusal.match(plain))

    def mask(self, text: str, first: int = 1) -> placeholders.Masked:
        """See `placeholders.mask`."""
        words = {"option_words": self.option_words, "answer_words": self.answer_words}
        return placeholders.mask(text, first=first, **words)


def load(code: str, folder: Path | None = None) -> Phrases:
    """What there is to know about a language.

    Raises:
        UserError: no settings for the language, an unknown or missing key, a wrong type, a bad pattern.
    """
    language = languages.load(code)
    path = (FOLDER if folder is None else folder) / f"{code}.yaml"
    if not path.is_file():
        raise UserError(f"no settings for translating '{code}': write {path} after the example of its neighbours")
    given = cli.load_yaml(path)
    names = [field.name for field in dataclasses.fields(Phrases) if field.name != "language"]
    for key in given:
        if key not in names:
            raise UserError(f"{path}: unknown setting '{key}'{cli.closest(str(key), names)}")
    for key in names:
        value = given.get(key)
        if key == "answer_request":
            if not (isinstance(value, str) and value):
                raise UserError(f"{path}: {key}: expected text, got {value!r}")
        elif not (isinstance(value, list) and all(isinstance(text, str) and text for text in value)):
            raise UserError(f"{path}: {key}: expected a list of texts, got {value!r}")
    for pattern in given["refusals"]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: refusals: '{pattern}' is not a regular expression ({error})") from None
        if (plain := re.sub(r"\\.", "", pattern)) != plain.lower():
            raise UserError(f"{path}: refusals: '{pattern}': write it in lower case; the text's case does not matter")
    lists = {key: tuple(given[key]) for key in names if key != "answer_request"}
    return Phrases(language, answer_request=given["answer_request"], **lists)
