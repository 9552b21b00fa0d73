"""scripts/estimate.py as it is run."""

import json
import re
import subprocess

from conftest import ROOT

from lib import prices, workload
from lib.api import Limits

TEST = ",".join(map(str, sorted((ROOT / "configs" / "test").glob("*.yaml"))))
PAPER = ",".join(map(str, sorted((ROOT / "configs" / "vikhr-7b").glob("*.yaml"))))


def test_the_test_profile_with_nothing_made(script, tmp_path):
    said = script(
        "estimate", "--base=configs/sources/random-llama.yaml", f"--settings={TEST}", f"--out={tmp_path / 'estimate'}"
    )
    assert said.returncode == 0, said.stderr
    found = json.loads((tmp_path / "estimate" / "estimate.json").read_text(encoding="utf-8"))
    cpt, sft = (found["stages"][name] for name in ("cpt", "sft"))
    assert (cpt["steps"], cpt["tokens"], sft["steps"]) == (20, 20 * 8 * 64, 10)
    # 1,536 rows of 64, tied, in the place of 600: init.yaml pads to a multiple of 768.
    assert cpt["parameters"] == 120_640 + (1536 - 600) * 64
    assert cpt["memory"]["optimizer"] == 8 * cpt["parameters"]
    assert re.search(r"^steps +20 +10$", said.stdout, re.MULTILINE)
    assert "not fit" not in said.stdout
    for each in found["assumptions"]:
        assert f"  {each['name']} = {each['value']}: {each['reason']}" in said.stdout
    assert json.loads((tmp_path / "estimate" / "manifest.json").read_text())["results"]["stages"] == found["stages"]


def test_the_papers_profile_does_not_fit_on_a_smaller_gpu_and_says_what_would(script):
    paper = ("--base=configs/sources/mistral-7b.yaml", f"--settings={PAPER}", "--gpus=8", "--dialogues=680000")
    small = script("estimate", *paper, "--gpu=A100-40").stdout
    assert "7,241,732,096 parameters" in small
    assert re.search(r"^cpt does not fit: 7\d\.\d of 40 GB", small, re.MULTILINE)
    assert re.search(r"^  gradient_checkpointing: true: 5\d\.\d GB, does not fit either$", small, re.MULTILINE)
    assert re.search(r"^  all of these: \d+\.\d GB, fits$", small, re.MULTILINE)


def test_what_a_language_model_is_asked_is_priced():
    settings = workload.settings("annotate", []) | {
        "sample": 100,
        "passes": 2,
        "agreement_documents": 10,
        "max_chars": 2700,
    }
    asked = prices.annotating(settings, Limits(input_price=1.0, output_price=2.0))
    assert (asked["requests"], asked["answer_tokens"]) == (110, 110 * settings["answer_tokens"])
    less = prices.annotating(settings | {"max_chars": 1350}, Limits())
    # Half the text, 1,350 characters, a sixth of them spaces.
    assert (asked["prompt_tokens"] - less["prompt_tokens"]) / 110 - 1350 * (5 / 6 / 2.7 + 1 / 6 / 3.5) < 2
    assert asked["cost"] == (asked["prompt_tokens"] + 2 * asked["answer_tokens"]) / 1e6
    assert less["cost"] is None
    translate = workload.settings("translate", [])
    once = prices.translating(translate, 50, 400, Limits())
    anew = prices.translating(translate | {"answers": "generate"}, 50, 400, Limits())
    assert (once["requests"], anew["requests"]) == (50, 100)
    assert anew["answer_tokens"] < once["answer_tokens"] + 50 * translate["generated_tokens"]


def test_make_says_what_is_on_the_disk(tmp_path):
    folders = (f"D={tmp_path}/d", f"C={tmp_path}/c", f"MODELS={tmp_path}/m", "PYTHON=py")
    made = tmp_path / "d" / "pack"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")

    def command(*given):
        done = subprocess.run(["make", "-n", "estimate", *folders, *given], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = command("PROFILE=vikhr-7b", "NODES=2", "MASTER=a", "GPU=H100")
    assert f" --pack={made} " in said
    assert "--tokenizer=" not in said
    assert " --gpus=$((8 * 2)) --gpu=H100 --annotate=true " in said
    assert "configs/nemo-12b/cpt.yaml" in command("PROFILE=nemo-12b")
