"""cpt.py and sft.py on a random two-layer model: files, resuming after kill -9, refusals."""

import inspect
import json
import math
import os
import shutil
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
from lib import documents, machine, mixing, models, objective, packing, processor, stage, training, vocabulary
from lib.errors import UserError

LENGTH = 16
# cpt.py that dies of kill -9 when it begins its second step, with a checkpoint of the first.
KILLED_IN_STEP_2 = """
import os, signal, sys
sys.path.insert(0, "scripts")
import cpt
from lib import cli, training
def die(self, args, state, control, **_):
    if state.global_step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
training.Journal.on_step_begin = die
cli.run(cpt.main)
"""
FLAGS = [
    "--batch_size=2", "--accumulation=2", "--log_steps=1", "--save_steps=2", "--eval_steps=3", "--warmup_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    save_tiny(folder / "model")
    tokenizer = models.load_tokenizer(folder / "model")
    sources = {"letters": ("ru", LINES * 12), "table": ("en", [line for line in LINES if line.isascii()] * 40)}
    with stage.output(folder / "pack", inputs={}, settings={}) as building:
        packed = {}
        for name, (language, texts) in sources.items():
            writer = packing.ShardWriter(building.folder / "train" / name, LENGTH, len(tokenizer))
            for ids in packing.encode_documents(texts, tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id):
                writer.add(ids)
            packed[name] = {"folder": name, "language": language, "rows": writer.rows}
        with documents.writing(building.folder / "held_out" / "documents", extra=[("split", pa.string())]) as held_out:
            for number, line in enumerate(LINES):
                language = "en" if line.isascii() else "ru"
                held_out.write(
                    {"id": str(number), "text": line, "source": "s", "language": language, "split": "held_out"}
                )
        building.record(
            sequence_length=LENGTH, vocabulary=len(tokenizer), tokenizer=models.fingerprint(tokenizer), sources=packed
        )
    dialogue = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет."}]
    long = [{"role": "user", "content": "Да?"}, {"role": "assistant", "content": "Нет. " * 100}]
    lines = [json.dumps({"messages": messages}) for messages in [dialogue] * 30 + [long]]
    (folder / "instructions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def cpt_flags(inputs, out, *more):
    return [f"--model={inputs / 'model'}", f"--pack={inputs / 'pack'}", f"--out={out}", *FLAGS, *more]


def rows_of(inputs, number=None):
    return mixing.Mixture(inputs / "pack", replay_share=0.1, rows=number)


def read_audit(folder):
    return json.loads((folder / "audit.json").read_text())


def losses_of(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {r["step"]: (round(r["ce"], 5), round(r["kl"], 5)) for r in records if "ce" in r}


def test_single_precision_products_are_that_whichever_library_makes_them():
    left, right = torch.randn(300, 576), torch.randn(576, 200)
    exact = left.double() @ right.double()
    assert (left @ right - exact).abs().max() < 3e-6 * exact.abs().max()  # a thousand times that in bf16
    by_onednn = "avx512f" in processor.flags() and "amx_bf16" not in processor.flags() and not torch.cuda.is_available()
    assert torch.get_float32_matmul_precision() == ("medium" if by_onednn else "highest")


def test_training_keeps_freed_memory_where_the_c_library_can():
    """A tensor of 100 MB is mapped by itself before, and lies on the heap, which is kept, after."""
    code = """
import ctypes, sys
sys.path.insert(0, "scripts")
import torch
from lib import machine
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo
def mapped():
    before = library.mallinfo2().hblkhd
    tensor = torch.empty(25_000_000)
    return library.mallinfo2().hblkhd - before
first = mapped()
machine.keep_freed_memory()
print(first > 90e6, mapped() == 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "mallinfo2" in done.stderr:
        pytest.skip("another C library than glibc")
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_freed_memory_goes_back_where_it_is_told_to():
    """Every second of 400 tensors of 2 MB is freed, so that what is free lies between what is not."""
    code = """
import sys
sys.path.insert(0, "scripts")
import torch
from lib import machine
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
machine.keep_freed_memory()
tensors = [torch.ones(500_000) for _ in range(400)]
full = resident()
del tensors[::2]
kept = resident()
machine.return_freed_memory()
print(full - kept < 50e6, 300e6 < kept - resident() < 450e6)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("held", [0, 5])
def test_cpt_resumes_after_kill_9_with_the_same_losses(inputs, tmp_path, script, held):
    more = ["--max_steps=8", "--learning_rate=1e-2", "--kl_weight=0.3", f"--embedding_steps={held}"]
    flags = cpt_flags(inputs, tmp_path / "whole", *more)
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
    audits = [stage.read_manifest(tmp_path / name)["results"]["audit"] for name in ("whole", "killed")]
    assert audits[0] == audits[1]
    assert audits[0]["step"] == 1


def test_kl_holds_the_model_to_its_start(inputs, tmp_path, script):
    found = {}
    for weight in (0.0, 100.0):
        out = tmp_path / str(weight)
        done = script("cpt", *cpt_flags(inputs, out, "--max_steps=6", "--learning_rate=1e-2", f"--kl_weight={weight}"))
        assert done.returncode == 0, done.stderr
        start, end = models.load(inputs / "model")[0], models.load(out)[0]
        rows = rows_of(inputs)
        ids = torch.stack([rows[number]["input_ids"] for number in range(8)])
        p, q = (model(input_ids=ids).logits.log_softmax(-1) for model in (end, start))
        found[weight] = (p.exp() * (p - q)).sum(-1).mean().item()
    assert found[100.0] < 0.8 * found[0.0]


def test_rates_of_the_three_groups_from_the_first_step_on(tmp_path):
    settings = {name: parameter.default for name, parameter in inspect.signature(cpt.main).parameters.items()}
    settings |= {"warmup_steps": 0, "learning_rate": 1.0}
    args = machine.arguments(tmp_path, **machine.optimiser_settings(settings))
    trainer = training.LanguageTrainer(
        model=tiny_model(8), args=args, schedule="linear", embedding_learning_rate=2.0, embedding_steps=2
    )
    trainer.create_optimizer_and_scheduler(4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == [[2.0, 0, 0], [1.5, 0, 0], [1.0, 0.5, 0.5], [0.5, 0.25, 0.25]]


@pytest.mark.parametrize("tied", [False, True])
def test_norms_and_embeddings_do_not_decay(tmp_path, tied):
    settings = {name: parameter.default for name, parameter in inspect.signature(cpt.main).parameters.items()}
    args = machine.arguments(tmp_path, **machine.optimiser_settings(settings | {"weight_decay": 0.1}))
    model = tiny_model(8, tie_word_embeddings=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = training.LanguageTrainer(model=model, args=args).create_optimizer()
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    spared = {name for name, rate in decay.items() if not rate}
    assert spared == {name for name in decay if "norm" in name or "embed" in name or "lm_head" in name}
    assert {decay[name] for name in decay.keys() - spared} == {0.1}


def test_only_embeddings_and_head_move_at_first(inputs, tmp_path, script):
    start = models.load(inputs / "model")[0].state_dict()
    moved = {}
    # Of the first the third step belongs to the body, at the rate 0 that its warm-up begins with.
    for name, more in {"held": ["--max_steps=3"], "freed": ["--epochs=0.3"]}.items():
        flags = ["--embedding_steps=2", "--weight_decay=0.1", "--reference=none", *more]
        done = script("cpt", *cpt_flags(inputs, tmp_path / name, *flags))
        assert done.returncode == 0, done.stderr
        end = models.load(tmp_path / name)[0].state_dict()
        moved[name] = {weight for weight in start if not torch.equal(start[weight], end[weight])}
    assert moved == {"held": {"model.embed_tokens.weight", "lm_head.weight"}, "freed": set(start)}
    rows = rows_of(inputs)
    steps = stage.read_manifest(tmp_path / "freed")["results"]["steps"]
    assert steps == -(-len(mixing.Mixture(inputs / "pack", replay_share=0.1, epochs=0.3)) // 4) == 5

    model = models.load(inputs / "model")[0]
    objective.attach_loss(model, torch.tensor(vocabulary.lengths(tiny_tokenizer())))
    model(**packing.collate([rows[number] for number in range(4)], flatten=False)).loss.backward()
    norms = [weight.weight.grad.norm() for weight in (model.get_input_embeddings(), model.get_output_embeddings())]
    logged = json.loads((tmp_path / "held" / "metrics.jsonl").read_text().splitlines()[1])
    assert logged["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-4), "the body is among what is clipped"


@pytest.mark.parametrize(
    ("held", "more", "steps"), [(-1, {"max_steps": 4}, 4), (4, {"max_steps": 4}, 4), (14, {"epochs": 1.0}, 14)]
)
def test_embedding_steps_that_leave_the_body_nothing_are_refused(inputs, tmp_path, held, more, steps):
    settings = {"model": inputs / "model", "pack": inputs / "pack", "out": tmp_path / "out"}
    with pytest.raises(UserError, match=f"embedding_steps {held}: .* below the run's {steps} steps"):
        cpt.main(**settings, batch_size=2, accumulation=2, replay_share=0.0, embedding_steps=held, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_cpt_names_rows_that_training_does_not_reach(inputs, tmp_path, script, tied):
    tokenizer = tiny_tokenizer()
    unseen, huge, padded = tokenizer.convert_tokens_to_ids("q"), tokenizer.convert_tokens_to_ids("Ġthe"), len(tokenizer)
    seen = rows_of(inputs)[0]["input_ids"][1].item()
    model = tiny_model(padded + 4, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1)
    norms = model.get_input_embeddings().weight.detach().norm(dim=1)
    model.get_input_embeddings().weight.data[[huge, padded + 1]] *= 20
    models.save(model, tokenizer, tmp_path / "model")
    ranges = {"input": [norms.min().item() * 0.9, norms.max().item() * 1.1]}
    stage.write_json(tmp_path / "model" / "rows.json", {"new": [unseen, seen, padded], "norms": ranges})
    flags = [f"--model={tmp_path / 'model'}", f"--pack={inputs / 'pack'}", f"--out={tmp_path / 'out'}"]
    done = script("cpt", *flags, *FLAGS, "--max_steps=2")
    assert done.returncode == 0, done.stderr

    found = read_audit(tmp_path / "out")
    assert (found["step"], found["tokens"], found["new_rows"]) == (1, 4 * LENGTH, 2)
    named = [{"id": unseen, "token": "q"}]
    assert found["never_occurred"] == named
    missed = {name: facts["rows"] for name, facts in found["no_gradient"].items()}
    assert missed == ({"input": []} if tied else {"input": named, "head": []})
    (row,) = found["norm_outside"]["input"]["rows"]
    assert (row["id"], row["token"], row["new"]) == (huge, " the", False)
    assert row["norm"] == pytest.approx(20 * norms[huge].item(), rel=0.01)
    assert "1 of 2 new tokens never occurred, the softmax only pushes their rows down: 'q'" in done.stderr
    assert ("1 of 2 new rows of the input embedding never got a gradient" in done.stderr) is not tied
    assert "1 row of the input embedding with a norm outside the base's" in done.stderr
    assert "' the' (base)" in done.stderr
    assert stage.read_manifest(tmp_path / "out")["results"]["audit"] == {
        "step": 1,
        "new_rows": 2,
        "never_occurred": 1,
        "no_gradient": {"input": 0} if tied else {"input": 1, "head": 0},
        "norm_outside": {"input": 1},
    }


def test_the_row_audit_goes_on_after_kill_9(inputs, tmp_path, script):
    more = ["--max_steps=20", "--accumulation=1", "--save_steps=1", "--eval_steps=100"]  # a tenth: 2 steps
    flags = cpt_flags(inputs, tmp_path / "killed", *more)
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_STEP_2, *flags], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    shutil.copytree(tmp_path / "killed.partial", tmp_path / "late.partial")
    (tmp_path / "late.partial" / "checkpoints" / "checkpoint-1" / "reached_rows.pt").unlink()
    for name in ("killed", "late"):
        done = script("cpt", *cpt_flags(inputs, tmp_path / name, *more))
        assert done.returncode == 0, done.stderr
    assert "never got a gradient (watched only after step 1)" in done.stderr
    rows = rows_of(inputs)
    for name, watched_after, first in (("killed", 0, 0), ("late", 1, 2)):
        found = read_audit(tmp_path / name)
        assert (found["step"], found["gradients_watched_after_step"]) == (2, watched_after)
        # Where the next position goes on with the document it is predicted, and so gives this one a gradient.
        read = [rows[number] for number in range(first, 4)]
        reached = torch.cat([row["input_ids"][:-1][row["position_ids"][1:] != 0] for row in read])
        everything = set(range(len(tiny_tokenizer())))
        assert {row["id"] for row in found["no_gradient"]["input"]["rows"]} == everything - set(reached.tolist())
        assert {row["id"] for row in found["never_occurred"]} == everything - {
            token for number in range(4) for token in rows.tokens(number).tolist()
        }


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
    assert read_audit(tmp_path / "one") == read_audit(tmp_path / "two")


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
    monkeypatch.setattr(machine, "on_cuda", lambda: False)
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
