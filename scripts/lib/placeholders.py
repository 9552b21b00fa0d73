"""What a translation must not touch, replaced by placeholders and put back: code, formulas, addresses, markup, options, numbers.

A placeholder is `⟦m3=42⟧`: a number of its own and, for the translator's grammar, what stands there: short things as they are,
others by their kind (`⟦m4=code⟧`), so that no backslash or quote of theirs can spoil the JSON that they travel in. What is put
back is found by the number alone. Brackets of this kind that the text has itself are masked too, so nothing can be mistaken.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence

# What a `$` may be: no price (`from $5 to $10`), as Pandoc tells them apart.
_FORMULA = r"""
    \$\$(?s:.{1,5000}?)\$\$ | \\\[(?s:.{1,5000}?)\\\] | \\\((?s:.{1,5000}?)\\\)
    | \\begin\{(?P<environment>\w+\*?)\}(?s:.{0,5000}?)\\end\{(?P=environment)\}
    | (?<![\\\w$])\$(?![\s$]|\d[\d.,]*[ ]+[A-Za-z]{2,})[^$\n]{0,500}?(?<=[^\s\\])\$(?!\d)
    | \\[A-Za-z]+(?:\{[^{}\n]*\})+(?:[_^](?:\{[^{}\n]*\}|\w))*
    | \\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|pi|rho|sigma|tau|phi|psi|omega|Delta|Sigma|Omega|times|cdot|pm|leq?
      |geq?|neq?|approx|infty|int|sum|prod|partial|nabla|to|rightarrow|in|sqrt|circ)(?![A-Za-z])"""
_CODE = r"""
    ^[ \t]*(?P<fence>`{3,}|~{3,})[^`\n]*\n(?s:.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)
    | <(?P<tag>pre|code)\b[^<>]*>(?s:.{0,9999}?)</(?P=tag)>
    | (?P<ticks>`+)(?!`)[^\n]{1,500}?(?<!`)(?P=ticks)(?!`)"""
_URL = r"""
    (?:(?:https?|ftp)://|\bwww\.)[^\s<>"'`⟦⟧]+(?<![.,;:!?)\]}»…*])
    | (?<![\w.+%-])\w[\w.+%-]*@(?:[^\W_][\w-]*\.)+[^\W\d_]{2,}"""
_MARKUP = r"</?[A-Za-z][\w:-]*(?:\s[^<>\n]*)?/?> | <\|[^|<>\s]+\|> | \{\{[^{}\n]*\}\} | \{[A-Za-z_]\w*\}"
_NUMBER = r"(?:[-+\u2212]?\d+(?:[.,:/]\d+)*(?:[eE][-+]?\d+(?!\w))?)"
# A letter before a number makes them one name (`H2O`, `COVID-19`). An expression or a list in brackets is one thing.
_NUMBERS = rf"""
    [\[({{]\s*{_NUMBER}(?:\s*[,;]\s*{_NUMBER})+\s*[\])}}]
    | (?<!\w)(?<![^\W\d_]-){_NUMBER}(?:[ ]?[+*/×·÷=<>≤≥^][ ]?{_NUMBER} | [ ][-\u2212][ ]{_NUMBER})*"""
KINDS = ("bracket", "code", "formula", "address", "markup", "option", "number")
_WORDED = ("lettered", "lettered_i", "answered")  # groups: letters that a word before them makes options
SHOWN_CHARS = 24  # of what stands in a placeholder itself; a guess
_SHOWN = ("markup", "option", "number")
# м is what a translator into Russian may make of m.
PLACEHOLDER = re.compile(r"⟦\s*[mм]\s*(\d{1,9})\s*(?:=([^⟦⟧]*))?⟧")


@dataclasses.dataclass(frozen=True)
class Masked:
    """A text with placeholders.

    Attributes:
        text: the text as a translator gets it.
        held: what the placeholders stand for, by their numbers.
        kinds: how many there are of each of `KINDS`.
    """

    text: str
    held: dict[int, str]
    kinds: Counter[str] = dataclasses.field(default_factory=Counter, compare=False)


def mask(text: str, *, first: int = 1, option_words: Sequence[str] = (), answer_words: Sequence[str] = ()) -> Masked:
    """The text with placeholders, numbered from `first`.

    Args:
        text: any text.
        first: the first placeholder's number; texts that are translated together share no number.
        option_words: words of the text's language right before the letter of an option (`option B`).
        answer_words: the same, but the letter counts only before punctuation or at the end (`the answer is B.`).
    """
    held: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    pieces, end = [], 0
    for match in _pattern(tuple(option_words), tuple(answer_words)).finditer(text):
        # The word before an option's letter is part of the match but not of what is masked.
        group = next(group for group in (*KINDS, *_WORDED) if match.start(group) >= 0)
        kind = "option" if group in _WORDED else group
        start, stop = match.span(group)
        number = first + len(held)
        held[number] = text[start:stop]
        kinds[kind] += 1
        plain = kind in _SHOWN and stop - start <= SHOWN_CHARS and not re.search(r'["\\\n]', held[number])
        pieces += [text[end:start], f"⟦m{number}={held[number] if plain else kind}⟧"]
        end = stop
    return Masked("".join([*pieces, text[end:]]), held, kinds)


def restore(text: str, held: dict[int, str]) -> str:
    """A translation with what its placeholders stand for.

    Raises:
        ValueError: a placeholder is missing, repeated, damaged or of another text; says which.
    """
    counts: Counter[int] = Counter()
    for match in PLACEHOLDER.finditer(text):
        number, shown = int(match[1]), match[2]
        counts[number] += 1
        if number not in held:
            raise ValueError(f"the marker {match[0]} does not belong here")
        # A translator that puts other digits there has taken one marker for another.
        digits = re.sub(r"\D", "", shown or "")
        if digits and digits != re.sub(r"\D", "", held[number]):
            raise ValueError(f"the marker {match[0]} stands for {held[number]}")
    for number in held:
        if counts[number] != 1:
            how = "is missing" if not counts[number] else f"occurs {counts[number]} times instead of once"
            raise ValueError(f"the marker ⟦m{number}...⟧ {how}")
    if left := re.search("[⟦⟧]", PLACEHOLDER.sub("", text)):
        raise ValueError(f"a bracket {left[0]} that belongs to no marker")
    return PLACEHOLDER.sub(lambda match: held[int(match[1])], text)


def restore_known(text: str, held: dict[int, str]) -> str:
    """The same for a damaged translation: known placeholders are put back, all else stays as it is."""
    return PLACEHOLDER.sub(lambda match: held.get(int(match[1]), match[0]), text)


def prose(text: str) -> str:
    """What is left of a masked text without its placeholders."""
    return PLACEHOLDER.sub(" ", text)


def letters(text: str) -> int:
    """How many letters a masked text has outside its placeholders."""
    return sum(character.isalpha() for character in prose(text))


@functools.cache
def _pattern(option_words: tuple[str, ...], answer_words: tuple[str, ...]) -> re.Pattern[str]:
    """All kinds as one pattern; of those that begin at the same place the first counts."""

    def either(words: tuple[str, ...]) -> str:
        longest_first = sorted(words, key=len, reverse=True)
        return "|".join(re.escape(word) for word in longest_first) or "(?!)"

    # Names of a program's options (`--verbose`, `--lr=0.1`, `-v`), and letters that name an answer: `(B)`, `B.` at a line's
    # beginning, and after the words.
    option = r"""
        (?<![^\s"'(\[|,/])(?:--[a-z][\w-]*(?:=[^\s"'⟦⟧]*[^\s"'⟦⟧.,;:!?)])?|-[A-Za-z](?![\w-]))
        | (?<=\()[A-J](?=\)) | (?:(?<=\n)|(?<![\s\S]))[A-J](?=[.):][ \t])
        | (?<=\s)[A-J](?=\)(?:\s|$))"""
    worded = rf"""
        \b(?i:{either(option_words)})\s+\(?(?:(?P<lettered>[A-HJ])(?!\w)|(?P<lettered_i>I)(?=[.,;)]))
        | \b(?i:{either(answer_words)})\s*\(?(?P<answered>[A-J])(?=\s*(?:[.,;)]|$))"""
    parts = {"bracket": "[⟦⟧]", "code": _CODE, "formula": _FORMULA, "address": _URL, "markup": _MARKUP}
    kinds = [rf"(?P<{name}>{part})" for name, part in parts.items()]
    return re.compile("|".join([*kinds, worded, rf"(?P<option>{option})", rf"(?P<number>{_NUMBERS})"]), re.M | re.X)
