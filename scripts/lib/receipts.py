"""What the data stages left to show: what they removed and why, how duplicates cluster, how far the filter can be trusted.

Plain figures and sentences drawn from their manifests, receipts and removed texts, for the report to lay out.
"""

import difflib
import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from lib import documents, plots

RECEIPTS = "receipts.json"
REASONS = {
    "exact_duplicate": "an equal paragraph is kept instead",
    "near_duplicate": "a paragraph that is nearly the same is kept instead",
    "all_duplicates": "documents of which every paragraph is kept elsewhere",
    "empty": "documents without text",
    "low_quality": "the trained filter scores it below {threshold:.2f} of 5",
    "too_short": "fewer than {too_short:,.0f} characters",
    "too_long": "more than {too_long:,.0f} characters",
    "few_stop_words": "less than {few_stop_words:.0%} of its words are words of grammar, which sentences have",
    "low_script": "less than {low_script:.0%} of its letters are of its language's script",
    "mojibake": "more than {mojibake:.0%} of it was read in a wrong encoding",
    "symbols": "more than {symbols:.0%} of its visible characters are no letters",
    "repeated_lines": "more than {repeated_lines:.0%} of it are lines it has had before",
    "list": "more than {list:.0%} of it are lines that begin with a bullet or a number",
    "code": "more than {code:.0%} of it are lines that look like a program or markup",
    "blocked": "more than {blocked:,.0f} different entries of its language's block list",
    "repetition": "more than {repetition:.0%} of its runs of words have occurred before",
    "repeated_phrase": "more than {repeated_phrase:.0%} of it are phrases of ten words that it has had before",
    "boilerplate": "more than {boilerplate:.0%} of it is navigation, licences and the like",
    "wrong_language": "its language is what it is said to be with a probability below {wrong_language:.0%}",
}
KEPT = {
    "first": "Of duplicates the first in the corpus is kept.",
    "longest": "Of duplicates the longest is kept.",
    "source": "Of duplicates that of the best source is kept; the sources named are, best first, {source_priority}.",
}
TARGETS = {
    "score": "was given",
    "keep_share": "is the highest that keeps {share:.0%} of all characters that came in",
    "precision": "is the lowest that makes {share:.0%} of the kept good, or the most precise one if none does, among {examples}",
    "lose_good": "is the highest that loses no more than {share:.0%} of the good, among {examples}",
}
NEAR_DUPLICATE = "near_duplicate"
SYSTEMS = {"filter": "filter", "bag_of_words": "bag of words", "length": "length alone"}
CLUSTERS = ((2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, None))  # sizes that are counted together
PAIRS = 12  # of sources, with the most duplicates
LONGEST = 700  # characters of a text that are shown
LINES = 15  # at most: a list of short lines would fill a printed page
SEEN_AT_MOST = 200_000  # removed rows looked at for samples


def shown(
    dedup: Path, filtered: Path, manifests: Mapping[str, Mapping], samples: int, near_duplicates: int, seed: int
) -> dict[str, object]:
    """All that the page says of deduplication, annotation and the filter, by the template's names.

    Args:
        dedup: output of the dedup stage.
        filtered: output of the filter stage.
        manifests: of the stages, by name.
        samples: texts shown for each reason.
        near_duplicates: near duplicates shown with their twins.
        seed: draws the samples.
    """
    first, second = (manifests[name]["results"] for name in ("dedup", "filter"))
    pairs = removed(dedup, first["paragraphs_removed"], samples, seed, more={NEAR_DUPLICATE: near_duplicates})
    receipts = json.loads((filtered / RECEIPTS).read_text(encoding="utf-8")) if (filtered / RECEIPTS).is_file() else {}
    poor = removed(filtered, second["documents_removed"], samples, seed)
    threshold, target = second.get("threshold"), manifests["filter"]["settings"].get("target")
    return {
        "how_compared": how_compared(manifests["dedup"]["settings"], first),
        "clusters": cluster_rows(first.get("clusters_by_size", {})),
        "source_pairs": source_pairs(first.get("duplicates_by_sources", {})),
        "sweep": sweep(first.get("thresholds", [])),
        "duplicates": {reason: [pair(row) for row in rows] for reason, rows in pairs.items()},
        "funnel": funnel(second["by_source"]),
        # A rare reason may not be among the texts that were looked at; the filter kept the beginnings of some of all.
        "poor": {
            reason: poor.get(reason) or receipts.get("removed", {}).get(reason, [])[:samples]
            for reason in second["documents_removed"]
        },
        "criteria": criteria_rows(second),
        "verdict": filter_verdict(second),
        "chosen": filter_threshold(target, second) if target else [],
        "calibrated": filter_calibration(second),
        "trade_off_plots": plots.precision_recall(second["evaluation"], threshold),
        "kept_plots": plots.kept_shares(
            receipts.get("kept_shares", {}), threshold, kept_of_scored(second["by_source"])
        ),
        "annotated": annotation_rows(manifests["annotate"]["results"]) if "annotate" in manifests else [],
    }


def removed(
    folder: Path, counts: Mapping[str, int], samples: int, seed: int, *, more: Mapping[str, int] | None = None
) -> dict[str, list[dict]]:
    """Some removed rows of each reason, drawn by the seed, the reasons in the order of `counts` (largest first).

    `samples` of each, but as many as `more` says of the reasons that it names.
    """
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    wanted = {reason: min(number, (more or {}).get(reason, samples)) for reason, number in ordered if number}
    found: dict[str, list[dict]] = {reason: [] for reason in wanted}
    if not wanted or not (folder / "removed").is_dir():
        return {}
    for seen, row in enumerate(documents.shuffled(folder / "removed", seed)):
        reason = row["reason"]
        if reason in wanted and len(found[reason]) < wanted[reason]:
            found[reason].append(row)
        if seen >= SEEN_AT_MOST or all(len(rows) == wanted[reason] for reason, rows in found.items()):
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
    begun = "\n".join(text.splitlines()[:LINES])[:longest].rstrip()
    return text if begun == text.rstrip() else f"{begun} … ({len(text):,} characters in all)"


def meaning(reason: str, settings: Mapping, threshold: float | None = None) -> str:
    """What a reason of removal means, with the limit in the settings of the stage that gave it, or the score it found."""
    if reason == "too_short" and "min_document_chars" in settings:
        return f"documents with fewer than {settings['min_document_chars']} characters left"
    limits = settings.get("limits") or {}
    scripted = reason.startswith("low_") and reason != "low_quality"
    try:
        return REASONS["low_script" if scripted else reason].format(**limits, threshold=threshold)
    except (KeyError, TypeError):
        return ""


def how_compared(settings: Mapping, results: Mapping) -> list[str]:
    """What made two paragraphs duplicates, and which of them stays."""
    grams = f"{settings.get('shingle_size')}-{settings.get('shingles', 'characters').removesuffix('s')} runs"
    found = f"MinHash found {results.get('candidates', 0):,} candidate pairs"
    if settings.get("method") == "mihash":
        found = (
            f"A learned hash of {settings['bits']} bits (MIHash) found {results.get('candidates', 0):,} candidate pairs"
        )
    elif "bands" in results:
        found += f" ({results['bands']} bands of {results['rows']} rows, then a bit sketch)"
    kept = KEPT.get(settings.get("keep", "first"), "")
    return [
        f"Similarity is that of two paragraphs' sets of {grams} (Jaccard). {found}; measured exactly, "
        f"{results.get('verified', 0):,} of them reach {settings['threshold']:.2f}. "
        + kept.format(source_priority=", ".join(settings.get("source_priority") or [])),
    ]


def cluster_rows(by_size: Mapping[str, int]) -> list[dict]:
    """How many clusters of duplicates there are of each size (small ones apart), and the paragraphs in them."""
    counts = {int(size): number for size, number in by_size.items()}
    rows = []
    for low, high in CLUSTERS:
        here = {size: number for size, number in counts.items() if low <= size and (high is None or size <= high)}
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}–{high}"
        paragraphs = sum(size * number for size, number in here.items())
        rows.append({"size": name, "clusters": sum(here.values()), "paragraphs": paragraphs})
    return [row for row in rows if row["clusters"]]


def source_pairs(counts: Mapping[str, int]) -> list[dict]:
    """The pairs of sources with the most duplicates: where they went from, and where the twin is kept."""
    largest = sorted(counts.items(), key=lambda item: -item[1])
    rows = [
        dict(zip(("removed", "kept"), names.split(" ~ "), strict=True)) | {"number": n} for names, n in largest[:PAIRS]
    ]
    if others := largest[PAIRS:]:
        rows.append({"removed": f"{len(others)} other pairs", "kept": None, "number": sum(n for _, n in others)})
    return rows


def sweep(rows: Sequence[Mapping]) -> list[str]:
    """What a stricter threshold of similarity would do, in plain words; nothing if the threshold is the strictest."""
    if not rows:
        return []
    here, strictest = rows[0], rows[-1]
    sentences = [
        f"At {here['threshold']:.2f}, {here['removed']:,} near duplicates go, not counting exact copies of them."
    ]
    if strictest is not here and here["removed"]:
        share = strictest["removed"] / here["removed"]
        sentences.append(
            f"At {strictest['threshold']:.2f}, it would be {strictest['removed']:,} ({share:.0%} of these)."
        )
    if here["spared"]:
        sentences.append(
            f"{here['spared']:,} more are spared: similar only to paragraphs that go themselves, and to none that stays."
        )
    return sentences


def funnel(by_source: Mapping[str, Mapping[str, int]]) -> dict:
    """Documents that came to the filter, by source and reason.

    Returns:
        `reasons` with their totals, the largest first; `rows`, each with `name`, `documents`, `kept` and `removed` by reason.
    """
    totals: Counter[str] = Counter()
    for counts in by_source.values():
        totals.update({reason: number for reason, number in counts.items() if reason != "kept"})
    rows = [
        {
            "name": name,
            "documents": sum(counts.values()),
            "kept": counts.get("kept", 0),
            "removed": {reason: counts.get(reason, 0) for reason, _ in totals.most_common()},
        }
        for name, counts in by_source.items()
    ]
    return {"reasons": dict(totals.most_common()), "rows": rows}


def kept_of_scored(by_source: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """By source, the share of the documents which kept the rules that the trained filter's score kept too."""
    scored = {name: (counts.get("kept", 0), counts.get("low_quality", 0)) for name, counts in by_source.items()}
    return {name: kept / (kept + poor) for name, (kept, poor) in scored.items() if kept + poor}


def criteria_rows(results: Mapping) -> list[dict]:
    """How the filter and the two baselines agree with held-out labels: a row for each criterion, `overall` last.

    Each has `name`, the `mean` in the corpus (None for overall) and, by figure ('spearman', 'f1') and system, a cell with
    `value`, `low` and `high` (None where undefined); the filter's says whether it `beats` or is `beaten` by the better
    baseline with intervals apart.
    """
    evaluation = results["evaluation"]
    heads = evaluation["criteria"] | ({"overall": evaluation["overall"]} if "overall" in evaluation else {})
    rows = []
    for name, scored in heads.items():
        row = {"name": name, "mean": results["criteria"].get(name)}
        for figure in ("spearman", "f1"):
            measured = {"filter": scored} | {system: scored[system] for system in SYSTEMS if system in scored}
            cells = {system: _measured(cell, figure) for system, cell in measured.items()}
            rivals = [cells[system] for system in cells if system != "filter"]
            cells["filter"] |= {"apart": _apart(cells["filter"], rivals)}
            row[figure] = cells
        rows.append(row)
    return rows


def _measured(cell: Mapping, figure: str) -> dict:
    low, high = cell.get(f"{figure}_interval") or (None, None)
    return {"value": cell[figure], "low": low, "high": high}


def _apart(cell: Mapping, rivals: Sequence[Mapping]) -> str | None:
    """'better' if the interval lies above those of all rivals, 'worse' if below one of them, else None."""
    known = [rival for rival in rivals if rival["low"] is not None]
    if cell["low"] is None or not known:
        return None
    if all(cell["low"] > rival["high"] for rival in known):
        return "better"
    return "worse" if any(cell["high"] < rival["low"] for rival in known) else None


def filter_verdict(results: Mapping) -> list[str]:
    """Plain words on how far the trained filter can be trusted."""
    evaluation = results["evaluation"]
    sentences = []
    if results["labels"] == "weak":
        sentences.append(
            "Its labels are weak: beginnings of real documents against the same damaged on purpose. So the figures say "
            "how well it finds such damage, and not how well it agrees with readers."
        )
    area, of_length, of_words = (evaluation.get(name) for name in ("auc", "auc_of_length", "auc_of_bag_of_words"))
    if area is None:
        return sentences
    compared = []
    if of_words is not None:
        interval = _interval(evaluation.get("auc_of_bag_of_words_interval"))
        compared.append(f"a bag of words learnt from the same examples: {of_words:.3f}{interval}")
    if of_length is not None:
        of_length = max(of_length, 1 - of_length)  # a short text may be the good one or the bad one
        compared.append(f"the length of the text alone: {of_length:.3f}")
    compared.append("guessing: 0.5")
    sentences.append(
        f"On {evaluation['examples']:,} held-out examples a good one outscores a bad one with probability "
        f"{area:.3f}{_interval(evaluation.get('auc_interval'))}; {'; '.join(compared)}."
    )
    if of_length is not None and area <= of_length:
        sentences.append("So it tells no more than the length does.")
    if of_words is not None and (rival := evaluation.get("auc_of_bag_of_words_interval")):
        ours = evaluation["auc_interval"]
        if ours[1] < rival[0]:
            sentences.append("So a bag of words tells more.")
        elif ours[0] <= rival[1]:
            sentences.append("The two intervals overlap: it is not shown to tell more than a bag of words.")
    return sentences


def _interval(edges: Sequence[float] | None) -> str:
    return f" [{edges[0]:.3f}, {edges[1]:.3f}]" if edges else ""


def filter_threshold(target: str, results: Mapping) -> list[str]:
    """Which threshold was chosen and by what, and what it does to labelled examples that had no part in the choice."""
    name, _, number = target.partition("=")
    calibration, evaluation = results["evaluation"].get("calibration") or {}, results["evaluation"]
    apart = calibration.get("examples")
    examples = f"{apart:,} labelled examples" if apart else "labelled examples"
    why = TARGETS[name].format(
        share=float(number), examples=f"{examples} that it neither learnt from nor is measured on"
    )
    sentences = [f"The threshold, {results['threshold']:.2f} of 5, {why} (target: {target})."]
    if evaluation.get("precision_recall"):
        point = plots.at_threshold(evaluation["precision_recall"], results["threshold"])
        sentences.append(
            f"On the held-out examples it keeps about {point['recall']:.0%} of the good ones, and {point['precision']:.0%} of what it "
            "keeps is good."
        )
    return sentences


def filter_calibration(results: Mapping) -> list[str]:
    """What calibration did to the filter's probabilities, how its scores spread, and what its arithmetic cost."""
    sentences = []
    if calibration := results["evaluation"].get("calibration"):
        fitted = calibration["temperatures"].values()
        sentences.append(
            f"Its probabilities were calibrated: temperatures of {min(fitted):.2f} to {max(fitted):.2f}, fitted on "
            f"{calibration['examples']:,} examples, took their expected error on the held-out ones from "
            f"{calibration['error_before']:.3f} to {calibration['error_after']:.3f}."
        )
    if spread := results.get("score_percentiles"):
        sentences.append(
            f"Half of the documents score {spread['p25']:.2f} to {spread['p75']:.2f}, 5% below {spread['p5']:.2f}."
        )
    if precision := results.get("precision"):
        sentences.append(
            f"They were scored in {precision['name']}; on the held-out examples that differs from fp32 by "
            f"{precision['largest_difference_from_fp32']:.4f} of a point at most."
        )
    return sentences


def annotation_rows(results: Mapping) -> list[dict]:
    """Scores that the language model gave, by criterion: `counts` of 1 to 5, their `mean`, `agreement` of two passes if any."""
    agreed = (results.get("agreement") or {}).get("criteria", {})
    totals: dict[str, list[int]] = {}
    for histogram in results["histograms"].values():
        for name, counts in histogram.items():
            totals[name] = [sum(pair) for pair in zip(totals.get(name, [0] * len(counts)), counts, strict=True)]
    return [
        {"name": name, "counts": counts, "mean": mean_score(counts), "agreement": agreed.get(name)}
        for name, counts in totals.items()
    ]


def mean_score(counts: Sequence[int]) -> float:
    """The mean of scores from 1, given how often each was given."""
    return sum(score * count for score, count in enumerate(counts, start=1)) / max(1, sum(counts))
