r"""Score one checkpoint: text, instructions, what it kept of its base, speed, tasks, and answers to read side by side.

    python scripts/eval.py --config=configs/demo/eval.yaml --model=checkpoints/demo/cpt --base=checkpoints/models/smollm2-135m \
        --held_out=data/demo/pack/held_out/documents --instructions=data/demo/instruct/held_out.jsonl --out=data/demo/eval/cpt

Reads: a Hugging Face model folder, and its base's; held-out documents with `language`; held-out dialogues; task files of
lm-evaluation-harness; prompts as JSON Lines with `id`, `prompt`, `category` and, if the answer should be in another language than
the prompt, `language`.
Writes: manifest.json (the scores), documents.jsonl and dialogues.jsonl (bits of each), samples/<task>.jsonl (a line an item),
generations.jsonl (a line a prompt, with the answer's flaws). Scores of checkpoints compare when settings and inputs are the same.

A task's items come from where its file says, or from local files of the same columns, JSON Lines, CSV or Parquet:

    --data='{ruxnli: xnli_ru.jsonl, en_mmlu: mmlu/test.parquet, en_mmlu.dev: mmlu/dev.parquet, rublimp: rublimp/}'
"""

from pathlib import Path
from typing import Literal

from lib import cli, stage
from lib.errors import UserError


def main(
    *,
    model: Path,
    held_out: Path,
    out: Path,
    base: Path | None = None,
    instructions: Path | None = None,
    chat_template: Path | None = None,
    tasks: list[Path] = [],  # noqa: B006 (never changed)
    data: dict[str, Path] = {},  # noqa: B006 (never changed)
    prompts: Path | None = None,
    language: str = "ru",
    num_fewshot: int = 0,
    limit: int | None = None,
    max_new_tokens: int = 64,
    held_out_documents: int = 200,
    max_document_chars: int = 4000,
    speed_characters: int = 2000,
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
        base: the model it came from: how far its predictions are from that one's on English (KL); not measured if not given.
        instructions: dialogues no stage has trained on (instruct.py's held_out.jsonl); none if not given.
        chat_template: Jinja file that dialogues are scored in, for a checkpoint without a chat template: that of its descendants.
        tasks: task files (configs/eval/**.yaml).
        data: local files of a task's items by its name, of another split by `<task>.<split>`; a folder's are parts of one set.
        prompts: questions to answer, JSON Lines; none if not given.
        language: code of the target language; a prompt that names none is in it or in English.
        num_fewshot: examples before each item, for tasks that have a pool of them.
        limit: so many items of each task, drawn by the seed, and the first so many prompts; all by default.
        max_new_tokens: the longest answer.
        held_out_documents: documents a language, and dialogues, drawn by the seed.
        max_document_chars: a longer document is cut there, between words.
        speed_characters: held-out text of each language that is read as one prompt to measure speed.
        window: tokens the model sees at once; longer documents are scored in overlapping windows.
        batch_tokens: tokens, padding included, in one forward pass.
        dtype: of the weights; logits are always compared in float32.
        seed: draws the documents, items, few-shot examples and bootstrap samples.
    """
    settings = dict(locals())
    if lost := [str(path) for path in tasks if not path.is_file()]:
        raise UserError(f"{lost[0]}: no such task file; the project's own are in configs/eval/")
    if speed_characters < 1:
        raise UserError(f"--speed_characters={speed_characters}: at least 1")
    from lib import items, unseen  # they take large libraries along

    texts = unseen.texts(held_out, held_out_documents, max_document_chars, seed)
    talks = unseen.talks(instructions, held_out_documents, seed) if instructions is not None else {}
    inputs = {"model": model, "held_out": held_out, "base": base, "instructions": instructions}
    inputs |= {"chat_template": chat_template, "prompts": prompts, **items.inputs(data)}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        import torch

        from lib import (
            divergence,
            fertility,
            flaws,
            generation,
            harness,
            metrics,
            models,
            paired,
            replies,
            speed,
            summary,
        )

        questions = generation.read_prompts(prompts)[:limit] if prompts is not None else []
        asked_in = [flaws.asked_in(question, (settings["language"], "en")) for question in questions]
        if window > (longest := models.context_length(model)):
            raise UserError(f"--window={window}: {model} was made for {longest:,} tokens at most")
        loaded = harness.load(tasks, num_fewshot=num_fewshot, seed=seed, data=data)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scored, tokenizer = models.load(model, dtype=getattr(torch, dtype), device=device)
        speaking = replies.with_template(tokenizer, chat_template) if talks else tokenizer
        building.record(checkpoint=out.name, parameters=scored.num_parameters(), vocabulary=len(tokenizer))
        sizes = {"window": window, "batch_tokens": batch_tokens}
        spent = {
            language: metrics.bits_per_byte(scored, tokenizer, found, **sizes, title=f"bits per byte, {language}")
            for language, (_, found) in texts.items()
        }
        answered = {
            language: replies.bits(scored, speaking, found, **sizes, title=f"answers, {language}")
            for language, (_, found) in talks.items()
        }
        summary.write_lines(building.folder / paired.DOCUMENTS, summary.each(texts, spent))
        summary.write_lines(building.folder / paired.DIALOGUES, summary.each(talks, answered))
        rates = {language: fertility.measure(tokenizer, found) for language, (_, found) in texts.items()}
        fits = {language: int(longest * rate["characters_per_token"]) for language, rate in rates.items()}
        building.record(
            bits_per_byte={language: metrics.summarise(found, seed=seed) for language, found in spent.items()},
            instructions={language: metrics.summarise(found, seed=seed) for language, found in answered.items()},
            fertility=rates,
            context={"tokens": longest, "characters": fits},
        )
        if base is not None and (english := texts.get(divergence.LANGUAGE)):
            before = models.load(base, dtype=getattr(torch, dtype), device=device)
            apart = divergence.from_base(scored, tokenizer, *before, english.found, window=window, title="KL to base")
            del before  # as large as the model
            building.record(kl_to_base={"language": divergence.LANGUAGE, **divergence.summarise(apart, seed=seed)})
        building.record(speed=speed.measure(scored, tokenizer, texts, speed_characters))
        results, samples = {}, {}
        if loaded:
            results, samples = harness.run(scored, tokenizer, loaded, limit=limit, batch_tokens=batch_tokens, seed=seed)
        summary.write_samples(building.folder / paired.SAMPLES, samples)
        building.record(tasks=results)
        if questions:
            asked = [question["prompt"] for question in questions]
            answers = generation.complete(scored, tokenizer, asked, max_new_tokens=max_new_tokens)
            flags = [
                flaws.find(answer.text, language, finished=answer.finished)
                for answer, language in zip(answers, asked_in, strict=True)
            ]
            building.record(flaws=flaws.rates(list(zip(flags, asked_in, strict=True))))
            said = summary.answers(questions, asked_in, answers, flags)
            summary.write_lines(building.folder / paired.GENERATIONS, said)
    print(summary.table(building.results))


if __name__ == "__main__":
    cli.run(main)
