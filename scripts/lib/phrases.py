"""What translating has to know about a language, read from `configs/languages/translate/<code>.yaml`.

Apart from the language's own file, which the filter and the tokenizer depend on: a phrase added here retrains nothing.
"""

import dataclasses
import functools
import re
from pathlib import Path

from lib import languages, placeholders
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
    given = languages.read_fields(path, [field for field in dataclasses.fields(Phrases) if field.name != "language"])
    languages.check_patterns(path, "refusals", given["refusals"])
    return Phrases(language, **given)
