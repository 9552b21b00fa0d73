"""Scores of texts by a trained filter, fast: batches of equally long texts, int8 or bf16, one thread a process.

Light to import: a process that scores by onnxruntime needs no torch.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from lib import processor
from lib.corruption import CRITERIA
from lib.errors import UserError

Precision = Literal["auto", "int8", "bf16", "fp32"]
HEADS = (*CRITERIA, "overall")  # the columns of all scores
FACTS, GRAPH, WEIGHTS = "filter.json", "model.onnx", "model.safetensors"
WORDS = "bert.embeddings.word_embeddings.weight"
CHARACTERS_PER_TOKEN = 8  # more than any natural text has; texts are cut there before they are tokenised
BATCH_TOKENS = 2048  # padding included; such a batch's activations fit a processor's cache


def facts(folder: Path) -> dict:
    """What a trained filter says of itself: `max_tokens`, `heads`, `calibration` (scores, and which are good).

    Raises:
        UserError: the folder holds no trained filter.
    """
    try:
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(
            f"--model={folder}: no readable {FACTS}, so not a trained filter; give the model/ of a filter stage"
        ) from None
    if tuple(found.get("heads", ())) != HEADS:
        raise UserError(f"--model={folder}: its heads are {found.get('heads')}, expected {', '.join(HEADS)}")
    return found


def choose(precision: Precision, device: str) -> Precision:
    """What 'auto' is here: bf16 on a GPU or on a processor with such instructions, else fp32.

    Never int8, though it is nearly twice as fast as fp32: it moved scores by up to 0.3 and decided 13 of 400 texts near the
    median otherwise (docs/LOG.md). Whoever takes that for the speed asks for it.
    """
    if precision != "auto":
        return precision
    if device != "cpu" or processor.has_bf16():
        return "bf16"
    return "fp32"


@functools.lru_cache(maxsize=1)
def load(
    folder: Path, precision: Precision = "auto", device: str = "cpu", max_tokens: int | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to float32 scores [texts, heads], 1 to 5; kept, so a process loads a filter once.

    It reads as much of a text as the filter was trained on, unless `max_tokens` says otherwise.
    """
    precision = choose(precision, device)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    max_tokens = max_tokens or facts(folder)["max_tokens"]
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    if precision == "int8":
        run = _onnx_runner(folder)
    else:
        from lib import encoder  # takes torch along

        run = encoder.runner(folder, half=precision == "bf16", device=device)

    def score(texts: Sequence[str]) -> np.ndarray:
        cut = [text[: max_tokens * CHARACTERS_PER_TOKEN] for text in texts]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(cut)]
        found = np.empty((len(texts), len(HEADS)), dtype=np.float32)
        for batch in batches([len(ids) for ids in encoded], BATCH_TOKENS):
            found[batch] = run(*pad([encoded[position] for position in batch]))
        return found

    return score


def devices() -> list[str]:
    """The GPUs, or the processor."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def batches(lengths: Sequence[int], batch_tokens: int, order: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Positions by length, each batch as many as fit `batch_tokens` once padded to its longest."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)) if order is None else order, key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[position] > batch_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def pad(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int64 ids and their mask (True: a token), both [texts, tokens]; what is masked holds id 0."""
    ids = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
    mask = np.arange(ids.shape[1]) < np.array([len(row) for row in encoded])[:, None]
    ids[mask] = np.concatenate(encoded)
    return ids, mask


def _onnx_runner(folder: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    words = mapped_tensor(folder / WEIGHTS, WORDS)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"words": words[ids], "mask": mask})[0]

    return run


def mapped_tensor(file: Path, name: str) -> np.ndarray:
    """An fp32 tensor of a safetensors file where it lies: only the rows in use are read, and processes share them."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        entry = json.loads(opened.read(size))[name]
    if entry["dtype"] != "F32":
        raise UserError(f"{file}: {name} is {entry['dtype']}, expected F32")
    begin, end = entry["data_offsets"]
    assert end - begin == 4 * math.prod(entry["shape"])
    return np.memmap(file, dtype="<f4", mode="r", offset=8 + size + begin, shape=tuple(entry["shape"]))
