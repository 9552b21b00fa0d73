"""What the processes of a run tell each other. Alone, a process is told what it says."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from lib.errors import UserError

Value = TypeVar("Value")


def several() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return not several() or dist.get_rank() == 0


def total(sums: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if several():
        dist.all_reduce(sums)
    return sums


def from_main(value: Value) -> Value:
    """The main process's value, for all."""
    box = [value]
    if several():
        dist.broadcast_object_list(box)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """Every process's value, in their order."""
    if not several():
        return [value]
    boxes: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def wait() -> None:
    """Until all are here."""
    if several():
        dist.barrier()


def on_main(check: Callable[[], None]) -> None:
    """Run a check in the main process; what it refuses, all refuse.

    Raises:
        UserError: the check's.
    """
    refused = None
    if is_main():
        try:
            check()
        except UserError as error:
            refused = str(error)
    if refused := from_main(refused):
        raise UserError(refused)
