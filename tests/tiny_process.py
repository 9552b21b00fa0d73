"""What a launched process is told, and several ways for it to end.

PYTHONPATH=scripts python scripts/launch.py --standalone --nproc_per_node=2 tests/tiny_process.py --folder=... --end=mistake
"""

import os
import signal
import time
from pathlib import Path

from lib import cli, stage
from lib.errors import UserError

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NCCL_SOCKET_IFNAME")


def main(*, folder: Path, end: str = "well"):
    rank = os.environ["RANK"]
    stage.write_json(folder / f"{rank}.json", {name: os.environ.get(name) for name in NAMES})
    if end == "mistake":
        raise UserError("the flag is wrong")
    if end == "bug" and rank == "1":
        raise ZeroDivisionError("what happened first")
    if end == "kill" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if end != "well":  # the other one is missed
        time.sleep(30)


if __name__ == "__main__":
    cli.run(main)
