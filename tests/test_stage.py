"""The contract of a stage: whole or absent, resumed only under the same settings."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib import stage
from lib.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def build(out, source, resume=False, **settings):
    with stage.output(out, inputs={"source": source}, settings={"out": out, **settings}, resume=resume) as building:
        (building.folder / "a.txt").write_text("result")
        building.record(rows=3)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("input")
    return path


def test_manifest_holds_settings_inputs_results_and_files(tmp_path, source):
    build(tmp_path / "out", source, rate=0.5)
    manifest = stage.read_manifest(tmp_path / "out")
    assert manifest["settings"] == {"rate": 0.5}
    assert manifest["inputs"]["source"]["path"] == source.as_posix()
    assert manifest["results"] == {"rows": 3}
    assert manifest["files"] == {"a.txt": 6}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source.txt"]


def test_a_failure_leaves_the_old_result_and_nothing_new(tmp_path, source):
    out = tmp_path / "out"
    build(out, source)
    before = (out / "manifest.json").read_text()
    with pytest.raises(RuntimeError), stage.output(out, inputs={}, settings={}) as building:
        (building.folder / "a.txt").write_text("half")
        raise RuntimeError
    assert (out / "manifest.json").read_text() == before
    assert (out / "a.txt").read_text() == "result"


def test_a_second_run_replaces_the_whole_folder(tmp_path, source):
    out = tmp_path / "out"
    build(out, source)
    (out / "stale.txt").write_text("from before")
    build(out, source)
    assert not (out / "stale.txt").exists()


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--source=.*nothing\.txt: no such file"):
        build(tmp_path / "out", tmp_path / "nothing.txt")


def test_an_interrupted_run_resumes_only_under_the_same_settings(tmp_path, source):
    out = tmp_path / "out"
    with (
        pytest.raises(RuntimeError),
        stage.output(out, inputs={"source": source}, settings={"rate": 1}, resume=True) as building,
    ):
        (building.folder / "checkpoint").write_text("kept")
        raise RuntimeError
    with pytest.raises(UserError, match="rate: 1 then, 2 now"):
        build(out, source, resume=True, rate=2)
    source.write_text("other input")
    with pytest.raises(UserError, match="source"):
        build(out, source, resume=True, rate=1)
    source.write_text("input")
    build(out, source, resume=True, rate=1)
    assert (out / "checkpoint").read_text() == "kept"


def test_kill_9_leaves_nothing_under_the_final_name(tmp_path, source):
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from lib import stage
with stage.output(Path({str(tmp_path / "out")!r}), inputs={{}}, settings={{}}) as building:
    (building.folder / "a.txt").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    build(tmp_path / "out", source)
    assert stage.read_manifest(tmp_path / "out")["results"] == {"rows": 3}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_so_in_one_line(tmp_path, number):
    body = "print('ready', flush=True); time.sleep(60)"
    process = _script(tmp_path, body, wait=False)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "error: interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "raising",
    [
        f"OSError({errno.ENOSPC}, 'No space left on device', 'big.bin')",
        "RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')",
    ],
)
def test_a_full_disk_is_one_line(tmp_path, raising):
    process = _script(tmp_path, f"raise {raising}")
    assert process.returncode == 28
    assert "error: the disk is full" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_bug_keeps_its_traceback(tmp_path):
    process = _script(tmp_path, "raise ValueError('a bug')")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(UserError, match="not valid JSON"):
        stage.read_manifest(tmp_path)


def _script(tmp_path, body, wait=True):
    path = tmp_path / "script.py"
    path.write_text(
        f"import sys, time\nfrom lib import cli\ndef main(*, a: int = 1) -> None:\n    {body}\ncli.run(main)\n"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A suite run in the background inherits an ignored SIGINT; a terminal's programs do not.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    process = subprocess.Popen([sys.executable, str(path)], env=environment, **options)
    if not wait:
        return process
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_an_adjustable_setting_may_change_on_the_way(tmp_path):
    def build(**settings):
        with stage.output(
            tmp_path / "out", inputs={}, settings=settings, resume=True, adjustable=("on_spike",)
        ) as building:
            (building.folder / "noted").touch()
            if settings["on_spike"] == "stop":
                raise UserError("a spike")

    with pytest.raises(UserError, match="a spike"):
        build(seed=0, on_spike="stop")
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        build(seed=1, on_spike="skip")
    build(seed=0, on_spike="skip")
    assert (tmp_path / "out" / "noted").is_file()


def test_other_inputs_do_not_go_on_with_an_interrupted_run(tmp_path):
    text = tmp_path / "text.txt"

    def build():
        with stage.output(tmp_path / "out", inputs={"text": text}, settings={}, resume=True):
            raise UserError("stopped")

    text.write_text("one")
    with pytest.raises(UserError, match="stopped"):
        build()
    text.write_text("another")
    with pytest.raises(UserError, match=r"other settings \(text: "):
        build()


def test_another_number_of_processes_does_not_go_on_with_an_interrupted_run(tmp_path, monkeypatch):
    def build():
        with stage.output(tmp_path / "out", inputs={}, settings={}, resume=True):
            raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        build()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="processes: 1 then, 2 now"):
        build()
