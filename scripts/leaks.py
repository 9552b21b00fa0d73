"""Look for evaluation items in the text of continued pre-training: an item whose words were trained on tells less.

    python scripts/leaks.py --evaluation=data/demo/eval/base --training=data/demo/filter/documents --out=data/demo/leaks

Once a profile, for its checkpoints are all scored on the same items. The text is read as a stream; what is kept are the
items' runs of words (lib/contamination.py).

Reads:  an output of the eval stage, for its tasks and which of their items were drawn; the filter stage's documents.
Writes: leaks.jsonl: a line for each item found, with the words and the first document that has them.
"""

import json
from collections import Counter
from pathlib import Path

from lib import cli, contamination, documents, paired, progress, stage
from lib.errors import UserError

FOUND = "leaks.jsonl"


def main(*, evaluation: Path, training: Path, out: Path, ngram: int = contamination.SIZE) -> None:
    """Find the items.

    Args:
        evaluation: output of eval.py; any checkpoint's, all have the same items.
        training: documents; of those with a `split`, only 'train' counts.
        out: the folder to write.
        ngram: words in a row that give an item away; a shorter text of an item is looked for as a whole.
    """
    settings = dict(locals())
    if ngram < contamination.SHORTEST:
        raise UserError(f"--ngram={ngram}: at least {contamination.SHORTEST}, fewer words mean nothing")
    asked = stage.read_manifest(evaluation)["settings"]
    inputs = {"evaluation": evaluation, "training": training}
    with stage.output(out, inputs=inputs, settings=settings) as building:
        from lib import harness

        data = {name: Path(path) for name, path in asked.get("data", {}).items()}
        loaded = harness.load(list(map(Path, asked["tasks"])), num_fewshot=0, seed=asked["seed"], data=data)
        drawn = {
            name: harness.draw(len(task.eval_docs), asked["limit"], asked["seed"]) for name, task in loaded.items()
        }
        scored = paired.read(evaluation).tasks
        if wrong := [name for name, numbers in drawn.items() if len(numbers) != len(scored.get(name, []))]:
            raise UserError(f"{evaluation}: {wrong[0]} has other items now than when it was scored; run eval again")
        index = contamination.Index(
            (
                (name, place, list(contamination.texts_of(loaded[name].eval_docs[number])))
                for name, numbers in drawn.items()
                for place, number in enumerate(numbers)
            ),
            ngram,
        )
        found: dict[tuple[str, int], dict] = {}
        read = 0
        for document in progress.bar(documents.read(training) if loaded else [], title="leaks", unit="documents"):
            if document.get("split", "train") == "train":
                read += 1
                for (name, place), words in index.find_all(document["text"]).items():
                    line = {"task": name, "id": scored[name][place].id, "words": words}
                    found.setdefault((name, place), line | {"document": document["id"], "source": document["source"]})
        with (building.folder / FOUND).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(found[key], ensure_ascii=False) + "\n" for key in sorted(found))
        counts = Counter(name for name, _ in found)
        building.record(
            documents=read,
            tasks={
                name: {"items": len(numbers), "too_short": index.too_short[name], "found": counts[name]}
                for name, numbers in drawn.items()
            },
        )
    told = ", ".join(f"{name} {counts[name]} of {len(numbers)}" for name, numbers in drawn.items())
    print(f"leaks: in {read:,} documents, items of {told}")


if __name__ == "__main__":
    cli.run(main)
