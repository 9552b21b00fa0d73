"""What a model spends on the answers of held-out dialogues: perplexity per token and bits per byte of the instruction set.

Counted is what instruction tuning's loss counts: the tokens of the answers and the token that ends each (lib/dialogues.py), each
after the whole conversation before it. Bytes are those of the answers in UTF-8, without white space around them, whatever a template
and a tokenizer add. So bits per byte compare any two checkpoints that read the dialogues by one template; perplexity per token only
those that have one tokenizer, too.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import dialogues, metrics
from lib.errors import UserError
from lib.losses import IGNORED


def with_template(tokenizer: PreTrainedTokenizerFast, file: Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer itself if it has a chat template; else a copy that has the file's, so that bare prompts stay bare.

    Raises:
        UserError: there is neither.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    if file is None:
        raise UserError(
            "the checkpoint has no chat template to read dialogues by; name that of its descendants with --chat_template"
        )
    dressed = copy.deepcopy(tokenizer)
    dressed.chat_template = file.read_text(encoding="utf-8")
    return dressed


def bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    talks: Sequence[Sequence[dict]],
    *,
    window: int,
    batch_tokens: int,
    title: str | None = None,
) -> list[metrics.Score]:
    """Bits, bytes and tokens of each dialogue's answers.

    Args:
        model: a causal model.
        tokenizer: its tokenizer, with a chat template.
        talks: messages of dialogues.
        window: tokens the model sees at once; longer dialogues are scored in overlapping windows.
        batch_tokens: tokens, padding included, in one forward pass (at least one sequence).
        title: of a progress bar; none without it.
    """
    requests, owners = [], []
    tokens = np.zeros(len(talks), dtype=int)
    for number, messages in enumerate(talks):
        ids, labels = dialogues.encode(list(messages), tokenizer)
        for context, counted in spans(ids, labels, window):
            requests.append((context, counted))
            owners.append(number)
            tokens[number] += len(counted)
    spent = np.zeros(len(talks))
    found = metrics.log_probabilities(model, requests, batch_tokens=batch_tokens, title=title)
    for owner, scored in zip(owners, found, strict=True):
        spent[owner] -= scored.log_probability / math.log(2)
    return [
        metrics.Score(float(spent[number]), _answer_bytes(messages), int(tokens[number]))
        for number, messages in enumerate(talks)
    ]


def spans(ids: Sequence[int], labels: Sequence[int], window: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, counted) pairs: each run of counted tokens once, after what the model sees before it.

    A dialogue that fits into the window is seen from its beginning; in a longer one each token sees at least half a window.
    """
    begin = (
        1  # of the scored part of each window, in `ids`; nothing stands before the first token, which is the template's
    )
    for context, scored in metrics.windows(list(ids), window):
        for counted, run in groupby(range(len(scored)), key=lambda place: labels[begin + place] != IGNORED):
            places = list(run)
            if counted:
                yield context + scored[: places[0]], scored[places[0] : places[-1] + 1]
        begin += len(scored)


def _answer_bytes(messages: Sequence[dict]) -> int:
    return sum(len(m["content"].strip().encode()) for m in messages if m["role"] == "assistant")
