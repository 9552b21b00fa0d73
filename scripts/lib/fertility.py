"""How many tokens a tokenizer spends on a text, and how many words it leaves whole (the paper's Table 1 and Figure 1)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import regex
from transformers import PreTrainedTokenizerFast

from lib import models, stage, vocabulary

LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")
Texts = Mapping[str, Mapping[str, Sequence[str]]]


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The tokens of `text` as a reader sees them; a token that cuts a character shows �."""
    surfaces = vocabulary.surfaces(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [(surfaces[token] or b"").decode(errors="replace") for token in ids]


def measure(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> dict[str, float]:
    """What a tokenizer spends on texts: a ratio of sums each.

    `tokens_per_word`: a word is what stands between white space. `words_whole`: of the runs of letters with their
    combining marks, the share that lies within one token, whatever else that token covers (a space, punctuation).
    """
    return _rates(_count(tokenizer, _blank(tokenizer), documents))


def report(folders: Mapping[str, Path], texts: Texts, example: str) -> dict:
    """Every named tokenizer measured on the same texts by language and source, and its pieces of the example sentence.

    A fetched folder that holds no tokenizer because its source was skipped is listed with the reason.
    """
    return {
        "example": example,
        "text": {
            language: {
                source: {
                    "documents": len(held),
                    "characters": sum(map(len, held)),
                    "words": sum(len(text.split()) for text in held),
                }
                for source, held in sources.items()
            }
            for language, sources in texts.items()
        },
        "tokenizers": {name: _describe(folder, texts, example) for name, folder in folders.items()},
    }


def _describe(folder: Path, texts: Texts, example: str) -> dict:
    if (folder / stage.MANIFEST).is_file() and "skipped" in (fetched := stage.read_manifest(folder)["results"]):
        return {"skipped": fetched["skipped"]}
    tokenizer = models.load_tokenizer(folder)
    blank = _blank(tokenizer)
    counts = {
        language: {source: _count(tokenizer, blank, held) for source, held in sources.items()}
        for language, sources in texts.items()
    }
    return {
        "vocabulary": len(tokenizer),
        "languages": {language: _rates(sum(found.values(), Counter())) for language, found in counts.items()},
        "sources": {
            language: {source: _rates(count) for source, count in found.items()} for language, found in counts.items()
        },
        "example": pieces(tokenizer, example),
    }


def _blank(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """By id, whether a token is white space alone: SentencePiece's prefix space claims the place of the first letter."""
    return np.array([surface is not None and not surface.strip() for surface in vocabulary.surfaces(tokenizer)])


def _count(tokenizer: PreTrainedTokenizerFast, blank: np.ndarray, documents: Sequence[str]) -> Counter[str]:
    encoded = tokenizer(list(documents), add_special_tokens=False, return_offsets_mapping=True)
    found: Counter[str] = Counter()
    for text, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spans = np.array(offsets, dtype=int).reshape(-1, 2)[~blank[np.array(ids, dtype=int)]]
        runs = np.array([run.span() for run in LETTERS.finditer(text)], dtype=int).reshape(-1, 2)
        found["tokens"] += len(ids)
        found["words"] += len(text.split())
        found["runs"] += len(runs)
        found["whole"] += int((_covering(spans, runs) == 1).sum())
        found["bytes"] += len(text.encode())
        found["characters"] += len(text)
    return found


def _covering(spans: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """How many of the spans (begin, end) overlap each run: those that begin before its end less those that end before it."""
    spans = spans[spans[:, 0] < spans[:, 1]]
    begins, ends = np.sort(spans[:, 0]), np.sort(spans[:, 1])
    return np.searchsorted(begins, runs[:, 1], "left") - np.searchsorted(ends, runs[:, 0], "right")


def _rates(count: Counter[str]) -> dict[str, float]:
    return {
        "tokens_per_word": count["tokens"] / count["words"],
        "words_whole": count["whole"] / count["runs"],
        "bytes_per_token": count["bytes"] / count["tokens"],
        "characters_per_token": count["characters"] / count["tokens"],
    }
