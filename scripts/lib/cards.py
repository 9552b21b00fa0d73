"""Model cards: for each final checkpoint a README.md with the hub's metadata, from the stages' manifests.

The metadata is written, and read again, by huggingface_hub; its fields: https://huggingface.co/docs/hub/model-cards and
https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Only the hub itself could check it further.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lib import lineage, page, scores

# The hub's identifiers of licences that base models have; it refuses any other, SPDX's included.
LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Llama 2 community licence": "llama2",
    "Llama 3 community licence": "llama3",
}
TITLES = {"cpt": "continued pre-training", "merge": "merged", "sft": "instruction-tuned"}
TAGS = {
    "cpt": ["continued-pretraining", "vocabulary-adaptation"],
    "merge": ["merge", "slerp", "continued-pretraining", "vocabulary-adaptation"],
    "sft": ["conversational", "sft", "continued-pretraining", "vocabulary-adaptation"],
}
# What an input of a stage was used for; a tokenizer to compare with is in no checkpoint.
PURPOSES = {
    ("dedup", "corpus"): "text to train on",
    ("filter", "encoder"): "start of the filter",
    ("init", "base"): "base model",
    ("reward", "preferences"): "preferences, for the reward model",
    ("reward", "encoder"): "start of the reward model",
    ("instruct", "instructions"): "instructions",
    ("translate", "items"): "instructions, translated",
}
TRAINED_ON = (("dedup", "corpus"), ("instruct", "instructions"), ("translate", "items"))


def final(run: Mapping) -> list[str]:
    """The checkpoints that have a card, of those that the run has."""
    return [checkpoint for checkpoint in TITLES if checkpoint in run["folders"]]


def card(checkpoint: str, run: Mapping, base_model: str | None) -> str:
    """The card of a checkpoint, Markdown under a YAML head.

    Args:
        checkpoint: cpt, merge or sft.
        run: the report's context: `folders` and `manifests` of all outputs by name (`fetch <source>` for the fetched), `table`,
            `headline`, `provenance`, `answers` and others.
        base_model: the base's name on the hub, or None if it is not there or not known.
    """
    line = lineage.ancestors(checkpoint, run["folders"], run["manifests"])
    used = purposes(line, run)
    row = next((row for row in run["table"]["rows"] if row["checkpoint"] == checkpoint), None)
    data = metadata(checkpoint, run, used, row, base_model)
    answer = next(iter(run["answers"].get(checkpoint, [])), {}) if checkpoint == "sft" else {}
    body = page.render(
        "model_card.md.j2",
        **run,
        checkpoint=checkpoint,
        title=TITLES[checkpoint],
        base_model=base_model,
        merged="merge" in line,
        made_of=[entry for entry in run["stages"] if entry["name"] in line and entry["stage"] != "fetch"],
        scored=[entry for entry in run["stages"] if entry["name"].startswith("eval ")],
        rows=[
            row | {"used": used.get(row["name"], [])} for row in run["provenance"] if used.get(row["name"], "unknown")
        ],
        answer=answer,
        fence=fence(answer.get("prompt", "") + answer.get("completion", "")),
        limits=limits(checkpoint, run["results"], run["table"]),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def purposes(line: Sequence[str], run: Mapping) -> dict[str, list[str]]:
    """By fetched source, what a checkpoint with these ancestors had it for: [] for nothing.

    A source that no given stage has read is not in it: nothing is known of its use then.
    """
    found = {}
    for name, readers in lineage.uses(run["folders"], run["manifests"]).items():
        if name.startswith("fetch ") and readers:
            roles = [(reader.split()[0], role) for reader, names in readers.items() if reader in line for role in names]
            found[name.removeprefix("fetch ")] = list(dict.fromkeys(PURPOSES[r] for r in roles if r in PURPOSES))
    return found


def metadata(
    checkpoint: str, run: Mapping, used: Mapping[str, Sequence[str]], row: Mapping | None, base_model: str | None
) -> ModelCardData:
    """The YAML head: only data sets and a base that are on the hub are named there; the body tells of the others."""
    spoken = [column["language"] for column in run["table"]["columns"] if column["group"] == "bits_per_byte"]
    training = {PURPOSES[role] for role in TRAINED_ON}
    sources = {name.removeprefix("fetch "): m for name, m in run["manifests"].items() if name.startswith("fetch ")}
    hub = [
        manifest["settings"]["package"]
        for name, manifest in sources.items()
        if manifest["settings"].get("type") == "hub" and training & set(used.get(name, []))
    ]
    told = eval_results(row, run["table"]["columns"], run["manifests"]) if row and not run["random_model"] else None
    source = run["base_source"]
    return ModelCardData(
        language=list(dict.fromkeys([run["language"], *spoken])),
        **licence(source["results"].get("licence") if source else None),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=list(dict.fromkeys(hub)) or None,
        tags=TAGS[checkpoint],
        metrics=["accuracy"] if any(result.metric_type == "accuracy" for result in told or []) else None,
        model_name=f"{run['base']}-{run['language']}-{checkpoint}" if told else None,
        eval_results=told or None,
    )


def licence(name: str | None) -> dict[str, str]:
    """A licence as the hub takes it: its identifier, or 'other' with a name in its alphabet."""
    if name is None:
        return {"license": "unknown"}
    if name in LICENCES:
        return {"license": LICENCES[name]}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")}


def eval_results(row: Mapping, columns: Sequence[Mapping], manifests: Mapping[str, Mapping]) -> list[EvalResult]:
    """Bits per byte and tasks of a row of the score table for the hub's `model-index`, each with its interval in its name."""
    measured = next(each for each in manifests.values() if each["results"].get("checkpoint") == row["checkpoint"])
    files = {
        Path(file).stem: f" ({file})" for file in measured["settings"].get("tasks") or []
    }  # a task's own or the hub's items
    found = []
    for column in columns:
        cell = row["cells"][column["key"]]
        if not cell or "low" not in cell or column["group"] not in ("bits_per_byte", "tasks"):
            continue
        interval = f"95% interval {cell['low']:.4f} to {cell['high']:.4f}"
        if column["group"] == "tasks":
            task = measured["results"]["tasks"][column["task"]]
            about = {
                "dataset_type": column["task"],
                "dataset_name": f"{column['title']}, {task['items']:,} items{files.get(column['task'], '')}",
                "metric_type": task["metric"],
                "metric_name": f"{task['metric']}, {task.get('shots', 0)}-shot, {interval}",
            }
        else:
            about = {
                "dataset_type": "held-out-text",
                "dataset_name": f"held-out {scores.name_of(column['language'])} text of the training sources",
                "dataset_config": column["language"],
                "metric_type": "bits_per_byte",
                "metric_name": f"bits per byte, lower is better, {interval}",
            }
        found.append(EvalResult(task_type="text-generation", metric_value=round(cell["value"], 4), **about))
    return found


def limits(checkpoint: str, results: Mapping[str, Mapping], table: Mapping) -> list[str]:
    """What the model and its scores can't be relied on for, as far as the manifests tell."""
    found = ["Nobody tuned it to refuse harmful requests or checked its answers for truth; don't rely on either."]
    if checkpoint != "sft":
        found.append("It continues text. It was not tuned to follow instructions or to hold a conversation.")
    if parameters := results["cpt"].get("parameters"):
        read = f"It has {parameters / 1e6:,.1f} million parameters, saw {results['cpt']['tokens']:,} tokens in continued pre-training"
        tuned = f" and {results['sft']['dialogues']['kept']:,} dialogues in tuning" if checkpoint == "sft" else ""
        found.append(f"{read}{tuned}.")
    tasks = [column for column in table["columns"] if column["group"] == "tasks" and "items" in column]
    if tasks:
        smallest = min(column["items"] for column in tasks)
        found.append(f"The smallest task has {smallest:,} items: read the intervals, not the last digit.")
    flawed = [column for column in table["columns"] if column["group"] == "flaws"]
    answered = next((row["cells"] for row in table["rows"] if row["checkpoint"] == checkpoint), {})
    if rates := [(column, cell) for column in flawed if (cell := answered.get(column["key"])) and cell["value"]]:
        told = ", ".join(f"{column['title']} {scores.spell(cell['value'], 'percent')}" for column, cell in rates)
        found.append(f"Flaws that a rule can see in its {flawed[0]['answers']:,} answers: {told}.")
    if results["filter"]["labels"] == "weak":
        found.append("The training text was filtered by a model that had learnt from weak labels, not from readers.")
    return found


def fence(text: str) -> str:
    """A Markdown code fence that the text does not close."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def hub_name(source: Mapping | None) -> str | None:
    """The name on the hub of a fetched model that came from there."""
    return source["settings"].get("package") if source and source["settings"].get("type") == "hub" else None


def path_of(checkpoint: str) -> Path:
    """Where a checkpoint's card lies in the report's folder."""
    return Path("cards") / checkpoint / "README.md"
