"""Samples of what a model says: prompts, and its answers while it trains."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import generation

SHOWN = 4  # of a file's prompts, while training
SAMPLE_TOKENS = 64


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Mapping[str, str]]
) -> list[dict[str, object]]:
    """Short greedy answers; the model is put into eval mode meanwhile and left in the mode it was in."""
    mode = model.training
    model.eval()
    try:
        found = generation.complete(
            model, tokenizer, [asked["prompt"] for asked in prompts], max_new_tokens=SAMPLE_TOKENS, title=None
        )
    finally:
        model.train(mode)
    return [
        {**asked, "answer": answer.text, "tokens": answer.tokens, "finished": answer.finished}
        for asked, answer in zip(prompts, found, strict=True)
    ]
