"""Remove instructions whose prompt repeats or nearly repeats another's: deduplication's engine over whole prompts.

    python scripts/dedup_prompts.py --instructions=data/raw/saiga,data/raw/veles --out=data/mine/prompts

A prompt is all that the user says in a dialogue. Of similar ones the first in the order of the inputs stays, or the longest.

Reads:  instructions: JSON Lines with `messages`, files or fetched folders, several joined by commas.
Writes: instructions.jsonl: what is left, for sft.py --instructions.
        removed.jsonl: the others, with `twin_id`, `twin_prompt` and the `similarity` of the two.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from lib import cli, dialogues, documents, duplicates, minhash, progress, stage
from lib.errors import UserError

NUM_PERM = 128


def main(
    *,
    instructions: list[Path],
    out: Path,
    threshold: float = 0.8,
    shingle_size: int = 5,
    keep: Literal["first", "longest"] = "first",
    on_error: documents.OnError = "stop",
) -> None:
    """Deduplicate instructions by their prompts.

    Args:
        instructions: files or fetched folders of dialogues, in the order in which the first of equals is kept.
        out: the folder to write.
        threshold: Jaccard similarity (0 to 1) from which two prompts count as near duplicates.
        shingle_size: characters in the n-grams that are compared.
        keep: of similar prompts, the 'first' or the 'longest'.
        on_error: 'stop' at broken input, or 'skip' and count it.
    """
    settings = dict(locals())
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold={threshold}: a similarity above 0 and at most 1")
    if shingle_size < 1:
        raise UserError(f"--shingle_size={shingle_size}: at least 1")
    inputs = {f"instructions[{number}]": path for number, path in enumerate(instructions)}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        skipped: Counter[str] = Counter()
        given = [record for path in instructions for record in dialogues.read(path, on_error=on_error, skipped=skipped)]
        if not given:
            raise UserError(f"{', '.join(map(str, instructions))}: no dialogue there")
        prompts = ["\n".join(m["content"] for m in record["messages"] if m["role"] == "user") for record in given]
        how = minhash.scheme(threshold, NUM_PERM, shingle_size, words=False, min_chars=1)
        twins = duplicates.among(prompts, how, keep=keep)
        reasons: Counter[str] = Counter(exact_duplicate=0, near_duplicate=0)
        kept_file, removed_file = (building.folder / name for name in ("instructions.jsonl", "removed.jsonl"))
        with kept_file.open("w", encoding="utf-8") as kept, removed_file.open("w", encoding="utf-8") as removed:
            for row, record in enumerate(given):
                if row in twins:
                    twin, similarity = twins[row]
                    reason = "exact_duplicate" if similarity == 1 else "near_duplicate"
                    reasons[reason] += 1
                    named = {"reason": reason, "twin_id": given[twin].get("id"), "twin_prompt": prompts[twin]}
                    record = record | named | {"similarity": round(similarity, 4)}
                (removed if row in twins else kept).write(json.dumps(record, ensure_ascii=False) + "\n")
        left = len(given) - sum(reasons.values())
        building.record(
            instructions_in=len(given), instructions_kept=left, removed=dict(reasons), skipped=dict(skipped)
        )
    print(progress.funnel(left, len(given), reasons, "instructions"))


if __name__ == "__main__":
    cli.run(main)
