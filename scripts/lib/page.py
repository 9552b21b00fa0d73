"""What the report says: plain figures and sentences drawn from the stages' manifests, for the templates to lay out."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import yaml

from lib import paired, receipts, scores

FOLDER = Path(__file__).parent
RULES = {
    "copied": "the same bytes are a token of the base, whose row was copied",
    "byte": "byte tokens, copied from the base's",
    "special": "special tokens, matched by role or name",
    "averaged": "made of the base's rows by the method, by default the mean of the tokens that spell them",
    "global_mean": "the base has nothing for them: the mean of all its rows",
    "padded": "zero rows that round the matrix up and never enter a softmax",
}
FORMATS = {"model_gguf": "model", "model_e5": "model", "model_random": "random model", "encoder_random": "random model"}


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


def provenance(fetched: Mapping[str, Mapping | None]) -> list[dict]:
    """A row for everything that was fetched: what, version, licence, hashes; or why it is not there."""
    rows = []
    for name, manifest in fetched.items():
        if manifest is None:
            rows.append({"name": name, "missing": "no manifest: it was not fetched"})
            continue
        settings, results = manifest["settings"], manifest["results"]
        local = manifest["inputs"].get("path")
        taken = results.get("artefacts") or ([{"name": local["path"], "sha256": local["sha256"]}] if local else [])
        kind = settings.get("format", "")
        rows.append(
            {
                "name": name,
                "kind": FORMATS.get(kind, kind if kind in ("model", "tokenizer", "instructions") else "text"),
                "from": settings.get("type"),
                "licence": results.get("licence"),
                "artefacts": taken,
                "missing": f"skipped: {results['skipped']}" if results.get("skipped") else None,
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

    `spent` (tokens per word) and `whole` (share of words left whole) by tokenizer, those that were measured; `fewest` and
    `most` are the best of them as they are shown, so several may have them.
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
        "fewest": min(spent.values(), key=float, default=None),
        "most": max(whole.values(), key=lambda shown: float(shown.rstrip("%")), default=None),
    }


def is_random(fetched: Mapping | None) -> bool:
    """Whether a fetched model is one made at random for tests."""
    return fetched is not None and "random" in fetched["settings"].get("format", "")


def versions(stages: Iterable[Mapping]) -> dict[str, str]:
    """Package versions in use, all of them where the stages' differ."""
    found: dict[str, set[str]] = {}
    for entry in stages:
        for package, version in entry["versions"].items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(different)) for package, different in sorted(found.items())}


def model_card(*, answers: Sequence[Mapping], model: Path, **context: object) -> str:
    """The card of the tuned model, in Markdown."""
    source, answer = context["base_source"], answers[0] if answers else {}
    licence = source["results"].get("licence") if source else None
    spoken = [column["language"] for column in context["table"]["columns"] if column["group"] == "bits_per_byte"]
    return render(
        "model_card.md.j2",
        front=front_matter(context["base"], licence, sorted({context["language"], *spoken})),
        fence=fence(answer.get("prompt", "") + answer.get("completion", "")),
        limits=limits(context["results"], context["table"]),
        answers=answers,
        model=model,
        **context,
    )


def front_matter(base: str, licence: str | None, languages: Sequence[str]) -> str:
    """The YAML head of a model card; a licence that is not a plain identifier is 'other' with its name."""
    plain = bool(licence) and re.fullmatch(r"[A-Za-z0-9.+-]+", licence)
    head = {"language": list(languages), "license": licence.lower() if plain else "other"}
    if not plain:
        head["license_name"] = licence or "unknown"
    head |= {"base_model": base, "library_name": "transformers", "pipeline_tag": "text-generation"}
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def limits(results: Mapping[str, Mapping], table: Mapping) -> list[str]:
    """What the model and its scores can't be relied on for, as far as the manifests tell."""
    found = ["Nobody tuned it to refuse harmful requests or checked its answers for truth; don't rely on either."]
    if parameters := results["sft"].get("parameters"):
        found.append(
            f"It has {parameters / 1e6:,.1f} million parameters, saw {results['cpt']['tokens']:,} tokens in continued "
            f"pre-training and {results['sft']['dialogues']['kept']:,} dialogues in tuning."
        )
    tasks = [column for column in table["columns"] if column["group"] == "tasks" and "items" in column]
    if tasks:
        smallest = min(column["items"] for column in tasks)
        found.append(f"The smallest task has {smallest:,} items: read the intervals, not the last digit.")
    flawed = [column for column in table["columns"] if column["group"] == "flaws"]
    answered = next((row["cells"] for row in table["rows"] if row["checkpoint"] == "sft"), {})
    if rates := [(column, cell) for column in flawed if (cell := answered.get(column["key"])) and cell["value"]]:
        told = ", ".join(f"{column['title']} {scores.spell(cell['value'], 'percent')}" for column, cell in rates)
        found.append(f"Flaws that a rule can see in its {flawed[0]['answers']:,} answers: {told}.")
    if results["filter"]["labels"] == "weak":
        found.append("The training text was filtered by a model that had learnt from weak labels, not from readers.")
    return found


def fence(text: str) -> str:
    """A Markdown code fence that the text does not close."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


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


def markdown_cell(text: object) -> str:
    """Text that stays inside its cell of a Markdown table and is not taken for HTML."""
    return " ".join(html.escape(str(text), quote=False).replace("|", "\\|").split())
