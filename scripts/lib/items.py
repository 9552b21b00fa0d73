"""Local files of benchmark items, in the place of a task's own data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import jinja2
from jinja2 import meta

from lib import cli
from lib.errors import UserError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}  # as datasets names its loaders
SPLITS = ("test_split", "validation_split", "fewshot_split", "training_split")
# What datasets and its readers raise about data; a repository with a loading script is a RuntimeError.
LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, datasets.exceptions.DatasetsError)
HOW = f"one of {', '.join(KINDS)}, a folder of them, or a pattern such as 'folder/*.csv'"


def files(key: str, path: Path) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, by name.

    Args:
        key: what `data` calls it, for the error.
        path: as given.

    Raises:
        UserError: there are none, or one is of a kind that can't be read.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in KINDS)
    else:
        found = [path] if path.is_file() else sorted(file for file in path.parent.glob(path.name) if file.is_file())
    if not found:
        raise UserError(f"data: {key}: {path}: no such file or files; {HOW}")
    if unknown := [file for file in found if file.suffix not in KINDS]:
        raise UserError(f"data: {key}: {unknown[0]}: not a kind of file that can be read; {HOW}")
    return found


def inputs(data: Mapping[str, Path]) -> dict[str, Path]:
    """All files by a name for the manifest."""
    named = {key: files(key, path) for key, path in data.items()}
    return {
        f"data.{key}" if len(found) == 1 else f"data.{key}/{file.name}": file
        for key, found in named.items()
        for file in found
    }


def place(
    data: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]], num_fewshot: int
) -> dict[str, dict[str, tuple[str, Path]]]:
    """(what `data` calls them, the files) by task and split, for the tasks that get local files.

    Args:
        data: files by `<task>.<split>`, or by `<task>` for those that are scored.
        configs: task files by task.
        num_fewshot: examples before each item; they have to be local too.

    Raises:
        UserError: no such task or split, or one that is needed was not given.
    """
    placed: dict[str, dict[str, tuple[str, Path]]] = {}
    for key, path in data.items():
        name, _, split = key.partition(".")
        if name not in configs:
            raise UserError(f"data: no task '{name}' among the tasks{cli.closest(name, configs)}")
        scored, known = scored_split(configs[name]), splits(configs[name])
        split = split or scored
        if split not in known:
            raise UserError(f"data: {key}: the task reads {' and '.join(known)}{cli.closest(split, known)}")
        if split in (given := placed.setdefault(name, {})):
            raise UserError(f"data: {key} and {given[split][0]} are the same items; name them once")
        given[split] = key, path
    for name, given in placed.items():
        scored, pool = scored_split(configs[name]), pool_split(configs[name])
        if scored not in given:
            raise UserError(f"data: {next(iter(given.values()))[0]} without {name}.{scored}, the items that are scored")
        if num_fewshot and pool and pool not in given:
            raise UserError(
                f"data: {name} without {name}.{pool}, where --num_fewshot={num_fewshot} has its examples from"
            )
    return placed


def scored_split(config: Mapping[str, Any]) -> str:
    """The split whose items are scored."""
    return config.get("test_split") or config.get("validation_split") or "test"


def pool_split(config: Mapping[str, Any]) -> str | None:
    """The split that examples come from, if there is one."""
    return config.get("fewshot_split") or config.get("training_split")


def splits(config: Mapping[str, Any]) -> list[str]:
    """The splits that a task file names."""
    return list(dict.fromkeys(config[key] for key in SPLITS if config.get(key)))


def read_items(key: str, path: Path, cache: Path) -> datasets.Dataset:
    """The items of local files; of several, each item has its file's name, the hub's configuration, in `part`.

    Raises:
        UserError: a file does not load, the files do not fit together, or there are no items.
    """
    several = files(key, path)
    parts = []
    for file in several:
        kind = KINDS[file.suffix]
        try:
            part = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(cache))
        except StopIteration:  # datasets' own, of a JSON file without a line
            raise UserError(f"data: {key}: {file}: no items there") from None
        except LOADING as error:
            why = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"data: {key}: {file}: can't be read as {kind} ({why})") from None
        if len(several) > 1 and "part" not in part.column_names:
            part = part.add_column("part", [file.stem] * part.num_rows)
        parts.append(part)
    try:
        return datasets.concatenate_datasets(parts)
    except LOADING as error:
        raise UserError(f"data: {key}: {path}: files of different columns ({str(error).splitlines()[0]})") from None


def with_items(
    config: Mapping[str, Any], read: Mapping[str, datasets.Dataset], given: Mapping[str, tuple[str, Path]]
) -> dict[str, Any]:
    """A task file that has these items by split, and no split besides.

    Raises:
        UserError: the items lack a column.
    """
    for split, found in read.items():
        key, path = given[split]
        if lacking := sorted(columns(config) - set(found.column_names)):
            names = ", ".join(found.column_names)
            raise UserError(f"data: {key}: {path}: no column '{lacking[0]}'; there are {names}")
    kept = {key: value for key, value in config.items() if key not in SPLITS or value in read}
    kept.pop("dataset_kwargs", None)
    return {**kept, "custom_dataset": lambda **_: datasets.DatasetDict(read)}


def columns(config: Mapping[str, Any]) -> set[str]:
    """The columns that a task's templates name; what its functions read shows when they do."""
    target = config.get("doc_to_target")
    given = [config.get(key) for key in ("description", "doc_to_text", "doc_to_choice")] + [target]
    templates = [
        text for part in given for text in (part if isinstance(part, list) else [part]) if isinstance(text, str)
    ]
    named = {target} if isinstance(target, str) and target.isidentifier() else set()
    return named.union(*(meta.find_undeclared_variables(jinja2.Environment().parse(text)) for text in templates))
