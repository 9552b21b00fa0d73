"""Lay two evaluations side by side: what differs between the checkpoints, and what of it may be chance.

    python scripts/compare.py --first=data/demo/eval/base --second=data/demo/eval/cpt --out=data/demo/compare

Both have to be made with the same settings on the same texts, items and prompts; differences are then taken pair by pair. Nothing
that depends on the tokenizer is compared: text in bits per byte, speed in characters.

Reads:  two outputs of the eval stage.
Writes: compare.html (one file, nothing loaded from elsewhere); the same figures are in the manifest.
"""

import shutil
from pathlib import Path

from lib import cli, contrast, flaws, page, paired, stage
from lib.errors import UserError

PAGE = "compare.html"


def main(*, first: Path, second: Path, out: Path, language: str = "ru", answers: int = 5) -> None:
    """Compare two evaluations.

    Args:
        first: output of eval.py, what the second is compared with.
        second: another, made with the same settings.
        out: the folder to write.
        language: its scores come first.
        answers: prompts shown in the terminal with both answers; the page has them all.
    """
    settings = dict(locals())
    if answers < 0:
        raise UserError(f"--answers={answers}: no negative numbers")
    ours, other = contrast.read(first, second)
    with stage.output(out, inputs={"first": first, "second": second}, settings=settings) as building:
        rows = contrast.rows(ours, other, language)
        asked = page.side_by_side({each.name: paired.generations(each.folder) for each in (ours, other)})
        context = {"first": ours, "second": other, "rows": rows, "prompts": asked, "language": language}
        rendered = page.render("compare.html.j2", meaning_of_flags=flaws.FLAGS, unclear=contrast.UNCLEAR, **context)
        (building.folder / PAGE).write_text(rendered, encoding="utf-8")
        building.record(first=ours.name, second=other.name, rows=rows)
    print(f"\n{contrast.text(ours, other, rows)}\n")
    if shown := asked[:answers]:
        width = min(shutil.get_terminal_size((120, 24)).columns, 160)
        print(contrast.answers(shown, (ours.name, other.name), width) + "\n")
    print(f"all {len(asked)} answers: {out / PAGE}")


if __name__ == "__main__":
    cli.run(main)
