"""What the report says: plain figures and sentences drawn from the stages' manifests, for the templates to lay out."""

import difflib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from lib import documents, scores

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
REASONS = {
    "exact_duplicate": "the same paragraph stands earlier in the corpus",
    "near_duplicate": "an earlier paragraph is nearly the same",
    "low_quality": "the trained filter scores it below {threshold} of 5",
    "too_short": "fewer than {too_short:,.0f} characters",
    "low_script": "less than {low_script:.0%} of its letters are of its language's script",
    "mojibake": "more than {mojibake:.0%} of it was read in a wrong encoding",
    "symbols": "more than {symbols:.0%} of its visible characters are no letters",
    "boilerplate": "more than {boilerplate:.0%} of it is navigation, licences and the like",
    "repeated_lines": "more than {repeated_lines:.0%} of it are lines it has had before",
    "repetition": "more than {repetition:.0%} of its runs of words have occurred before",
}
LONGEST = 700  # characters of a text that are shown
SEEN_AT_MOST = 200_000  # removed rows looked at for samples


def source_rows(fetched: Mapping[str, Mapping | None], filtered: Mapping) -> list[dict]:
    """What became of each text source: documents fetched, left by deduplication, left by the filter, by reason.

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
                "reasons": {reason: number for reason, number in counts.items() if reason != "kept"},
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


def removed(folder: Path, counts: Mapping[str, int], samples: int, seed: int) -> dict[str, list[dict]]:
    """Some removed rows of each reason, drawn by the seed, the reasons in the order of `counts` (largest first)."""
    wanted = {reason: number for reason, number in sorted(counts.items(), key=lambda item: -item[1]) if number}
    found: dict[str, list[dict]] = {reason: [] for reason in wanted}
    if not wanted or not (folder / "removed").is_dir():
        return {}
    for seen, row in enumerate(documents.shuffled(folder / "removed", seed)):
        here = found.setdefault(row["reason"], [])
        if len(here) < samples:
            here.append(row)
        if seen >= SEEN_AT_MOST or all(len(found[reason]) >= min(samples, wanted[reason]) for reason in wanted):
            break
    return {reason: rows for reason, rows in found.items() if rows}


def pair(row: Mapping) -> dict:
    """A removed paragraph and its kept twin, with what differs marked."""
    left, right = cut(row["text"]), cut(row.get("twin_text") or "")
    return {**row, "marked": mark(left, right), "twin_marked": mark(right, left)}


def mark(text: str, other: str) -> Markup:
    """The text escaped, with the words that `other` has not in the same place in <mark>."""
    words, others = (re.findall(r"\s+|\w+|[^\w\s]", part) for part in (text, other))
    pieces = []
    for kind, begin, end, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        part = html.escape("".join(words[begin:end]))
        pieces.append(part if kind == "equal" or not part.strip() else f"<mark>{part}</mark>")
    return Markup("".join(pieces))


def cut(text: str, longest: int = LONGEST) -> str:
    """The text's beginning; how much there is of it where that is not all."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()} … ({len(text):,} characters in all)"


def meaning(reason: str, settings: Mapping) -> str:
    """What a reason of removal means, with the limit in the settings of the stage that gave it."""
    if reason == "too_short" and "min_document_chars" in settings:
        return f"documents with fewer than {settings['min_document_chars']} characters left"
    limits = settings.get("limits") or {}
    scripted = reason.startswith("low_") and reason != "low_quality"
    try:
        return REASONS["low_script" if scripted else reason].format(**limits, threshold=settings.get("threshold"))
    except KeyError:
        return ""


def filter_verdict(results: Mapping) -> list[str]:
    """Plain words on how far the trained filter can be trusted."""
    evaluation = results["evaluation"]
    sentences = []
    if results["labels"] == "weak":
        sentences.append(
            "Its labels are weak: beginnings of real documents against the same damaged on purpose. So the figures say "
            "how well it finds such damage, and not how well it agrees with readers."
        )
    area, of_length = evaluation.get("auc"), evaluation.get("auc_of_length")
    if area is None:
        return sentences
    compared = ""
    if of_length is not None:
        of_length = max(of_length, 1 - of_length)  # a short text may be the good one or the bad one
        compared = f" (the length of the text alone: {of_length:.3f})"
    sentences.append(
        f"On {evaluation['examples']:,} held-out examples a good one outscores a bad one with probability "
        f"{area:.3f}{compared}; 0.5 is guessing."
    )
    if of_length is not None and area <= of_length:
        sentences.append("So it tells no more than the length does.")
    return sentences


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
    if results["filter"]["labels"] == "weak":
        found.append("The training text was filtered by a model that had learnt from weak labels, not from readers.")
    return found


def fence(text: str) -> str:
    """A Markdown code fence that the text does not close."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def side_by_side(generations: Mapping[str, Sequence[Mapping]], limit: int) -> list[dict]:
    """Prompts with the checkpoints' answers beside each other, in the order of the first checkpoint's file."""
    prompts: dict[str, dict] = {}
    for checkpoint, lines in generations.items():
        for line in lines:
            prompt = prompts.setdefault(
                line["id"], {"prompt": line["prompt"], "category": line.get("category"), "answers": {}}
            )
            prompt["answers"][checkpoint] = line
    return list(prompts.values())[:limit]


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
        "meaning": meaning,
        "cut": cut,
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
