"""What a run does about kills, signals, spikes and full disks, and what a resumed or distributed one has in its log."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny_run
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from lib import machine, models, training
from lib.errors import UserError

TIMED = {"tokens_per_second", "seconds", "utilisation"}
# Log, checkpoints and evaluations at steps of their own, under a budget that English misses.
RUN = {"steps": 12, "log_steps": 3, "save_steps": 2, "evaluate": 5, "base_bits": 1.0}
# One row a step, the same until one of random tokens, when the fall at the beginning has left the window.
LONG = {"steps": 160, "batch_size": 1, "accumulation": 1, "save_steps": 100, "evaluate": 200, "poisoned": 152}


def start(folder, processes=1, **settings):
    """A tiny run in a process of its own, or several."""
    command = [str(ROOT / "tests" / "tiny_run.py"), f"--folder={folder}", f"--settings={json.dumps(settings)}"]
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *several, *command], capture_output=True, text=True, timeout=240, env=environment
    )


def records(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMED} for record in found]


def weights(folder):
    return models.load(folder)[0].state_dict()


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_run.run(folder, **RUN)
    return folder


def test_freed_memory_goes_back_before_each_evaluation_and_once_an_interval(tmp_path, monkeypatch):
    returned, give_back = [], machine.return_freed_memory
    monkeypatch.setattr(machine, "return_freed_memory", lambda: returned.append(give_back()))
    tiny_run.run(tmp_path, steps=4, log_steps=2, evaluate=3)
    # After the forward passes, two a step, of the steps after 0 and 2; evaluations at 0, 3 and 4.
    assert len(returned) == 2 * 2 + 3


def is_as_undisturbed(folder, whole):
    assert records(folder) == records(whole)
    torch.testing.assert_close(weights(folder), weights(whole), rtol=0, atol=0)


def test_kill_9_at_a_random_pass_changes_nothing(whole, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    die = [rng.randint(1, 12), rng.randint(1, 2)]
    print(f"killed at step {die[0]}, pass {die[1]}")
    assert start(tmp_path, **RUN, die=die).returncode == -signal.SIGKILL
    assert not (tmp_path / "model.safetensors").exists()
    tiny_run.run(tmp_path, **RUN)
    is_as_undisturbed(tmp_path, whole)


def test_sigterm_within_a_step_saves_it_first(whole, tmp_path):
    done = start(tmp_path, **RUN, die=[5, 1], signal=signal.SIGTERM)
    assert done.returncode == 130, done.stderr
    assert "stopping: saving a checkpoint after this step" in done.stderr
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-5"]
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["global_step"] == 5
    tiny_run.run(tmp_path, **RUN)
    is_as_undisturbed(tmp_path, whole)


def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    # torchrun passes a signal on to all; here the first process alone gets it, from itself.
    done = start(tmp_path, processes=2, **RUN, die=[5, 1], only_rank=0, signal=signal.SIGTERM)
    assert done.returncode, done.stderr
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-5"]
    assert len(list((tmp_path / "checkpoints" / "checkpoint-5").glob("rng_state_*"))) == 2


def same_log(one, two):
    for before, after in zip(records(one), records(two), strict=True):
        assert before.keys() == after.keys()
        for name in before:
            assert after[name] == pytest.approx(before[name], rel=2e-3), (before["step"], name)


def test_passes_of_half_the_rows_make_the_same_steps(whole, tmp_path):
    tiny_run.run(tmp_path, **RUN | {"accumulation": 1, "batch_size": 4})
    same_log(whole, tmp_path)


def test_two_processes_log_what_one_with_twice_the_accumulation_does(whole, tmp_path):
    done = start(tmp_path, processes=2, **RUN | {"accumulation": 1})
    assert done.returncode == 0, done.stderr
    same_log(whole, tmp_path)


def test_a_checkpoint_that_is_not_finished_is_none(tmp_path, monkeypatch, whole):
    save, seen = training.LanguageTrainer._save_rng_state, []

    def dies_at_the_fourth(self, folder):
        seen.append(folder)
        if len(seen) == 4:
            raise RuntimeError("power cut")
        save(self, folder)

    monkeypatch.setattr(training.LanguageTrainer, "_save_rng_state", dies_at_the_fourth)
    with pytest.raises(RuntimeError, match="power cut"):
        tiny_run.run(tmp_path, **RUN)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6", "incomplete"]
    monkeypatch.undo()
    tiny_run.run(tmp_path, **RUN)
    is_as_undisturbed(tmp_path, whole)


def test_a_disk_that_fills_up_stops_the_run_before_it_is_full(tmp_path, monkeypatch, whole):
    room = {"before": 10**12}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=room.get("now", room["before"])))
    saved = []

    class Fills(TrainerCallback):
        def on_save(self, args, state, control, **_):
            saved.append(state.global_step)
            if len(saved) == 3:
                room["now"] = 100_000

    monkeypatch.setattr(tiny_run, "Dies", lambda *_: Fills())
    with pytest.raises(
        UserError, match=r"needed for the checkpoint of step 8, 0\.1 MB free: stopped before the disk is full"
    ):
        tiny_run.run(tmp_path, **RUN, die=[0, 0])
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6"]  # the last two
    with pytest.raises(
        UserError, match=r"needed for 3 checkpoints of .* MB free: make room, or lower keep_checkpoints \(2\)"
    ):
        tiny_run.run(tmp_path, **RUN)
    monkeypatch.undo()
    tiny_run.run(tmp_path, **RUN)
    is_as_undisturbed(tmp_path, whole)


def test_a_spike_stops_the_run_and_names_its_rows(tmp_path):
    with pytest.raises(UserError) as stopped:
        tiny_run.run(tmp_path, **LONG)
    told = str(stopped.value)
    assert "over the 128 steps before at step 153, on rows tiny:152; their text is in" in told
    assert "the last checkpoint before it is" in told
    assert "checkpoint-100" in told
    (row,) = [json.loads(line) for line in (tmp_path / "spike-153.jsonl").read_text().splitlines()]
    tokenizer = tiny_run.tiny_tokenizer()
    assert row["row"] == "tiny:152"
    assert row["text"] == tokenizer.decode(tiny_run.Rows(tokenizer, 160, 152)[152]["input_ids"])
    assert row["ce"] > 1
    assert records(tmp_path)[-1]["step"] == 152


def test_a_skipped_spike_leaves_the_weights_as_they_were(tmp_path, monkeypatch):
    kept = {}

    class Keeps(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            kept[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}

    monkeypatch.setattr(tiny_run, "Dies", lambda *_: Keeps())
    figures = tiny_run.run(tmp_path, **LONG, on_spike="skip", die=[0, 0])
    assert (figures["steps"], figures["skipped_steps"]) == (160, 1)
    torch.testing.assert_close(kept[153], kept[152], rtol=0, atol=0)
    assert any(not torch.equal(kept[154][name], kept[153][name]) for name in kept[154])
    logged = {record["step"]: record for record in records(tmp_path) if "ce" in record}
    assert (logged[153]["ce"], logged[153]["skipped"], logged[153]["tokens"]) == (0, 1, 153 * 16)
    assert logged[154]["ce"] < 0.1
    assert (tmp_path / "spike-153.jsonl").exists()


def test_two_processes_skip_the_same_step(tmp_path):
    settings = LONG | {"on_spike": "skip", "poisoned": 305}  # of the second process's rows
    done = start(tmp_path, processes=2, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped a step: the cross-entropy is") == 1
    rows = [json.loads(line)["row"] for line in (tmp_path / "spike-153.jsonl").read_text().splitlines()]
    assert rows == ["tiny:304", "tiny:305"]
    assert records(tmp_path)[-1]["skipped"] == 1


@pytest.mark.parametrize(
    ("on_spike", "told"), [("stop", "the last checkpoint before it is none"), ("skip", "8 steps in a row were skipped")]
)
def test_a_loss_that_stays_no_number_stops_the_run(tmp_path, on_spike, told):
    with pytest.raises(UserError, match=f"the loss is (nan|inf) at step .*{told}"):
        tiny_run.run(tmp_path, steps=12, learning_rate=1e38, on_spike=on_spike, save_steps=20, evaluate=20)


def test_skipping_is_refused_under_deepspeed(tmp_path):
    args = SimpleNamespace(deepspeed="ds.json")
    with pytest.raises(UserError, match="on_spike: skip can't be done under DeepSpeed"):
        training.run(None, None, [], tmp_path, args, flatten=False, evaluate=None, eval_steps=1, on_spike="skip")


@pytest.mark.parametrize(("base_bits", "factor"), [(0.05, 2.0), (50.0, 0.5)])
def test_the_kl_weight_follows_the_budget(tmp_path, base_bits, factor):
    tiny_run.run(tmp_path, **RUN | {"base_bits": base_bits, "evaluate": 4, "log_steps": 1})
    evaluated = {r["step"]: r["kl_weight"] for r in records(tmp_path) if "held_out" in r}
    assert evaluated == {step: pytest.approx(0.1 * factor ** (step // 4)) for step in (0, 4, 8, 12)}
    trained = {r["step"]: r["kl_weight"] for r in records(tmp_path) if "ce" in r}
    assert trained[3] == pytest.approx(0.1)
    assert trained[7] == pytest.approx(0.1 * factor)


def test_tensorboard_gets_the_figures_of_metrics_jsonl_also_after_a_kill(tmp_path):
    settings = {"report_to": ["tensorboard"], "save_steps": 5, "base_bits": 1.0}
    assert start(tmp_path, **settings, die=[8, 1]).returncode == -signal.SIGKILL
    tiny_run.run(tmp_path, **settings)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, path in {
        "ce": ["ce"],
        "kl": ["kl"],
        "kl_weight": ["kl_weight"],
        "held_out/en": ["held_out", "en"],
    }.items():
        expected = []
        for record in records(tmp_path):
            for part in path:
                record = record.get(part, {}) if part != path[-1] else {**record, part: record.get(part)}[part]
            expected += [] if record is None else [record]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected, rel=1e-6), name
    assert "bits_per_byte/ru" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("ce")] == list(range(1, 13))
