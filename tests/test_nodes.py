"""Training on two machines, network namespaces where this user may make some: what each says when one dies, and that the same
command goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import ROOT
from test_reliability import RUN, checkpoints, records, weights

HERE = socket.gethostname()
AGAIN = "the same command goes on from the last checkpoint"
NOTICED = 20  # seconds within which a machine ends after another one's connections closed; the shutdown is a moment, the rest is a busy machine
TIMEOUT = 4  # seconds, of training's exchanges


def environment(**more):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "scripts"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        **more,
    }


@pytest.fixture(scope="module")
def machines():
    """Two of them: what runs a command on each, the first one's address, and what cuts the second one off; None without namespaces."""
    names = [f"vikhr{os.getpid()}-{number}" for number in (0, 1)]
    ends = [f"v{os.getpid()}-{number}" for number in (0, 1)]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}"]
    for number, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands += [f"-n {name} addr add 10.201.9.{number + 1}/24 dev {end}"]
        commands += [f"-n {name} link set {end} up", f"-n {name} link set lo up"]

    def ip(command):
        return subprocess.run(["ip", *command.split()], capture_output=True).returncode == 0

    try:
        if shutil.which("ip") and all(map(ip, commands)):
            # By name, each would find itself at 127.0.0.1.
            inside = [
                ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}"]
                for name, end in zip(names, ends, strict=True)
            ]
            yield SimpleNamespace(
                inside=inside,
                address="10.201.9.1",
                cut=lambda: ip(f"-n {names[1]} link set {ends[1]} down"),
                mend=lambda: ip(f"-n {names[1]} link set {ends[1]} up"),
            )
        else:
            yield SimpleNamespace(inside=[[], []], address="127.0.0.1", cut=None, mend=None)
    finally:
        for name in names if shutil.which("ip") else ():
            ip(f"netns del {name}")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Machine:
    """A launcher that runs in the background."""

    def __init__(self, where, log, *flags):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*where, sys.executable, "scripts/launch.py", *map(str, flags)],
                cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def processes(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_a_stopped_process(self):
        until = time.monotonic() + 60
        while not any(process.status() == psutil.STATUS_STOPPED for process in self.processes()):
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def kill(self):
        """kill -9 of all that is the machine's."""
        for process in [*self.processes(), self.process]:
            process.kill()
        self.process.wait()

    def end(self, seconds=60):
        """Exit status and last line."""
        status = self.process.wait(seconds)
        return status, self.log.read_text().splitlines()[-1]


@pytest.fixture
def start(machines, tmp_path):
    """A function that starts a tiny run on both machines."""
    started = []

    def run(folder, **settings):
        port = free_port()
        settings = json.dumps(RUN | {"accumulation": 1} | settings)
        flags = ["--nnodes=2", f"--rdzv_endpoint={machines.address}:{port}", "--rdzv_conf=timeout=60"]
        script = ["tests/tiny_run.py", f"--folder={folder}", f"--settings={settings}"]
        two = [
            Machine(where, tmp_path / f"{number}.log", *flags, f"--node_rank={number}", *script)
            for number, where in enumerate(machines.inside)
        ]
        started.extend(two)
        return two

    yield run
    for machine in started:
        if machine.process.poll() is None:
            machine.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run of two processes on one machine."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    command = ["--standalone", "--nproc_per_node=2", "tests/tiny_run.py", f"--folder={folder}"]
    command.append(f"--settings={json.dumps(RUN | {'accumulation': 1})}")
    done = subprocess.run(
        [sys.executable, "scripts/launch.py", *command], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_process_that_dies_ends_the_run_on_both_machines_and_it_goes_on_as_if_nothing_had_been(
    start, undisturbed, tmp_path
):
    first, second = start(tmp_path / "out", die=[6, 1], only_rank=1)
    begun = time.monotonic()
    status, last = second.end()
    assert (status, last) == (
        1,
        f"error: process 1 on {HERE} was killed by SIGKILL, as the system does when memory runs out; all others stop, {AGAIN}",
    )
    died = time.monotonic()
    status, last = first.end()
    assert time.monotonic() - died < NOTICED, f"after {died - begun} s"
    assert (status, last) == (
        1,
        f"error: process 0 on {HERE} had to stop: a process of another machine is gone; {AGAIN}",
    )
    for machine in (first, second):
        assert machine.log.read_text().count("error:") == 1
        assert "Traceback" not in machine.log.read_text()
    assert checkpoints(tmp_path / "out") == ["checkpoint-2", "checkpoint-4"]
    assert [machine.process.wait(60) for machine in start(tmp_path / "out")] == [0, 0]
    assert records(tmp_path / "out") == records(undisturbed)
    torch.testing.assert_close(weights(tmp_path / "out"), weights(undisturbed), rtol=0, atol=0)


def test_a_machine_that_dies_ends_the_other(start, tmp_path):
    first, second = start(tmp_path / "out", die=[4, 1], only_rank=0, signal=signal.SIGSTOP)
    first.wait_for_a_stopped_process()
    first.kill()
    died = time.monotonic()
    assert second.end() == (1, f"error: process 1 on {HERE} had to stop: a process of another machine is gone; {AGAIN}")
    assert time.monotonic() - died < NOTICED


def test_a_machine_that_falls_silent_is_given_up_after_the_timeout(start, machines, tmp_path):
    first, second = start(tmp_path / "out", die=[4, 1], only_rank=1, signal=signal.SIGSTOP, timeout=TIMEOUT)
    second.wait_for_a_stopped_process()
    if machines.cut:
        assert machines.cut()
    second.process.send_signal(signal.SIGSTOP)
    silent = time.monotonic()
    try:
        status, last = first.end()
    finally:
        if machines.mend:
            machines.mend()
    assert status == 1
    assert last.startswith(
        f"error: process 0 on {HERE} had to stop: a process does not answer any more: it hangs, or its machine"
    )
    assert last.endswith(AGAIN)
    assert TIMEOUT - 1 < time.monotonic() - silent < TIMEOUT + NOTICED
