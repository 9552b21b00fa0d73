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

from lib import failures, training

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
        status, last = first.end(TIMEOUT + NOTICED)
    finally:
        if machines.mend:
            machines.mend()
    assert status == 1
    assert last.startswith(
        f"error: process 0 on {HERE} had to stop: a process does not answer any more: it hangs, or its machine"
    )
    assert last.endswith(AGAIN)
    assert TIMEOUT - 1 < time.monotonic() - silent < TIMEOUT + NOTICED


def launch(*flags, **more):
    """A finished launcher."""
    command = [sys.executable, "scripts/launch.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize(
    ("end", "status", "last", "before"),
    [
        ("mistake", 2, "error: the flag is wrong", False),
        ("bug", 1, "error: process 1 on {} failed: ZeroDivisionError: what happened first; all others stop", True),
        ("kill", 1, "error: process 1 on {} was killed by SIGKILL, as the system does when memory runs out;", False),
    ],
)
def test_a_failure_on_one_machine_is_told_in_its_last_line(tmp_path, end, status, last, before):
    done = launch("--standalone", "--nproc_per_node=2", "tests/tiny_process.py", f"--folder={tmp_path}", f"--end={end}")
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].startswith(last.format(HERE))
    assert done.stderr.count("error:") == 1
    assert ("Traceback" in done.stderr) == before


def test_a_signal_that_comes_twice_at_once_is_no_second_wish():
    # Slurm sends it to make and to the launcher, and make passes it on.
    trainer = SimpleNamespace(asked_to_stop=False, _asked=0.0)
    training.LanguageTrainer.stop(trainer)
    training.LanguageTrainer.stop(trainer)
    assert trainer.asked_to_stop
    trainer._asked -= 2 * training.SAME_SIGNAL
    with pytest.raises(KeyboardInterrupt):
        training.LanguageTrainer.stop(trainer)


def test_signals_to_the_launcher_save_and_are_told_once(tmp_path):
    settings = json.dumps(
        RUN | {"accumulation": 1, "steps": 4000, "save_steps": 1000, "evaluate": 5000, "log_steps": 1}
    )
    flags = [
        "--standalone",
        "--nproc_per_node=2",
        "tests/tiny_run.py",
        f"--folder={tmp_path}",
        f"--settings={settings}",
    ]
    machine = Machine([], tmp_path / "log", *flags)
    until = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() or len(records(tmp_path)) < 3:
        assert time.monotonic() < until, machine.log.read_text()
        time.sleep(0.1)
    machine.process.terminate()
    time.sleep(0.05)  # two that are waiting would be one
    machine.process.terminate()
    assert machine.end() == (130, f"error: interrupted; nothing was left under a final name, {AGAIN}")
    assert machine.log.read_text().count("error:") == 1
    assert len(checkpoints(tmp_path)) == 1


@pytest.fixture
def ssh(tmp_path):
    """A function that puts a stand-in for ssh in the path."""

    def put(script):
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ssh").chmod(0o755)
        return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    return put


def test_machines_of_a_host_file_are_started_by_ssh(tmp_path, ssh):
    found = ssh('echo "$3" >> "$0.reached"; exec env -u NCCL_SOCKET_IFNAME sh -c "$4"')
    (tmp_path / "hosts").write_text("# ours\n127.0.0.1 slots=8\nsecond slots=8\n\nthird\n")
    flags = ["--nnodes=2", f"--hostfile={tmp_path / 'hosts'}", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    secret = {"NCCL_SOCKET_IFNAME": "ib0", "HF_TOKEN": "secret"}
    done = launch(*flags, "--nproc_per_node=2", "tests/tiny_process.py", f"--folder={tmp_path}", **found, **secret)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ssh.reached").read_text() == "second\n"
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [one["LOCAL_RANK"] for one in told] == ["0", "1", "0", "1"]
    assert {(one["WORLD_SIZE"], one["NCCL_SOCKET_IFNAME"]) for one in told} == {("4", "ib0")}


def test_a_machine_that_ssh_does_not_reach_is_named(tmp_path, ssh):
    (tmp_path / "hosts").write_text("127.0.0.1\nsecond\n")
    flags = ["--nnodes=2", f"--hostfile={tmp_path / 'hosts'}", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    flags.append("--rdzv_conf=timeout=20")
    done = launch(*flags, "tests/tiny_process.py", f"--folder={tmp_path}", **ssh("exit 255"))
    assert done.returncode
    assert done.stderr.splitlines()[-1].startswith(
        "error: ssh second ended with status 255; can it log in without a password"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nnodes=3", "--hostfile=hosts"], "hosts: has 2 machines, and 3 are to take part"),
        (["--nnodes=2", "--hostfile=none"], "No such file or directory"),
        (
            ["--nnodes=2", "--rdzv_conf=timeout=1", "--rdzv_endpoint=127.0.0.1:{}"],
            "error: the 2 machines did not meet at 127.0.0.1:",
        ),
    ],
)
def test_machines_that_do_not_meet_are_told_in_a_line(tmp_path, flags, message):
    (tmp_path / "hosts").write_text("a\nb\n")
    flags = [flag.replace("=hosts", f"={tmp_path / 'hosts'}").format(free_port()) for flag in flags]
    done = launch(*flags, "tests/tiny_process.py", f"--folder={tmp_path}")
    assert done.returncode
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_only_torchs_own_errors_mean_that_the_others_are_gone():
    assert (
        failures.lost(RuntimeError("[pair.cc:547] Connection closed by peer [10.0.0.1]:1"))
        == "a process of another machine is gone"
    )
    assert "does not answer" in failures.lost(RuntimeError("[unbound_buffer.cc:81] Timed out waiting 4000ms for recv"))
    assert "is gone" in failures.lost(torch.distributed.DistBackendError("NCCL error: ncclRemoteError: A call failed"))
    assert failures.lost(RuntimeError("shapes do not match")) is None
    assert failures.lost(TimeoutError("timed out")) is None
    assert failures.lost(ConnectionResetError("Connection reset by peer")) is None


def failure(exitcode=1, timestamp=5, message="", kind=None):
    about = {
        "message": {"message": message, "extraInfo": {"py_callstack": "Traceback...\n", "timestamp": "5", "kind": kind}}
    }
    left = about if kind else {"message": "<NONE>"}
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp, message="", error_file_data=left)


def test_of_several_failures_the_one_that_the_others_follow_from_is_told():
    missing, late = failure(kind="lost", message="gone", timestamp=1), failure(kind="bug", message="late", timestamp=8)
    early, killed = failure(2, kind="told", message="the disk is full", timestamp=7), failure(-9, timestamp=9)
    stopped = (
        failure(130, kind="interrupted", message="interrupted", timestamp=1),
        failure(-15, timestamp=1),
        failure(-9, timestamp=40),
    )
    followed = dict(enumerate([missing, *stopped]))
    assert failures.cause({4: late, 5: early, 6: killed} | followed) == 6
    assert failures.cause({4: late, 5: late} | followed) == 4
    assert failures.cause({5: early} | followed) == 5
    assert failures.cause(followed) == 0
    assert failures.describe({0: missing, 2: early}, "a") == ("error: the disk is full", 2)
    assert failures.describe({0: missing}, "a") == (f"error: process 0 on a had to stop: gone; {AGAIN}", 1)
    assert failures.describe({0: failure(-6, kind="lost", message="gone")}, "a")[0].endswith(
        f"had to stop: gone; {AGAIN}"
    )
    assert failures.describe({1: late}, "a") == ("Traceback...\nerror: process 1 on a failed: late; all others stop", 1)
    assert failures.describe({4: failure(3)}, "a") == ("error: process 4 on a failed: status 3; all others stop", 1)
    assert failures.describe({4: stopped[0]}, "a") == ("error: interrupted", 130)
