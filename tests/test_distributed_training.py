"""cpt.py under DeepSpeed on two processes over gloo: ZeRO-2 and ZeRO-3 beside one process with twice the accumulation."""

import importlib.util
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from tiny_model import LINES
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from transformers import AutoModelForCausalLM

import pack
from lib import documents, machine, models, stage
from lib.errors import UserError

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: requirements/deepspeed.txt"
)
STEPS = 4
# Weight decay, because ZeRO-3 hides which parameters are matrices; a high rate, so that a wrong gradient shows within four steps.
FLAGS = [
    "--batch_size=2",
    f"--max_steps={STEPS}",
    "--log_steps=1",
    "--save_steps=2",
    "--eval_steps=3",
    "--warmup_steps=1",
]
FLAGS += ["--learning_rate=1e-2", "--weight_decay=0.1", "--kl_weight=0.3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# cpt.py of which every process dies of kill -9 when it begins its fourth step, with a checkpoint of the second.
KILLED_IN_STEP_4 = """
import os, signal, sys
sys.path.insert(0, "scripts")
import cpt
from lib import cli, journal
def die(self, args, state, control, **_):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.on_step_begin = die
cli.run(cpt.main)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = tiny_tokenizer()
    for name, tied in (("untied", False), ("tied", True)):
        roles = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        models.save(tiny_model(len(tokenizer) + 4, tie_word_embeddings=tied, **roles), tokenizer, folder / name)
    with documents.writing(folder / "filter" / "documents", extra=[("split", pa.string())]) as written:
        for number, line in enumerate(LINES * 13):
            split, language = "train" if number >= len(LINES) else "held_out", "en" if line.isascii() else "ru"
            written.write({"id": str(number), "text": line, "source": "s", "language": language, "split": split})
    pack.main(documents=folder / "filter", tokenizer=folder / "tied", out=folder / "pack", sequence_length=16)
    for zero in (2, 3):
        settings = json.loads((ROOT / "configs" / "deepspeed" / f"zero{zero}.json").read_text(encoding="utf-8"))
        # Else ZeRO-3 keeps weights of up to 100,000 numbers whole, which are all of this model.
        settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0} if zero == 3 else {}
        stage.write_json(folder / f"zero{zero}.json", settings)
    return folder


def train(launch, inputs, model, out, *flags, check=True):
    command = [*launch, f"--model={inputs / model}", f"--pack={inputs / 'pack'}", f"--out={out}", *FLAGS, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """A function: the output of one process with twice the accumulation, by model."""
    found = {}

    def run(model):
        if model not in found:
            found[model] = tmp_path_factory.mktemp("alone") / model
            train([sys.executable, "scripts/cpt.py"], inputs, model, found[model], "--accumulation=4")
        return found[model]

    return run


def figures(folder):
    """Loss, its parts and the gradient's norm by step, and held-out bits per byte by step and language."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("loss", "ce", "kl", "grad_norm")
    found = {(r["step"], name): r[name] for r in records if "loss" in r for name in names}
    return found | {(r["step"], name): value for r in records for name, value in r.get("held_out", {}).items()}


def weights(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same_run(found, expected):
    """Assert that two outputs hold the same run."""
    given, wanted = figures(found), figures(expected)
    assert set(given) == set(wanted)
    assert {step for step, _ in wanted} == {0, 1, 2, 3, STEPS}
    assert wanted[STEPS, "kl"] > 0.1, "the reference takes no part"
    assert wanted[1, "loss"] - wanted[STEPS, "loss"] > 1, "nothing is learnt, so anything is equal"
    assert given == pytest.approx(wanted, rel=0, abs=1e-4)
    assert (found / "audit.json").read_text() == (expected / "audit.json").read_text()
    given, wanted = weights(found), weights(expected)
    assert set(given) == set(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(given[name], weight, rtol=0, atol=1e-4)
    loaded = AutoModelForCausalLM.from_pretrained(found).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in given.items())


@needs_deepspeed
@pytest.mark.parametrize(("zero", "model"), [(2, "tied"), (3, "untied")])
def test_two_processes_killed_and_resumed_have_the_losses_of_one_with_twice_the_accumulation(
    inputs, alone, tmp_path, zero, model
):
    flags = ["--accumulation=2", f"--deepspeed={inputs / f'zero{zero}.json'}"]
    script = tmp_path / "killed.py"
    script.write_text(KILLED_IN_STEP_4, encoding="utf-8")
    killed = train([*TORCHRUN, str(script)], inputs, model, tmp_path / "out", *flags, check=False)
    assert "SIGKILL" in killed.stderr
    left = [path.name for path in (tmp_path / "out.partial" / "checkpoints").glob("checkpoint-*")]
    assert left == ["checkpoint-2"], "killed too late or too early to test anything"
    done = train([*TORCHRUN, "scripts/cpt.py"], inputs, model, tmp_path / "out", *flags)
    assert f"{STEPS * 8 * 16} tokens in {STEPS} steps" in done.stdout
    assert "Warning" not in done.stderr
    assert stage.read_manifest(tmp_path / "out")["results"]["processes"] == 2
    same_run(tmp_path / "out", alone(model))


@needs_deepspeed
def test_deepspeed_without_a_launcher_is_a_world_of_one(inputs, alone, tmp_path):
    flags = ["--accumulation=4", f"--deepspeed={inputs / 'zero3.json'}"]
    train([sys.executable, "scripts/cpt.py"], inputs, "tied", tmp_path / "out", *flags)
    same_run(tmp_path / "out", alone("tied"))


def test_deepspeed_is_asked_for_and_not_there(inputs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"deepspeed: .*zero4.json: no such file"):
        machine._start_deepspeed(inputs / "zero4.json")
    monkeypatch.setattr(machine, "_is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"pip install -r requirements/deepspeed.txt"):
        machine._start_deepspeed(inputs / "zero2.json")
