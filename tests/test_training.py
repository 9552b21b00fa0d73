"""cpt.py and sft.py on a random two-layer model: files, resuming after kill -9, refusals."""

import json
import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from tiny_model import LINES
from tiny_model import model as tiny_model
from tiny_model import save as save_tiny
from tiny_model import tokenizer as tiny_tokenizer

import cpt
from lib import documents, models, packing, stage, training
from lib.errors import UserError

LENGTH = 16
FLAGS = ["--batch_size=2", "--accumulation=2", "--log_steps=1", "--save_steps=2", "--eval_steps=3", "--warmup_steps=1"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    save_tiny(folder / "model")
    tokenizer = models.load_tokenizer(folder / "model")
    encoded = packing.encode_documents(LINES * 12, tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)
    with stage.output(folder / "pack", inputs={}, settings={}) as building:
        writer = packing.PackedWriter(building.folder / "train", len(tokenizer))
        for row in packing.fill_rows(encoded, LENGTH):
            writer.write(row, replay=False)
        writer.close()
        with documents.writing(building.folder / "held_out" / "documents", extra=[("split", pa.string())]) as held_out:
            for number, line in enumerate(LINES):
                language = "en" if line.isascii() else "ru"
                held_out.write(
                    {"id": str(number), "text": line, "source": "s", "language": language, "split": "held_out"}
                )
        building.record(
            sequence_length=LENGTH, vocabulary=len(tokenizer), tokenizer=models.fingerprint(tokenizer), rows=writer.rows
        )
    dialogue = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет."}]
    long = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет. " * 100}]
    lines = [json.dumps({"messages": messages}) for messages in [dialogue] * 30 + [long]]
    (folder / "instructions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def cpt_flags(inputs, out, *more):
    return [f"--model={inputs / 'model'}", f"--pack={inputs / 'pack'}", f"--out={out}", *FLAGS, *more]


def losses_of(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {r["step"]: (round(r["ce"], 5), round(r["kl"], 5)) for r in records if "ce" in r}


def test_cpt_resumes_after_kill_9_with_the_same_losses(inputs, tmp_path, script):
    flags = [*cpt_flags(inputs, tmp_path / "whole", "--max_steps=8", "--learning_rate=1e-2", "--kl_weight=0.3")]
    done = script("cpt", *flags)
    assert done.returncode == 0, done.stderr
    whole = stage.read_manifest(tmp_path / "whole")["results"]
    assert whole["steps"] == 8
    assert whole["tokens"] == 8 * 4 * LENGTH
    assert whole["held_out_last"]["ru"] < whole["held_out_first"]["ru"]
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "metrics.jsonl"} <= names
    assert not {"checkpoints", "training_args.bin", "settings.json"} & names

    flags[2] = f"--out={tmp_path / 'killed'}"
    command = [sys.executable, str(ROOT / "scripts" / "cpt.py"), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial = tmp_path / "killed.partial"
    deadline = time.time() + 120
    while not list(partial.glob("checkpoints/checkpoint-*/trainer_state.json")) and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists(), "killed too late to test anything"
    done = script("cpt", *flags)
    assert done.returncode == 0, done.stderr
    assert losses_of(tmp_path / "killed" / "metrics.jsonl") == losses_of(tmp_path / "whole" / "metrics.jsonl")
    one, other = (models.load(tmp_path / name)[0].state_dict() for name in ("whole", "killed"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name])


def test_kl_holds_the_model_to_its_start(inputs, tmp_path, script):
    found = {}
    for weight in (0.0, 100.0):
        out = tmp_path / str(weight)
        done = script("cpt", *cpt_flags(inputs, out, "--max_steps=6", "--learning_rate=1e-2", f"--kl_weight={weight}"))
        assert done.returncode == 0, done.stderr
        start, end = models.load(inputs / "model")[0], models.load(out)[0]
        ids = packing.PackedRows(inputs / "pack" / "train", LENGTH, len(tiny_tokenizer()))[0]["input_ids"][None]
        p, q = (model(input_ids=ids).logits.log_softmax(-1) for model in (end, start))
        found[weight] = (p.exp() * (p - q)).sum(-1).mean().item()
    assert found[100.0] < 0.5 * found[0.0]


def test_cpt_on_two_processes_has_the_losses_of_one_with_twice_the_accumulation(inputs, tmp_path, script):
    one = script("cpt", *cpt_flags(inputs, tmp_path / "one", "--max_steps=3", "--kl_weight=0.3", "--accumulation=4"))
    assert one.returncode == 0, one.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = cpt_flags(inputs, tmp_path / "two", "--max_steps=3", "--kl_weight=0.3")
    two = subprocess.run(
        [*launch, str(ROOT / "scripts" / "cpt.py"), *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    weights = [models.load(tmp_path / name)[0].state_dict() for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_another_tokenizer_is_refused(inputs, tmp_path):
    other = tiny_tokenizer(special=("<s>", "</s>"))
    models.save(tiny_model(len(other)), other, tmp_path / "other")
    with pytest.raises(UserError, match="has another tokenizer than"):
        cpt.main(model=tmp_path / "other", pack=inputs / "pack", out=tmp_path / "out")


def test_other_settings_do_not_go_on_with_an_interrupted_run(inputs, tmp_path):
    (tmp_path / "out.partial").mkdir()
    stage.write_json(tmp_path / "out.partial" / "settings.json", {"settings": {"seed": 7}, "inputs": {}})
    with pytest.raises(UserError, match="seed: 7 then, 0 now"):
        cpt.main(model=inputs / "model", pack=inputs / "pack", out=tmp_path / "out")


def test_flash_attention_without_a_gpu_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "on_cuda", lambda: False)
    with pytest.raises(UserError, match="flash_attention_2 is asked for, but"):
        cpt.main(model=inputs / "model", pack=inputs / "pack", out=tmp_path / "out", attention="flash_attention_2")


def test_a_loss_that_is_no_number_stops_the_run(inputs, tmp_path, script):
    done = script("cpt", *cpt_flags(inputs, tmp_path / "out", "--max_steps=5", "--learning_rate=1e38"))
    assert done.returncode == 2
    assert "the loss is nan at step" in done.stderr or "the loss is inf at step" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    for number, names in ((2, ("trainer_state.json", "scheduler.pt", "rng_state.pth")), (4, ("scheduler.pt",))):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    assert training.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert training.newest_checkpoint(tmp_path / "none") is None


def test_sft_trains_and_counts_what_it_leaves_out(inputs, tmp_path, script):
    done = script(
        "sft",
        f"--model={inputs / 'model'}",
        f"--instructions={inputs / 'instructions.jsonl'}",
        f"--held_out={inputs / 'pack' / 'held_out'}",
        f"--out={tmp_path / 'sft'}",
        "--sequence_length=64",
        "--max_steps=12",
        "--learning_rate=1e-2",
        *FLAGS,
    )
    assert done.returncode == 0, done.stderr
    assert "kept 30 of 31 dialogues" in done.stdout
    assert "too_long 1" in done.stdout
    records = losses_of(tmp_path / "sft" / "metrics.jsonl")
    assert records[12][0] < 0.5 * records[1][0]
    model, tokenizer = models.load(tmp_path / "sft")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Да?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "Нет."
