"""Build the instruction set: dialogues of several sources checked, deduplicated, cleared of evaluation items, filtered, mixed.

    python scripts/instruct.py --instructions=data/raw/saiga,data/raw/veles --out=data/mine/instruct \
        --tasks=configs/eval/hub/ru_mmlu.yaml --reward=checkpoints/mine/reward --target=keep_share=0.8

In this order, each with a reason in removed.jsonl: `wrong_language`, a dialogue in another language than it says; `exact_duplicate` and
`near_duplicate`, a prompt (all that the user says) that an earlier dialogue has, by the corpus' engine; `contaminated`, words of an
evaluation item; `low_reward`, an answer that the reward model thinks little of; `not_sampled`, by the sources' weights.

Reads:  JSON Lines with `messages`, files or fetched folders; task files (configs/eval/) and a reward model (reward.py), if given.
Writes: instructions.jsonl: what is left, with its `source` and, if there is a reward model, its `reward`: for sft.py.
        removed.jsonl: the others, with `reason` and what it rests on: `twin_id`, `twin_prompt` and `similarity`, or `item`, or `reward`.
        In the manifest a table of the sources: dialogues, removed by reason, kept, characters (the paper's Table 4).
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lib import cli, contamination, dialogues, documents, duplicates, languages, minhash, progress, stage
from lib.errors import UserError

NUM_PERM = 128
REASONS = (
    "wrong_language", "exact_duplicate", "near_duplicate", "contaminated", "low_reward", "not_sampled",
)  # fmt: skip
Removed = dict[int, dict[str, object]]


def main(
    *,
    instructions: list[Path],
    out: Path,
    tasks: list[Path] = [],  # noqa: B006
    reward: Path | None = None,
    target: str = "keep_share=0.8",
    min_probability: float = 0.1,
    threshold: float = 0.8,
    shingle_size: int = 5,
    keep: Literal["first", "longest"] = "first",
    ngram: int = contamination.SIZE,
    weights: dict[str, float] = {},  # noqa: B006
    on_error: documents.OnError = "stop",
    seed: int = 0,
) -> None:
    """Build the set.

    Args:
        instructions: files or fetched folders of dialogues, in the order in which the first of equals is kept; a source is
            called like its folder or file.
        out: the folder to write.
        tasks: task files whose items must not occur.
        reward: a reward model's folder; without one nothing is removed by it.
        target: what is kept: keep_share=, of each language's dialogues, or score=, the lowest reward. A dialogue's reward is its
            worst answer's.
        min_probability: a dialogue stays if it is in the language that it names at least so probably (0 to 1).
        threshold: Jaccard similarity (0 to 1) from which two prompts count as near duplicates.
        shingle_size: characters in the n-grams that are compared.
        keep: of similar prompts, the 'first' or the 'longest'.
        ngram: so many words in a row that an evaluation item has too are its words.
        weights: how often a source's dialogues are taken: 0.5 is a random half, 2 each twice; 1 if not named.
        on_error: 'stop' at broken input, or 'skip' and count it.
        seed: of what is drawn by weights.
    """
    settings = dict(locals())
    _check(threshold, shingle_size, ngram, target, weights, [_source(path) for path in instructions])
    named = {"instructions": instructions, "tasks": tasks}
    inputs = {f"{name}[{n}]": path for name, paths in named.items() for n, path in enumerate(paths)} | {
        "reward": reward
    }
    with stage.output(out, inputs=inputs, settings=settings) as building:
        skipped: Counter[str] = Counter()
        given = [
            {**record, "source": _source(path)}
            for path in instructions
            for record in dialogues.read(path, on_error=on_error, skipped=skipped)
        ]
        if not given:
            raise UserError(f"{', '.join(map(str, instructions))}: no dialogue there")
        removed: Removed = {}
        removed |= _wrong_language(given, min_probability)
        removed |= _repeated(given, _left(given, removed), threshold, shingle_size, keep)
        found, checked = _contaminated(given, _left(given, removed), tasks, ngram, seed)
        removed |= found
        if reward is not None:
            removed |= _poor(given, _left(given, removed), reward, target)
        copies = _copies(given, _left(given, removed), weights, seed)
        removed |= {row: {"reason": "not_sampled"} for row, count in copies.items() if not count}
        _write(building.folder, given, removed, copies)
        table = _table(given, removed, copies)
        building.record(
            instructions_in=len(given),
            instructions_kept=sum(copies.values()),
            removed=_reasons(removed.values()),
            sources=table,
            contamination=checked,
            skipped=dict(skipped),
        )
    print(progress.funnel(len(given) - len(removed), len(given), _reasons(removed.values()), "dialogues"))


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


def _source(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _left(given: Sequence[dict], removed: Removed) -> list[int]:
    return [row for row in range(len(given)) if row not in removed]


def _wrong_language(given: Sequence[dict], min_probability: float) -> Removed:
    removed: Removed = {}
    for row, record in enumerate(progress.bar(given, title="languages", unit="dialogues")):
        code = documents.language_of(record, None)
        if code is not None and languages.probability(_text(record), code) < min_probability:
            removed[row] = {"reason": "wrong_language"}
    return removed


def _repeated(
    given: Sequence[dict], rows: Sequence[int], threshold: float, shingle_size: int, keep: Literal["first", "longest"]
) -> Removed:
    prompts = ["\n".join(m["content"] for m in given[row]["messages"] if m["role"] == "user") for row in rows]
    how = minhash.scheme(threshold, NUM_PERM, shingle_size, words=False, min_chars=1)
    return {
        rows[place]: {
            "reason": "exact_duplicate" if similarity == 1 else "near_duplicate",
            "twin_id": given[rows[twin]].get("id"),
            "twin_prompt": prompts[twin],
            "similarity": round(similarity, 4),
        }
        for place, (twin, similarity) in duplicates.among(prompts, how, keep=keep).items()
    }


def _contaminated(
    given: Sequence[dict], rows: Sequence[int], tasks: Sequence[Path], ngram: int, seed: int
) -> tuple[Removed, dict[str, dict[str, int]]]:
    """(what has words of an evaluation item, by task: items, those too short to be looked for, dialogues found)."""
    if not tasks:
        return {}, {}
    from lib import harness  # ten seconds

    loaded = harness.load(tasks, num_fewshot=0, seed=seed)
    index = contamination.Index(
        (
            (name, number, list(contamination.texts_of(item)))
            for name, task in loaded.items()
            for number, item in enumerate(task.eval_docs)
        ),
        ngram,
    )
    removed: Removed = {}
    hits: Counter[str] = Counter()
    for row in progress.bar(rows, title="contamination", unit="dialogues"):
        if (found := index.find(_text(given[row]))) is not None:
            removed[row] = {"reason": "contaminated", "item": found._asdict()}
            hits[found.task] += 1
    return removed, {
        name: {"items": index.items[name], "too_short": index.too_short[name], "dialogues": hits[name]}
        for name in loaded
    }


def _poor(given: Sequence[dict], rows: Sequence[int], folder: Path, target: str) -> Removed:
    """What is below the target; all get their `reward`."""
    from lib import machine, rewards  # torch

    facts = rewards.facts(folder)
    model, tokenizer = rewards.load(folder)
    answers = [(row, turn) for row in rows for turn in rewards.turns(given[row]["messages"])]
    scores = rewards.score(model.to(machine.device()), tokenizer, [turn for _, turn in answers], facts["max_tokens"])
    for (row, _), score in zip(answers, scores.tolist(), strict=True):
        given[row]["reward"] = round(min(score, given[row].get("reward", score)), 4)
    name, value = target.split("=")
    spoken = [documents.language_of(given[row], None) for row in rows]
    removed: Removed = {}
    for code in set(spoken):
        ours = [row for row, other in zip(rows, spoken, strict=True) if other == code]
        found = np.array([given[row]["reward"] for row in ours])
        lowest = float(value) if name == "score" else float(np.quantile(found, 1 - float(value)))
        removed |= {row: {"reason": "low_reward"} for row in ours if given[row]["reward"] < lowest}
    return removed


def _copies(given: Sequence[dict], rows: Sequence[int], weights: dict[str, float], seed: int) -> dict[int, int]:
    """How often each row is taken: a weight's whole part, and once more as probably as the rest says."""
    rng = random.Random(seed)
    copies = {}
    for row in rows:
        whole, rest = divmod(weights.get(given[row]["source"], 1.0), 1)
        copies[row] = int(whole) + (rng.random() < rest)
    return copies


def _write(folder: Path, given: Sequence[dict], removed: Removed, copies: dict[int, int]) -> None:
    with (
        (folder / "instructions.jsonl").open("w", encoding="utf-8") as kept,
        (folder / "removed.jsonl").open("w", encoding="utf-8") as gone,
    ):
        for row, record in enumerate(given):
            line = json.dumps(record | removed.get(row, {}), ensure_ascii=False) + "\n"
            (gone if row in removed else kept).write(line * (1 if row in removed else copies[row]))


def _table(given: Sequence[dict], removed: Removed, copies: dict[int, int]) -> list[dict[str, object]]:
    """The paper's Table 4: a row for each source."""
    found = []
    for source in dict.fromkeys(record["source"] for record in given):
        rows = [row for row, record in enumerate(given) if record["source"] == source]
        kept = [row for row in rows if row not in removed]
        spoken = Counter(documents.language_of(given[row], None) or "unnamed" for row in rows)
        found.append(
            {
                "source": source,
                "languages": dict(spoken.most_common()),
                "dialogues": len(rows),
                "removed": _reasons(removed[row] for row in rows if row in removed),
                "kept": sum(copies[row] for row in kept),
                "answers": sum(copies[row] * _answers(given[row]) for row in kept),
                "characters": sum(copies[row] * len(_text(given[row])) for row in kept),
            }
        )
    return found


def _reasons(removed: object) -> dict[str, int]:
    counts = Counter(facts["reason"] for facts in removed)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _answers(record: dict) -> int:
    return sum(message["role"] == "assistant" for message in record["messages"])


def _text(record: dict) -> str:
    return "\n".join(message["content"] for message in record["messages"])


if __name__ == "__main__":
    cli.run(main)
