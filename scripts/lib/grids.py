"""Grids of variants: what each changes of a profile, and which stages that concerns.

about: Table 10, which instructions
checkpoint: sft              # scored
seeds: [0, 1]                # [0] if not given; they become the `seed` of the training stages
settings:                    # of all variants, by stage
  sft: {max_steps: 60}
variants:
  all: {}
  unfiltered:
    variables: {PREFERENCES: ""}     # of Make
    settings: {instruct: {}}         # the stages that a variable concerns have to be named
paper:                       # the paper's figures, shown beside
  all: {ru_mmlu: 0.8}
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from lib import cli
from lib.errors import UserError

# Stages by what they read of other stages, in the order in which they run. `eval` reads the checkpoint and pack.
READS = {
    "dedup": (), "annotate": ("dedup",), "filter": ("dedup", "annotate"), "tokenizer": ("filter",), "init": ("filter", "tokenizer"),
    "pack": ("filter", "tokenizer"), "cpt": ("init", "pack"), "merge": ("init", "cpt"), "reward": (), "translate": (),
    "instruct": ("reward", "translate"), "sft": ("cpt", "merge", "pack", "instruct"),
}  # fmt: skip
FOLDERS = {"annotate": "annotations", "translate": "translated"}  # where not named like the stage
CHECKPOINTS = ("init", "cpt", "merge", "sft")
SEEDED = ("cpt", "sft")


class SettingsFiles(Protocol):
    """Where a profile's settings are."""

    def settings_file(self, step: str) -> Path | None:
        """The file of a stage, if it has one."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs: settings by stage, variables of Make, and the folders that are its own."""

    differences: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, str]
    changed: tuple[str, ...]
    seeded: tuple[str, ...]

    def settings(self, profile: SettingsFiles, seed: int) -> dict[str, dict[str, Any]]:
        """Whole settings of each stage that it changes or that the seed does: the profile's, with its own in their place."""
        found = {}
        for step in dict.fromkeys([*self.differences, *self.seeded]):
            file = profile.settings_file(step)
            mine = {"seed": seed} if step in self.seeded else {}
            found[step] = (cli.load_yaml(file) if file else {}) | mine | self.differences.get(step, {})
        return found


@dataclasses.dataclass(frozen=True)
class Grid:
    """Variants by name, the checkpoint that is scored, and the seeds of each."""

    about: str
    checkpoint: str
    seeds: tuple[int, ...]
    variants: Mapping[str, Variant]
    paper: Mapping[str, Mapping[str, float]]


def load(file: Path, profile: str) -> Grid:
    """A grid's file.

    Raises:
        UserError: it is missing or says something else than a grid.
    """
    if not file.is_file():
        known = sorted(path.stem for path in Path("configs", profile, "ablations").glob("*.yaml"))
        raise UserError(f"--grid={file}: no such file; {profile} has: {', '.join(known) or 'none'}")
    given = cli.load_yaml(file)
    if unknown := sorted(set(given) - {"about", "checkpoint", "seeds", "settings", "variants", "paper"}):
        raise UserError(f"{file}: unknown key '{unknown[0]}'")
    checkpoint = given.get("checkpoint")
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"{file}: checkpoint: one of {', '.join(CHECKPOINTS)}")
    variants = given.get("variants")
    if not isinstance(variants, dict) or len(variants) < 2:
        raise UserError(f"{file}: variants: at least two")
    seeds = given.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise UserError(f"{file}: seeds: a list of numbers")
    common = given.get("settings") or {}
    seeded = SEEDED if len(seeds) > 1 else ()
    made = {name: _variant(file, name, found or {}, common, checkpoint, seeded) for name, found in variants.items()}
    return Grid(given.get("about", file.stem), checkpoint, tuple(seeds), made, given.get("paper") or {})


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as a stage reads them."""
    return yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=False)


def _variant(
    file: Path, name: str, given: Mapping, common: Mapping, checkpoint: str, seeded: tuple[str, ...]
) -> Variant:
    if not isinstance(given, dict) or set(given) - {"settings", "variables"}:
        raise UserError(f"{file}: variant {name}: settings and variables are what it may have")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{file}: variant '{name}': letters, digits, - and _, for a folder is named after it")
    differences: dict[str, dict] = {}
    for part in (common, given.get("settings") or {}):
        for step, found in part.items():
            if step not in (*READS, "eval"):
                raise UserError(f"{file}: variant {name}: no stage '{step}'; there are: {', '.join(READS)}, eval")
            differences[step] = differences.get(step, {}) | (found or {})
    needed = _needed(checkpoint)
    variables = {key: str(value) for key, value in (given.get("variables") or {}).items()}
    concerned = [step for step in seeded if step in needed]
    return Variant(differences, variables, _changed({*differences, *concerned}, checkpoint), tuple(concerned))


def _needed(checkpoint: str) -> set[str]:
    """The stages that a checkpoint comes from, itself too."""
    found, waiting = set(), [checkpoint]
    while waiting:
        step = waiting.pop()
        found.add(step)
        waiting += READS[step]
    return found


def _changed(first: set[str], checkpoint: str) -> tuple[str, ...]:
    """Folders of the stages in `first` and of all that read them; eval's always, for it is the variant's."""
    changed = set(first)
    for step, reads in READS.items():
        if changed & set(reads):
            changed.add(step)
    changed.add("eval")
    return tuple(FOLDERS.get(step, step) for step in (*READS, "eval") if step in changed)
