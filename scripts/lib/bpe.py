"""Byte-pair encoding that goes on from an existing vocabulary: new merges learnt on top of a model's own.

Why the result can be trusted. A new merge ranks below every merge before it, so a text is first encoded as the base
encodes it and new merges only join what is left. Hence text in which no new pair occurs keeps its ids. And every new token
`ab` is the encoding of its own surface: where `a` and `b` stood side by side in a word once all earlier merges were
exhausted, no earlier merge had crossed the region's borders, so the same merges, in the same order, turn the region taken
alone into `a`, `b`; the new merge then makes it `ab`. `train_spm.py` checks both on what it wrote.
"""

import heapq
import itertools
import json
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import regex
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib import vocabulary
from lib.errors import UserError
from lib.vocabulary import SPACE

# What SentencePiece allows by default.
MAX_PIECE_CHARACTERS = 16
# A pair seen less often is chance, not language.
MIN_COUNT = 3
# SentencePiece bases have no pre-tokenizer; this is how SentencePiece cuts its training text: by white space, and letters,
# digits and the rest apart.
_WORDS = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?[^{SPACE}\s\p{{L}}\p{{M}}\p{{N}}]+|\p{{N}}|[{SPACE}\s]+"
_CHUNKS = regex.compile(r" ?[^\s]+")
_DIGIT = regex.compile(r"\p{N}")
_AT_ONCE = 50_000

Word = tuple[int, ...]
Pair = tuple[int, int]


def extend(
    base: PreTrainedTokenizerFast, chunks: Mapping[str, int], *, vocab_size: int, coverage: float, latin: bool
) -> Tokenizer:
    """The base's tokenizer with new merges (and, below SentencePiece-like bases, characters) learnt from `chunks`.

    Ids of the base stay; new ones follow after its largest. Nothing with a digit in it is merged, and nothing that is all
    ASCII unless the language itself is written in Latin letters: English, numbers and code are spelt as before.

    Args:
        base: a byte-level or SentencePiece-like BPE tokenizer.
        chunks: text between white space, with the space before it, and how often it occurs (`count_chunks`).
        vocab_size: tokens of the result.
        coverage: share of the text's characters that get a token where the base has only bytes for them.
        latin: whether the language is written in Latin letters.

    Raises:
        UserError: the base is no BPE tokenizer, has that many tokens already, or the text bears too few merges.
    """
    spec = json.loads(base.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE":
        raise UserError(f"mode extend needs a base with BPE merges; this one's tokenizer is {spec['model']['type']}")
    spelling = {token: piece for piece, token in base.get_vocab().items()}
    first = max(spelling) + 1
    if vocab_size <= first:
        raise UserError(
            f"vocab_size: {vocab_size} adds nothing to the base's {first:,} tokens; it is the size of both together"
        )
    # Special tokens of some bases are beside the model's vocabulary, and would be renumbered if that grew beneath them.
    spec["model"]["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    byte_level = vocabulary.is_byte_level(base.backend_tokenizer)
    characters = (
        [] if byte_level else _missing_characters(chunks, spec["model"]["vocab"], coverage)[: vocab_size - first]
    )
    spec["model"]["vocab"] |= {piece: first + place for place, piece in enumerate(characters)}
    counter = Tokenizer.from_str(json.dumps(spec))
    if not byte_level:
        counter.normalizer = normalizers.Replace(" ", SPACE)
        counter.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    surfaces = vocabulary.surfaces(base) + [piece.encode() for piece in characters]
    fixed = {
        token
        for token, piece in spelling.items()
        if surfaces[token] is None or vocabulary.byte_token(piece) is not None
    }
    if byte_level:
        fixed = {token for token in fixed if surfaces[token] is None}
    words = encode_words(counter, chunks, keep=lambda text: latin or not text.isascii())
    pairs = learn(words, surfaces, vocab_size - first - len(characters), fixed=fixed, latin=latin)
    pieces = [spelling.get(token, "") for token in range(first)] + characters
    for left, right in pairs:
        pieces.append(pieces[left] + pieces[right])
    spec["model"]["vocab"] |= {piece: token for token, piece in enumerate(pieces) if token >= first}
    spec["model"]["merges"] += [[pieces[left], pieces[right]] for left, right in pairs]
    return Tokenizer.from_str(json.dumps(spec))


def count_chunks(counts: Counter[str], text: str) -> None:
    """Add a text's chunks to the counts: what stands between white space, with one space before it where there is one."""
    counts.update(_CHUNKS.findall(text))


def encode_words(
    tokenizer: Tokenizer, chunks: Mapping[str, int], *, keep: Callable[[str], bool] = lambda _: True
) -> Counter[Word]:
    """Token ids of each word (pre-token) of two or more tokens, and how often it occurs."""
    words: Counter[Word] = Counter()
    wanted = [chunk for chunk in chunks if keep(chunk)]
    for begin in range(0, len(wanted), _AT_ONCE):
        batch = wanted[begin : begin + _AT_ONCE]
        for chunk, encoding in zip(batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True):
            count, ids, places = chunks[chunk], encoding.ids, encoding.word_ids
            start = 0
            for end in range(1, len(ids) + 1):
                if end == len(ids) or places[end] != places[start]:
                    if end - start > 1:
                        words[tuple(ids[start:end])] += count
                    start = end
    return words


def learn(
    words: Mapping[Word, int],
    surfaces: list[bytes | None],
    merges: int,
    *,
    fixed: set[int] = frozenset(),
    latin: bool = True,
) -> list[Pair]:
    """The pairs to merge, most frequent first; merge number i makes token `len(surfaces) + i`.

    The counts of pairs are kept up to date where a merge changes them, so a merge costs what it touches.

    Args:
        words: token ids of words, and how often they occur.
        surfaces: bytes of the tokens there are; None for special ones.
        merges: how many to learn.
        fixed: tokens that take no part (special ones and bytes of a byte fallback).
        latin: whether tokens that are all ASCII may be made.

    Raises:
        UserError: fewer pairs than that occur `MIN_COUNT` times.
    """
    sequences = [list(word) for word in words]
    weights = list(words.values())
    surfaces = list(surfaces)
    taken = {surface for surface in surfaces if surface is not None}
    counts: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, set[int]] = defaultdict(set)
    for number, sequence in enumerate(sequences):
        for pair in itertools.pairwise(sequence):
            counts[pair] += weights[number]
            places[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items() if count >= MIN_COUNT]
    heapq.heapify(heap)
    learnt: list[Pair] = []
    while heap and len(learnt) < merges:
        negative, pair = heapq.heappop(heap)
        count = counts.get(pair, 0)
        if count != -negative:  # it changed since; a pair that still counts is looked at again in its turn
            if MIN_COUNT <= count < -negative:
                heapq.heappush(heap, (-count, pair))
            continue
        left, right = pair
        if (
            left in fixed
            or right in fixed
            or not _sensible(merged := surfaces[left] + surfaces[right], latin)
            or merged in taken
        ):
            continue
        token = len(surfaces)
        surfaces.append(merged)
        taken.add(merged)
        learnt.append(pair)
        changed: dict[Pair, int] = defaultdict(int)
        for number in places.pop(pair):
            old = sequences[number]
            new = _merge(old, left, right, token)
            if len(new) == len(old):
                continue  # an earlier merge had taken the pair away
            sequences[number] = new
            for other in itertools.pairwise(old):
                changed[other] -= weights[number]
            for other in itertools.pairwise(new):
                changed[other] += weights[number]
                if token in other:
                    places[other].add(number)
        for other, change in changed.items():
            counts[other] += change
            if change > 0 and counts[other] >= MIN_COUNT:
                heapq.heappush(heap, (-counts[other], other))
    if len(learnt) < merges:
        raise UserError(
            f"the text bears {len(learnt):,} new merges, {merges:,} are asked for: lower vocab_size or add text"
        )
    return learnt


def _merge(sequence: list[int], left: int, right: int, token: int) -> list[int]:
    """The sequence with each `left, right` as `token`, from the left."""
    merged, place, last = [], 0, len(sequence) - 1
    while place <= last:
        if place < last and sequence[place] == left and sequence[place + 1] == right:
            merged.append(token)
            place += 2
        else:
            merged.append(sequence[place])
            place += 1
    return merged


def _sensible(surface: bytes, latin: bool) -> bool:
    """Whether a token is worth having: whole characters, or the beginning of one; no digits; not all ASCII, not too long."""
    if not latin and surface.isascii():
        return False
    try:
        text = surface.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return len(text) <= MAX_PIECE_CHARACTERS and not _DIGIT.search(text)


def _missing_characters(chunks: Mapping[str, int], known: Mapping[str, int], coverage: float) -> list[str]:
    """Characters that the base spells in bytes, most frequent first, as far as `coverage` of the text wants them."""
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for character in chunk:
            counts[character] += count
    wanted, seen, total = [], 0, counts.total()
    for character, count in counts.most_common():
        if seen >= coverage * total or count < MIN_COUNT:
            break
        seen += count
        if character not in known and not character.isspace():
            wanted.append(character)
    return wanted


def changed_lines(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, lines: Sequence[str]
) -> dict[str, int]:
    """How many of the lines two tokenizers encode differently, and of how many."""
    one, other = (tokenizer(list(lines))["input_ids"] if lines else [] for tokenizer in (before, after))
    return {"changed": sum(map(operator.ne, one, other)), "lines": len(lines)}
