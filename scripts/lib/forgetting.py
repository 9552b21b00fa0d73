"""What runs learned and what they forgot, beside their base model: the figures of kl_bench.py, its rule and its picture.

Kinds of text are languages of the held-out documents (`ru`, `en`) and GENERAL, English of another kind than any training source.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from lib import metrics, paired, plots

GENERAL = "general"
MARKERS = "osD^vP"  # of modes
Scores = Mapping[str, Sequence[metrics.Score]]


class Measured(NamedTuple):
    """What one model got: scores by kind of text, `fertility.measure` by kind, accuracy by task."""

    scores: Scores
    fertility: Mapping[str, Mapping[str, float]]
    tasks: Mapping[str, Mapping]


def mode(name: str) -> str:
    """The first word of a run's name: `extend` of `extend-first_piece`."""
    return name.split("-", 1)[0]


def without(name: str) -> str:
    """The run of the same mode that was trained without a reference: `extend-none` for `extend-first_piece`."""
    return f"{mode(name)}-none"


def figures(base: Measured, runs: Mapping[str, Measured]) -> dict[str, dict]:
    """The base's figures and each run's, for the table: bits per byte, tokens and accuracy.

    A run's bits per byte come with their differences on the same documents from the base, and from `<mode>-none` if there is
    such another run; `fewer_tokens` is how many times fewer tokens than the base it spends on a kind of text.
    """
    table = {"base": _figures(base), "runs": {}}
    for name, run in runs.items():
        row = table["runs"][name] = _figures(run)
        plain = without(name)
        for kind, found in row["bits_per_byte"].items():
            found["from_base"] = paired.bits_per_byte(run.scores[kind], base.scores[kind])
            if plain in runs and plain != name:
                found["from_none"] = paired.bits_per_byte(run.scores[kind], runs[plain].scores[kind])
        row["fewer_tokens"] = {
            kind: found["tokens"] / row["bits_per_byte"][kind]["tokens"]
            for kind, found in table["base"]["bits_per_byte"].items()
        }
    return table


def percent(difference: Mapping[str, float], of: Mapping[str, float]) -> dict[str, float]:
    """A difference and its interval in per cent of the value it is a difference from."""
    return {part: 100 * difference[part] / of["value"] for part in ("value", "low", "high")}


def best(table: Mapping, language: str, margin: float) -> tuple[str, str]:
    """(run, why): the lowest bits per byte in `language` of the runs that are no worse than the base on general English.

    No worse is a run that its documents show to be so: the upper end of the 95% interval of the paired difference is at most
    `margin` per cent of the base's bits per byte. Where there is none, the run whose upper end is lowest.
    """
    whole = table["base"]["bits_per_byte"][GENERAL]
    worst = {
        name: percent(row["bits_per_byte"][GENERAL]["from_base"], whole)["high"] for name, row in table["runs"].items()
    }
    if kept := [name for name, high in worst.items() if high <= margin]:
        name = min(kept, key=lambda name: table["runs"][name]["bits_per_byte"][language]["value"])
        return name, (
            f"lowest bits per byte in '{language}' of the {len(kept)} of {len(worst)} runs whose general English is at most "
            f"{margin:g}% worse than the base's (upper end of the 95% interval)"
        )
    name = min(worst, key=worst.__getitem__)
    return name, (
        f"no run's general English is shown to be at most {margin:g}% worse than the base's (upper end of the 95% interval); "
        f"this one's upper end, {worst[name]:+.2f}%, is the lowest"
    )


def picture(table: Mapping, language: str) -> str:
    """An SVG file with a panel for each kind of English: its loss against the gain in `language`, both in per cent of the base."""
    kinds = [kind for kind in table["base"]["bits_per_byte"] if kind != language]
    panels = {
        f"{'General English' if kind == GENERAL else f'Held-out {kind}'}, % above the base": _against_gain(
            table, language, kind, legend=kind == kinds[0]
        )
        for kind in kinds
    }
    return plots.picture(panels, height=3.9)


def text(table: Mapping, language: str) -> str:
    """The table as a reader wants it: figures with intervals, then differences from the base and from `<mode>-none`."""
    kinds = list(table["base"]["bits_per_byte"])
    tasks = list(table["base"]["tasks"])
    heads = [
        "",
        *(f"bits per byte, {kind}" for kind in kinds),
        *tasks,
        f"tokens/word, {language}",
        "fewer tokens",
        "seconds",
    ]
    rows = [heads]
    for name, row in {"base": table["base"], **table["runs"]}.items():
        cells = [_interval(row["bits_per_byte"][kind], ".4f") for kind in kinds]
        cells += [_interval(row["tasks"][task], ".1%") for task in tasks]
        cells.append(f"{row['fertility'][language]['tokens_per_word']:.2f}")
        trained = row.get("training")
        cells += [f"{row['fewer_tokens'][language]:.2f} x", f"{trained['train_seconds']:,.0f}"] if trained else ["", ""]
        rows.append([name, *cells])
    parts = [_columns(rows)]
    for other, title in (("from_base", "the base"), ("from_none", "<mode>-none")):
        rows = []
        for name, row in table["runs"].items():
            against = table["base"] if other == "from_base" else table["runs"].get(without(name))
            if other in row["bits_per_byte"][language]:
                changes = [percent(row["bits_per_byte"][kind][other], against["bits_per_byte"][kind]) for kind in kinds]
                rows.append([name, *(_interval(change, "+.2f") for change in changes)])
        if rows:
            parts.append(_columns([[f"% from {title}", *kinds], *rows]))
    return "\n\n".join([*parts, "in brackets: 95% intervals; of differences, on the same documents"])


def _figures(measured: Measured) -> dict[str, dict]:
    return {
        "bits_per_byte": {kind: metrics.summarise(found) for kind, found in measured.scores.items()},
        "fertility": dict(measured.fertility),
        "tasks": dict(measured.tasks),
    }


def _against_gain(table: Mapping, language: str, kind: str, *, legend: bool) -> plots.Draw:
    """A point a run, with its paired 95% intervals: a marker a mode, a colour for what was tried. The base is where dashes cross."""

    def draw(axes: Axes) -> None:
        modes = list(dict.fromkeys(map(mode, table["runs"])))
        tried = list(dict.fromkeys(name.partition("-")[2] for name in table["runs"]))
        marker = dict(zip(modes, MARKERS * len(modes), strict=False))
        colour = dict(zip(tried, plots.SERIES * len(tried), strict=False))
        base = table["base"]["bits_per_byte"]
        for line in (axes.axhline, axes.axvline):
            line(0, color=plots.MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for name, row in table["runs"].items():
            gain = percent(row["bits_per_byte"][language]["from_base"], base[language])
            loss = percent(row["bits_per_byte"][kind]["from_base"], base[kind])
            paint = {"color": colour[name.partition("-")[2]]}
            axes.plot([-gain["low"], -gain["high"]], [loss["value"]] * 2, linewidth=1, alpha=0.5, **paint)
            axes.plot([-gain["value"]] * 2, [loss["low"], loss["high"]], linewidth=1, alpha=0.5, **paint)
            axes.plot([-gain["value"]], [loss["value"]], marker[mode(name)], markersize=6.5, **paint)
        if legend:
            for name in tried:
                axes.plot([], [], "-", color=colour[name], linewidth=4, label=name)
            for name in modes:
                axes.plot([], [], marker[name], color=plots.MUTED, markersize=6.5, label=name)
            axes.legend(fontsize=10)
        axes.margins(0.12)
        axes.tick_params(axis="y", labelcolor=plots.MUTED)
        axes.set_ylabel("bits per byte")
        axes.set_xlabel(f"bits per byte of held-out {language}, % below the base")

    return draw


def _interval(found: Mapping[str, float], spelt: str) -> str:
    value, low, high = (format(found[part], spelt) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
