"""Talk to a checkpoint in the terminal; its answers appear as they are made.

    python scripts/chat.py --model=checkpoints/demo/sft

A line is a turn. `/new` forgets what was said, `/quit` or Ctrl-D ends, Ctrl-C stops an answer. What no longer fits the model's
context is forgotten turn by turn, the oldest first, and said so. A model without a chat template goes on with the text.

Reads: a model folder; turns from the terminal, or lines from a pipe.
"""

import sys
from pathlib import Path
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextStreamer

from lib import cli, generation, machine, models
from lib.errors import UserError


def main(
    *,
    model: Path,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
) -> None:
    """Talk to a model.

    Args:
        model: folder of the model.
        system: what it is told before everything.
        max_new_tokens: an answer's tokens, at most.
        temperature: 0 is the likeliest answer; above it, answers are drawn.
        top_p: they are drawn from the likeliest tokens that together have this probability.
        repetition_penalty: above 1, what was said before becomes less likely; small models need about 1.1.
        dtype: of the weights.
        seed: of what is drawn.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise UserError("temperature from 0, top_p above 0 and at most 1, max_new_tokens from 1")
    torch.manual_seed(seed)
    speaker, tokenizer = models.load(model, dtype=getattr(torch, dtype), device=machine.device())
    ends = sorted(generation.end_tokens(speaker, tokenizer))
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0),
        repetition_penalty=repetition_penalty,
        **drawn,
    )
    room = speaker.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise UserError(f"--max_new_tokens={max_new_tokens}: the model's context is {room + max_new_tokens} tokens")
    first = [{"role": "system", "content": system}] if system else []
    if first and tokenizer.chat_template is None:
        raise UserError(f"--system: {model} has no chat template to say it by")
    messages = list(first)
    while (said := _next_turn()) is not None:
        if said == "/new":
            messages = list(first)
        elif said:
            messages.append({"role": "user", "content": said})
            ids = _fit(tokenizer, messages, len(first), room)
            messages.append({"role": "assistant", "content": _answer(speaker, tokenizer, ids, settings)})


class _Spoken(TextStreamer):
    """Prints an answer word by word, and keeps it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        super().on_finalized_text(text, stream_end)


def _next_turn() -> str | None:
    """What the user says next, without surrounding white space; None if that was all."""
    try:
        said = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if said == "/quit" else said


def _fit(tokenizer: PreTrainedTokenizerFast, messages: list[dict], kept: int, room: int) -> list[int]:
    """The conversation's tokens; its oldest turns after the first `kept` are taken out of `messages` until it fits.

    The last turn alone is cut at its beginning if it has to be.
    """
    forgotten = 0
    while len(ids := generation.encode_turns(tokenizer, messages)) > room and len(messages) > kept + 1:
        del messages[kept : kept + 2]
        forgotten += 1
    if forgotten:
        print(f"({forgotten} of the oldest turns no longer fit and are forgotten)", file=sys.stderr)
    if len(ids) > room:
        print("(the beginning of this turn does not fit and is left out)", file=sys.stderr)
    return ids[-room:]


def _answer(
    model: models.PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ids: list[int], settings: GenerationConfig
) -> str:
    spoken = _Spoken(tokenizer)
    given = torch.tensor([ids], device=model.device)
    try:
        model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), generation_config=settings, streamer=spoken
        )
    except KeyboardInterrupt:
        spoken.end()
    return spoken.text


if __name__ == "__main__":
    cli.run(main)
