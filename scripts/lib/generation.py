"""Answers to prompts, batched."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from lib import documents, progress
from lib.errors import UserError

FIELDS = ("id", "category", "prompt")
PROMPTS_AT_ONCE = 32  # decoding reads all weights once a step, so sequences side by side are almost free


class Completion(NamedTuple):
    """An answer: its text, its tokens (the end token included), and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


def read_prompts(path: Path) -> list[dict[str, str]]:
    """Prompts of a JSON Lines file with their id and category, and the `language` of the answer where a line says it.

    Raises:
        UserError: a line lacks one of the fields.
    """
    prompts = []
    for number, line in documents.read_json_lines(path):
        fields = (*FIELDS, "language") if "language" in line else FIELDS
        lacking = [field for field in fields if not isinstance(line.get(field), str)]
        if lacking:
            raise UserError(f"{path}:{number}: no text field '{lacking[0]}'")
        prompts.append({field: line[field] for field in fields})
    return prompts


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    title: str | None = "generations",
) -> list[Completion]:
    """Greedy answers to `prompts`, in their order, each a user's turn where the tokenizer has a chat template."""
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(encoded[number]))
    ends = end_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding, eos_token_id=sorted(ends) or None
    )
    answers: dict[int, Completion] = {}
    with progress.bar(total=len(prompts), title=title or "", unit="prompts", hidden=title is None) as bar:
        for start in range(0, len(order), PROMPTS_AT_ONCE):
            batch = order[start : start + PROMPTS_AT_ONCE]
            ids, mask = pad_left([encoded[number] for number in batch], padding)
            made = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )
            for number, tokens in zip(batch, made[:, ids.shape[1] :].tolist(), strict=True):
                answers[number] = _completion(tokenizer, tokens, ends)
            bar.update(len(batch))
    return [answers[number] for number in range(len(prompts))]


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """A user's turn and the opening of the answer, or the bare prompt for a tokenizer without a chat template."""
    return encode_turns(tokenizer, [{"role": "user", "content": prompt}])


def encode_turns(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]) -> list[int]:
    """A conversation and the opening of the next answer, or what was said, as one text, without a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The tokens that end an answer: the tokenizer's EOS and those of the model's generation config."""
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (rows x longest), so that every row ends where its answer begins."""
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _completion(tokenizer: PreTrainedTokenizerFast, tokens: list[int], ends: set[int]) -> Completion:
    """The answer up to its first end token; what follows is padding."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    kept = tokens if end is None else tokens[: end + 1]
    return Completion(tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept), end is not None)
