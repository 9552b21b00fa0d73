"""Paragraphs: the pieces of a text between line breaks, what separates them, and their form for comparison."""

import re
import unicodedata

# Soft hyphen, zero-width characters, byte order mark and the stress mark of dictionaries: invisible or optional.
_DROPPED = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff\u0301"))
_BREAKS = re.compile(r"(\n+)")


def split(text: str) -> tuple[list[str], list[str]]:
    """(paragraphs, gaps): `gaps[i]` comes before paragraph i, `gaps[-1]` after the last one.

    Blank lines belong to the gaps, so no paragraph is empty, and interleaving the two gives `text` back exactly.
    """
    paragraphs: list[str] = []
    gaps = [""]
    for piece in _BREAKS.split(text):
        if piece.strip():
            paragraphs.append(piece)
            gaps.append("")
        else:
            gaps[-1] += piece
    return paragraphs, gaps


def join(paragraphs: list[str], gaps: list[str], kept: list[bool]) -> str:
    """The text without the paragraphs that are not `kept`; with all of them kept, the very text that was split.

    Where paragraphs go, the longest of the gaps around them stays (a blank line wins over a line break).
    """
    pieces = []
    gap = ""
    for paragraph, before, stays in zip(paragraphs, gaps[:-1], kept, strict=True):
        gap = max(gap, before, key=len)
        if stays:
            pieces += [gap if pieces else gaps[0], paragraph]
            gap = ""
    return "".join(pieces) + gaps[-1] if pieces else ""


def normalise(paragraph: str) -> str:
    """The form in which paragraphs are compared: NFKC, lower case, ё as е, white space collapsed.

    й and digits stay: «й» is another letter than «и», and texts that differ in a number differ. Stress marks and
    invisible characters go.
    """
    text = unicodedata.normalize("NFKC", paragraph).translate(_DROPPED).lower().replace("ё", "е")
    return " ".join(text.split())
