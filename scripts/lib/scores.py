"""The scores of all checkpoints in one table, and what it says in plain words: better, worse, or not shown to differ."""

from collections.abc import Mapping, Sequence

from lib import flaws, languages, paired
from lib.errors import UserError

MADE_BY = {
    "base": "the model as it was fetched",
    "init": "new vocabulary, not trained yet",
    "cpt": "after continued pre-training",
    "merge": "init and cpt interpolated",
    "sft": "after instruction tuning",
}
# Groups of columns by the table that shows them.
TABLES = {
    "text": ("bits_per_byte", "instructions", "perplexity", "kl_to_base"),
    "tasks": ("tasks",),
    "size": ("fertility", "context", "reading", "writing", "vocabulary", "parameters"),
    "flaws": ("flaws",),
}
DRAWN = ("bits_per_byte", "instructions", "tasks")  # as intervals
BROUGHT = {
    "cpt": "Continued pre-training brings the model",
    "merge": "Merged with init, the model comes",
}


def score_table(evaluations: Sequence[Mapping], language: str, base: str = "base") -> dict:
    """The scores as data: columns, those of the target language first, and a row per checkpoint with one cell per column (None where it was not measured).

    A cell has `value`, with `low` and `high` where there is an interval, and then `against_base`: 'better', 'worse' or, where it
    may be chance, 'overlaps'. Where both evaluations have `items` (of `paired.read`) and these are the same, it goes by the paired
    `difference` from the base, which the cell then has too; else by whether the two intervals are apart. `like_guessing`: the
    interval holds the chance level.
    """
    results = [evaluation["results"] for evaluation in evaluations]
    columns = _columns(results, language)
    before = next((each for each in evaluations if each["results"]["checkpoint"] == base), None)
    rows = []
    for evaluation in evaluations:
        cells = {column["key"]: _cell(evaluation, column, before) for column in columns}
        rows.append({"checkpoint": evaluation["results"]["checkpoint"], "cells": cells})
    return {"columns": columns, "rows": rows}


def text_table(table: Mapping) -> str:
    """The score table for a terminal: text, tasks, size and speed, flaws of answers, aligned."""
    parts = ([column for column in table["columns"] if column["table"] == name] for name in TABLES)
    return "\n\n".join(_aligned(columns, table["rows"]) for columns in parts if columns)


def compared(table: Mapping) -> str:
    """How many of the table's cells are compared with the base, how, and that nothing is corrected for their number; '' for none."""
    cells = [cell for row in table["rows"] for cell in row["cells"].values() if cell and "against_base" in cell]
    if not cells:
        return ""
    alike = sum("difference" in cell for cell in cells)
    how = "all paired" if alike == len(cells) else f"{alike} of them paired" if alike else "none of them paired"
    told = f"{len(cells)} comparison{'s' if len(cells) > 1 else ''} with the base, {how}"
    return f"{told}; no correction for their number: where nothing differs, about one in twenty is marked all the same."


def plain(cell: Mapping | None, column: Mapping) -> str:
    """A cell's value as text, without its interval."""
    return "-" if cell is None else spell(cell["value"], column["style"])


def spell(value: float, style: str) -> str:
    """A number in its column's style."""
    return {
        "percent": f"{value:.1%}",
        "bits": f"{value:.3f}",
        "ratio": f"{value:.2f}",
        "whole": f"{value:,.0f}",
        "millions": f"{value / 1e6:,.1f}",
    }[style]


def against(cell: Mapping, base: Mapping, better: str) -> str:
    """'better' or 'worse' than the base if the 95% intervals are apart, else 'overlaps'."""
    if cell["low"] <= base["high"] and base["low"] <= cell["high"]:
        return "overlaps"
    lower = cell["value"] < base["value"]
    return "better" if lower == (better == "lower") else "worse"


def headline(table: Mapping, fertility: Mapping, language: str, *, random_model: bool = False) -> list[str]:
    """The main result in a few plain sentences: better, worse, or not shown to differ.

    Args:
        table: of `score_table`.
        fertility: `tokenizers` of the tokenizer stage's fertility.json, the new one named 'new', the base's second.
        language: code of the target language.
        random_model: whether the base is no real model.
    """
    sentences = ["The base is a random model made for tests, so no figure here means anything."] if random_model else []
    spent = [row["languages"] for row in list(fertility.values())[:2] if row.get("languages")]
    if len(spent) == 2 and all(language in measured for measured in spent):
        new, old = (measured[language]["tokens_per_word"] for measured in spent)
        ratio = f"{old / new:.1f} times fewer" if new <= old else f"{new / old:.1f} times more"
        sentences.append(
            f"The new tokenizer spends {new:.2f} tokens on a {name_of(language)} word where the base's spends {old:.2f}: {ratio}."
        )
    rows = {row["checkpoint"]: row["cells"] for row in table["rows"]}
    if "base" not in rows or len(rows) < 2:
        return sentences
    trained = [name for name in ("cpt", "merge") if name in rows] or [name for name in rows if name != "base"][-1:]
    columns = [column for column in table["columns"] if column["group"] == "bits_per_byte"]
    for name in trained:
        parts = [
            _told(rows[name][column["key"]], rows["base"][column["key"]], name_of(column["language"]))
            for column in columns
            if rows[name][column["key"]] and rows["base"][column["key"]]
        ]
        if parts:
            sentences.append(f"{BROUGHT.get(name, f'The checkpoint {name} comes')} to {' and to '.join(parts)}.")
    final = list(rows)[-1]
    if final != "base" and (sentence := _on_tasks(table, rows[final], final)):
        sentences.append(sentence)
    return sentences


def name_of(language: str) -> str:
    """A language's English name, or its code if it has no file in configs/languages."""
    try:
        return languages.load(language).name
    except UserError:
        return language


def _columns(results: Sequence[Mapping], language: str) -> list[dict]:
    """Columns for everything that any checkpoint was measured on."""

    def named(part: str) -> list[str]:
        return list(dict.fromkeys(name for result in results for name in result.get(part) or {}))

    def by_language(part: str) -> list[str]:
        return sorted(named(part), key=lambda code: code != language)

    def found(*at: str) -> list[Mapping]:
        return [part for result in results if (part := _at(result, at))]

    columns = []
    for code in by_language("bits_per_byte"):
        at = ("bits_per_byte", code)
        shown = {"title": f"bits/byte {code}", "better": "lower", "style": "bits"}
        columns.append(shown | {"at": at, "language": code, "documents": found(*at)[0]["documents"]})
    for code in by_language("instructions"):
        at = ("instructions", code)
        shown = {"title": f"bits/byte answers {code}", "better": "lower", "style": "bits"}
        columns.append(shown | {"at": at, "language": code, "dialogues": found(*at)[0]["documents"]})
    for code in by_language("instructions"):
        # It does not compare over tokenizers, so no checkpoint is better by it.
        shown = {"title": f"perplexity answers {code}", "group": "perplexity", "better": None, "style": "ratio"}
        columns.append(shown | {"at": ("instructions", code, "perplexity_per_token"), "language": code})
    if divergences := found("kl_to_base"):
        # The base is at 0 and none can come below it: a distance, neither better nor worse.
        shown = {"title": f"KL to base {divergences[0]['language']}, nats", "better": None, "style": "bits"}
        columns.append(shown | {"at": ("kl_to_base",), "documents": divergences[0]["documents"]})
    for task in named("tasks"):
        first = found("tasks", task)[0]
        more = {name: first[name] for name in ("chance", "items", "shots") if name in first}
        shown = {"title": task, "task": task, "better": "higher", "style": "percent"}
        columns.append(shown | {"at": ("tasks", task)} | more)
    for code in by_language("fertility"):
        shown = {"title": f"tokens/word {code}", "better": "lower", "style": "ratio"}
        columns.append(shown | {"at": ("fertility", code, "tokens_per_word"), "language": code})
    # Of the other languages they are in the manifests.
    for code in by_language("bits_per_byte")[:1]:
        for title, group, at in (
            ("context {}, characters", "context", ("context", "characters", code)),
            ("reads {}, characters/s", "reading", ("speed", "languages", code, "prompt", "characters_per_second")),
            ("writes {}, characters/s", "writing", ("speed", "languages", code, "generation", "characters_per_second")),
        ):
            if found(*at):
                shown = {"title": title.format(code), "group": group, "better": "higher", "style": "whole"}
                columns.append(shown | {"at": at, "language": code})
    columns.append({"title": "vocabulary", "at": ("vocabulary",), "better": None, "style": "whole"})
    columns.append({"title": "parameters, M", "at": ("parameters",), "better": None, "style": "millions"})
    for flag in named("flaws"):
        shown = {"title": flag.replace("_", " "), "flag": flag, "better": "lower", "style": "percent"}
        columns.append(shown | {"at": ("flaws", flag), "answers": found("flaws", flag)[0]["items"]})
    for column in columns:
        column.setdefault("group", column["at"][0])
        column["key"] = ".".join(filter(None, [column["group"], _name(column)]))
        column["table"] = next(name for name, groups in TABLES.items() if column["group"] in groups)
    return columns


def _name(column: Mapping) -> str | None:
    return column.get("language") or column.get("task") or column.get("flag")


def _at(result: Mapping, at: Sequence[str]) -> Mapping | float | None:
    """What an evaluation's results have there; None where a part was not measured."""
    for name in at:
        result = (result or {}).get(name)
    return result


def _measured(result: Mapping, column: Mapping) -> dict | None:
    found = _at(result, column["at"])
    if not isinstance(found, Mapping):
        return None if found is None else {"value": found}
    return {name: found[name] for name in ("value", "low", "high")}


def _cell(evaluation: Mapping, column: Mapping, base: Mapping | None) -> dict | None:
    cell = _measured(evaluation["results"], column)
    if not cell or "low" not in cell or column["better"] is None:
        return cell
    if "chance" in column:
        cell["like_guessing"] = cell["low"] <= column["chance"] <= cell["high"]
    if base is not None and base is not evaluation and (before := _measured(base["results"], column)):
        details = evaluation.get("items"), base.get("items")
        if None not in details and (found := difference(*details, column)):
            cell |= {"difference": found, "against_base": paired.verdict(found, column["better"])}
        else:
            cell["against_base"] = against(cell, before, column["better"])
    return cell


def difference(items: paired.Details, base: paired.Details, column: Mapping) -> dict | None:
    """The paired difference of a column from the base; None where they have no details or those of other texts or items."""
    if column["group"] in ("bits_per_byte", "instructions"):
        scored = (each.documents if column["group"] == "bits_per_byte" else each.dialogues for each in (items, base))
        ours, others = (found.get(column["language"], []) for found in scored)
        return paired.bits_per_byte(ours, others) if paired.same(ours, others) else None
    if column["group"] == "tasks":
        ours, others = (each.tasks.get(column["task"], []) for each in (items, base))
        if not paired.same(ours, others):
            return None
        return paired.share([item.correct for item in ours], [item.correct for item in others])
    if not paired.same(items.answers, base.answers):
        return None
    flag = column["flag"]
    ours, others = (
        [flag in each.flags for each in found.answers if flaws.applies(flag, languages.load(each.language))]
        for found in (items, base)
    )
    return paired.share(ours, others) if ours else None


def _told(cell: Mapping, base: Mapping, language: str) -> str:
    change = cell["value"] / base["value"] - 1
    said = f"{abs(change):.1%} {'better' if change < 0 else 'worse'}"
    if found := cell.get("difference"):
        interval = f"from {found['low']:+.3f} to {found['high']:+.3f}"
        unclear = f"{said}, but the 95% interval of the difference, text by text, is {interval}: not shown to differ"
        clear = f"{said}; text by text the difference is {interval}, with 95% confidence"
    else:
        unclear, clear = (
            f"{said}, but the 95% intervals overlap: not shown to differ",
            f"{said}, beyond both 95% intervals",
        )
    verdict = unclear if cell["against_base"] == "overlaps" else clear
    return f"{cell['value']:.3f} bits per byte of held-out {language} text against the base's {base['value']:.3f} ({verdict})"


def _on_tasks(table: Mapping, cells: Mapping, checkpoint: str) -> str | None:
    tasks = {
        column["title"]: cells[column["key"]]
        for column in table["columns"]
        if column["group"] == "tasks" and (cells[column["key"]] or {}).get("against_base")
    }
    if not tasks:
        return None
    named = {
        verdict: [name for name, cell in tasks.items() if cell["against_base"] == verdict]
        for verdict in ("better", "worse", "overlaps")
    }
    counted = {"better": "better on", "worse": "worse on", "overlaps": "not shown to differ on"}
    listed = "; ".join(f"{counted[verdict]} {', '.join(names)}" for verdict, names in named.items() if names)
    guessing = [name for name, cell in tasks.items() if cell.get("like_guessing")]
    subject = "the instruction-tuned model" if checkpoint == "sft" else f"the checkpoint {checkpoint}"
    sentence = f"Against the base, {subject} is {listed}."
    if guessing:
        which = "any task" if len(guessing) == len(tasks) else ", ".join(guessing)
        sentence += f" Its accuracy can't be told from guessing on {which}."
    return sentence


def _aligned(columns: Sequence[Mapping], rows: Sequence[Mapping]) -> str:
    lines = [["", *(column["title"] for column in columns)]]
    lines += [[row["checkpoint"], *(plain(row["cells"][column["key"]], column) for column in columns)] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(texts, widths[1:], strict=True))])
        for name, *texts in lines
    )
