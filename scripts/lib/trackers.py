"""Where a run's figures go besides metrics.jsonl: TensorBoard, trackio, Weights & Biases.

They get the records of metrics.jsonl and nothing else, the parts of a nested figure joined by a slash (`held_out/ru`).
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lib.errors import UserError

Name = Literal["tensorboard", "trackio", "wandb"]
PROJECT = "vikhr"


class Tracker(NamedTuple):
    """What takes figures at a step, and what ends it."""

    log: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def require(names: Sequence[Name]) -> None:
    """Refuse trackers that are not installed, before anything expensive.

    Raises:
        UserError: a package is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"report_to: {name}: the package is not installed; pip install {name}, or take it off the list"
            )


def open_all(names: Sequence[Name], folder: Path, run: str, run_id: str, step: int) -> list[Tracker]:
    """Trackers of a run.

    Args:
        names: which.
        folder: TensorBoard's and W&B's files go into folders of their names in it.
        run: its name for people.
        run_id: the same when it is resumed.
        step: it goes on from here; 0 for a beginning.
    """
    opened = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    return [opened[name](folder, run, run_id, step) for name in names]


def flat(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of everything in a record that is a number, but for the step."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", value


def _tensorboard(folder: Path, run: str, run_id: str, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # What a killed run wrote after the checkpoint is hidden; a beginning hides everything.
    writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else 0)

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _trackio(folder: Path, run: str, run_id: str, step: int) -> Tracker:
    import trackio

    trackio.init(project=PROJECT, name=f"{run}-{run_id}", resume="allow")
    return Tracker(lambda values, step: trackio.log(values, step=step), trackio.finish)


def _wandb(folder: Path, run: str, run_id: str, step: int) -> Tracker:
    import wandb

    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run, id=run_id, resume="allow", dir=str(folder)
    )
    started.define_metric("*", step_metric="step")  # its own step only goes up, and a resumed run's goes back first
    return Tracker(lambda values, step: started.log({**values, "step": step}), started.finish)
