"""What a run's outputs were made from: which stage read which output, where the fetched came from and under which licence."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lib import stage

# What the report's arguments are called as stages.
CALLED = {
    "fetched": "fetch",
    "translated": "translate",
    "annotations": "annotate",
    "evaluations": "eval",
    "ablations": "ablate",
}
FORMATS = {
    "model_gguf": "model",
    "model_e5": "model",
    "model_random": "random model",
    "encoder_random": "random model",
    "tokenizer_sentencepiece": "tokenizer",
}
THEMSELVES = (
    "model",
    "tokenizer",
    "instructions",
    "preferences",
)  # formats that say what the content is; others are of text


def read(stages: Mapping[str, Path], lists: Mapping[str, Sequence[Path]]) -> dict[str, object]:
    """A run as its stages recorded it.

    Args:
        stages: their outputs by the report's arguments.
        lists: outputs of stages that ran several times, by the report's arguments; of those that it has.

    Returns:
        `folders` and `manifests` by name (`cpt`, `fetch <source>`, `eval <checkpoint>`), what was fetched first; their `results` by
        name; `stages`, a list of manifests with `name` and `folder`; and over all of them `seconds`, `finished` (the last time),
        `commits` and `versions`.

    Raises:
        UserError: a stage did not finish.
    """
    named = {kind: {f"{CALLED[kind]} {path.name}": path for path in paths} for kind, paths in lists.items()}
    folders = named["fetched"] | named["translated"] | {CALLED.get(name, name): path for name, path in stages.items()}
    folders |= named["evaluations"] | named["ablations"]
    manifests = {name: stage.read_manifest(folder) for name, folder in folders.items()}
    entries = [{"name": name, "folder": folders[name], **manifest} for name, manifest in manifests.items()]
    return {
        "folders": folders,
        "manifests": manifests,
        "results": {name: manifest["results"] for name, manifest in manifests.items()},
        "stages": entries,
        "seconds": sum(entry["seconds"] for entry in entries),
        "finished": max(entry["finished"] for entry in entries),
        "commits": sorted({entry["commit"] for entry in entries}),
        "versions": versions(entries),
    }


def made_from(manifest: Mapping, folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Which of the folders a stage read, each with the names of the inputs that it was.

    Args:
        manifest: the stage's.
        folders: outputs by name; an input may be a part of one.
    """
    found: dict[str, list[str]] = {}
    for name, read in manifest["inputs"].items():
        path = Path(read["path"]).resolve()
        for origin, folder in folders.items():
            if folder.resolve() in (path, *path.parents):
                found.setdefault(origin, []).append(name.partition("[")[0])
    return found


def ancestors(name: str, folders: Mapping[str, Path], manifests: Mapping[str, Mapping]) -> list[str]:
    """The outputs that one was made from, and it itself, in the order of `folders`.

    Args:
        name: of the output.
        folders: where all outputs lie, the fetched included, by name.
        manifests: of all, by name.
    """
    found, waiting = set(), [name]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += made_from(manifests[here], folders)
    return [each for each in folders if each in found]


def uses(folders: Mapping[str, Path], manifests: Mapping[str, Mapping]) -> dict[str, dict[str, list[str]]]:
    """By output: the stages that read it, each with the names of the inputs that it was."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in folders}
    for reader, manifest in manifests.items():
        for origin, names in made_from(manifest, folders).items():
            found[origin][reader] = names
    return found


def provenance(fetched: Mapping[str, Mapping | None]) -> list[dict]:
    """A row for everything that was fetched: what, version, licence, hashes; or why it is not there."""
    rows = []
    for name, manifest in fetched.items():
        if manifest is None:
            rows.append({"name": name, "missing": "no manifest: it was not fetched"})
            continue
        settings, results = manifest["settings"], manifest["results"]
        local = manifest["inputs"].get("path")
        taken = results.get("artefacts") or ([{"name": local["path"], "sha256": local["sha256"]}] if local else [])
        kind = settings.get("format", "")
        rows.append(
            {
                "name": name,
                "kind": FORMATS.get(kind, kind if kind in THEMSELVES else "text"),
                "from": settings.get("type"),
                "licence": results.get("licence"),
                "artefacts": taken,
                "missing": f"skipped: {results['skipped']}" if results.get("skipped") else None,
            }
        )
    return rows


def is_random(fetched: Mapping | None) -> bool:
    """Whether a fetched model is one made at random for tests."""
    return fetched is not None and "random" in fetched["settings"].get("format", "")


def versions(stages: Iterable[Mapping]) -> dict[str, str]:
    """Package versions in use, all of them where the stages' differ."""
    found: dict[str, set[str]] = {}
    for entry in stages:
        for package, version in entry["versions"].items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(different)) for package, different in sorted(found.items())}
