r"""Score one checkpoint: bits per byte, fertility, tasks, and answers to read side by side.

    python scripts/eval.py --config=configs/demo/eval.yaml --model=checkpoints/demo/cpt \
        --held_out=data/demo/pack/held_out/documents --out=data/demo/eval/cpt

Reads: a Hugging Face model folder; held-out documents with `language`; task files of lm-evaluation-harness; prompts as
JSON Lines with `id`, `prompt`, `category` and, if the answer should be in another language than the prompt, `language`.
Writes: manifest.json (the scores), documents.jsonl (bits of each held-out document), samples/<task>.jsonl (a line an item),
generations.jsonl (a line a prompt, with the answer's flaws). Scores of checkpoints compare when settings and held-out documents
are the same.

A task's items come from where its file says, or from local files of the same columns, JSON Lines, CSV or Parquet:

    --data='{ruxnli: xnli_ru.jsonl, en_mmlu: mmlu/test.parquet, en_mmlu.dev: mmlu/dev.parquet, rublimp: rublimp/}'
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lib import cli, documents, stage
from lib.errors import UserError


def main(
    *,
    model: Path,
    held_out: Path,
    out: Path,
    tasks: list[Path] = [],  # noqa: B006 (never changed)
    data: dict[str, Path] = {},  # noqa: B006 (never changed)
    prompts: Path | None = None,
    language: str = "ru",
    num_fewshot: int = 0,
    limit: int | None = None,
    max_new_tokens: int = 64,
    held_out_documents: int = 200,
    max_document_chars: int = 4000,
    window: int = 2048,
    batch_tokens: int = 4096,
    dtype: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
) -> None:
    """Score one checkpoint.

    Args:
        model: the checkpoint, a Hugging Face folder with its tokenizer.
        held_out: documents no stage has trained on, with a language.
        out: the folder to write; its name is the checkpoint's in the results.
        tasks: task files (configs/eval/**.yaml).
        data: local files of a task's items by its name, of another split by `<task>.<split>`; a folder's are parts of one set.
        prompts: questions to answer, JSON Lines; none if not given.
        language: code of the target language; a prompt that names none is in it or in English.
        num_fewshot: examples before each item, for tasks that have a pool of them.
        limit: so many items of each task, drawn by the seed, and the first so many prompts; all by default.
        max_new_tokens: the longest answer.
        held_out_documents: documents a language, drawn by the seed.
        max_document_chars: a longer document is cut there, between words.
        window: tokens the model sees at once; longer documents are scored in overlapping windows.
        batch_tokens: tokens, padding included, in one forward pass.
        dtype: of the weights; logits are always compared in float32.
        seed: draws the documents, items, few-shot examples and bootstrap samples.
    """
    settings = dict(locals())
    if lost := [str(path) for path in tasks if not path.is_file()]:
        raise UserError(f"{lost[0]}: no such task file; the project's own are in configs/eval/")
    drawn = read_texts(held_out, held_out_documents, max_document_chars, seed)
    ids = {language: [name for name, _ in found] for language, found in drawn.items()}
    texts = {language: [text for _, text in found] for language, found in drawn.items()}
    from lib import items  # takes the datasets library along

    inputs = {"model": model, "held_out": held_out, "prompts": prompts, **items.inputs(data)}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        import torch

        from lib import fertility, flaws, generation, harness, metrics, models, paired

        questions = generation.read_prompts(prompts)[:limit] if prompts is not None else []
        asked_in = [flaws.asked_in(question, (settings["language"], "en")) for question in questions]
        if window > (longest := models.context_length(model)):
            raise UserError(f"--window={window}: {model} was made for {longest:,} tokens at most")
        loaded = harness.load(tasks, num_fewshot=num_fewshot, seed=seed, data=data)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scored, tokenizer = models.load(model, dtype=getattr(torch, dtype), device=device)
        building.record(checkpoint=out.name, parameters=scored.num_parameters(), vocabulary=len(tokenizer))

        sizes = {"window": window, "batch_tokens": batch_tokens}
        bits, each = {}, []
        for language, found in texts.items():
            scores = metrics.bits_per_byte(scored, tokenizer, found, **sizes, title=f"bits per byte, {language}")
            bits[language] = metrics.summarise(scores, seed=seed)
            names = ids[language]
            each += [{"language": language, "id": i} | s._asdict() for i, s in zip(names, scores, strict=True)]
        write_lines(building.folder / paired.DOCUMENTS, each)
        spent = {language: fertility.measure(tokenizer, found) for language, found in texts.items()}
        building.record(bits_per_byte=bits, fertility=spent)

        results = {}
        if loaded:
            results, samples = harness.run(scored, tokenizer, loaded, limit=limit, batch_tokens=batch_tokens, seed=seed)
            (building.folder / paired.SAMPLES).mkdir()
            for name, lines in samples.items():
                write_lines(building.folder / paired.SAMPLES / f"{name}.jsonl", lines)
        building.record(tasks=results)

        if questions:
            asked = [question["prompt"] for question in questions]
            answers, speed = generation.complete(scored, tokenizer, asked, max_new_tokens=max_new_tokens)
            flags = [
                flaws.find(answer.text, language, finished=answer.finished)
                for answer, language in zip(answers, asked_in, strict=True)
            ]
            rates = flaws.rates(list(zip(flags, asked_in, strict=True)))
            building.record(generation=speed._asdict(), flaws=rates)
            lines = [
                {**question, "language": language.code}
                | {"completion": answer.text, "tokens": answer.tokens, "finished": answer.finished, "flags": found}
                for question, language, answer, found in zip(questions, asked_in, answers, flags, strict=True)
            ]
            write_lines(building.folder / paired.GENERATIONS, lines)
    print(table(building.results))


def read_texts(held_out: Path, number: int, max_chars: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """(id, text) pairs by language, at most `number` of each, drawn from the sorted ids so that file order does not matter.

    Raises:
        UserError: there are no documents with text.
    """
    found = defaultdict(list)
    for document in documents.read(held_out):
        if document["text"].strip():
            found[document["language"]].append((document["id"], document["text"]))
    if not found:
        raise UserError(f"--held_out={held_out}: no documents with text there")
    return {
        language: [
            (name, shorten(text, max_chars))
            for name, text in random.Random(seed).sample(sorted(found[language]), min(number, len(found[language])))
        ]
        for language in sorted(found)
    }


def shorten(text: str, max_chars: int) -> str:
    """The text, or as much of its beginning as ends between words within `max_chars` characters."""
    if len(text) <= max_chars:
        return text
    kept = text[:max_chars]
    if not (text[max_chars].isspace() or kept[-1].isspace()) and len(kept.split()) > 1:
        kept = kept.rsplit(maxsplit=1)[0]
    return kept.rstrip()


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def table(results: dict) -> str:
    """The closing table: a line a language, a line a task, a line for speed, a line for flaws."""
    lines = [
        f"{results['checkpoint']}: {results['parameters'] / 1e6:,.1f} M parameters, {results['vocabulary']:,} tokens",
        f"{'language':<14}{'bits per byte':<28}{'tokens/word':>12}{'words whole':>13}{'bytes/token':>13}{'chars/token':>13}{'texts':>8}",
    ]
    for language, score in results["bits_per_byte"].items():
        spent = f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"
        rates = results["fertility"][language]
        lines.append(
            f"{language:<14}{spent:<28}{rates['tokens_per_word']:>12.2f}{rates['words_whole']:>13.1%}"
            f"{rates['bytes_per_token']:>13.2f}{rates['characters_per_token']:>13.2f}{score['documents']:>8,}"
        )
    if results["tasks"]:
        differ = any(score["acc_bytes"]["value"] != score["value"] for score in results["tasks"].values())
        head = f"{'task':<14}{'accuracy':<28}{'chance':>12}{'items':>13}{'examples':>13}"
        lines.append(f"{head}   {'by log p / byte' if differ else ''}".rstrip())
    for name, score in results["tasks"].items():
        counts = f"{score['chance']:>12.1%}{score['items']:>13,}{score['shots']:>13}"
        by_bytes = spell(score["acc_bytes"]) if score["acc_bytes"]["value"] != score["value"] else ""
        lines.append(f"{name:<14}{spell(score):<28}{counts}   {by_bytes}".rstrip())
    if speed := results.get("generation"):
        lines.append(
            f"generation    {speed['characters_per_second']:,.0f} characters/s, {speed['tokens_per_second']:,.0f} tokens/s"
        )
    if rates := results.get("flaws"):
        items = max(rate["items"] for rate in rates.values())
        said = ", ".join(f"{flag} {rate['value']:.0%}" for flag, rate in rates.items())
        lines.append(f"{'flaws':<14}{said} (of {items:,} answers)")
    return "\n".join(lines)


def spell(score: dict) -> str:
    """A share with its interval."""
    return f"{score['value']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"


if __name__ == "__main__":
    cli.run(main)
