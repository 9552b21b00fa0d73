"""The frozen model that training is held to, and where and how it is asked.

`init` is the initialised model itself, of the same vocabulary: the KL is exact. `first_piece` and `chunk` are the original base
model, which reads the same text in its own tokens, compared at the boundaries that both tokenizers share (lib/losses.py's
Distribution and Spans).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import alignment, attention, losses, models, vocabulary

Kind = Literal["init", "first_piece", "chunk"]
Asked = Literal["all", "replay"]


class Reference:
    """A frozen model and how to take a KL from it.

    Args:
        kind: see the module.
        model: frozen.
        theirs: its tokenizer.
        ours: the trained model's tokenizer.
        on: rows it is asked about: 'all', or those of the 'replay' language only.
        fraction: share of these rows, chosen by their number.
        temperature: of `chunk`.
        flatten: the model finds documents in one long row (flash attention); else rows are read one by one.
    """

    def __init__(
        self,
        kind: Kind,
        model: PreTrainedModel,
        theirs: PreTrainedTokenizerFast,
        ours: PreTrainedTokenizerFast,
        *,
        on: Asked = "all",
        fraction: float = 1.0,
        temperature: float = 1.0,
        flatten: bool = False,
    ):
        self.kind, self.on, self.fraction, self.temperature, self.flatten = kind, on, fraction, temperature, flatten
        self.model = model.requires_grad_(False).eval()
        self.vocabulary = len(theirs)
        self.aligner = self.pieces = None
        if kind != "init":
            self.aligner = alignment.Aligner(ours, theirs, model.config.max_position_embeddings)
        if kind == "first_piece":
            self.pieces = torch.tensor(first_pieces(ours, theirs), device=model.device)

    def inputs(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        """What `ask` takes of a batch of packed rows (and `kl_items`, by which their KL becomes a mean).

        All flat: `ref_input_ids` and `ref_position_ids`, `ref_lengths` of its rows; `kl_at`, positions in the batch's
        tokens, and `ref_at`, positions in ref_input_ids that have read the same; for `chunk`, `kl_spans` and `ref_spans`, the
        span of text that each position's next token belongs to or -1. `kl_items`: positions or spans.
        """
        length = len(items[0]["input_ids"])
        asked = [number for number, item in enumerate(items) if self._is_asked(item)]
        rows = [self._row(items[number]) for number in asked]
        begins = np.cumsum([0, *(len(row.tokens) for row in rows)])
        ours = _joined([row.ours + number * length for number, row in zip(asked, rows, strict=True)])
        theirs = _joined([row.theirs + begin for begin, row in zip(begins[:-1], rows, strict=True)])
        batch = {
            "ref_input_ids": _joined([row.tokens for row in rows]),
            "ref_position_ids": _joined([row.positions for row in rows]),
            "ref_lengths": torch.tensor([len(row.tokens) for row in rows], dtype=torch.long),
        }
        if self.kind == "chunk":
            inside = _joined([row.same_document for row in rows]).bool()
            batch["kl_spans"] = _spans(ours, inside, len(items) * length)
            batch["ref_spans"] = _spans(theirs, inside, int(begins[-1]))
            batch["kl_items"] = inside.sum()
        else:
            labels = torch.cat([_next(item["labels"]) for item in items])
            predicting = labels[ours] != losses.IGNORED
            batch |= {"kl_at": ours[predicting], "ref_at": theirs[predicting], "kl_items": predicting.sum()}
        return batch

    @torch.no_grad()
    def ask(
        self,
        *,
        ref_input_ids: torch.Tensor,
        ref_position_ids: torch.Tensor,
        ref_lengths: torch.Tensor,
        kl_at: torch.Tensor | None = None,
        ref_at: torch.Tensor | None = None,
        kl_spans: torch.Tensor | None = None,
        ref_spans: torch.Tensor | None = None,
        chunk: int = 512,
    ) -> losses.Distribution | losses.Spans | None:
        """What the head's loss takes, of a collated batch; None where the batch has no row for the reference."""
        if not len(ref_input_ids):
            return None
        hidden = self._read(ref_input_ids, ref_position_ids, ref_lengths.tolist())
        weight = models.head_weight(self.model)[: self.vocabulary]
        if kl_spans is None:
            return losses.Distribution(hidden[ref_at], weight, kl_at, self.pieces)
        inside = ref_spans >= 0
        each = losses.token_log_probabilities(hidden[inside], weight, _next(ref_input_ids)[inside], chunk)
        log_p = each.new_zeros(int(kl_spans.max()) + 1).index_add_(0, ref_spans[inside], each)
        return losses.Spans(kl_spans, log_p, self.temperature)

    def _is_asked(self, item: dict) -> bool:
        if self.on == "replay" and not item["replay"]:
            return False
        return self.fraction >= 1 or _uniform(item["row"]) < self.fraction

    def _row(self, item: dict[str, torch.Tensor]) -> alignment.Row:
        tokens, positions = item["input_ids"].numpy(), item["position_ids"].numpy()
        if self.aligner is not None:
            return self.aligner.row(tokens, positions)
        places = np.arange(len(tokens))
        return alignment.Row(tokens, positions, places, places, np.append(positions[1:] != 0, False))

    def _read(self, tokens: torch.Tensor, positions: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Last hidden states of every token, tokens x d. No mask and no cache: either lets packed documents see each other."""
        body = self.model.get_decoder()

        def read(part: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            packed = {"position_ids": places, **attention.inside_documents(self.model, places)}
            return body(input_ids=part, use_cache=False, **packed).last_hidden_state.flatten(0, 1)

        if self.flatten:
            return read(tokens[None], positions[None])
        if len(set(lengths)) == 1:
            return read(tokens.view(len(lengths), -1), positions.view(len(lengths), -1))
        # Rows of Russian are two to four times as long as rows of English here: padding would cost more than it saves.
        return torch.cat(
            [
                read(part[None], at[None])
                for part, at in zip(tokens.split(lengths), positions.split(lengths), strict=True)
            ]
        )


def first_pieces(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast) -> list[int]:
    """The reference's token that each of ours begins with; its end token for one that it has nothing for."""
    pieces, rules = vocabulary.old_pieces(ours, theirs)
    first = [found[0] for found in pieces]
    for token in rules["global_mean"]:
        first[token] = theirs.eos_token_id if theirs.eos_token_id is not None else 0
    return first


def load(
    folder: Path, *, attention: str, dtype: torch.dtype, device: torch.device, offload: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The frozen model; with `offload` only its head stays on the device, the body's weights visit it layer by layer.

    With DeepSpeed it has to come before TrainingArguments: ZeRO-3 partitions every model that is loaded after them.
    """
    model, tokenizer = models.load(folder, attention=attention, dtype=dtype)
    if not offload:
        return model.to(device), tokenizer
    from accelerate import cpu_offload

    model.get_output_embeddings().weight = torch.nn.Parameter(models.head_weight(model).to(device))
    cpu_offload(model.get_decoder(), execution_device=device)
    return model, tokenizer


def _spans(at: torch.Tensor, inside: torch.Tensor, positions: int) -> torch.Tensor:
    """The span that each position's next token belongs to, or -1; span k lies between boundaries of which the first is inside."""
    of = torch.full((positions,), -1)
    for span, begin in enumerate(inside.nonzero()[:, 0].tolist()):
        of[at[begin] : at[begin + 1]] = span
    return of


def _next(values: torch.Tensor) -> torch.Tensor:
    """Each position's next value; the last has none."""
    return torch.cat([values[1:], values.new_full((1,), losses.IGNORED)])


def _joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([*parts, []]).astype(np.int64))


def _uniform(number: int) -> float:
    """A number from 0 to 1 that looks random (the finaliser of splitmix64), so that a share of rows keeps to no pattern of them."""
    mixed = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return (mixed ^ mixed >> 31) / 2**64
