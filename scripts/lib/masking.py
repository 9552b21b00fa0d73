"""Personal data in a text replaced by placeholders: e-mail addresses, telephone numbers, card numbers.

To look like one is not enough. A telephone number has to be valid in its country and written as one: with a plus, an area
code in brackets or the prefix of long-distance calls; or grouped as its country groups them; or after a word such as
«тел.». A card number has to have an issuer's prefix and length and pass the Luhn check. So dates, version numbers, ISBNs,
account and tax numbers (IBAN, ИНН, СНИЛС) and long identifiers stay.
"""

import re
from collections import Counter
from collections.abc import Callable

import phonenumbers
from phonenumbers import Leniency, PhoneMetadata, PhoneNumberMatch, PhoneNumberMatcher

from lib.errors import UserError
from lib.languages import Language

# Always the same, so that a model learns one word for each kind.
PLACEHOLDERS = {"email": "<EMAIL>", "card": "<CARD>", "phone": "<PHONE>"}

# Before the @ what people have (the quoted forms of RFC 5321 do not occur), after it a domain with a dot and a top level
# of letters, Cyrillic ones too.
_EMAIL = re.compile(r"(?<![\w.+%-])\w[\w.+%-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])")
_GAP = "[ \u00a0-]"
# In the groups that are printed on cards, or with no gap at all.
_CARD = re.compile(
    r"(?<![\w.,/+=-])(?:"
    rf"\d{{4}}({_GAP})\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{3}})?|\d{{4}}({_GAP})\d{{6}}\2\d{{5}}|\d{{15,16}}"
    rf")(?!{_GAP}?\d|[\w/=]|[.,]\d)"
)
# Visa, Mastercard, Mir, American Express, Maestro and Discover, UnionPay, JCB: prefixes and lengths.
_ISSUED = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|220[0-4]\d{12}(?:\d{3})?|3[47]\d{13}"
    r"|6(?:011|304|5\d\d|759|76\d)\d{12}(?:\d{3})?|62\d{14}(?:\d{3})?|35(?:2[89]|[3-8]\d)\d{12}"
)
# Seven digits that little separates. Most texts have none, and the search for telephone numbers is slow.
_MAYBE_PHONE = re.compile(r"\d(?:[\s\u00a0()./\u2010-\u2015-]{0,4}\d){6}")
_MOST_GROUPS = 6  # of digits in a telephone number
_WORD_BEFORE = 24  # characters before a number in which a word such as «тел.» is looked for
# Not a telephone number, though its digits may be one's: an internet address, a decimal fraction, numbers of two lines or
# with a dash between them.
_OTHER_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|^\d+[.,]\d+$|\n|\s[\u2010-\u2015-]\s")
_BOOK = re.compile(r"IS[BS]N[^\d\n]{0,12}$", re.IGNORECASE)


def mask(text: str, language: Language | None = None) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many there are of each kind ('email', 'card', 'phone').

    Args:
        text: any text.
        language: whose country's telephone numbers are known without an international prefix (`phone_region`); without
            it, only numbers that begin with a plus.

    Raises:
        UserError: the language's `phone_region` is no country's.
    """
    counts: Counter[str] = Counter()

    def put(kind: str, accept: Callable[[re.Match], bool] = bool) -> Callable[[re.Match], str]:
        def replacement(match: re.Match) -> str:
            if not accept(match):
                return match.group()
            counts[kind] += 1
            return PLACEHOLDERS[kind]

        return replacement

    if "@" in text:
        text = _EMAIL.sub(put("email"), text)
    text = _CARD.sub(put("card", lambda match: is_card(match.group())), text)
    if _MAYBE_PHONE.search(text):
        pieces, end = [], 0
        for match in _phones(text, language):
            pieces += [text[end : match.start], PLACEHOLDERS["phone"]]
            end = match.end
            counts["phone"] += 1
        text = "".join([*pieces, text[end:]])
    return text, counts


def is_card(number: str) -> bool:
    """Whether digits, gaps left out, are a card number: an issuer's prefix and length, and Luhn's check digit."""
    digits = re.sub(r"\D", "", number)
    if not _ISSUED.fullmatch(digits) or len(set(digits)) < 4:
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _phones(text: str, language: Language | None) -> list[PhoneNumberMatch]:
    region = (language.phone_region if language else "") or None
    if region and region not in phonenumbers.SUPPORTED_REGIONS:
        raise UserError(f"language '{language.code}': phone_region: there is no country '{region}'")
    return [
        match
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID)
        if _is_written_as_phone(text, match, region, language)
    ]


def _is_written_as_phone(text: str, match: PhoneNumberMatch, region: str | None, language: Language | None) -> bool:
    """Whether a valid number is written so that it can hardly be anything else."""
    raw = match.raw_string
    before = text[max(0, match.start - _WORD_BEFORE) : match.start]
    if (
        len(re.findall(r"\d+", raw)) > _MOST_GROUPS
        or _OTHER_NUMBER.search(raw)
        or _BOOK.search(before)
        or re.search(r"[\w/=.,:#№-]$", before)
    ):
        return False
    if raw.lstrip("( ").startswith("+"):
        return True
    if language and language.phone_words_pattern.search(before):
        return True
    grouped = re.search(r"\d[^\d]+\d", raw)
    if not (region and grouped) or "/" in raw:
        return False
    prefix = PhoneMetadata.metadata_for_region(region).national_prefix
    bracketed = re.match(r"\W*(?:\d{1,2}\W{0,2})?\(\d{2,5}\)", raw)
    long_distance = prefix and re.match(rf"{prefix}[\s\u00a0(-]", raw)
    return bool(bracketed or long_distance) or any(PhoneNumberMatcher(raw, region, leniency=Leniency.STRICT_GROUPING))
