"""Bits per byte, accuracy and confidence intervals.

Conventions, the same for every model, so that models with different tokenizers compare:

- A text's bits are the sum of -log2 p over its own tokens; its bytes are those of the original text in UTF-8, whatever
  a tokenizer adds (a dummy prefix space costs the model its bits and earns no byte).
- The first token is conditioned on BOS, or on EOS for a tokenizer without BOS. With neither, the first token is not
  scored while its bytes still count: there is nothing to condition on.
- A text longer than the window is scored in overlapping windows: each token sees at least half a window before it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import prefixes, progress

LOGITS_AT_ONCE = 2**26  # values, 256 MB in fp32: logits exist for this much at a time, whatever the batch


class Score(NamedTuple):
    """What a model spends on one document."""

    bits: float
    bytes: int
    tokens: int


class Continuation(NamedTuple):
    """A continuation's natural log-probability, and whether each of its tokens is the model's first choice."""

    log_probability: float
    greedy: bool


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    window: int,
    batch_tokens: int,
    title: str | None = None,
) -> list[Score]:
    """Bits, bytes and tokens of each document; `summarise` makes bits per byte of them.

    The model is put into eval mode meanwhile and left in the mode it was in.

    Args:
        model: a causal model, in eval or train mode.
        tokenizer: its tokenizer.
        documents: texts of any length.
        window: tokens that the model sees at once.
        batch_tokens: tokens, padding included, in one forward pass (at least one sequence).
        title: of a progress bar; none without it.
    """
    encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"] if documents else []
    prefix = prefix_token(tokenizer)
    requests, owners = [], []
    for number, ids in enumerate(encoded):
        spans = list(windows(ids if prefix is None else [prefix, *ids], window))
        requests += spans
        owners += [number] * len(spans)
    bits = np.zeros(len(documents))
    for owner, scored in zip(
        owners, log_probabilities(model, requests, batch_tokens=batch_tokens, title=title), strict=True
    ):
        bits[owner] -= scored.log_probability / math.log(2)
    return [
        Score(float(bits[number]), len(text.encode()), len(ids))
        for number, (text, ids) in enumerate(zip(documents, encoded, strict=True))
    ]


def prefix_token(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token before a text: BOS, else EOS, else none."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def windows(ids: list[int], window: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, scored) spans that score every token but the first once, each context at least half a window.

    The model reads context + scored[:-1], at most `window` tokens; the first span's context is ids[0] alone.
    """
    begin = 1
    while begin < len(ids):
        end = min(begin + (window if begin == 1 else max(window // 2, 1)), len(ids))
        yield ids[max(end - 1 - window, 0) : begin], ids[begin:end]
        begin = end


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_tokens: int,
    title: str | None = None,
) -> list[Continuation]:
    """Log p(continuation | context) for each (context, continuation) pair of token ids, neither empty.

    What requests begin alike with (the question before its choices) is read once, where the model can (`lib.prefixes`);
    sequences are batched by length; logits are only computed where a continuation token is predicted.

    Args:
        model: a causal model.
        requests: (context, continuation) pairs.
        batch_tokens: tokens, padding included, in one forward pass (at least one sequence).
        title: of a progress bar; none without it.
    """
    fed = [(*context, *continuation[:-1]) for context, continuation in requests]
    sharing = prefixes.can_share(model, max(map(len, fed), default=0))
    rows = prefixes.lay_out(fed, prefixes.LONGEST if sharing else 0)
    totals, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
    quiet = contextlib.nullcontext()
    with (
        _eval_mode(model),
        progress.bar(total=sum(len(row.tokens) for row in rows), title=title, unit="tokens") if title else quiet as bar,
    ):
        for batch in _batches(rows, batch_tokens):
            places, targets, owners = [], [], []
            for line, row in enumerate(batch):
                for number, path in row.places.items():
                    continuation = requests[number][1]
                    places += [(line, place) for place in path[-len(continuation) :].tolist()]
                    targets += continuation
                    owners += [number] * len(continuation)
            values, best = _score(model, batch, places, targets)
            np.add.at(totals, owners, values)
            np.logical_and.at(greedy, owners, best)
            if bar is not None:
                bar.update(sum(len(row.tokens) for row in batch))
    return [Continuation(float(total), bool(first)) for total, first in zip(totals, greedy, strict=True)]


def summarise(scores: Sequence[Score], *, seed: int = 0, resamples: int = 1000) -> dict[str, float | int]:
    """Bits per byte of a set of documents (a ratio of sums), its 95% bootstrap interval over documents, and counts.

    `perplexity_per_token` depends on the tokenizer: never compare it between models that have different ones.
    """
    bits, size, tokens = (np.array(column, dtype=float) for column in zip(*scores, strict=True))
    draws = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=resamples)
    low, high = np.percentile((draws @ bits) / (draws @ size), [2.5, 97.5])
    return {
        "value": bits.sum() / size.sum(),
        "low": float(low),
        "high": float(high),
        "documents": len(scores),
        "bytes": int(size.sum()),
        "tokens": int(tokens.sum()),
        "perplexity_per_token": 2 ** (bits.sum() / tokens.sum()),
    }


def accuracy(correct: Sequence[bool], chances: Sequence[float]) -> dict[str, float | int | str]:
    """The share of right answers with its interval; `chances` are a guess's odds item by item."""
    chance = sum(chances) / len(chances)
    return {"metric": "accuracy", **share(correct), "items": len(correct), "chance": chance}


def share(correct: Sequence[bool]) -> dict[str, float]:
    """The share of right answers with its 95% Wilson interval."""
    interval = binomtest(sum(correct), len(correct)).proportion_ci(method="wilson")
    return {"value": sum(correct) / len(correct), "low": float(interval.low), "high": float(interval.high)}


def _batches(rows: Sequence[prefixes.Row], batch_tokens: int) -> Iterator[list[prefixes.Row]]:
    """Rows by length, trees (which need a mask) apart, in runs that take at most `batch_tokens` once padded."""
    for trees in (True, False):
        waiting = sorted((row for row in rows if row.is_tree == trees), key=lambda row: len(row.tokens), reverse=True)
        while waiting:
            size = max(batch_tokens // len(waiting[0].tokens), 1)
            yield waiting[:size]
            del waiting[:size]


def _score(
    model: PreTrainedModel, batch: Sequence[prefixes.Row], places: list[tuple[int, int]], targets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log p of each target at its (row, place), and whether it is the likeliest token there."""
    width = len(batch[0].tokens)
    named = {"input_ids": torch.zeros(len(batch), width, dtype=torch.long)}
    for line, row in enumerate(batch):
        named["input_ids"][line, : len(row.tokens)] = torch.tensor(row.tokens)
    # Padding stands on the right, where causal attention never looks back at it: only trees need a mask.
    if batch[0].is_tree:
        named["attention_mask"] = torch.stack([prefixes.seen(row, width) for row in batch])[:, None]
        named["position_ids"] = torch.zeros_like(named["input_ids"])
        for line, row in enumerate(batch):
            named["position_ids"][line, : len(row.tokens)] = torch.tensor(row.positions)
    given = {name: tensor.to(model.device) for name, tensor in named.items()}
    hidden = model.base_model(**given, use_cache=False).last_hidden_state
    row, position = torch.tensor(places, device=hidden.device).unbind(1)
    head = model.get_output_embeddings()
    at_once = max(LOGITS_AT_ONCE // head.out_features, 1)
    values, best = [], []
    for chosen, target in zip(
        hidden[row, position].split(at_once), torch.tensor(targets, device=hidden.device).split(at_once), strict=True
    ):
        logits = head(chosen).float()
        found = logits.gather(1, target[:, None])[:, 0]
        values.append((found - logits.logsumexp(1)).double().cpu())
        best.append((found >= logits.amax(1)).cpu())
    return torch.cat(values).numpy(), torch.cat(best).numpy()


@contextlib.contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode for a while; then the mode the model was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
