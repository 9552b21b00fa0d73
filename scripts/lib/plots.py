"""Figures as SVG: small panels that stand in the report's page and take its colours, and pictures that stand alone.

Each panel is about as wide as a phone, so that a page lays several side by side or below each other.
"""

import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, MultipleLocator

# Colours that matplotlib writes and the page's style sheet decides on: light, dark, print.
INK, MUTED, GRID = "#000001", "#000002", "#000003"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
# What a picture has instead: the page's light colours, and a sans-serif font of the reader's.
COLOURS = {INK: "#1d1f21", MUTED: "#63676b", GRID: "#dcdcd6"} | dict(
    zip(SERIES, ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b7791f", "#b83280"), strict=True)
)
FONTS = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"
WIDTH = 5.0  # inches of 72 units
SMALL = 2.4  # two such panels stand beside each other on a phone
Draw = Callable[[Axes], None]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same figure gets the same ids
    "font.size": 11.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.dpi": 72,
}
ALONE = {
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.12,
}


def scores(table: Mapping) -> list[Markup]:
    """A panel of intervals for each column of the score table that has them."""
    panels = []
    for column in table["columns"]:
        cells = {row["checkpoint"]: row["cells"][column["key"]] for row in table["rows"]}
        cells = {name: cell for name, cell in cells.items() if cell and "low" in cell}
        if cells:
            percent = column["style"] == "percent"
            unit = f"{'accuracy, %' if percent else 'bits per byte'}, {column['better']} is better"
            more = {"scale": 100 if percent else 1, "chance": column.get("chance")}
            panels.append(intervals(column["title"], cells, unit=unit, **more))
    return panels


def fertility(by_language: Mapping[str, Mapping[str, float]], base: str) -> list[Markup]:
    """A panel of tokens per word for each language (the paper's Figure 1)."""
    return [bars(title, values, **style) for title, values, style in _fertility(by_language, base)]


def tokens_per_word(measured: Mapping) -> dict[str, dict[str, float]]:
    """By language, tokens per word by tokenizer, from the tokenizer stage's fertility.json."""
    found: dict[str, dict[str, float]] = {}
    for name, row in measured["tokenizers"].items():
        for language, rates in (row.get("languages") or {}).items():
            found.setdefault(language, {})[name] = rates["tokens_per_word"]
    return found


def fertility_picture(by_language: Mapping[str, Mapping[str, float]], base: str) -> str:
    """The same panels side by side in one file."""
    panels = {title: _bars(values, **style) for title, values, style in _fertility(by_language, base)}
    return picture(panels, height=1.2 + 0.28 * max(map(len, by_language.values()), default=0))


def vocabulary_sizes(
    by_language: Mapping[str, Mapping[int, float]], base: Mapping[str, float], embeddings: Mapping[int, int]
) -> str:
    """A picture of what a vocabulary's size (pieces) does: tokens per word, dashed the base's, and embedding parameters."""
    panels = {
        f"Tokens per word, {language} (dashed: the base's)": _over_sizes(
            values, spelt="{:.2f}", floor=1, line=base[language]
        )
        for language, values in by_language.items()
    }
    panels["Embedding parameters, M"] = _over_sizes({size: n / 1e6 for size, n in embeddings.items()}, spelt="{:.1f}")
    return picture(panels, height=3.0)


def training(title: str, records: Sequence[Mapping]) -> list[Markup]:
    """Panels for a training run's metrics.jsonl: cross-entropy, KL where there was one, learning rate, held-out text."""
    panels = []
    for name, spelt, unit in (
        ("ce", "cross-entropy", "nats per token"),
        ("kl", "KL to the frozen start", "nats per token"),
        ("lr", "learning rate of the body", ""),
    ):
        points = series(records, name)
        if any(value for _, value in points):
            panels.append(curves(f"{title}: {spelt}", {name: points}, unit=unit))
    if held_out := held_out_series(records):
        panels.append(curves(f"{title}: held-out text", held_out, unit="bits per byte"))
    return panels


def forgetting(records: Sequence[Mapping], *, replay: str) -> str | None:
    """A picture of what learning one language costs in another, a dot an evaluation: the replay language's held-out bits per
    byte, and the KL of the steps since the evaluation before, against the first other language's gain since the start.

    Args:
        records: of metrics.jsonl.
        replay: the language that may be forgotten, as its held-out text is called.

    Returns:
        An SVG file, or None before there are two evaluations of both.
    """
    points = [record for record in records if record.get("held_out")]
    target = next((language for record in points for language in record["held_out"] if language != replay), None)
    if len(points) < 2 or target is None or replay not in points[0]["held_out"]:
        return None
    gain = {record["step"]: points[0]["held_out"][target] - record["held_out"][target] for record in points}
    lost = [(gain[record["step"]], record["held_out"][replay]) for record in points]
    held = []
    for before, record in itertools.pairwise(points):
        kl = [r["kl"] for r in records if "kl" in r and before["step"] < r["step"] <= record["step"]]
        if any(kl):
            held.append((gain[record["step"]], sum(kl) / len(kl)))
    x = f"{target}: bits per byte gained since the start"
    limit = points[-1].get("budget")
    dashed = " (dashed: the budget)" if limit else ""
    ends = (points[0]["step"], points[-1]["step"])
    panels = {f"Held-out {replay}, bits per byte{dashed}": _path(lost, x=x, ends=ends, line=limit)}
    if held:
        panels["KL to the reference, nats per position"] = _path(held, x=x, ends=(points[1]["step"], ends[1]))
    return picture(panels, height=3.4)


def _path(points: Sequence[tuple[float, float]], *, x: str, ends: tuple[int, int], line: float | None = None) -> Draw:
    """Dots in their order, joined; the first hollow, the first and the last with their steps."""

    def draw(axes: Axes) -> None:
        across, up = zip(*points, strict=True)
        axes.plot(across, up, "o-", color=SERIES[0], linewidth=1.4, markersize=4.5)
        axes.plot(across[:1], up[:1], "o", color=SERIES[0], markerfacecolor="white", markersize=5.5)
        beside = ((0, -15), "center"), ((7, -4), "left")  # under the first, right of the last
        for place, step, (offset, side) in zip((0, -1), ends, beside, strict=True):
            spelt = {"textcoords": "offset points", "ha": side, "color": MUTED, "fontsize": 10}
            axes.annotate(f"step {step}", points[place], offset, **spelt)
        if line is not None:
            axes.axhline(line, color=SERIES[1], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.margins(x=0.18, y=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_xlabel(x)

    return draw


def precision_recall(evaluation: Mapping, threshold: float) -> list[Markup]:
    """A panel for all labelled examples of a filter's `evaluation`, then one for each source beside the curve of all.

    Up: the share of the kept that is good. To the right: the share of the good that is kept. The dot is at the threshold.
    """
    everything = evaluation.get("precision_recall") or []
    by_source = {name: points for name, points in evaluation.get("precision_recall_by_source", {}).items() if points}
    if not everything:
        return []
    frame = {"x": "of the good, % kept", "y": "of the kept, % good"}
    whole = _recall_line(everything)
    panels = [small("all", {"all": whole}, dot=at_threshold(everything, threshold), key="trade-off", **frame)]
    for number, (name, points) in enumerate(by_source.items()):
        lines = {name: _recall_line(points), "all": whole}
        dot = at_threshold(points, threshold)
        panels.append(small(name, lines, dot=dot, key=f"trade-off-{number}", **frame))
    return panels


def at_threshold(points: Sequence[Mapping[str, float]], threshold: float) -> Mapping[str, float]:
    """The point of a precision-recall curve at a threshold: the first that is no lower, or the last."""
    return next((point for point in points if point["threshold"] >= threshold), points[-1])


def kept_shares(
    by_source: Mapping[str, Sequence[Mapping[str, float]]], threshold: float, kept: Mapping[str, float]
) -> list[Markup]:
    """A panel for each source: the share of its scored documents that other thresholds (across) would keep, dashed the real one.

    `kept` is what that one keeps (0 to 1); the sources that it costs most come first.
    """
    if not by_source:
        return []
    steps = {point["threshold"] for points in by_source.values() for point in points}
    shares = {step: [_between(points, step) for points in by_source.values()] for step in steps}
    # Only the thresholds at which anything happens.
    low = max((step for step, here in shares.items() if min(here) > 0.995), default=threshold)
    high = min((step for step, here in shares.items() if max(here) == 0), default=threshold)
    frame = {
        "x": "threshold, 1 to 5",
        "y": "% kept",
        "line": threshold,
        "span": (min(low, threshold), max(high, threshold)),
    }
    return [
        small(
            f"{name}, {kept[name]:.1%}",
            {name: [(point["threshold"], 100 * point["documents"]) for point in by_source[name]]},
            key=f"kept-{number}",
            **frame,
        )
        for number, name in enumerate(sorted(by_source, key=kept.__getitem__))
    ]


def _recall_line(points: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    return [(100 * point["recall"], 100 * point["precision"]) for point in points]


def _between(points: Sequence[Mapping[str, float]], threshold: float) -> float:
    """The share of documents kept at a threshold, by a straight line between the two nearest points."""
    return float(np.interp(threshold, [p["threshold"] for p in points], [p["documents"] for p in points]))


def small(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    key: str,
    dot: Mapping[str, float] | None = None,
    line: float | None = None,
    span: tuple[float, float] = (0, 100),
) -> Markup:
    """A panel half as wide as the others, percentages upwards: the first line in colour, those it is compared with grey.

    Args:
        title: of the panel.
        lines: points by name.
        x, y: what the axes are.
        key: begins the ids of its parts; no two panels of a page have the same.
        dot: a point to mark, with `recall` and `precision` (0 to 1).
        line: where to draw an upright dashed line.
        span: of the values across.
    """

    def draw(axes: Axes) -> None:
        for place, points in reversed(list(enumerate(lines.values()))):
            across, up = zip(*points, strict=True)
            axes.plot(across, up, color=MUTED if place else SERIES[0], linewidth=0.9 if place else 1.7)
        if dot is not None:
            axes.plot([100 * dot["recall"]], [100 * dot["precision"]], "o", color=SERIES[1], markersize=6)
        if line is not None:
            axes.axvline(line, color=SERIES[1], linestyle=(0, (4, 3)), linewidth=1.2)
        margin = 0.03 * (span[1] - span[0])
        axes.set_xlim(span[0] - margin, span[1] + margin)
        axes.set_ylim(0, 103)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MultipleLocator(50))
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return _panel(title, 2.0, draw, width=SMALL, key=key)


def bars(title: str, values: Mapping[str, float], *, unit: str, highlighted: Sequence[str] = ()) -> Markup:
    """Horizontal bars, one a name, each with its value; the highlighted ones in a colour of their own."""
    return _panel(title, 0.9 + 0.28 * len(values), _bars(values, unit=unit, highlighted=highlighted))


def _bars(values: Mapping[str, float], *, unit: str, highlighted: Sequence[str] = ()) -> Draw:
    def draw(axes: Axes) -> None:
        names = list(values)[::-1]
        colours = [SERIES[highlighted.index(name) % 2] if name in highlighted else MUTED for name in names]
        axes.barh(names, [values[name] for name in names], color=colours, height=0.65)
        for place, name in enumerate(names):
            axes.annotate(f"{values[name]:.2f}", (values[name], place), (4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, max(values.values(), default=1) * 1.15)
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)

    return draw


def _fertility(
    by_language: Mapping[str, Mapping[str, float]], base: str
) -> list[tuple[str, Mapping[str, float], dict]]:
    """(title, values, style) of each language's bars."""
    style = {"unit": "tokens per word, fewer is better", "highlighted": ["new", base]}
    return [(f"Tokens per word, {language}", values, style) for language, values in by_language.items()]


def intervals(
    title: str, rows: Mapping[str, Mapping[str, float]], *, unit: str, scale: float = 1, chance: float | None = None
) -> Markup:
    """A dot with its 95% interval (`value`, `low`, `high`) for each name; a dashed line at `chance`."""

    def draw(axes: Axes) -> None:
        for place, (name, cell) in enumerate(reversed(rows.items())):
            value, low, high = (cell[part] * scale for part in ("value", "low", "high"))
            colour = SERIES[1] if name == "base" else SERIES[0]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([value], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), list(reversed(rows)))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        if chance is not None:
            axes.axvline(chance * scale, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(unit + (" (dashed: guessing)" if chance is not None else ""))
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return _panel(title, 0.95 + 0.24 * len(rows), draw)


def before_and_after(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], moments: Sequence[str], *, unit: str, line: float
) -> Draw:
    """For each name a hollow dot, a full one and the way between them, each with its 95% interval; a dashed line."""

    def draw(axes: Axes) -> None:
        for place, cells in enumerate(reversed(rows.values())):
            begin, end = (cells[moment] for moment in moments)
            axes.plot([begin["value"], end["value"]], [place, place], color=GRID, linewidth=1.5, zorder=1)
            for cell, filled in ((begin, False), (end, True)):
                axes.plot([cell["low"], cell["high"]], [place, place], color=SERIES[0], linewidth=1, alpha=0.5)
                face = SERIES[0] if filled else "white"
                axes.plot([cell["value"]], [place], "o", color=SERIES[0], markerfacecolor=face, markersize=6)
        axes.set_yticks(range(len(rows)), list(reversed(rows)))
        axes.axvline(line, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(unit)

    return draw


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, unit: str) -> Markup:
    """Lines over training tokens, with dots where there are few measurements and a legend where there are several lines."""

    def draw(axes: Axes) -> None:
        for (name, points), colour in zip(series.items(), SERIES * len(series), strict=False):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o-" if len(points) <= 30 else "-", color=colour, linewidth=1.6, markersize=3.5, label=name)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_xlabel("training tokens")
        axes.set_ylabel(unit)
        if len(series) > 1:
            axes.legend()

    return _panel(title, 3.0, draw)


def series(records: Iterable[Mapping], name: str) -> list[tuple[float, float]]:
    """(tokens, value) points of a figure of metrics.jsonl, where it was logged."""
    return [(record["tokens"], record[name]) for record in records if record.get(name) is not None]


def held_out_series(records: Iterable[Mapping]) -> dict[str, list[tuple[float, float]]]:
    """(tokens, bits per byte) points of each language's held-out text."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for language, value in (record.get("held_out") or {}).items():
            found.setdefault(language, []).append((record["tokens"], value))
    return found


def picture(panels: Mapping[str, Draw], *, height: float) -> str:
    """A whole SVG file: drawings side by side under their titles, on white, equal for equal figures."""
    with matplotlib.rc_context(STYLE | ALONE):
        figure = Figure(figsize=(WIDTH * len(panels), height), layout="constrained")
        for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            draw(axes)
            axes.set_title(title)
        written = io.StringIO()
        figure.savefig(written, format="svg", facecolor="white", metadata={"Date": None, "Title": ", ".join(panels)})
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", written.getvalue())
    for placeholder, colour in COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg


def _over_sizes(values: Mapping[int, float], *, spelt: str, floor: float = 0, line: float | None = None) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot(list(values), list(values.values()), "o-", color=SERIES[0], linewidth=1.6, markersize=4)
        for place in values.items():
            axes.annotate(spelt.format(place[1]), place, (0, 6), textcoords="offset points", ha="center")
        if line is not None:
            axes.axhline(line, color=SERIES[1], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.set_ylim(floor, floor + 1.18 * (max([*values.values(), line or 0]) - floor))
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xticks(list(values))
        axes.set_xlabel("pieces in the vocabulary")
        axes.tick_params(axis="y", labelcolor=MUTED)

    return draw


def _panel(title: str, height: float, draw: Draw, *, width: float = WIDTH, key: str | None = None) -> Markup:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True)
    return for_page(written.getvalue(), title, key)


def for_page(svg: str, title: str, key: str | None = None) -> Markup:
    """Matplotlib's SVG as a part of an HTML page: no declarations, no global styles, the page's fonts and colours.

    Its ids begin with the key, or the title.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)[0]
    prefix = re.sub(r"\W+", "-", key or title)
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', rest)
    rest = rest.replace("url(#", f"url(#{prefix}-")
    rest = re.sub(r" ?font-family: [^;]*;", "", rest)
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    return Markup(
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg {box} role="img" aria-label="{escape(title)}">{rest.strip()}</figure>'
    )
