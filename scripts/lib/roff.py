"""Manual pages as paragraphs: the part of roff's `man` macros that holds prose.

Code (.nf, .EX), tables (.TS) and definitions are left out, tagged paragraphs become `tag: text`.
"""

import re
from collections.abc import Collection

SPECIAL = {
    "aq": "'", "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "Fo": "«", "Fc": "»", "Bq": "„", "fo": "‹", "fc": "›",
    "em": "—", "en": "–", "hy": "-", "mi": "−", "-": "-", "ha": "^", "ti": "~", "ga": "`", "rs": "\\", "at": "@", "sh": "#",
    "bu": "•", "ci": "○", "co": "©", "rg": "®", "tm": "™", "de": "°", "mu": "×", "di": "÷", "+-": "±", "->": "→", "<-": "←",
    "<=": "≤", ">=": "≥", "!=": "≠", "==": "≡", "if": "∞", "sc": "§", "dg": "†", "Eu": "€", "Po": "£", "ct": "¢", "12": "½",
    "14": "¼", "34": "¾", "*m": "μ", "*p": "π", "*a": "α", "ss": "ß", "ba": "|", "br": "|", "ul": "_", "sl": "/", "lB": "[",
    "rB": "]", "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "pc": "·", "sq": "□", "eq": "=", "pl": "+", "Do": "$", "OK": "✓",
    "ua": "↑", "da": "↓", "su": "⊂", "mo": "∈", "S1": "¹", "S2": "²", "S3": "³", "fm": "′",
}  # fmt: skip
STRINGS = {"lq": "“", "rq": "”", "R": "®", "S": "", "Tm": "™", "Aq": "'"}
ESCAPE = re.compile(
    r"""\\(?:
      "(?P<comment>.*)
    | \[(?P<named>[^\]]*)\]
    | \((?P<two>..)
    | \*(?:\[(?P<long_string>[^\]]*)\]|\((?P<two_string>..)|(?P<string>.))
    | [fFmMk](?:\[[^\]]*\]|\(..|.)
    | s(?:\[[^\]]*\]|'[^']*'|[-+]?\(?\d{1,2})
    | n(?:\[[^\]]*\]|[-+]?\(..|[-+]?.)
    | [hvwlLDobxXZABCNSRHY]'[^']*'
    | z(?=.)
    | (?P<one>.)
    )""",
    re.VERBOSE,
)
ONE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": " ", "'": "'", "`": "`", "_": "_", ".": "."}
ALTERNATING = {"BR", "RB", "BI", "IB", "IR", "RI", "SB", "SM", "B", "I"}
BREAKS = {"PP", "P", "LP", "RS", "RE", "sp", "br", "HP", "in", "ti", "ce", "SY", "YS", "ne", "bp"}
CODE = {
    "nf": "fi",
    "EX": "EE",
    "TS": "TE",
    "SY": "YS",
    "de": ".",
    "ig": ".",
    "EQ": "EN",
    "PS": "PE",
    "DS": "DE",
    "Vb": "Ve",
}
ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')


def is_mdoc(source: str) -> bool:
    """Whether a page uses BSD's mdoc macros, which this module does not read."""
    return re.search(r"^\.\s*Dd\b", source, re.MULTILINE) is not None


def paragraphs(source: str, drop_sections: Collection[str] = ()) -> list[str]:
    """The prose of a manual page in reading order, section titles among it.

    Args:
        source: the page, decoded.
        drop_sections: titles (in lower case) of sections to leave out, e.g. 'see also'.
    """
    page = _Page(frozenset(drop_sections))
    lines = iter(source.splitlines())
    for line in lines:
        while re.search(r"(?<!\\)(?:\\\\)*\\$", line):
            line = line[:-1] + next(lines, "")
        request = re.match(r"[.'][ \t]*([^\s\\]*)(?=[\s\\]|$)(.*)", line)
        if not request:
            page.text(unescape(line))
            continue
        name, rest = request.groups()
        if name in CODE:
            page.flush()
            for skipped in lines:
                if re.match(rf"[.']\s*{re.escape(CODE[name])}\s*$|[.']\s*{re.escape(CODE[name])}\s", skipped + " "):
                    break
                if re.match(r"\.\s*S[HS]\b", skipped):  # an unclosed block ends where a section begins
                    page.request(skipped.lstrip(". ")[:2], _arguments(skipped.lstrip(". ")[2:]))
                    break
        else:
            page.request(name, _arguments(rest))
    page.flush()
    follows = [*page.found[1:], (True, "")]
    return [
        text
        for (is_title, text), (next_is_title, _) in zip(page.found, follows, strict=False)
        if not (is_title and next_is_title)
    ]


def unescape(text: str) -> str:
    """A line of roff without its escape sequences: fonts and sizes dropped, characters spelt out."""

    def spell(match: re.Match) -> str:
        if match["comment"] is not None:
            return ""
        name = match["named"] if match["named"] is not None else match["two"]
        if name is not None:
            if code := re.fullmatch(r"u([0-9A-Fa-f]{4,6})|char(\d{1,3})", name):
                return chr(int(code[1], 16) if code[1] else int(code[2]))
            return SPECIAL.get(name, "")
        for kind in ("long_string", "two_string", "string"):
            if match[kind] is not None:
                return STRINGS.get(match[kind], SPECIAL.get(match[kind], ""))
        return ONE.get(match["one"], "") if match["one"] is not None else ""

    return ESCAPE.sub(spell, text)


class _Page:
    """The paragraphs so far, the words of the one being filled, and the tag it waits for."""

    def __init__(self, drop_sections: frozenset[str]):
        self.drop_sections = drop_sections
        self.found: list[tuple[bool, str]] = []  # (is a title, text)
        self.words: list[str] = []
        self.tag: list[str] = []
        self.tag_next = False
        self.heading_next = False
        self.level = "SH"
        self.dropping = self.dropping_all = False
        self.link, self.link_start = "", 0

    def text(self, line: str) -> None:
        line = line.strip()
        if not line:
            self.flush()
        elif self.heading_next:
            self.heading([line])
        elif self.tag_next:
            self.tag.append(line)
            self.tag_next = False
        else:
            self.words.append(line)

    def request(self, name: str, arguments: list[str]) -> None:
        if name in ("SH", "SS"):
            self.flush()
            self.heading_next = not arguments
            if name == "SH":
                self.dropping_all = False
            self.level = name
            if arguments:
                self.heading(arguments)
        elif name == "TP":
            self.flush()
            self.tag_next = True
        elif name == "TQ":
            self.tag_next = True
        elif name == "IP":
            self.flush()
            if arguments and re.search(r"\w", arguments[0]):
                self.tag = [arguments[0]]
        elif name in ALTERNATING:
            if arguments:
                self.text(("" if name in ALTERNATING - {"B", "I", "SM", "SB"} else " ").join(arguments))
        elif name in ("UR", "MT"):
            self.link, self.link_start = (arguments[0] if arguments else ""), len(self.words)
        elif name in ("UE", "ME"):
            shown = " ".join(self.words[self.link_start :]) or self.link
            self.words[self.link_start :] = [shown + "".join(arguments[:1])]
        elif name in BREAKS:
            self.flush()

    def heading(self, arguments: list[str]) -> None:
        title = " ".join(arguments).strip()
        self.heading_next = False
        named = title.lower() in self.drop_sections
        self.dropping_all = self.dropping_all or (named and self.level == "SH")
        self.dropping = named or self.dropping_all
        if title and not self.dropping:
            self.found.append((True, title))

    def flush(self) -> None:
        body = " ".join(word for word in self.words if word)
        if body and not self.dropping:
            self.found.append((False, f"{', '.join(self.tag)}: {body}" if self.tag else body))
        self.words, self.link_start = [], 0
        if body or not self.tag_next:
            self.tag = []
        self.tag_next = False


def _arguments(text: str) -> list[str]:
    text = re.sub(r'\\".*', "", text).strip()
    found = [
        quoted.replace('""', '"') if bare == "" else bare
        for quoted, bare in ARGUMENT.findall(text.replace("\\ ", "\\~"))
    ]
    return [unescape(argument) for argument in found]
