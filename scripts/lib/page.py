"""What the report says: plain figures and sentences drawn from the stages' manifests, for the templates to lay out."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import yaml
from tokenizers import decoders

from lib import lineage, paired, receipts, scores

FOLDER = Path(__file__).parent
RULES = {
    "copied": "the same bytes are a token of the base, whose row was copied",
    "byte": "byte tokens, copied from the base's",
    "special": "special tokens, matched by role or name",
    "averaged": "made of the base's rows by the method, by default the mean of the tokens that spell them",
    "global_mean": "the base has nothing for them: the mean of all its rows",
    "padded": "zero rows that round the matrix up and never enter a softmax",
}


def described(run: Mapping, sources: Mapping[str, Mapping | None]) -> dict[str, object]:
    """What the page and the cards both say of a run, beside what `lineage.read` found.

    Args:
        run: of `lineage.read`.
        sources: manifests of fetched folders by name; None where there is none.
    """
    folders, manifests = run["folders"], run["manifests"]
    language = manifests["tokenizer"]["settings"]["language"]
    base = Path(manifests["init"]["inputs"]["base"]["path"]).name
    evaluations = {name: folder for name, folder in folders.items() if name.startswith("eval ")}
    scored = [manifests[name] | {"items": paired.read(folder)} for name, folder in evaluations.items()]
    answers = {
        manifests[name]["results"]["checkpoint"]: paired.generations(folder) for name, folder in evaluations.items()
    }
    table = scores.score_table(scored, language)
    fertility = json.loads((folders["tokenizer"] / "fertility.json").read_text(encoding="utf-8"))
    random = lineage.is_random(sources.get(base))
    return {
        "language": language,
        "base": base,
        "base_source": sources.get(base),
        "random_model": random,
        "fertility": fertility,
        "example": fertility["example"],
        "items": {one["results"]["checkpoint"]: one["items"] for one in scored},
        "answers": answers,
        "table": table,
        "headline": scores.headline(table, fertility["tokenizers"], language, random_model=random),
        "provenance": lineage.provenance(sources),
        "settings_of": lambda name: manifests[name]["settings"],
    }


def source_rows(fetched: Mapping[str, Mapping | None], filtered: Mapping) -> list[dict]:
    """What became of each text source: documents fetched, left by deduplication, left by the filter.

    Args:
        fetched: manifests of fetched folders by name; None where there is none.
        filtered: results of the filter stage.
    """
    by_source = filtered.get("by_source", {})
    rows = []
    for name in dict.fromkeys([*fetched, *by_source]):
        results = (fetched.get(name) or {}).get("results", {})
        if "documents" not in results and name not in by_source:
            continue
        counts = by_source.get(name, {})
        rows.append(
            {
                "name": name,
                "language": results.get("language"),
                "skipped": results.get("skipped"),
                "documents": results.get("documents"),
                "characters": results.get("characters"),
                "after_dedup": sum(counts.values()),
                "kept": counts.get("kept", 0),
            }
        )
    return rows


def ablation(results: Mapping) -> dict:
    """A grid as a table: `titles`, and a row for the base, for each variant and each of the paper's figures.

    A variant's cells are means over its seeds, with the range of several seeds or the 95 % interval of one.
    """
    columns = [column for column in results["columns"] if column["group"] in scores.DRAWN]
    rows = [{"name": "base", "cells": [_spelt(results["base"][column["key"]], column) for column in columns]}]
    for name, variant in results["variants"].items():
        seeds = variant["seeds"]
        found = variant["summary"] if len(seeds) > 1 else next(iter(seeds.values()))
        cells = [_spelt(found.get(column["key"]), column) for column in columns]
        rows.append(
            {"name": name, "cells": cells, "seeds": len(seeds), "training": next(iter(variant["training"].values()))}
        )
    for name, figures in results["paper"].items():
        cells = [_spelt(figures.get(column["title"]), column) for column in columns]
        rows.append({"name": f"the paper's {name}", "cells": cells})
    return {"about": results["about"], "titles": [column["title"] for column in columns], "rows": rows}


def _spelt(cell: Mapping | float | None, column: Mapping) -> dict | None:
    """A cell's value and range as text."""
    if cell is None:
        return None
    if not isinstance(cell, Mapping):
        return {"value": scores.spell(cell, column["style"])}
    shown = {"value": scores.spell(cell.get("mean", cell.get("value")), column["style"])}
    return shown | {end: scores.spell(cell[end], column["style"]) for end in ("low", "high") if end in cell}


def tokenizations(fertility: Mapping) -> list[dict]:
    """The example sentence in each tokenizer's pieces; a tokenizer that could not be had keeps its row."""
    return [
        {
            "name": name,
            "vocabulary": row.get("vocabulary"),
            "pieces": row.get("example") or [],
            "skipped": row.get("skipped") or (None if row.get("example") else "not measured"),
        }
        for name, row in fertility["tokenizers"].items()
    ]


def fertility_rows(fertility: Mapping, language: str) -> list[dict]:
    """What the tokenizers spend on each language, the target first, and on each of its sources below it.

    `spent` (tokens per word) and `whole` (share of words left whole) by tokenizer, those that were measured.
    """
    measured = {name: row for name, row in fertility["tokenizers"].items() if row.get("languages")}
    rows = []
    for code, sources in sorted(fertility["text"].items(), key=lambda item: item[0] != language):
        words = {source: counted["words"] for source, counted in sources.items()}
        found = {name: row["languages"][code] for name, row in measured.items()}
        rows.append(_fertility_row(scores.name_of(code), sum(words.values()), found) | {"sources": len(sources)})
        for source in sorted(sources, key=words.__getitem__, reverse=True):
            found = {name: row["sources"][code][source] for name, row in measured.items()}
            rows.append(_fertility_row(source, words[source], found))
    return rows


def _fertility_row(name: str, words: int, found: Mapping[str, Mapping[str, float]]) -> dict:
    spent = {tokenizer: scores.spell(rates["tokens_per_word"], "ratio") for tokenizer, rates in found.items()}
    whole = {tokenizer: scores.spell(rates["words_whole"], "percent") for tokenizer, rates in found.items()}
    return {
        "name": name,
        "words": words,
        "spent": spent,
        "whole": whole,
    }


def side_by_side(generations: Mapping[str, Sequence[Mapping]], limit: int | None = None) -> list[dict]:
    """Prompts with the checkpoints' answers beside each other, in the order of the first checkpoint's file."""
    prompts: dict[str, dict] = {}
    for checkpoint, lines in generations.items():
        for line in lines:
            prompt = prompts.setdefault(
                line["id"], {"prompt": line["prompt"], "category": line.get("category"), "answers": {}}
            )
            prompt["answers"][checkpoint] = line
    return list(prompts.values())[:limit]


def leaks(
    counts: Mapping[str, Mapping[str, int]], found: Sequence[Mapping], items: Mapping[str, paired.Details]
) -> list[dict]:
    """A row for each task with items in the training text: how many, and by checkpoint the accuracy with and without them.

    Args:
        counts: `tasks` of the leaks stage.
        found: its lines.
        items: of `paired.read`, by checkpoint.
    """
    rows = []
    for task, counted in counts.items():
        leaked = {line["id"] for line in found if line["task"] == task}
        accuracies = {}
        for checkpoint, details in items.items():
            scored = details.tasks.get(task, [])
            left = [item.correct for item in scored if item.id not in leaked]
            if scored and left:
                both = {"all": paired.share_of([item.correct for item in scored]), "without": paired.share_of(left)}
                accuracies[checkpoint] = both
        rows.append({"task": task, **counted, "accuracies": accuracies})
    return rows


def render(template: str, **context: object) -> str:
    """A template of this folder, everything escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "memory": memory,
        "number": lambda value: "–" if value is None else f"{value:,}",
        "setting": setting,
        "signed": lambda value: "–" if value is None else f"{value:.2f}".replace("-", "−"),
        "meaning": receipts.meaning,
        "mean_score": receipts.mean_score,
        "cut": receipts.cut,
        "spell": scores.spell,
        "language": scores.name_of,
        "cell": markdown_cell,
        "yaml": lambda settings: yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120),
        "anchor": lambda name: re.sub(r"[^\w.-]+", "-", name),
        "readable": readable,
    }
    return environment.get_template(template).render(**context)


def duration(seconds: float) -> str:
    """`1 h 12 min`, `3 min 5 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {left} s"


def memory(megabytes: float) -> str:
    """`3 kB`, `546 MB`, `2.1 GB` (10^9 bytes)."""
    if megabytes < 1:
        return f"{megabytes * 1000:,.0f} kB"
    return f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:,.1f} GB"


def setting(value: object) -> str:
    """A setting's value as its YAML would say it."""
    if value is None or value == []:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {setting(part)}" for name, part in value.items())
    return ", ".join(map(setting, value)) if isinstance(value, list) else json.dumps(value)


def readable(token: str) -> str:
    """A token of a byte-level vocabulary as the text that it stands for; any other as it is, and parts of characters too."""
    text = decoders.ByteLevel().decode([token])
    return token if "\N{REPLACEMENT CHARACTER}" in text else text


def markdown_cell(text: object) -> str:
    """Text that stays inside its cell of a Markdown table and is not taken for HTML."""
    return " ".join(html.escape(str(text), quote=False).replace("|", "\\|").split())
