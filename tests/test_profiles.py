"""The big profiles' settings: read by the scripts they are for, and the paper's where they say so. Nothing is run."""

import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lib import cli

ROOT = Path(__file__).parents[1]
BIG = ("vikhr-7b", "llama2-7b", "llama3-8b", "nemo-12b")
OTHER_LANGUAGES = ("kk-demo", "test-be", "test-kk", "test-sr")
SCRIPTS = {"tokenizer": "train_spm", "init": "init_embeddings"}
STAGES = (
    "dedup", "filter", "tokenizer", "init", "pack", "cpt", "merge", "reward", "instruct", "sft", "eval", "report", "estimate",
)  # fmt: skip


def variables(profile, *names):
    """What profile.mk sets, by Make itself."""
    echo = "".join(f"\t@echo '{name}=$({name})'\n" for name in names)
    script = f"include configs/{profile}/profile.mk\nall:\n{echo}"
    run = subprocess.run(["make", "-f", "-"], input=script, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in run.stdout.splitlines())


def config(profile, stage):
    named = variables(profile, f"CONF-{stage}")[f"CONF-{stage}"]
    return ROOT / (named or f"configs/{profile}/{stage}.yaml")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("profile", [*BIG, "demo", "smollm2", *OTHER_LANGUAGES])
def test_every_stage_reads_its_settings(profile, stage):
    main = importlib.import_module(SCRIPTS.get(stage, stage)).main
    settings = config(profile, stage)
    if stage in ("report", "estimate") and not settings.exists():
        return
    required = {name for name, p in inspect.signature(main).parameters.items() if p.default is inspect.Parameter.empty}
    given = set(cli.load_yaml(settings))
    paths = dict.fromkeys(required - given, "given/by/the/makefile")
    assert given <= cli.resolve(main, {"config": str(settings), **paths}).keys()


@pytest.mark.parametrize("profile", [*BIG, *OTHER_LANGUAGES])
def test_every_name_is_a_source(profile):
    names = variables(profile, "BASE", "ENCODER", "SOURCES", "INSTRUCT", "PREFERENCES", "REWARD_ENCODER", "TOKENIZERS")
    for name in " ".join(names.values()).split():
        assert (ROOT / "configs" / "sources" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("profile", BIG)
def test_preflight_asks_for_the_base_that_is_fetched(profile):
    given = variables(profile, "BASE", "NEEDS")
    source = yaml.safe_load((ROOT / "configs" / "sources" / f"{given['BASE']}.yaml").read_text(encoding="utf-8"))
    assert re.findall(r"--hub=(\S+)", given["NEEDS"]) == [source["package"]]
    assert "--gpus=8 --gpu_gb=80" in given["NEEDS"]


@pytest.mark.parametrize("profile", BIG)
def test_numbers_of_the_paper(profile):
    cpt, sft, pack, tokenizer = (cli.load_yaml(config(profile, stage)) for stage in ("cpt", "sft", "pack", "tokenizer"))
    both = {"adam_beta1": 0.99, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "warmup_steps": 10, "batch_size": 3}
    table_3 = {**both, "learning_rate": 1e-3, "accumulation": 128, "epochs": 1, "kl_weight": 1}
    table_5 = {**both, "learning_rate": 1e-5, "accumulation": 64, "epochs": 3, "sequence_length": 1024}
    assert {key: cpt[key] for key in table_3} == table_3
    assert {key: sft[key] for key in table_5} == table_5
    assert pack["sequence_length"] == 1024
    assert tokenizer["vocab_size"] == 40_000
    assert cpt["attention"] == sft["attention"] == "flash_attention_2"


@pytest.mark.parametrize("profile", BIG)
def test_files_named_in_settings_exist(profile):
    for stage, key in (("cpt", "deepspeed"), ("sft", "deepspeed"), ("tokenizer", "chat_template")):
        assert (ROOT / cli.load_yaml(config(profile, stage))[key]).is_file()


@pytest.mark.parametrize("profile", OTHER_LANGUAGES)
def test_a_profile_in_another_language_learns_that_language(profile):
    given = variables(profile, "TARGET", "SOURCES", "PREFERENCES", "PROMPTS")
    assert profile.removesuffix("-demo").removeprefix("test-") == given["TARGET"]
    spoken = [
        yaml.safe_load((ROOT / "configs" / "sources" / f"{name}.yaml").read_text(encoding="utf-8"))["language"]
        for name in given["SOURCES"].split()
    ]
    assert set(spoken) == {given["TARGET"], "en"}
    assert (ROOT / given["PROMPTS"]).is_file()
    assert not given["PREFERENCES"].strip()
