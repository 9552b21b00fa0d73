"""Flaws of answers that show without understanding them: words of another language, letters of two scripts, loops, broken ends.

Each flag is a rule of thumb, the same for every model, so that rates of checkpoints compare; none says whether an answer is right.
What depends on the language comes from its file (lib/languages.py). The flags, and what each passes over:

- `empty`: no text. The other flags have nothing to look at then.
- `wrong_language`: too few letters of the asked language's script (names in Latin letters aside), or, in a longer answer, another language of that script;
  a short answer of Latin words alone too, if they are no names.
- `english_words`: lower-case Latin words, or Latin function words, in prose of a language with another script. Not counted:
  what is code or looks like it (addresses, file names, digits inside, camelCase), names and acronyms (capitals; small words
  between them, as in "Game of Thrones"), units, single letters, compounds («web-сайт»), the language's `latin_words`, and up to
  MENTION words that stand in quotation marks or brackets of their own, where Russian gives a term's original. A capitalised
  English word alone passes for a name, and the name of a program in small letters counts: up to 9 of 100 answers of good
  models have one, so compare rates on the same prompts and don't read them alone.
- `mixed_script`: letters of the language's script and of another inside one word («cоме» with a Latin c). What a hyphen or an
  apostrophe joins are two words («3D-модель», «Windows'ом»); an acronym takes endings («SMSки»).
- `repetition`: a phrase, a line or a syllable again and again, by the measures and limits of the filter (lib/rules.py).
- `unfinished`: no end token before the limit, or a last sentence without an end; lists, code, tables and a few words
  need none.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from lib import languages, paired, rules
from lib.languages import Language

FLAGS = {
    "empty": "nothing was said",
    "wrong_language": "not in the language that was asked",
    "english_words": "English words in the prose",
    "mixed_script": "letters of two scripts in a word",
    "repetition": "a phrase again and again",
    "unfinished": "no end, or no end of the last sentence",
}
# From which on letters tell a script and a language: guesses, on the safe side of what names and formulas make of short answers.
TOLD_LETTERS, IDENTIFIED_LETTERS = 20, 100
MIN_SCRIPT_SHARE = 0.5  # below it, most of what is no name is in other letters
MIN_PROBABILITY = 0.1  # as for instructions: py3langid gives Russian texts nearly 1, other languages nearly 0
# The demo's limits for documents, which pass 997 good ones of 1,000.
REPETITION = {"repetition": 0.4, "repeated_phrase": 0.2, "repeated_lines": 0.3}
MENTION = 5  # words of a quotation or bracket that is a term's original, a title or a word talked about
ORIGIN = 2  # words of the language that a bracket may have before an original: «(от англ. floor)»
SHORT = 5  # words; an answer of no more is no sentence
UNITS = frozenset((
    "mm", "cm", "dm", "km", "nm", "mg", "kg", "ml", "cl", "dl", "ms", "ns", "min", "hz", "khz", "mhz", "ghz", "px", "pt",
    "em", "rem", "kb", "mb", "gb", "tb", "kbps", "mbps", "gbps", "fps", "dpi", "rpm", "kcal", "kj", "kw", "kwh", "mol",
    "mmol", "ppm", "psi", "oz", "ft", "lb", "mph", "rub", "usd", "eur",
))  # fmt: skip
# Words by which English shows when nothing else does: capitalised at a sentence's beginning, or small inside a title.
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "this", "that", "these", "those", "here", "there", "it", "its", "you", "your", "we", "our", "they",
    "he", "she", "his", "her", "i", "my", "in", "on", "at", "of", "to", "for", "from", "with", "by", "as", "is", "are",
    "was", "were", "be", "and", "or", "but", "so", "if", "when", "how", "what", "why", "which", "who", "not", "no", "yes",
    "however", "also", "then", "first", "de", "la", "le", "du", "von", "van", "der", "el",
))  # fmt: skip
_CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]{1,200}\$|\\\(.*?\\\)|\\\[.*?\\\]|<[^<>\n]+>", re.DOTALL
)
_QUOTED = re.compile(r"«([^«»\n]*)»|„([^“”\n]*)[“”]|“([^“”\n]*)”|\"([^\"\n]*)\"")
_BRACKETED = re.compile(r"(?<!\S)\(([^()\n]*)\)")
_LETTERS = re.compile(r"[^\W\d_]+")
_PLAIN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # a word as prose has it
_BESIDE = ".,;:!?…()[]«»„“”\"'*—–-"  # what may stand beside a word
_STRETCHED = re.compile(r"([^\W\d_]{1,8}?)\1{7,}")
_SENTENCE_END = tuple(".!?…。！？؟।։;")
_NO_SENTENCE = ("```", "|", "$", "\\]", "\\)")
_AFTER_END = "\"'»”“’)]}*_`"


def find(text: str, language: Language, *, finished: bool) -> list[str]:
    """The flags of an answer, in the order of FLAGS.

    Args:
        text: the answer.
        language: the one it should be in.
        finished: whether it ended by itself and not at the limit.
    """
    if not text.strip():
        return ["empty"] if finished else ["empty", "unfinished"]
    said = prose(text)
    found = {
        "wrong_language": is_wrong_language(said, language),
        "english_words": bool(english_words(said, language)) and has_script(said, language),
        "mixed_script": bool(mixed_words(said, language)),
        "repetition": repeats(text, language),
        "unfinished": not finished or not ends(text),
    }
    return [flag for flag, there in found.items() if there]


def rates(answers: Sequence[tuple[Sequence[str], Language]]) -> dict[str, dict[str, float | int]]:
    """By flag the share of answers that have it, with its 95% Wilson interval.

    Args:
        answers: of each the flags and the language asked; those in Latin script can't have `english_words` and don't count there.
    """
    table = {}
    for flag in FLAGS:
        having = [flag in flags for flags, language in answers if applies(flag, language)]
        if having:
            table[flag] = paired.share_of(having)
    return table


def applies(flag: str, language: Language) -> bool:
    """Whether an answer in the language can have the flag: English words can't be told from Latin ones."""
    return flag != "english_words" or "Latin" not in language.scripts


def asked_in(prompt: Mapping[str, str], spoken: Sequence[str] = ("ru", "en")) -> Language:
    """The language of a prompt's answer: what its `language` says, else the likeliest of those spoken for its text.

    Raises:
        UserError: `language` has no file there.
    """
    if "language" in prompt:
        return _language(prompt["language"])
    return _language(max(spoken, key=lambda code: languages.probability(prompt["prompt"], code)))


def prose(text: str) -> str:
    """An answer without code: neither fenced nor between backquotes, no formulas, tags, nor lines that look like a program."""
    lines = _CODE.sub(" ", text).splitlines()
    return "\n".join(line for line in lines if rules.code_share(line) == 0)


def has_script(text: str, language: Language) -> bool:
    """Whether any letter is of the language's script."""
    return languages.script_share(text, *language.scripts) > 0


def is_wrong_language(said: str, language: Language) -> bool:
    """Whether prose is in another language, by its script or, if it is long enough, by its words."""
    english = english_words(said, language)
    if english and not has_script(said, language):
        return True
    said = _own_words(said, language)
    letters = "".join(_LETTERS.findall(said))
    ours = sum(languages.in_script(letter, *language.scripts) for letter in letters)
    # Latin names are no other language: of Latin letters those of English words count.
    others = sum(not languages.in_script(letter, *language.scripts, "Latin") for letter in letters)
    others += sum(map(len, english))
    if ours + others >= TOLD_LETTERS and ours < MIN_SCRIPT_SHARE * (ours + others):
        return True
    return (
        len(letters) >= IDENTIFIED_LETTERS
        and languages.probability(said, language.code, language.told_with) < MIN_PROBABILITY
    )


def english_words(said: str, language: Language) -> list[str]:
    """The Latin words of prose that are neither names nor code; none for a language in Latin script."""
    if not applies("english_words", language):
        return []
    found = []
    for run in _latin_runs(_own_words(said, language)):
        named = [not word.islower() and word.lower() not in FUNCTION_WORDS for word in run]
        for place, word in enumerate(run):
            inside = any(named[:place]) and any(named[place + 1 :])
            if word.lower() in FUNCTION_WORDS:
                if len(word) > 1 and not inside and not (word[0].isupper() and any(named[place + 1 : place + 2])):
                    found.append(word)
            elif word.islower() and word not in UNITS and word not in language.latin_words and len(word) > 1:
                found.append(word)
    return found


def mixed_words(said: str, language: Language) -> list[str]:
    """Words with letters of a script of the language and of another, be that one of the language's too."""
    found = []
    for word in _LETTERS.findall(said):
        ours = [[languages.in_script(letter, script) for letter in word] for script in language.scripts]
        partly = [each for each in ours if any(each) and not all(each)]
        if partly and not any(_is_acronym_with_ending(word, each) for each in partly):
            found.append(word)
    return found


def repeats(text: str, language: Language) -> bool:
    """Whether a phrase, a line or a syllable comes again and again."""
    over = any(rules.measure(rule, text, language) > limit for rule, limit in REPETITION.items())
    return over or _STRETCHED.search(text.lower()) is not None


def ends(text: str) -> bool:
    """Whether the last line ends as a sentence, or needs no end: an item, a row, code, a formula, brackets, a few words."""
    last = text.strip().splitlines()[-1].strip()
    if len(languages.words(text)) <= SHORT or last.endswith(_NO_SENTENCE) or re.fullmatch(r"[(\[].*[)\]]", last):
        return True
    if rules.list_share(last) or rules.code_share(last):
        return True
    while last and (
        last[-1] in _AFTER_END or last[-1].isspace() or unicodedata.category(last[-1]) in ("So", "Sk", "Mn", "Cf")
    ):
        if unicodedata.category(last[-1]) == "So":  # a smiley ends a sentence
            return True
        last = last[:-1]
    return last.endswith(_SENTENCE_END)


@functools.cache
def _language(code: str) -> Language:
    return languages.load(code)


def _own_words(said: str, language: Language) -> str:
    """Prose without mentions in quotation marks and brackets."""
    said = _QUOTED.sub(lambda match: _unless_mention(match, language, 0), said)
    return _BRACKETED.sub(lambda match: _unless_mention(match, language, ORIGIN), said)


def _unless_mention(match: re.Match[str], language: Language, origin: int) -> str:
    """A quotation or bracket of few words, at most `origin` of them in the language, as nothing; else as it was."""
    words = next(group for group in match.groups() if group is not None).split()
    own = sum(has_script(word, language) for word in words)
    return " ; " if own <= origin and len(words) - own <= MENTION else match.group()


def _latin_runs(text: str) -> Iterator[list[str]]:
    """Latin words that follow each other with nothing but a space or a comma between."""
    run: list[str] = []
    for token in text.split():
        word = token.strip(_BESIDE)
        if _PLAIN.fullmatch(word) and all(languages.in_script(c, "Latin") for c in word if c.isalpha()):
            run.append(word)
            ended = token[-1] in '.!?…:;»)"”'
        else:
            ended = True
        if ended and run:
            yield run
            run = []
    if run:
        yield run


def _is_acronym_with_ending(word: str, ours: Sequence[bool]) -> bool:
    """Whether two capitals or more of another script are followed by small letters of the language alone."""
    begins = ours.index(True)
    return begins > 1 and all(ours[begins:]) and word[:begins].isupper() and word[begins:].islower()
