"""Measure the tokenizers this project makes: tokens spent, time, memory; beside peers on the same text.

    python scripts/bench_tokenizer.py --documents=data/demo/filter --base=checkpoints/models/smollm2-135m \
        --compare=checkpoints/models/tokenizer-mistral,checkpoints/models/tokenizer-gpt4o [--text=my/corpus.jsonl.gz]

Reads:  the filtered documents; more text in the target language; tokenizers to compare with.
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

Every job runs in a process of its own, one after another, in turn over the rounds; figures are medians.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as kinds

from lib import bpe, cli, documents, languages, models, progress, spm, stage, vocabulary
from lib.errors import UserError

HELD_OUT_EVERY = 20  # of the documents of --text


def main(
    *,
    documents: Path,
    base: Path,
    compare: list[Path] = [],  # noqa: B006
    text: list[Path] = [],  # noqa: B006
    language: str = "ru",
    vocab_size: int = 40_000,
    new_tokens: int = 12_000,
    english_share: float = 0.1,
    megabytes: float = 100.0,
    rounds: int = 3,
) -> None:
    """Train a vocabulary and an extension, and count what they cost and save.

    Args:
        documents: output of the filter stage.
        base: folder of the base model to extend.
        compare: folders of other tokenizers.
        text: more text in the target language (Parquet, JSON Lines, text); every twentieth document is held out.
        language: code of the target language.
        vocab_size: of the vocabulary that replaces the base's.
        new_tokens: that the base is extended by.
        english_share: of the training characters of the former.
        megabytes: of training text in the target language, at most.
        rounds: of every job.
    """
    spoken = languages.load(language)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out, size = _write_text(documents, text, language, english_share, megabytes, folder)
        if not held_out:
            raise UserError(f"{documents}: no held-out document in language '{language}'")
        latin = "Latin" in spoken.scripts
        jobs = {
            "replace": (_train_on_words, (folder, vocab_size)),
            "sentencepiece on running text": (_train_on_text, (folder, vocab_size)),
            "tokenizers from scratch": (_train_with_tokenizers, (folder, vocab_size)),
            "extend": (_extend, (folder, base, new_tokens, latin)),
        }
        measured: dict[str, list[tuple[float, float]]] = {job: [] for job in jobs}
        for number in range(rounds):
            for job, (work, arguments) in jobs.items():
                measured[job].append(_alone(work, *arguments))
                progress.say(f"round {number + 1}: {job}: {measured[job][-1][0]:.1f} s, {measured[job][-1][1]:,.0f} MB")
        model = (folder / "ours.model").read_bytes()
        fast = spm.to_fast(model)
        lines = [line for document in held_out for line in document.splitlines() if line.strip()]
        checked = [*spm.HOSTILE, *(spm.spoil(line, place) if place % 2 else line for place, line in enumerate(lines))]
        extended = models.dress(Tokenizer.from_file(str(folder / "extended.json")), models.load_tokenizer(base), "")
        first = len(extended) - new_tokens
        others = {
            path.name.removeprefix("tokenizer-"): models.load_tokenizer(path).backend_tokenizer
            for path in [base, *compare]
        }
        spent = {"ours": _spent(fast, held_out)} | {"extended": _spent(extended.backend_tokenizer, held_out)}
        spent |= {name: _spent(tokenizer, held_out) for name, tokenizer in others.items()}
        seconds, memory = (
            {job: statistics.median(run[part] for run in runs) for job, runs in measured.items()} for part in (0, 1)
        )
        result = {
            "bench": "tokenizer",
            "ratios": {name: round(count / spent["ours"], 3) for name, count in spent.items() if name != "ours"},
            "speed_ratios": {job: round(seconds[job] / seconds["replace"], 2) for job in list(jobs)[1:3]},
            "memory_ratio": {job: round(memory[job] / memory["replace"], 2) for job in list(jobs)[1:3]},
            "ours": {
                "text_megabytes": round(size / 1e6, 1),
                "held_out_megabytes": round(sum(len(document.encode()) for document in held_out) / 1e6, 2),
                "seconds": {job: round(value, 1) for job, value in seconds.items()},
                "peak_mb": {job: round(value) for job, value in memory.items()},
            },
            "checks": {
                "table1_tokens": len(fast.encode(spoken.example, add_special_tokens=False).ids),
                "table1_tokens_extended": len(extended(spoken.example, add_special_tokens=False)["input_ids"]),
                "extend_minutes": round(seconds["extend"] / 60, 2),
                "unreachable": sum(token >= first for token in vocabulary.unreachable(extended)),
                "otherwise_than_sentencepiece": len(list(spm.mismatches(model, fast, checked))),
                "checked_lines": len(checked),
            },
        }
    for name, count in sorted(spent.items(), key=lambda item: item[1]):
        print(f"{name:<16} {count:>12,} tokens  {count / spent['ours']:.2f}")
    print(json.dumps(result, ensure_ascii=False))


def _write_text(
    folder: Path, more: list[Path], language: str, english_share: float, megabytes: float, out: Path
) -> tuple[list[str], int]:
    """Training lines into out/target.txt and out/english.txt; the held-out documents and the bytes of the former."""
    limits = {"target": megabytes * 1e6, "english": megabytes * 1e6 * english_share / (1 - english_share)}
    sizes, held_out = dict.fromkeys(limits, 0), []
    files = {kind: (out / f"{kind}.txt").open("w", encoding="utf-8") for kind in limits}
    for document, training in _documents(folder, more):
        kind = "target" if document.get("language", language) == language else "english"
        if not training and kind == "target":
            held_out.append(document["text"])
        elif training:
            for line in document["text"].splitlines():
                if line.strip() and sizes[kind] < limits[kind]:
                    sizes[kind] += files[kind].write(line + "\n") and len(line.encode()) + 1
    for file in files.values():
        file.close()
    return held_out, sizes["target"]


def _documents(folder: Path, more: list[Path]) -> Iterator[tuple[dict, bool]]:
    """(document, whether to train on it): the filter's by its own split, in random order."""
    for document in documents.shuffled(folder / "documents", seed=0):
        yield document, document["split"] == "train"
    for path in more:
        for number, document in enumerate(documents.read(path, language="und")):
            yield {"text": document["text"]}, bool(number % HELD_OUT_EVERY)


def _lines(folder: Path, *names: str) -> Iterator[str]:
    for name in names:
        with (folder / f"{name}.txt").open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


def _train_on_words(folder: Path, vocab_size: int) -> None:
    words: Counter[str] = Counter()
    for line in _lines(folder, "target", "english"):
        spm.count_words(words, line)
    more = {"model_type": "bpe", "unknown": "<unk>", "controls": ["<s>", "</s>"], "threads": os.cpu_count() or 1}
    (folder / "ours.model").write_bytes(spm.train(words, vocab_size=vocab_size, character_coverage=0.9995, **more))


def _train_on_text(folder: Path, vocab_size: int) -> None:
    """The same settings on the lines themselves, as SentencePiece is used elsewhere."""
    sentencepiece.SentencePieceTrainer.train(
        input=[str(folder / "target.txt"), str(folder / "english.txt")],
        model_prefix=str(folder / "peer"),
        vocab_size=vocab_size,
        model_type="bpe",
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        max_sentence_length=1_000_000,
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )


def _train_with_tokenizers(folder: Path, vocab_size: int) -> None:
    """A byte-level vocabulary of the same size by Hugging Face's trainer."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(folder / "target.txt"), str(folder / "english.txt")], trainer)


def _extend(folder: Path, base: Path, new_tokens: int, latin: bool) -> None:
    chunks: Counter[str] = Counter()
    for line in _lines(folder, "target"):
        bpe.count_chunks(chunks, line)
    tokenizer = models.load_tokenizer(base)
    size = max(tokenizer.get_vocab().values()) + 1 + new_tokens
    bpe.extend(tokenizer, chunks, vocab_size=size, coverage=0.9995, latin=latin).save(str(folder / "extended.json"))


def _alone(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a job in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., None], arguments: tuple[object, ...]) -> tuple[float, float]:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun, stage.peak_memory_mb()


def _spent(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


if __name__ == "__main__":
    cli.run(main)
