"""Why a run of several processes ended, in one line for each machine.

A process leaves its reason in the file that torchrun names to it (TORCHELASTIC_ERROR_FILE, in the form of torch's own ErrorHandler), and
scripts/launch.py says the one that the others follow from: when one process is gone, all fail in their next exchange.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

FILE = "TORCHELASTIC_ERROR_FILE"
# Kinds of reasons, those that others follow from first.
ORDER = ("killed", "bug", "told", "lost", "interrupted")
WHY = {
    "SIGKILL": ", as the system does when memory runs out",
    "SIGABRT": ", as NCCL's watchdog does when another process does not answer (see above)",
}
LATER = 20  # seconds, less than the 30 that torchrun gives processes before it kills them
AGAIN = "the same command goes on from the last checkpoint"
# How gloo, NCCL and torch's store say that nobody answers, and that a connection was closed, by the other side or by a process
# that found out before this one. They raise RuntimeError or a DistError with such a text.
SILENT = ("Timed out waiting", "timed out", "Timeout", "timeout")
CLOSED = (
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "ncclRemoteError",
    "Connection was likely closed",
)


class Failed(Protocol):
    """A failed process as torchrun describes it: its ProcessFailure."""

    exitcode: int
    timestamp: int
    message: str | dict
    error_file_data: dict


def lost(error: BaseException) -> str | None:
    """What happened to the others, if an error means that they can't be reached any more; None for any other error.

    It has to come from torch's own code: an HTTP client's timeout does not mean that.
    """
    kind = type(error)
    of_torch = kind is RuntimeError or (kind.__module__ == "torch.distributed" and kind.__name__.startswith("Dist"))
    text = str(error)
    if not of_torch:
        return None
    if any(sign in text for sign in CLOSED):
        return "a process of another machine is gone"
    if any(sign in text for sign in SILENT):
        return "a process does not answer any more: it hangs, or its machine or the network is gone"
    return None


def leave(message: str, *, traceback: str = "", kind: str = "told") -> bool:
    """Leave this process's reason to the launcher; False where there is none, and the reason has to be shown here.

    Args:
        message: a line.
        traceback: of a bug.
        kind: 'told' for what a user is told, 'interrupted', 'bug', or 'lost' where only others are missing.
    """
    path = os.environ.get(FILE)
    if path is None:
        return False
    shown = traceback or message  # what torchrun's own page has, for those who start it by hand
    about = {"py_callstack": shown, "timestamp": str(int(time.time())), "kind": kind}
    Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": about}}), encoding="utf-8")
    return True


def describe(failures: Mapping[int, Failed], machine: str) -> tuple[str, int]:
    """What a machine's launcher says at last, and its exit status.

    Args:
        failures: of this machine's processes, by rank.
        machine: its name.

    Returns:
        One line, a bug's traceback before it; and the process's own status if that says something, else 1.
    """
    rank = cause(failures)
    failure = failures[rank]
    kind, message, shown = _left(failure)
    who = f"process {rank} on {machine}"
    if kind in ("told", "interrupted"):
        return f"error: {message}", failure.exitcode if failure.exitcode > 0 else 1
    if kind == "lost":
        return f"error: {who} had to stop: {message}; {AGAIN}", 1
    if kind == "killed":
        name = signal.Signals(-failure.exitcode).name
        return f"error: {who} was killed by {name}{WHY.get(name, '')}; all others stop, {AGAIN}", 1
    return f"{shown}error: {who} failed: {message or f'status {failure.exitcode}'}; all others stop", 1


def cause(failures: Mapping[int, Failed]) -> int:
    """The rank of the process that the others follow from; of several like it the first.

    torchrun lists those that it stopped itself, too: a while later, by SIGTERM, which some take for an interruption, or at last by SIGKILL.
    """
    begun = min(failure.timestamp for failure in failures.values())

    def place(rank: int) -> tuple[int, int]:
        failure = failures[rank]
        kind = _left(failure)[0]
        if kind == "killed" and (failure.exitcode == -signal.SIGTERM or failure.timestamp - begun > LATER):
            return len(ORDER), failure.timestamp
        return ORDER.index(kind), failure.timestamp

    return min(failures, key=place)


def _left(failure: Failed) -> tuple[str, str, str]:
    """Kind, message and what is to be shown, as the process left them, or 'killed' or 'bug' if it left nothing."""
    message = failure.error_file_data.get("message")
    if not isinstance(message, dict):
        return ("killed" if failure.exitcode < 0 else "bug"), "", ""
    about = message["extraInfo"]
    return about.get("kind", "bug"), message["message"], about["py_callstack"]
