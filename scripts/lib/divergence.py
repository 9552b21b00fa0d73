"""How far a model's predictions are from those of the base it came from: KL(P || P_base), in nats per compared position.

It is the paper's term against forgetting (equation 1), taken on held-out text. Under one vocabulary it is exact, at every position.
Under two it is that of P pushed forward to the base's vocabulary, each token to the first piece that the base would spell it with,
where a token of each model ends at the same byte (`first_piece`, lib/reference.py). That is at most the KL over anything finer, and
positions where only one tokenizer has a boundary are left out, so `compared` says what share of the base's tokens it speaks for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import losses, metrics, models, packing, progress, reference

LANGUAGE = packing.REPLAY_LANGUAGE  # what a base is to keep
DIGITS = 4  # of a mean: in single precision SmolLM2 came out 0.00001 from itself


class Divergence(NamedTuple):
    """Of one document: the KL summed over the compared positions, in nats, their number, and the base's tokens."""

    kl: float
    positions: int
    base_tokens: int


@torch.no_grad()
def from_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    base: PreTrainedModel,
    base_tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    window: int,
    title: str | None = None,
) -> list[Divergence]:
    """The divergence on each document, read from its beginning as far as the model's `window` tokens reach.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer.
        base: on the same device; it is frozen.
        base_tokenizer: its tokenizer.
        documents: texts.
        window: tokens.
        title: of a progress bar; none without it.

    Raises:
        UserError: the vocabularies differ, and the base's tokenizer has no token to start a text with.
    """
    same = models.fingerprint(tokenizer) == models.fingerprint(base_tokenizer)
    held = reference.Reference("init" if same else "first_piece", base, base_tokenizer, tokenizer)
    prefix = metrics.prefix_token(tokenizer)
    weight = models.head_weight(model)[: len(tokenizer)]
    found = []
    for text in progress.bar(documents, title=title or "", unit="documents", hidden=title is None):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor(ids if prefix is None else [prefix, *ids])[:window]
        row = {"input_ids": ids, "position_ids": torch.arange(len(ids)), "labels": ids, "row": 0}
        asked = {name: value.to(model.device) for name, value in held.inputs([row]).items()}
        positions, read = int(asked.pop("kl_items")), len(asked["ref_input_ids"]) - 1
        if not positions:
            found.append(Divergence(0.0, 0, max(read, 0)))
            continue
        hidden = model.base_model(input_ids=ids[None].to(model.device), use_cache=False).last_hidden_state[0]
        targets = torch.cat([ids[1:], ids.new_full((1,), losses.IGNORED)]).to(model.device)
        kl = losses.head_loss(hidden, weight.detach(), targets, reference=held.ask(**asked)).kl
        found.append(Divergence(max(float(kl), 0.0), positions, read))
    return found


def summarise(found: Sequence[Divergence], *, seed: int = 0, resamples: int = 1000) -> dict[str, float | int]:
    """Nats per compared position (a ratio of sums), its 95% bootstrap interval over documents, and what was compared."""
    kl, positions, tokens = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    draws = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), size=resamples)
    drawn = draws @ positions
    low, high = np.percentile((draws @ kl)[drawn > 0] / drawn[drawn > 0], [2.5, 97.5])
    return {
        "value": round(kl.sum() / positions.sum(), DIGITS),
        "low": round(float(low), DIGITS),
        "high": round(float(high), DIGITS),
        "documents": int((positions > 0).sum()),
        "positions": int(positions.sum()),
        "compared": positions.sum() / tokens.sum(),
    }
