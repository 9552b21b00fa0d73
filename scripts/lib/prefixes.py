"""Token sequences that begin alike, laid out so that a model reads their common beginning once.

Choices of one question, and questions after the same examples, begin with the same tokens. A `Row` is a tree of such
sequences written as one: each token sees those of its own sequences alone and has the position it has there, so it comes out
as if every sequence stood alone (to rounding). A mask of length x length says who sees whom; attention kernels for masks are
slower and cost the square of the row, which is why a row has a limit, and only sequences with much in common share one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

LONGEST = 1024  # tokens of a row of several sequences
SHARED = 0.25  # of a sequence has to be in the row already


class Row(NamedTuple):
    """Tokens to read, their positions, and by sequence where in the row its tokens stand."""

    tokens: list[int]
    positions: list[int]
    places: dict[int, np.ndarray]

    @property
    def is_tree(self) -> bool:
        """Whether it is more than one sequence and beginnings of it."""
        return max(self.positions) + 1 < len(self.tokens)


def lay_out(sequences: Sequence[Sequence[int]], longest: int = LONGEST) -> list[Row]:
    """Rows that hold all sequences, each in one; equal sequences, and a beginning of another, cost nothing.

    Args:
        sequences: token ids, not empty.
        longest: tokens in a row of several sequences; with 0 none share but those that cost nothing.
    """
    rows: list[Row] = []
    before: Sequence[int] = ()
    places = np.arange(0)
    for number in sorted(range(len(sequences)), key=lambda number: tuple(sequences[number])):
        ids = sequences[number]
        common = _common(before, ids)
        fits = rows and len(rows[-1].tokens) + len(ids) - common <= longest and common >= SHARED * len(ids)
        # A sequence that goes on where the row ends makes no branch.
        if not (fits or (rows and common == len(before) == len(rows[-1].tokens))):
            rows.append(Row([], [], {}))
            common = 0
        row, begin = rows[-1], len(rows[-1].tokens)
        row.tokens.extend(ids[common:])
        row.positions.extend(range(common, len(ids)))
        places = np.concatenate([places[:common], np.arange(begin, len(row.tokens))])
        row.places[number] = places
        before = ids
    return rows


def seen(row: Row, width: int) -> torch.Tensor:
    """Width x width: whether the token of a line (the rows' padding too, which nobody sees) sees that of a column."""
    mask = torch.eye(width, dtype=torch.bool)
    for places in row.places.values():
        mask[places[:, None], places] = torch.ones(len(places), len(places), dtype=torch.bool).tril()
    return mask


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether the model minds the mask and positions of a tree: rotary positions, full attention up to `longest` tokens."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    return (
        config._attn_implementation.startswith("sdpa")  # without a pack's boundaries, lib.attention is sdpa
        and getattr(config, "rope_parameters", None) is not None
        and kinds <= {"full_attention", "sliding_attention"}
        and longest <= window
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin alike with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
