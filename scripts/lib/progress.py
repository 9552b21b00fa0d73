"""Progress bars and the closing line of a stage."""

import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(
    items: Iterable[Item] | None = None, *, total: float | None = None, title: str, unit: str = "", hidden: bool = False
) -> tqdm:
    """A progress bar on stderr: live on a terminal, a line every ten seconds in a log."""
    live = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=title,
        disable=hidden,
        unit=f" {unit}" if unit else "it",
        unit_scale=True,
        dynamic_ncols=live,
        ncols=None if live else 100,
        mininterval=0.2 if live else 10,
        maxinterval=10 if live else 60,
    )


def close() -> None:
    """End the bars that are still open, so that what is printed next begins a line."""
    for open_bar in list(getattr(tqdm, "_instances", ())):
        open_bar.close()


def say(message: str) -> None:
    """One line on stderr that does not break a progress bar."""
    tqdm.write(message, file=sys.stderr)


def funnel(kept: int, total: int, dropped: Mapping[str, int], unit: str) -> str:
    """`kept 812,334 of 1,000,000 documents (81.2%) | too_short 91,022 | ...`, largest reason first."""
    share = f" ({kept / total:.1%})" if total else ""
    reasons = sorted(dropped.items(), key=lambda item: -item[1])
    return " | ".join([f"kept {kept:,} of {total:,} {unit}{share}", *(f"{name} {n:,}" for name, n in reasons if n)])
