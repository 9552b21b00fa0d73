"""torchrun, on this machine or on several, with whatever ends the run told in one line, the last.

    python scripts/launch.py --standalone --nproc_per_node=8 scripts/cpt.py --config=configs/vikhr-7b/cpt.yaml ...
    python scripts/launch.py --nnodes=2 --node_rank=0 --rdzv_endpoint=node0:29500 --nproc_per_node=8 scripts/cpt.py ...   (1 on the other one)
    python scripts/launch.py --nnodes=2 --hostfile=hosts --nproc_per_node=8 scripts/cpt.py ...         (starts the other one by ssh)

Reads:  nothing but the host file. The script's own folders are on a file system that all machines share, at the same path.
Writes: nothing. What goes on from where is the script's affair: after a failure the same command again resumes.

All flags but --hostfile are torchrun's, which is what runs; so argparse here and not Fire. torchrun itself prints a page for every
failure, and its agents do not watch each other: that a machine is gone is found out by the processes, at once if its connections
close, else after the script's timeout_seconds.
"""

import argparse
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

# Before torch: else its store prints C++ stacks when a connection is refused, or closed.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from lib import failures

ROOT = Path(__file__).parents[1]
PASSED_BY_SSH = ("NCCL_", "GLOO_", "OMP_", "TORCH_")
PORT = 29500  # torch's own default
SSH_FAILED = 255
GRACE = 30  # seconds for this machine's processes to find out by themselves that another's are gone


def main() -> int:
    """Run the script's processes on this machine, and by ssh those on others; the exit status."""
    parser = run.get_args_parser()
    parser.add_argument(
        "--hostfile", type=Path, help="a machine a line, the first this one; the others by ssh without a password"
    )
    args = parser.parse_args()
    unreached: list[str] = []
    if args.hostfile is not None:
        try:
            hosts = _hosts(args.hostfile, int(args.nnodes))
        except (OSError, ValueError) as error:
            return _complain(f"--hostfile={args.hostfile}: {error}", 2)
        args.rdzv_endpoint = args.rdzv_endpoint or f"{hosts[0]}:{PORT}"
        for number, host in enumerate(hosts[1:], start=1):
            threading.Thread(target=_by_ssh, args=(host, number, args, unreached), daemon=True).start()
    if args.rdzv_backend == "static" and not args.standalone:
        place = f"machine {args.node_rank + 1} of {args.nnodes}"
        print(f"{place}: the others are waited for at {args.rdzv_endpoint}", file=sys.stderr)
    logging.disable(logging.ERROR)  # the agent's alone; what it has to say is said below
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while machines are waited for, in C++; then torchrun sets its own
    try:
        run.run(args)
    except ChildFailedError as error:
        line, status = failures.describe(error.failures, socket.gethostname())
        print(line, file=sys.stderr)
        return status
    except SignalException:
        if unreached:  # and said
            return 1
        return _complain(f"interrupted; nothing was left under a final name, {failures.AGAIN}", 130)
    except DistError as error:
        why = str(error).splitlines()[0]
        return _complain(f"the {args.nnodes} machines did not meet at {args.rdzv_endpoint}: {why}", 1)
    return 0


def _hosts(path: Path, wanted: int) -> list[str]:
    """The first machines of a host file: a name a line; what follows it (`slots=8`) and comments are left out."""
    lines = (line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    found = [words[0] for words in lines if words]
    if len(found) < wanted:
        raise ValueError(f"has {len(found)} machines, and {wanted} are to take part")
    return found[:wanted]


def _by_ssh(host: str, number: int, args: argparse.Namespace, unreached: list[str]) -> None:
    """A machine's launcher, from its start to its end; if it fails and this machine's processes don't, it ends them."""
    passed = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(PASSED_BY_SSH)]
    flags = [f"--nnodes={args.nnodes}", f"--node_rank={number}", f"--rdzv_endpoint={args.rdzv_endpoint}"]
    flags += [f"--nproc_per_node={args.nproc_per_node}", f"--rdzv_conf={args.rdzv_conf}"]
    script = [args.training_script, *args.training_script_args]
    there = shlex.join(["env", *passed, sys.executable, "scripts/launch.py", *flags, *script])
    command = ["ssh", "-o", "BatchMode=yes", host, f"cd {shlex.quote(str(ROOT))} && exec {there}"]
    # In a session of its own: Ctrl-C is for this machine's processes, which tell the others, and all save.
    status = subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True).returncode
    if status:
        time.sleep(0 if status == SSH_FAILED else GRACE)
        unreached.append(host)
        _complain(
            f"ssh {host} ended with status {status}; can it log in without a password, and is this folder there?", 1
        )
        os.kill(os.getpid(), signal.SIGTERM)


def _complain(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
