"""How many tokens a tokenizer spends on a text (the paper's Table 1 and Figure 1)."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lib import metrics, models, stage, vocabulary


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The tokens of `text` as a reader sees them; a token that cuts a character shows �."""
    surfaces = vocabulary.surfaces(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [(surfaces[token] or b"").decode(errors="replace") for token in ids]


def report(folders: Mapping[str, Path], texts: Mapping[str, list[str]], example: str) -> dict:
    """Every named tokenizer measured on the same texts per language, and its pieces of the example sentence.

    A fetched folder that holds no tokenizer because its source was skipped is listed with the reason.
    """
    return {
        "example": example,
        "tokenizers": {name: _describe(folder, texts, example) for name, folder in folders.items()},
    }


def _describe(folder: Path, texts: Mapping[str, list[str]], example: str) -> dict:
    if (folder / stage.MANIFEST).is_file() and "skipped" in (fetched := stage.read_manifest(folder)["results"]):
        return {"skipped": fetched["skipped"]}
    tokenizer = models.load_tokenizer(folder)
    return {
        "vocabulary": len(tokenizer),
        "languages": {language: metrics.fertility(tokenizer, held) for language, held in texts.items()},
        "example": pieces(tokenizer, example),
    }
