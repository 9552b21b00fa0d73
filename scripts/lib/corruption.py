"""Programmatic damage to real text, and what each kind costs it on the paper's five criteria.

Used for weak labels where nobody has annotated anything: a real text is good (5), a damaged one worse by as much as
`COSTS` says, in proportion to the severity. The costs are the author's judgement, not measurements.
"""

import random
import re
from collections.abc import Callable

from lib.languages import Language

CRITERIA = ("informativeness", "usefulness", "grammar", "style", "safety")
BEST, WORST = 5.0, 1.0
# Points off at full severity: informativeness, usefulness for studying, grammatical correctness, style, safety.
COSTS = {
    "shuffle_words": (2.5, 3.0, 4.0, 3.5, 0.0),
    "noise": (1.5, 2.5, 4.0, 3.0, 0.0),
    "menu": (3.5, 3.5, 2.0, 3.5, 0.5),
    "repeat": (3.5, 3.5, 1.0, 4.0, 0.0),
    "splice": (2.5, 3.0, 3.0, 3.5, 0.0),
    "spam": (4.0, 4.0, 1.5, 4.0, 4.0),
    "symbols": (3.5, 3.5, 3.5, 3.5, 0.0),
    "fragments": (3.5, 3.0, 2.5, 3.0, 0.0),
    "word_list": (3.5, 3.5, 3.5, 3.5, 0.0),
}
SEVERITIES = (0.4, 1.0)  # below 0.4 a damaged text can hardly be told from a real one with typing errors
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")
_SOUP = "~@#$%^&*_+=|<>{}[]\\/№§¤•■►◄★☆♦†‡¬¦0123456789"


def spoil(text: str, other: str, language: Language, rng: random.Random) -> tuple[str, str, float]:
    """(damaged text, kind, severity) with a kind and a severity drawn at random.

    Args:
        text: the text to damage.
        other: a text of another language or topic, to splice in.
        language: whose menus, spam and letters are used.
        rng: the source of all choices.
    """
    kind = rng.choice(sorted(COSTS))
    severity = rng.uniform(*SEVERITIES)
    return KINDS[kind](text, severity, rng, language, other), kind, severity


def scores(kind: str | None = None, severity: float = 0.0) -> list[float]:
    """The five criteria (1 to 5) of a real text, or of one damaged in that way."""
    costs = COSTS[kind] if kind else (0.0,) * len(CRITERIA)
    return [max(WORST, BEST - cost * severity) for cost in costs]


def shuffle_words(text: str, severity: float, rng: random.Random, *_: object) -> str:
    """Words exchange their places."""
    words = text.split(" ")
    chosen = rng.sample(range(len(words)), k=min(len(words), max(2, round(severity * len(words)))))
    targets = rng.sample(chosen, k=len(chosen))
    moved = dict(zip(chosen, (words[index] for index in targets), strict=True))
    return " ".join(moved.get(index, word) for index, word in enumerate(words))


def noise(text: str, severity: float, rng: random.Random, language: Language, *_: object) -> str:
    """Letters dropped, doubled, replaced or exchanged."""
    characters = list(text)
    for index, character in enumerate(text):
        if not character.isalpha() or rng.random() > 0.2 * severity:
            continue
        action = rng.randrange(4)
        if action == 0:
            characters[index] = ""
        elif action == 1:
            characters[index] = character * 2
        elif action == 2:
            characters[index] = rng.choice(language.alphabet)
        elif index + 1 < len(text):
            characters[index], characters[index + 1] = characters[index + 1], character
    return "".join(characters)


def menu(text: str, severity: float, rng: random.Random, language: Language, *_: object) -> str:
    """A site's navigation before and between the sentences, which become fewer."""
    separator = rng.choice(["\n", " | ", " » ", " • ", " / ", "\n\n", " "])
    count = max(4, round(16 * severity))
    block = separator.join(rng.sample(language.menu, k=min(count, len(language.menu))))
    sentences = _SENTENCE_END.split(text)
    rest = sentences[: max(1, round((1 - severity) * len(sentences)))]
    cut = rng.randrange(len(rest) + 1)
    return "\n".join(part for part in (" ".join(rest[:cut]), block, " ".join(rest[cut:])) if part)


def repeat(text: str, severity: float, rng: random.Random, *_: object) -> str:
    """One sentence, or a few words, said again and again."""
    sentences = _SENTENCE_END.split(text)
    index = rng.randrange(len(sentences))
    piece = sentences[index]
    if rng.random() < 0.5:
        words = piece.split()
        start = rng.randrange(max(1, len(words) - 3))
        piece = " ".join(words[start : start + rng.randint(1, 4)]) or piece
    times = max(2, round(severity * len(text) / (len(piece) + 1)))
    return " ".join([*sentences[:index], *[piece] * times, *sentences[index + 1 :]])[: len(text) + len(piece)]


def splice(text: str, severity: float, rng: random.Random, _: Language, other: str) -> str:
    """Runs of words from another text in the middle of this one's sentences."""
    words, strangers = text.split(), other.split()
    result: list[str] = []
    mine = theirs = 0
    while mine < len(words):
        step = rng.randint(2, 8)
        result += words[mine : mine + step]
        mine += step
        if strangers and rng.random() < severity:
            start = theirs % len(strangers)
            result += strangers[start : start + rng.randint(2, 8)]
            theirs += 5
    return " ".join(result)


def spam(text: str, severity: float, rng: random.Random, language: Language, *_: object) -> str:
    """Advertising, fraud and abuse between the sentences."""
    sentences = _SENTENCE_END.split(text)
    kept = sentences[: max(1, round((1.2 - severity) * len(sentences)))]
    for line in rng.sample(language.spam, k=max(1, min(len(language.spam), round(4 * severity)))):
        kept.insert(rng.randrange(len(kept) + 1), line.upper() if rng.random() < 0.2 else line)
    return " ".join(kept)


def symbols(text: str, severity: float, rng: random.Random, *_: object) -> str:
    """Words replaced by signs and digits."""
    words = [
        "".join(rng.choices(_SOUP, k=rng.randint(1, 8))) if rng.random() < 0.7 * severity else word
        for word in text.split(" ")
    ]
    return " ".join(words)


def fragments(text: str, severity: float, rng: random.Random, *_: object) -> str:
    """Beginnings of sentences, cut off in mid-word, in a wrong order."""
    sentences = _SENTENCE_END.split(text)
    rng.shuffle(sentences)
    ending = rng.choice(["...", "…", "", " [...]"])
    cut = [s[: max(4, round(len(s) * (1 - 0.75 * severity * rng.random())) - 1)] + ending for s in sentences]
    return rng.choice([" ", "\n"]).join(cut)


def word_list(text: str, severity: float, rng: random.Random, *_: object) -> str:
    """The text's longer words as a list of key words."""
    words = [word.strip(".,:;!?()«»\"'") for word in text.split()]
    listed = [word for word in words if len(word) > 4] or words
    rng.shuffle(listed)
    lead = " ".join(text.split()[: round((1 - severity) * len(words))])
    return f"{lead} {rng.choice([', ', ' ', '; ', chr(10)]).join(listed)}".strip()


KINDS: dict[str, Callable[..., str]] = {
    "shuffle_words": shuffle_words,
    "noise": noise,
    "menu": menu,
    "repeat": repeat,
    "splice": splice,
    "spam": spam,
    "symbols": symbols,
    "fragments": fragments,
    "word_list": word_list,
}
