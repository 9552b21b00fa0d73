"""What an evaluation prints when it is done, and the lines it leaves of each thing it scored."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lib import generation, metrics, unseen
from lib.languages import Language


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    """JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_samples(folder: Path, samples: Mapping[str, Iterable[dict]]) -> None:
    """A file a task; nothing where there are no tasks."""
    for name, lines in samples.items():
        folder.mkdir(exist_ok=True)
        write_lines(folder / f"{name}.jsonl", lines)


def each(drawn: Mapping[str, unseen.Drawn], scores: Mapping[str, list[metrics.Score]]) -> Iterator[dict]:
    """A line for each document or dialogue: language, id, bits, bytes, tokens."""
    for language, found in scores.items():
        for name, score in zip(drawn[language].ids, found, strict=True):
            yield {"language": language, "id": name, **score._asdict()}


def answers(
    questions: Sequence[dict],
    asked_in: Sequence[Language],
    given: Sequence[generation.Completion],
    flags: Sequence[list[str]],
) -> Iterator[dict]:
    """A line for each prompt: as it was given, with the language of the answer, the answer and its flaws."""
    for question, language, answer, found in zip(questions, asked_in, given, flags, strict=True):
        said = {"completion": answer.text, "tokens": answer.tokens, "finished": answer.finished, "flags": found}
        yield {**question, "language": language.code, **said}


def table(results: Mapping) -> str:
    """A line a language for text, dialogues and speed, a line a task, a line for flaws."""
    lines = [
        f"{results['checkpoint']}: {results['parameters'] / 1e6:,.1f} M parameters, {results['vocabulary']:,} tokens",
        f"{'language':<14}{'bits per byte':<28}{'tokens/word':>12}{'words whole':>13}{'bytes/token':>13}{'chars/token':>13}{'texts':>8}",
    ]
    for language, score in results["bits_per_byte"].items():
        rates = results["fertility"][language]
        lines.append(
            f"{language:<14}{bits(score):<28}{rates['tokens_per_word']:>12.2f}{rates['words_whole']:>13.1%}"
            f"{rates['bytes_per_token']:>13.2f}{rates['characters_per_token']:>13.2f}{score['documents']:>8,}"
        )
    lines += [*_answers(results), *_divergence(results), *_sizes(results), *_tasks(results)]
    if rates := results.get("flaws"):
        items = max(rate["items"] for rate in rates.values())
        said = ", ".join(f"{flag} {rate['value']:.0%}" for flag, rate in rates.items())
        lines.append(f"{'flaws':<14}{said} (of {items:,} answers)")
    return "\n".join(lines)


def bits(score: Mapping) -> str:
    """Bits per byte, or nats, with the interval."""
    return f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"


def percent(score: Mapping) -> str:
    """A share with its interval."""
    return f"{score['value']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"


def _answers(results: Mapping) -> Iterator[str]:
    if found := results.get("instructions"):
        yield f"{'answers':<14}{'bits per byte':<28}{'perplexity/token':>17}{'tokens':>10}{'dialogues':>11}"
    for language, score in (found or {}).items():
        counts = f"{score['perplexity_per_token']:>17.2f}{score['tokens']:>10,}{score['documents']:>11,}"
        yield f"{language:<14}{bits(score):<28}{counts}"


def _divergence(results: Mapping) -> Iterator[str]:
    if found := results.get("kl_to_base"):
        compared = f"{found['positions']:,} positions, {found['compared']:.0%} of the base's tokens"
        yield f"{'KL to base':<14}{bits(found):<28}nats a position of {found['language']} ({compared})"


def _sizes(results: Mapping) -> Iterator[str]:
    """Context and speed; those of one thread or many do not compare, so the threads are told."""
    context, speed = results.get("context"), results.get("speed")
    if context:
        fits = ", ".join(f"{language} {number:,}" for language, number in context["characters"].items())
        yield f"{'context':<14}{fits} characters ({context['tokens']:,} tokens)"
    for what, title in (("prompt", "reading"), ("generation", "generation")):
        told = [
            f"{language} {found[what]['characters_per_second']:,.0f} characters/s "
            f"[{found[what]['slowest']:,.0f}, {found[what]['fastest']:,.0f}], {found[what]['tokens_per_second']:,.0f} tokens/s"
            for language, found in (speed or {}).get("languages", {}).items()
        ]
        if told:
            yield f"{title:<14}{'; '.join(told)}"
    if speed:
        yield f"{'':<14}on {speed['device']}, {speed['threads']} threads, {speed['dtype']}; medians of {speed['repeats']}"


def _tasks(results: Mapping) -> Iterator[str]:
    tasks = results.get("tasks") or {}
    if tasks:
        differ = any(score["acc_bytes"]["value"] != score["value"] for score in tasks.values())
        head = f"{'task':<14}{'accuracy':<28}{'chance':>12}{'items':>13}{'examples':>13}"
        yield f"{head}   {'by log p / byte' if differ else ''}".rstrip()
    for name, score in tasks.items():
        counts = f"{score['chance']:>12.1%}{score['items']:>13,}{score['shots']:>13}"
        by_bytes = percent(score["acc_bytes"]) if score["acc_bytes"]["value"] != score["value"] else ""
        yield f"{name:<14}{percent(score):<28}{counts}   {by_bytes}".rstrip()
