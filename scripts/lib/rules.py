"""Named rules that throw a document out before any model looks at it: each a pure function of the text.

A rule measures something and compares it with a limit from the settings; the reason it gives says what is wrong. Nothing
here is one language's: what depends on the language comes from its file (lib/languages.py).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from lib import cli, languages, paragraphs
from lib.errors import UserError
from lib.languages import Language

# In the order in which they are tried: the cheap ones first, and mojibake before low_script, which it would be taken for.
# All are 'no more than', but four.
RULES = (
    "too_short",
    "too_long",
    "mojibake",
    "low_script",
    "symbols",
    "repeated_lines",
    "list",
    "code",
    "blocked",
    "repetition",
    "repeated_phrase",
    "boilerplate",
    "few_stop_words",
    "wrong_language",
)
AT_LEAST = ("too_short", "low_script", "few_stop_words", "wrong_language")
WORD_RUN = 4  # words in the runs whose repetition counts
PHRASE = 10  # words in the phrase whose copies are searched for
# What the rules about repetition look at of a text: 50 MB of one document need not fill the memory.
MAX_CHARS = 2_000_000

# The continuation bytes of UTF-8 as Windows-1251 and Windows-1252 (or Latin-1) show them.
_IN_1251 = re.escape(bytes(range(0x80, 0xC0)).decode("cp1251", "ignore"))
_IN_1252 = re.escape(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")) + "\u0080-\u00bf"
# What encodings make of Cyrillic and of Latin letters with accents; every pattern begins with a set of few letters, which
# Python finds ten times as fast as the alternatives of one pattern.
_MISREAD = tuple(
    map(
        re.compile,
        (
            # UTF-8 read as Windows-1251 («РџСЂРёРІРµС‚») or as Windows-1252 («ÐŸÑ€Ð¸Ð²ÐµÑ‚»): two such pairs in a row do
            # not occur in proper text.
            f"[РС][{_IN_1251}](?:[РС][{_IN_1251}])+",
            f"[ÐÑÃÂ][{_IN_1252}](?:[ÐÑÃÂ][{_IN_1252}])+",
            # Windows-1251 read as Latin-1 («Ïðèâåò»): nor do four accented letters.
            "[À-ÿ]{4,}",
            # Control characters that no text needs, and the replacement character.
            "[\x00-\x08\x0b\x0e-\x1b\x7f-\x84\x86-\x9f\ufffd]+",
            # «оПХБЕР»: KOI8-R read as Windows-1251 swaps the cases.
            "[Ѐ-Я](?<=\\b[а-џ].)[Ѐ-Я]+\\b",
        ),
    )
)
_WORD = re.compile(r"\w+")
# A bullet, a number or a letter with a bracket or a point. Not the long dash, with which a line of dialogue begins.
_ITEM = re.compile(r"^[ \t]*(?:[-*+•·▪◦‣○●■–][ \t]|\(?(?:\d{1,3}|[^\W\d_])[.)][ \t]).*$", re.MULTILINE)
# Lines that programs and markup are made of: how they end, how they begin, the operators they hold (text in backquotes is
# a mention). Looked at on a textbook of JavaScript, where the rest is prose, and on 37 MB of Russian classics.
_CODE = re.compile(
    r"^(?:"
    r".*(?:[)\]}\"'`\d+-];|[{}])[ \t]*(?://.*)?"
    r"|[ \t]*(?:\$[ \t]|>>>[ \t]|#[ \t]*(?:include|define|ifdef|endif)\b|[})\]]|//|/\*|\*/|<!|<\?|@\w+$|</?\w[^>]*>(?=[ \t]*$|.*</)).*"
    r"|[ \t]*(?:\w+[ \t])?[\w.$\[\]]+[ \t]*[-+*|&]?=[ \t]*[^=\s].*"
    r"|[ \t]*[\w$.]+\(.*\)[;,]?"
    r"|[ \t]*(?:import|from|def|class|function|return|async|await|public|private|static)[ \t]+[\w.$]+[ \t]*(?:[({\[=;*+<].*|:)"
    r"|[ \t]*(?:if|elif|for|while|with|except)\b.*[(\[=<>].*:"
    r"|[^`\n]*[\w)\]\s](?:[=!]==?|[<>+-]=|=>|&&|\|\|)[\s\w($\"'].*"
    r")$",
    re.MULTILINE,
)


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
    return f"low_{'_or_'.join(language.scripts).lower()}" if rule == "low_script" else rule


def measure(rule: str, text: str, language: Language) -> float:
    """What a rule compares with its limit.

    Characters for `too_short` and `too_long`, the number of different entries found for `blocked`, the probability of the
    document's own language for `wrong_language`, a share from 0 to 1 for the others.
    """
    return _MEASURES[rule](text, language)


def measures(text: str, language: Language, limits: Mapping[str, float]) -> dict[str, float]:
    """What every rule with a limit measures, by the rule's name: to explain a decision, or to choose a limit."""
    return {name: measure(name, text, language) for name in RULES if name in limits}


def symbol_share(text: str) -> float:
    """Share of visible characters that are neither letters nor marks on them (the stress mark of dictionaries)."""
    kinds = languages.character_kinds(text)
    visible = len(kinds) - int(np.count_nonzero(kinds == languages.SPACE))
    return 1 - int(np.count_nonzero(kinds == languages.LETTER)) / visible if visible else 1.0


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


def list_share(text: str) -> float:
    """Share of the visible characters in lines that begin with a bullet or a number."""
    return _share_of_matches(_ITEM, text)


def code_share(text: str) -> float:
    """Share of the visible characters in lines that look like a program or markup."""
    return _share_of_matches(_CODE, text)


def blocked_entries(text: str, language: Language) -> int:
    """How many different entries of the language's block lists the text has, as whole words, whatever their case."""
    if not language.blocked_by_first_word:
        return 0
    words = languages.words(text)
    firsts = set(words) & language.blocked_by_first_word.keys()
    if not firsts:
        return 0
    found = set()
    for place, word in enumerate(words):
        if word in firsts:
            for entry in language.blocked_by_first_word[word]:
                if tuple(words[place : place + len(entry)]) == entry:
                    found.add(entry)
    return len(found)


def stop_word_share(text: str, language: Language) -> float:
    """Share of the words that are words of grammar, of which lists and tables have few; 1 for a language without stop words."""
    if not language.grammar:
        return 1.0
    words = languages.words(text[:MAX_CHARS])
    return sum(word in language.grammar for word in words) / len(words) if words else 0.0


def repetition_share(text: str) -> float:
    """Share of the runs of four words that have occurred before in the text."""
    words = _first_words(text)
    runs = len(words) - WORD_RUN + 1
    if runs < 1:
        return 0.0
    return 1 - len(set(zip(*(words[start:] for start in range(WORD_RUN)), strict=False))) / runs


def repeated_phrase_share(text: str) -> float:
    """Share of the characters of words in copies of ten words that have occurred before (Gopher's duplicate n-grams)."""
    words = _first_words(text)
    phrases = max(0, len(words) - PHRASE + 1)
    if len(set(zip(*(words[start:] for start in range(PHRASE)), strict=False))) == phrases:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated, place = 0, 0
    while place + PHRASE <= len(words):
        phrase = tuple(words[place : place + PHRASE])
        if phrase in seen:
            repeated += sum(map(len, phrase))
            place += PHRASE
        else:
            seen.add(phrase)
            place += 1
    return repeated / total if (total := sum(map(len, words))) else 0.0


def mojibake_share(text: str) -> float:
    """Share of the visible characters that look like text read in a wrong encoding."""
    visible = sum(map(len, text.split()))
    spoilt = sum(len(match.group()) for pattern in _MISREAD for match in pattern.finditer(text))
    return spoilt / visible if visible else 0.0


def _first_words(text: str) -> list[str]:
    return _WORD.findall(text[:MAX_CHARS].lower())


def _share_of_matches(pattern: re.Pattern[str], text: str) -> float:
    visible = sum(map(len, text.split()))
    found = sum(sum(map(len, line.split())) for line in (match.group() for match in pattern.finditer(text)))
    return found / visible if visible else 0.0


_MEASURES: dict[str, Callable[[str, Language], float]] = {
    "too_short": lambda text, language: len(text.strip()),
    "too_long": lambda text, language: len(text),
    "low_script": lambda text, language: languages.script_share(text, *language.scripts),
    "symbols": lambda text, language: symbol_share(text),
    "mojibake": lambda text, language: mojibake_share(text),
    "repeated_lines": lambda text, language: repeated_line_share(text),
    "list": lambda text, language: list_share(text),
    "code": lambda text, language: code_share(text),
    "blocked": blocked_entries,
    "repetition": lambda text, language: repetition_share(text),
    "repeated_phrase": lambda text, language: repeated_phrase_share(text),
    "boilerplate": lambda text, language: (
        boilerplate_share(text, language.boilerplate_pattern) if language.has_boilerplate(text) else 0.0
    ),
    "few_stop_words": lambda text, language: stop_word_share(text, language),
    "wrong_language": lambda text, language: languages.probability(text, language.code, language.told_with),
}
