"""One text in two tokenizers: where both have read exactly the same of it.

A model predicts what comes after the bytes it has read. Two models with different tokenizers can be compared where a token of
each ends at the same byte: at a *shared boundary*. Packed rows are taken apart into their documents for that, and each document
is spelt in the reference's tokens anew.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from lib import metrics, vocabulary
from lib.errors import UserError


class Segment(NamedTuple):
    """A document, or the part of it in one row, in the reference's tokens; the boundaries that it shares with ours."""

    tokens: list[int]  # the reference's, its start token first
    ours: np.ndarray  # ascending indexes of our tokens that end at a shared boundary
    theirs: np.ndarray  # as many indexes into `tokens`


class Row(NamedTuple):
    """A packed row in the reference's tokens, documents one after another as in ours."""

    tokens: np.ndarray
    positions: np.ndarray  # 0 where a document starts
    ours: np.ndarray  # positions in our row that have read what `theirs` have in this one
    theirs: np.ndarray
    same_document: np.ndarray  # of each shared boundary: whether the next one is in the same document


class Aligner:
    """Spells packed rows in another tokenizer.

    Args:
        ours: the tokenizer of the rows.
        theirs: the reference's.
        longest: tokens the reference can read; what is beyond is left out.
    """

    def __init__(self, ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, longest: int):
        self.theirs, self.longest = theirs, longest
        self.start = metrics.prefix_token(theirs)
        if self.start is None:
            raise UserError("the reference's tokenizer has neither a beginning nor an end token to start a text with")
        self._bytes = [surface or b"" for surface in vocabulary.surfaces(ours)]
        self._special = [surface is None for surface in vocabulary.surfaces(ours)]
        self._lengths = np.array(vocabulary.lengths(theirs))
        # Some tokenizers put a space before every text (SentencePiece's dummy prefix); it is no byte of the text.
        self._our_prefix = (
            sum(len(self._bytes[token]) for token in ours("a", add_special_tokens=False)["input_ids"]) - 1
        )
        self._their_prefix = int(self._lengths[theirs("a", add_special_tokens=False)["input_ids"]].sum()) - 1

    def row(self, tokens: np.ndarray, positions: np.ndarray) -> Row:
        """A packed row, its documents told apart by positions that restart at 0."""
        begins = np.flatnonzero(positions == 0)
        segments = [self.segment(part.tolist()) for part in np.split(tokens, begins[1:])]
        offsets = np.cumsum([0, *(len(segment.tokens) for segment in segments)])
        return Row(
            np.concatenate([segment.tokens for segment in segments]).astype(np.int64),
            np.concatenate([np.arange(len(segment.tokens)) for segment in segments]),
            np.concatenate([segment.ours + begin for segment, begin in zip(segments, begins, strict=True)]),
            np.concatenate([segment.theirs + begin for segment, begin in zip(segments, offsets[:-1], strict=True)]),
            np.concatenate([np.arange(len(segment.ours)) < len(segment.ours) - 1 for segment in segments]),
        )

    def segment(self, ours: Sequence[int]) -> Segment:
        """A document's tokens; where its text can't be told from them, it has no tokens and no boundaries.

        A document that a row's beginning cuts may start in the middle of a character; the rest of that one is left out.
        """
        starts = self._special[ours[0]]  # with its start token: from the beginning of the document
        spelt = b"".join(self._bytes[token] for token in ours)
        before = self._our_prefix if starts else 0
        if not starts:
            while before < len(spelt) and spelt[before] & 0xC0 == 0x80:
                before += 1
        text = spelt[before:].decode(errors="ignore")  # a character cut by the row's end
        found = self.theirs(text, add_special_tokens=False)["input_ids"]
        their_ends = np.cumsum(self._lengths[found]) - self._their_prefix
        read = text.encode()
        if not spelt[before:].startswith(read) or (found and their_ends[-1] != len(read)):
            return Segment([], np.empty(0, np.int64), np.empty(0, np.int64))
        found, their_ends = found[: self.longest - 1], their_ends[: self.longest - 1]
        our_ends = np.cumsum([len(self._bytes[token]) for token in ours]) - before
        # A token without bytes (the end of a document) ends where the one before it did; that is the one we mean.
        ends, ours_at, theirs_at = np.intersect1d(our_ends, their_ends, return_indices=True)
        kept = ends > 0
        ours_at, theirs_at = ours_at[kept], theirs_at[kept] + 1
        if starts:  # nothing read yet
            ours_at, theirs_at = np.append(0, ours_at), np.append(0, theirs_at)
        return Segment([self.start, *found], ours_at, theirs_at)
