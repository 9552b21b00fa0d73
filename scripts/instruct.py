"""Build the instruction set: dialogues of several sources checked, deduplicated, cleared of evaluation items, filtered, mixed.

    python scripts/instruct.py --instructions=data/raw/saiga,data/raw/veles --out=data/mine/instruct \
        --tasks=configs/eval/hub/ru_mmlu.yaml --reward=checkpoints/mine/reward --target=keep_share=0.8

In this order, each with a reason in removed.jsonl: `wrong_language`, a dialogue in another language than it says; `exact_duplicate` and
`near_duplicate`, a prompt (all that the user says) that an earlier dialogue has, by the corpus' engine; `contaminated`, words of an
evaluation item; `low_reward`, an answer that the reward model thinks little of; `not_sampled`, by the sources' weights. Of what is left
a share is held out: never tuned on, what eval.py scores checkpoints on.

Reads:  JSON Lines with `messages`, files or fetched folders; task files (configs/eval/) and a reward model (reward.py), if given.
Writes: instructions.jsonl: what is left, with its `source` and, if there is a reward model, its `reward`: for sft.py.
        held_out.jsonl: the same of those that are held out.
        removed.jsonl: the others, with `reason` and what it rests on: `twin_id`, `twin_prompt` and `similarity`, or `item`, or `reward`.
        In the manifest a table of the sources: dialogues, removed by reason, held out, kept, characters (the paper's Table 4).
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from lib import cli, contamination, curation, dialogues, documents, progress, stage
from lib.errors import UserError


def main(
    *,
    instructions: list[Path],
    out: Path,
    tasks: list[Path] = [],  # noqa: B006
    data: dict[str, Path] = {},  # noqa: B006
    reward: Path | None = None,
    target: str = "keep_share=0.8",
    min_probability: float = 0.1,
    threshold: float = 0.8,
    shingle_size: int = 5,
    keep: Literal["first", "longest"] = "first",
    ngram: int = contamination.SIZE,
    weights: dict[str, float] = {},  # noqa: B006
    held_out_share: float = 0.02,
    on_error: documents.OnError = "stop",
    seed: int = 0,
) -> None:
    """Build the set.

    Args:
        instructions: files or fetched folders of dialogues, in the order in which the first of equals is kept; a source is
            called like its folder or file.
        out: the folder to write.
        tasks: task files whose items must not occur.
        data: local files of a task's items by its name, as eval.py has them.
        reward: a reward model's folder; without one nothing is removed by it.
        target: what is kept: keep_share=, of each language's dialogues, or score=, the lowest reward. A dialogue's reward is its
            worst answer's.
        min_probability: a dialogue stays if it is in the language that it names at least so probably (0 to 1).
        threshold: Jaccard similarity (0 to 1) from which two prompts count as near duplicates.
        shingle_size: characters in the n-grams that are compared.
        keep: of similar prompts, the 'first' or the 'longest'.
        ngram: so many words in a row that an evaluation item has too are its words.
        weights: how often a source's dialogues are taken: 0.5 is a random half, 2 each twice; 1 if not named.
        held_out_share: of what is left (0 to 1), chosen by a hash of the prompt, so that other sets of the same dialogues hold out
            the same ones.
        on_error: 'stop' at broken input, or 'skip' and count it.
        seed: of what is drawn by weights.
    """
    settings = dict(locals())
    if not 0 <= held_out_share < 1:
        raise UserError(f"--held_out_share={held_out_share}: a share of at least 0 and below 1")
    _check(threshold, shingle_size, ngram, target, weights, [_source(path) for path in instructions])
    named = {"instructions": instructions, "tasks": tasks}
    inputs = {f"{name}[{n}]": path for name, paths in named.items() for n, path in enumerate(paths)}
    inputs |= {"reward": reward, **_files(data)}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        skipped: Counter[str] = Counter()
        given = [
            {**record, "source": _source(path)}
            for path in instructions
            for record in dialogues.read(path, on_error=on_error, skipped=skipped)
        ]
        if not given:
            raise UserError(f"{', '.join(map(str, instructions))}: no dialogue there")
        removed: curation.Removed = {}
        removed |= curation.wrong_language(given, min_probability)
        removed |= curation.repeated(given, curation.left(given, removed), threshold, shingle_size, keep)
        found, checked = curation.contaminated(given, curation.left(given, removed), tasks, data, ngram, seed)
        removed |= found
        if reward is not None:
            removed |= curation.low_reward(given, curation.left(given, removed), reward, target)
        copies = curation.copies(given, curation.left(given, removed), weights, seed)
        removed |= {row: {"reason": "not_sampled"} for row, count in copies.items() if not count}
        held = curation.held_out(given, curation.left(given, removed), held_out_share)
        copies |= dict.fromkeys(held, 0)
        taken = (record for row, record in enumerate(given) for _ in range(copies.get(row, 0)))
        _write(building.folder / "instructions.jsonl", taken)
        _write(building.folder / "held_out.jsonl", (given[row] for row in sorted(held)))
        _write(building.folder / "removed.jsonl", (given[row] | removed[row] for row in sorted(removed)))
        building.record(
            instructions_in=len(given),
            instructions_kept=sum(copies.values()),
            instructions_held_out=len(held),
            removed=curation.reasons(removed.values()),
            sources=curation.table(given, removed, copies, held),
            contamination=checked,
            skipped=dict(skipped),
        )
    left_out = curation.reasons(removed.values()) | {"held_out": len(held)}
    print(progress.funnel(len(given) - len(removed) - len(held), len(given), left_out, "dialogues"))


def _check(
    threshold: float, shingle_size: int, ngram: int, target: str, weights: dict[str, float], sources: Sequence[str]
) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold={threshold}: a similarity above 0 and at most 1")
    if shingle_size < 1:
        raise UserError(f"--shingle_size={shingle_size}: at least 1")
    if ngram < contamination.SHORTEST:
        raise UserError(f"--ngram={ngram}: at least {contamination.SHORTEST}, fewer words mean nothing")
    name, _, value = target.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = None
    if name not in ("score", "keep_share") or number is None or (name == "keep_share" and not 0 < number <= 1):
        raise UserError(f"--target={target}: expected keep_share=SHARE (above 0, at most 1) or score=NUMBER")
    if unknown := sorted(set(weights) - set(sources)):
        raise UserError(f"--weights: no source {', '.join(unknown)}; there are: {', '.join(sources)}")
    if wrong := [name for name, weight in weights.items() if weight < 0]:
        raise UserError(f"--weights: {wrong[0]} is below 0")


def _files(data: dict[str, Path]) -> dict[str, Path]:
    if not data:
        return {}
    from lib import items  # takes the datasets library along

    return items.inputs(data)


def _source(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _write(path: Path, records: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


if __name__ == "__main__":
    cli.run(main)
