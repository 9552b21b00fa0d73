"""Samples of what a model says: prompts, and its answers while it trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import documents, generation
from lib.errors import UserError

FIELDS = ("id", "category", "prompt")
SHOWN = 4  # of a file's prompts, while training
SAMPLE_TOKENS = 64


def read_prompts(path: Path) -> list[dict[str, str]]:
    """Prompts of a JSON Lines file with their id and category.

    Raises:
        UserError: a line lacks one of the fields.
    """
    prompts = []
    for number, line in documents.read_json_lines(path):
        lacking = [field for field in FIELDS if not isinstance(line.get(field), str)]
        if lacking:
            raise UserError(f"{path}:{number}: no text field '{lacking[0]}'")
        prompts.append({field: line[field] for field in FIELDS})
    return prompts


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Mapping[str, str]]
) -> list[dict[str, object]]:
    """Short greedy answers; the model is put into eval mode meanwhile and left in the mode it was in."""
    mode = model.training
    model.eval()
    try:
        found, _ = generation.complete(
            model, tokenizer, [asked["prompt"] for asked in prompts], max_new_tokens=SAMPLE_TOKENS
        )
    finally:
        model.train(mode)
    return [
        {**asked, "answer": answer.text, "tokens": answer.tokens, "finished": answer.finished}
        for asked, answer in zip(prompts, found, strict=True)
    ]
