"""Named rules that throw a document out before any model looks at it: each a pure function of the text.

A rule measures something and compares it with a limit from the settings; the reason it gives says what is wrong.
"""

import re
from collections import Counter
from collections.abc import Mapping

from lib import cli, languages, paragraphs
from lib.errors import UserError
from lib.languages import Language

# In the order in which they are tried: the cheap and certain ones first. All are 'no more than', but these two.
RULES = ("too_short", "mojibake", "low_script", "symbols", "boilerplate", "repeated_lines", "repetition")
AT_LEAST = ("too_short", "low_script")
WORD_RUN = 4  # words in the runs whose repetition counts

# The continuation bytes of UTF-8 as Windows-1251 and Windows-1252 (or Latin-1) show them.
_IN_1251 = re.escape(bytes(range(0x80, 0xC0)).decode("cp1251", "ignore"))
_IN_1252 = re.escape(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")) + "\u0080-\u00bf"
# UTF-8 read as Windows-1251 («РџСЂРёРІРµС‚») or as Windows-1252 («ÐŸÑ€Ð¸Ð²ÐµÑ‚»): two such pairs in a row do not
# occur in proper text. Windows-1251 read as Latin-1 («Ïðèâåò»): nor do four accented letters. Then control characters
# that no text needs, and the replacement character.
_MISREAD = re.compile(
    f"(?:[РС][{_IN_1251}]){{2,}}|(?:[ÐÑÃÂ][{_IN_1252}]){{2,}}|[À-ÿ]{{4,}}|[\u0080-\u0084\u0086-\u009f\ufffd]"
)
# «оПХБЕР»: KOI8-R read as Windows-1251 swaps the cases.
_SWAPPED_CASE = re.compile(r"\b[а-яё][А-ЯЁ]{2,}\b")
_WORD = re.compile(r"\w+")


def check(limits: Mapping[str, float]) -> None:
    """Refuse limits of unknown rules.

    Raises:
        UserError: a name is not a rule's.
    """
    for name in limits:
        if name not in RULES:
            raise UserError(f"rules: unknown rule '{name}'{cli.closest(name, RULES)} (known: {', '.join(RULES)})")


def broken(text: str, language: Language, limits: Mapping[str, float]) -> str | None:
    """The reason of the first rule that the text breaks, or None. A rule without a limit is not tried."""
    for name in RULES:
        if name not in limits:
            continue
        value = measure(name, text, language)
        if value < limits[name] if name in AT_LEAST else value > limits[name]:
            return reason(name, language)
    return None


def reason(rule: str, language: Language) -> str:
    """The rule's name in removed documents: `low_script` names the script, as in `low_cyrillic`."""
    return f"low_{language.script.lower()}" if rule == "low_script" else rule


def measure(rule: str, text: str, language: Language) -> float:
    """What a rule compares with its limit: characters for `too_short`, a share from 0 to 1 for the others."""
    if rule == "too_short":
        return len(text.strip())
    if rule == "low_script":
        return languages.script_share(text, language.script)
    if rule == "boilerplate":
        return boilerplate_share(text, language.boilerplate_pattern)
    return {
        "mojibake": mojibake_share,
        "symbols": symbol_share,
        "repeated_lines": repeated_line_share,
        "repetition": repetition_share,
    }[rule](text)


def symbol_share(text: str) -> float:
    """Share of visible characters that are neither letters nor marks on them."""
    visible = "".join(text.split())
    return sum(not (c.isalpha() or c == "\u0301") for c in visible) / len(visible) if visible else 1.0


def boilerplate_share(text: str, pattern: re.Pattern[str]) -> float:
    """Share of the characters in paragraphs in which a boilerplate pattern is found."""
    if not pattern.search(text):
        return 0.0
    pieces = paragraphs.split(text)[0]
    total = sum(map(len, pieces))
    return sum(len(piece) for piece in pieces if pattern.search(piece)) / total if total else 0.0


def repeated_line_share(text: str) -> float:
    """Share of the characters in lines that have occurred before in the text."""
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    total = sum(len(line) * count for line, count in lines.items())
    return sum(len(line) * (count - 1) for line, count in lines.items()) / total if total else 0.0


def repetition_share(text: str) -> float:
    """Share of the runs of four words that have occurred before in the text."""
    words = _WORD.findall(text.lower())
    runs = len(words) - WORD_RUN + 1
    if runs < 1:
        return 0.0
    return 1 - len(set(zip(*(words[start:] for start in range(WORD_RUN)), strict=False))) / runs


def mojibake_share(text: str) -> float:
    """Share of the visible characters that look like text read in a wrong encoding."""
    visible = sum(map(len, text.split()))
    spoilt = sum(len(match.group()) for pattern in (_MISREAD, _SWAPPED_CASE) for match in pattern.finditer(text))
    return spoilt / visible if visible else 0.0
