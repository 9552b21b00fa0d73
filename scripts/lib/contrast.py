"""Two evaluations side by side: whether they compare at all, what differs between them, and it all as text."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib import paired, scores, stage
from lib.errors import UserError

UNCLEAR = "not shown to differ"


class Evaluation(NamedTuple):
    """An output of eval.py: a name of its own, its manifest, and what it was measured on."""

    name: str
    folder: Path
    manifest: dict
    items: paired.Details


def read(first: Path, second: Path) -> tuple[Evaluation, Evaluation]:
    """Two evaluations that compare; named by their checkpoints, or by their folders if these have one name.

    Raises:
        UserError: one is no evaluation, or they were made with other settings or on other texts, items or prompts.
    """
    manifests = [stage.read_manifest(folder) for folder in (first, second)]
    for folder, manifest in zip((first, second), manifests, strict=True):
        if manifest["stage"] != "eval":
            raise UserError(f"{folder}: written by {manifest['stage']}.py; name outputs of eval.py")
        if not (folder / paired.DOCUMENTS).is_file():
            raise UserError(
                f"{folder}: no {paired.DOCUMENTS}, so it was made before scores were kept text by text; run eval again"
            )
    names = [manifest["results"]["checkpoint"] for manifest in manifests]
    names = names if names[0] != names[1] else [folder.as_posix() for folder in (first, second)]
    ours, other = (
        Evaluation(name, folder, manifest, paired.read(folder))
        for name, folder, manifest in zip(names, (first, second), manifests, strict=True)
    )
    if different := _different_settings(ours, other):
        raise UserError(
            f"{first} and {second} were made with other settings ({different}); evaluate both with the same"
        )
    if different := _different_items(ours.items, other.items):
        raise UserError(f"{first} and {second} were measured on other {different}; evaluate both on the same")
    return ours, other


def rows(first: Evaluation, second: Evaluation, language: str) -> list[dict]:
    """A row for each score that either has: both cells, the paired difference of the second from the first, the verdict."""
    evaluations = [
        {"results": each.manifest["results"] | {"checkpoint": each.name}, "items": each.items}
        for each in (first, second)
    ]
    table = scores.score_table(evaluations, language, base=first.name)
    before, after = (row["cells"] for row in table["rows"])
    found = []
    # Perplexity depends on the tokenizer.
    for column in (each for each in table["columns"] if each["group"] != "perplexity"):
        one, other = before[column["key"]], after[column["key"]]
        row = {"title": column["title"], "group": column["group"], "style": column["style"], "better": column["better"]}
        row |= {"first": one, "second": other, "difference": (other or {}).get("difference")}
        verdict = (other or {}).get("against_base")
        found.append(row | {"verdict": UNCLEAR if verdict == "overlaps" else verdict, "said": said(column, one, other)})
    return found


def said(column: Mapping, first: Mapping | None, second: Mapping | None) -> str:
    """What differs, in words: an interval where there is one; of speeds and sizes a ratio; nothing of distances."""
    if first is None or second is None or column["group"] == "kl_to_base":
        return ""
    if found := second.get("difference"):
        scale, digits, unit = (100, 1, " points") if column["style"] == "percent" else (1, 3, "")
        value, low, high = (f"{scale * found[name]:+.{digits}f}" for name in ("value", "low", "high"))
        alone = (
            f"; {found['only_first']} only in the second, {found['only_second']} only in the first"
            if "only_first" in found
            else ""
        )
        p_value = f", p = {found['p_value']:.3f}" if "p_value" in found else ""
        return f"{value}{unit} [{low}, {high}]{alone}{p_value}"
    return f"{second['value'] / first['value']:.2f} times" if first["value"] else ""


def text(first: Evaluation, second: Evaluation, found: Sequence[Mapping]) -> str:
    """The rows for a terminal, aligned; the verdict is on the second."""
    lines = [["", first.name, second.name, "difference [95% interval]", ""]]
    lines += [
        [
            row["title"],
            *(scores.plain(row[place], row) for place in ("first", "second")),
            row["said"],
            row["verdict"] or "",
        ]
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                line[1].rjust(widths[1]),
                line[2].rjust(widths[2]),
                line[3].ljust(widths[3]),
                line[4],
            ]
        ).rstrip()
        for line in lines
    ]
    compared = sum(row["verdict"] is not None for row in found)
    note = f"The verdict is on {second.name}, by {compared} paired comparisons; no correction for their number."
    return "\n".join([*aligned, "", note])


def answers(prompts: Sequence[Mapping], names: Sequence[str], width: int) -> str:
    """Prompts with the two answers in columns beside each other, their flags below."""
    half = (width - 3) // 2
    parts = []
    for prompt in prompts:
        columns = [
            [*_wrapped(answer["completion"] or "(nothing)", half), *_flags(answer, half)]
            for answer in (prompt["answers"][name] for name in names)
        ]
        longest = max(map(len, columns))
        padded = [column + [""] * (longest - len(column)) for column in columns]
        beside = [f"{left.ljust(half)} | {right}".rstrip() for left, right in zip(*padded, strict=True)]
        parts.append("\n".join([*_wrapped(f"> {prompt['prompt']}", width), *beside]))
    return "\n\n".join(parts)


def _flags(answer: Mapping, width: int) -> list[str]:
    return _wrapped(f"[{', '.join(answer['flags'])}]", width) if answer.get("flags") else []


def _wrapped(paragraphs: str, width: int) -> list[str]:
    return [line for paragraph in paragraphs.splitlines() for line in textwrap.wrap(paragraph, width) or [""]]


def _different_settings(first: Evaluation, second: Evaluation) -> str:
    ours, others = first.manifest["settings"], second.manifest["settings"]
    changed = [name for name in sorted({*ours, *others}) if ours.get(name) != others.get(name)]
    return ", ".join(f"{name}: {ours.get(name)} and {others.get(name)}" for name in changed)


def _different_items(first: paired.Details, second: paired.Details) -> str:
    """The first thing that differs; evaluations without tasks or prompts are alike in that."""
    for what, ours, others in (
        ("held-out texts", first.documents, second.documents),
        ("dialogues", first.dialogues, second.dialogues),
        ("items", first.tasks, second.tasks),
        ("prompts", {"all": first.answers}, {"all": second.answers}),
    ):
        for name in sorted({*ours, *others}):
            one, other = ours.get(name, []), others.get(name, [])
            if (one or other) and not paired.same(one, other):
                return f"{what} ({name})" if what != "prompts" else what
    return ""
