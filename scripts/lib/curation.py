"""What leaves an instruction set, and why: each check gives the rows that fail it, with what the verdict rests on."""

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lib import contamination, documents, duplicates, languages, minhash, progress

NUM_PERM = 128
REASONS = (
    "wrong_language", "exact_duplicate", "near_duplicate", "contaminated", "low_reward", "not_sampled",
)  # fmt: skip
Removed = dict[int, dict[str, object]]  # by row: `reason` and the facts


def left(given: Sequence[dict], removed: Removed) -> list[int]:
    """The rows that nothing has removed yet."""
    return [row for row in range(len(given)) if row not in removed]


def wrong_language(given: Sequence[dict], min_probability: float) -> Removed:
    """Dialogues that are in the language they name less probably than `min_probability`; those that name none stay."""
    removed: Removed = {}
    for row, record in enumerate(progress.bar(given, title="languages", unit="dialogues")):
        code = documents.language_of(record, None)
        if code is not None and languages.probability(_text(record), code) < min_probability:
            removed[row] = {"reason": "wrong_language"}
    return removed


def repeated(
    given: Sequence[dict], rows: Sequence[int], threshold: float, shingle_size: int, keep: Literal["first", "longest"]
) -> Removed:
    """Of `rows`, those whose prompt, all that the user says, another dialogue has or nearly has.

    Args:
        given: all dialogues.
        rows: to look at.
        threshold: Jaccard similarity of two prompts from which they are near duplicates.
        shingle_size: characters of an n-gram.
        keep: which of similar prompts stays.
    """
    prompts = [prompt(given[row]) for row in rows]
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


def contaminated(
    given: Sequence[dict],
    rows: Sequence[int],
    tasks: Sequence[Path],
    data: Mapping[str, Path],
    ngram: int,
    seed: int,
) -> tuple[Removed, dict[str, dict[str, int]]]:
    """(what has words of an evaluation item, by task: items, those too short to be looked for, dialogues found)."""
    if not tasks:
        return {}, {}
    from lib import harness  # ten seconds

    loaded = harness.load(tasks, num_fewshot=0, seed=seed, data=data)
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


def low_reward(given: Sequence[dict], rows: Sequence[int], folder: Path, target: str) -> Removed:
    """Of `rows`, those below the target among the dialogues of their language; all get their `reward`, their worst answer's."""
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


def copies(given: Sequence[dict], rows: Sequence[int], weights: dict[str, float], seed: int) -> dict[int, int]:
    """How often each row is taken: a weight's whole part, and once more as probably as the rest says."""
    rng = random.Random(seed)
    copies = {}
    for row in rows:
        whole, rest = divmod(weights.get(given[row]["source"], 1.0), 1)
        copies[row] = int(whole) + (rng.random() < rest)
    return copies


def held_out(given: Sequence[dict], rows: Sequence[int], share: float) -> set[int]:
    """About that share of `rows`, chosen by a hash of the prompt (all that the user says).

    A dialogue's lot depends on nothing else: whatever another set is made of and by, it holds out the same ones at the same share,
    so that what was tuned on it can be scored on those of this one.
    """
    digests = {row: hashlib.sha256(prompt(given[row]).encode()).digest() for row in rows}
    return {row for row, digest in digests.items() if int.from_bytes(digest[:8]) < share * 2**64}


def table(
    given: Sequence[dict], removed: Removed, copies: dict[int, int], held: Collection[int]
) -> list[dict[str, object]]:
    """The paper's Table 4: a row for each source; what is held out is not among the kept."""
    found = []
    for source in dict.fromkeys(record["source"] for record in given):
        rows = [row for row, record in enumerate(given) if record["source"] == source]
        kept = [row for row in rows if row not in removed and row not in held]
        spoken = Counter(documents.language_of(given[row], None) or "unnamed" for row in rows)
        found.append(
            {
                "source": source,
                "languages": dict(spoken.most_common()),
                "dialogues": len(rows),
                "removed": reasons(removed[row] for row in rows if row in removed),
                "held_out": sum(row in held for row in rows),
                "kept": sum(copies[row] for row in kept),
                "answers": sum(copies[row] * _answers(given[row]) for row in kept),
                "characters": sum(copies[row] * len(_text(given[row])) for row in kept),
            }
        )
    return found


def reasons(removed: object) -> dict[str, int]:
    """How many rows each reason removed, in the order of the checks."""
    counts = Counter(facts["reason"] for facts in removed)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _answers(record: dict) -> int:
    return sum(message["role"] == "assistant" for message in record["messages"])


def prompt(record: dict) -> str:
    """All that the user says."""
    return "\n".join(message["content"] for message in record["messages"] if message["role"] == "user")


def _text(record: dict) -> str:
    return "\n".join(message["content"] for message in record["messages"])
