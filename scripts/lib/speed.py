"""How fast a model reads a prompt and how fast it goes on with it, each by itself, in characters of one text for all models.

As llama-bench does it: a sequence alone, a warm-up that is not counted, several repeats. A prompt is read in one forward pass that fills
the cache; text is then made a token at a time from the cache. The tokens are the text's own, not what the model would have said:
speed must not depend on what a model babbles, and characters count only if they are a language's. Choosing the likeliest token is
in the time, the rest of a sampling loop is not.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import metrics, processor, unseen
from lib.errors import UserError

REPEATS = 5
# Of the prompt's characters: on a CPU, SmolLM2 takes forty times as long to make a token as to read one.
GENERATED = 1 / 20


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, unseen.Drawn],
    characters: int,
) -> dict[str, object]:
    """By language, on so many characters of its texts: `prompt` and `generation`; and what it was measured on, and how.

    Of each, `characters_per_second` and `tokens_per_second` are medians of the repeats, `slowest` and `fastest` characters per
    second of single ones.

    Raises:
        UserError: a text is longer than the model can read.
    """
    cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if cuda else processor.name(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "repeats": REPEATS,
        "languages": {
            language: one_text(model, tokenizer, *pieces(drawn.found, characters)) for language, drawn in texts.items()
        },
    }


def pieces(texts: Sequence[str], characters: int) -> tuple[str, str]:
    """A prompt of about so many characters from the beginning of the texts, and what comes after it, a twentieth as long."""
    whole = "\n\n".join(texts)
    # Where there is less text than asked for, its last part is still left to be made.
    prompt = unseen.shorten(whole, min(characters, int(len(whole) / (1 + GENERATED))))
    rest = whole[len(prompt) :].lstrip()
    return prompt, unseen.shorten(rest, max(int(len(prompt) * GENERATED), 1))


@torch.no_grad()
def one_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, rest: str
) -> dict[str, dict[str, float | int]]:
    """The speeds of `prompt` being read and of `rest` being made after it."""
    prefix = metrics.prefix_token(tokenizer)
    read = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    # As the text goes on: some tokenizers put a space before a text that stands alone.
    made = tokenizer(f"{prompt} {rest}", add_special_tokens=False)["input_ids"][len(read) :]
    read = read if prefix is None else [prefix, *read]
    longest = model.config.max_position_embeddings
    if len(read) + len(made) > longest:
        raise UserError(
            f"--speed_characters: {len(prompt):,} characters are {len(read) + len(made):,} tokens here, "
            f"and the model was made for {longest:,}; say fewer"
        )
    ids, steps = (torch.tensor([part], device=model.device) for part in (read, made))
    seconds: dict[str, list[float]] = {"prompt": [], "generation": []}
    for repeat in range(REPEATS + 1):
        first, reading = _timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
        _, making = _timed(lambda cache=first.past_key_values: _go_on(model, steps, cache))
        if repeat:
            seconds["prompt"].append(reading)
            seconds["generation"].append(making)
    return {
        "prompt": _rates(seconds["prompt"], len(prompt), len(read)),
        "generation": _rates(seconds["generation"], len(rest), len(made)),
    }


def _go_on(model: PreTrainedModel, steps: torch.Tensor, cache: object) -> object:
    """The last of the forward passes that read one token each."""
    for place in range(steps.shape[1]):
        found = model(input_ids=steps[:, place : place + 1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        int(found.logits[0, -1].argmax())  # a loop would wait for it before it goes on
    return found


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    begun = time.perf_counter()
    found = work()
    int(found.logits[0, -1].argmax())  # waits for the device
    return found, time.perf_counter() - begun


def _rates(seconds: Sequence[float], characters: int, tokens: int) -> dict[str, float | int]:
    median = statistics.median(seconds)
    return {
        "characters_per_second": characters / median,
        "tokens_per_second": tokens / median,
        "slowest": characters / max(seconds),
        "fastest": characters / min(seconds),
        "characters": characters,
        "tokens": tokens,
    }
