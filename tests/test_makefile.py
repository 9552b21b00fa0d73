"""The Makefile: its lists of code against the imports, what reruns when one thing changes, and its guards."""

import ast
import os
import re
import subprocess

import pytest
import yaml
from conftest import ROOT

# Prints, checks, writes, speeds up; no result depends on it.
PLUMBING = {"cli", "errors", "failures", "processor", "progress", "stage", "storage"}
PICTURES = {"plots"}  # the tokenizer stage's is read by no other stage: a new colour is not worth training anew
# What shows a training and keeps it safe; none of it makes another model.
WATCHING = {"disk", "generation", "journal", "plots", "samples", "trackers", "utilisation"}
MEETING = "scripts/launch.py --nproc_per_node={} --nnodes=2 --rdzv_conf=timeout=3600"
COMPARISONS = ("init-bench", "kl-bench", "vocab-sweep")
STAGES = (
    "fetch", "dedup", "annotate", "filter", "tokenizer", "init", "pack", "cpt", "merge", "translate", "reward", "instruct", "sft",
    "eval", "leaks", "report", "export",
)  # fmt: skip


def make(*arguments, check=True, **environment):
    process = subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert not check or process.returncode == 0, process.stderr
    return process


def imports(path):
    """Modules of lib that a file imports, whether at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lib.")}
    return found


def all_imports(path):
    """The same, with what those modules import in turn."""
    found, waiting = set(), imports(path)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= imports(ROOT / "scripts" / "lib" / f"{name}.py")
    return found


@pytest.mark.parametrize("stage", STAGES + COMPARISONS)
def test_a_stage_lists_the_code_it_runs(stage):
    script = {"tokenizer": "train_spm", "init": "init_embeddings"}.get(stage, stage.replace("-", "_"))
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in ("Makefile", "configs/comparisons.mk"))
    lists = dict(re.findall(r"^lib-([\w-]+) := (.*)$", text, re.MULTILINE))
    listed = {name for word in lists[stage].split() for name in (lists["training"].split() if "$" in word else [word])}
    ignored = PLUMBING | {"tokenizer": PICTURES, "cpt": WATCHING, "sft": WATCHING}.get(stage, set())
    assert listed == all_imports(ROOT / "scripts" / f"{script}.py") - ignored


def test_help_lists_every_target_and_variable():
    printed = make("help").stdout
    others = ("all", "demo", "test", "lint", "plan", "estimate", "clean", "PROFILE", "GPUS", "GPU", "VENV")
    for word in (*STAGES, *COMPARISONS, *others):
        assert re.search(rf"^  {word} ", printed, re.MULTILINE), word


def test_an_unknown_profile_names_the_known_ones():
    process = make("all", "PROFILE=tset", check=False)
    assert process.returncode != 0
    assert "no profile 'tset'" in process.stderr
    assert "test" in process.stderr
    assert "demo" in process.stderr


def test_a_machine_without_what_a_profile_needs_is_told_at_once():
    process = make("tokenizer", "cpt", "PROFILE=vikhr-7b", check=False, PATH="/usr/bin:/bin", HF_HUB_OFFLINE="1")
    assert process.returncode != 0
    assert "GPU" in process.stderr
    assert "hub" in process.stderr
    assert "fetch" not in process.stdout


def test_plan_lists_the_stages_in_order_and_makes_nothing(tmp_path):
    printed = make("plan", "PROFILE=test", f"D={tmp_path}/d", f"C={tmp_path}/c", f"K={tmp_path}/k").stdout
    scripts = re.findall(r"scripts/(\w+)\.py", printed)
    order = [script for script in scripts if script != "fetch"]
    assert order[:9] == ["dedup", "filter", "train_spm", "init_embeddings", "pack", "cpt", "reward", "instruct", "sft"]
    assert order.count("eval") == 4
    assert order[-1] == "report"
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "c").exists()


def test_push_copies_what_is_finished_and_makes_nothing(tmp_path):
    folders = (f"D={tmp_path}/d", f"C={tmp_path}/c", f"K={tmp_path}/k")
    given = ("-n", "push", "PROFILE=test", "PYTHON=py", "TO=s3://bucket/all", *folders)
    assert "nothing of PROFILE=test is finished" in make(*given, check=False).stderr
    for folder in ("d/dedup", "d/eval/base", "c/sft"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "manifest.json").touch()
    (tmp_path / "c" / "cpt.partial").mkdir()
    for wanted, folders in (("", "c/sft d/dedup d/eval/base"), ("eval", "d/eval/base"), ("sft dedup", "c/sft d/dedup")):
        (copied,) = make(*given, f"PUSH={wanted}").stdout.splitlines()
        listed, command = re.fullmatch(r"for folder in (.*); do (.*); done", copied).groups()
        assert listed.split() == [f"{tmp_path}/{folder}" for folder in folders.split()]
        assert command == "py scripts/push.py --folder=$folder --to=s3://bucket/all/$folder"
    assert "say TO=, an address" in make(*given, "TO=", check=False).stderr


def test_a_sweep_trains_each_size_without_the_other_tokenizers_and_lays_them_side_by_side(tmp_path):
    printed = make("-n", "vocab-sweep", "PROFILE=demo", f"D={tmp_path}/d", f"C={tmp_path}/c", f"K={tmp_path}/k").stdout
    trained = [line for line in printed.splitlines() if "scripts/train_spm.py --" in line]
    sizes = ("53248", "61440", "77824", "98304", "122880")
    assert [re.search(r"--vocab_size=(\d+) .*/vocab-sweep/(\d+)$", line).groups() for line in trained] == [
        (size, size) for size in sizes
    ]
    assert "--compare" not in "".join(trained)
    folders = ",".join(f"{tmp_path}/c/vocab-sweep/{size}" for size in sizes)
    assert f" --tokenizers={folders} " in printed.splitlines()[-1]
    assert "vocab_sweep" not in make("-n", "all", "PROFILE=demo", f"K={tmp_path}/k").stdout


def test_the_experiment_on_forgetting_asks_about_all_rows_but_where_a_run_is_named_otherwise(tmp_path):
    given = ("PROFILE=smollm2", f"D={tmp_path}/d", f"C={tmp_path}/c", f"K={tmp_path}/k", "STEPS=7")
    printed = make("-n", "kl-bench", *given).stdout
    trained = [line for line in printed.splitlines() if "scripts/cpt.py --" in line]
    flags = {re.search(r"/kl-bench/(\S+)$", line)[1]: line for line in trained}
    assert len(flags) == 9
    for name, line in flags.items():
        assert f" --reference={name.split('-')[1]} --max_steps=7 " in line
        assert re.findall(r"--kl_on=(\w+)", line) == ["replay" if name.endswith("-replay") else "all"]
        assert f"--model={tmp_path}/c/kl-bench/{name.split('-')[0]}/init " in line
    assert "kl_bench.py" in printed.splitlines()[-1]


def test_all_checkpoints_and_variants_are_scored_on_the_same_beside_one_base(tmp_path):
    given = ("-n", "PROFILE=test", f"D={tmp_path}/d", f"C={tmp_path}/c", f"K={tmp_path}/k")
    of_profile = make(*given, "eval").stdout
    # The base is scored before any variant, so this is there.
    (tmp_path / "d" / "instruct").mkdir(parents=True)
    (tmp_path / "d" / "instruct" / "manifest.json").touch()
    variant = ("VARIANT=a/b", "CHANGED=instruct sft eval", f"{tmp_path}/d/variants/a/b/eval/sft/manifest.json")
    of_variant = make(*given, *variant).stdout
    for printed, models in ((of_profile, ["models/random-llama", "init", "cpt", "sft"]), (of_variant, ["a/b/sft"])):
        scored = [line for line in printed.splitlines() if "scripts/eval.py --" in line]
        found = [re.search(r" --model=(\S+) ", line)[1] for line in scored]
        assert [path.endswith(model) for path, model in zip(found, models, strict=True)] == [True] * len(models)
        for line in scored:
            assert " --base=checkpoints/models/random-llama " in line
            assert f" --instructions={tmp_path}/d/instruct/held_out.jsonl " in line
            assert f" --held_out={tmp_path}/d/pack/held_out/documents " in line
    assert f"--out={tmp_path}/d/variants/a/b/instruct" in of_variant


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if "eval" not in p.parts],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_every_yaml_is_loaded_safely_and_holds_no_number_read_as_text(path):
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key, value in loaded.items():
        if isinstance(value, str):
            assert not re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value), (
                f"{key}: {value} is text to YAML; write 1.0e-4"
            )


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ("GPUS=0", ""),
        ("GPUS=1", ""),
        ("GPUS=8", "scripts/launch.py --nproc_per_node=8 --standalone"),
        ("GPUS=8 NODES=2 MASTER=a", f"{MEETING.format(8)} --node_rank=0 --rdzv_endpoint=a:29500"),
        ("GPUS=0 NODES=2 MASTER=a:1", f"{MEETING.format(1)} --node_rank=0 --rdzv_endpoint=a:1"),
        ("GPUS=8 NODES=2 HOSTFILE=h", f"{MEETING.format(8)} --hostfile=h"),
    ],
)
def test_training_is_launched_on_all_gpus_of_all_machines(tmp_path, variables, launch):
    goals = ("cpt", "sft")
    printed = make(
        "-n", *goals, *variables.split(), "PROFILE=demo", f"K={tmp_path}", "PYTHON=py", f"C={tmp_path}/c"
    ).stdout
    for stage in goals:
        (started,) = re.findall(rf"^py (.*)scripts/{stage}\.py --", printed, re.MULTILINE)
        assert started.strip() == launch


def test_a_further_machine_takes_part_with_the_same_flags_and_makes_nothing_else(tmp_path):
    variables = ["GPUS=8", "NODES=2", "MASTER=a", "PROFILE=demo", f"K={tmp_path}", "PYTHON=py", f"C={tmp_path}/c"]
    first = make("-n", "cpt", "sft", *variables).stdout.splitlines()
    for stage in ("cpt", "sft"):
        (line,) = make("-n", stage, "NODE=1", *variables).stdout.splitlines()
        assert line.replace("--node_rank=1", "--node_rank=0") in first


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ("eval NODE=1", "say cpt or sft, what the first machine trains"),
        ("cpt sft NODE=1", "one stage a command"),
        ("sft", "cpt has to be trained first: `make cpt` on all 2 machines"),
        ("all", "cpt has to be trained first"),
    ],
)
def test_machines_that_would_not_train_the_same_stage_are_refused(tmp_path, goals, message):
    folders = ["PROFILE=demo", f"K={tmp_path}", "PYTHON=py", f"C={tmp_path}/c"]
    process = make("-n", *goals.split(), "NODES=2", "MASTER=a", *folders, check=False)
    assert process.returncode != 0
    assert message in process.stderr


def test_a_job_system_does_not_make_processes_of_machines():
    told = dict.fromkeys(("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PET_NNODES", "PET_NODE_RANK"), "1")
    printed = make("--eval=show: ; @env", "show", **told).stdout
    assert not set(told) & {line.partition("=")[0] for line in printed.splitlines()}


def test_several_machines_without_a_way_to_reach_them_are_refused():
    process = make("-n", "cpt", "NODES=2", check=False)
    assert process.returncode != 0
    assert "NODES=2: say HOSTFILE=" in process.stderr


def test_the_target_language_reaches_the_stages_that_depend_on_it(tmp_path):
    given = (
        "-n",
        "all",
        "compare",
        "A=base",
        "B=cpt",
        "PROFILE=test",
        f"D={tmp_path}/d",
        f"C={tmp_path}/c",
        f"K={tmp_path}/k",
    )
    for more, code in ((), "ru"), (("TARGET=kk",), "kk"):
        lines = make(*given, *more).stdout.splitlines()
        for script, flag in (("train_spm", "language"), ("eval", "language"), ("compare", "language")):
            (told,) = {
                found for line in lines if f"/{script}.py --" in line for found in re.findall(rf"--{flag}=(\S+)", line)
            }
            assert told == code
        assert [re.findall(r"--spoken=(\S+)", line) for line in lines if "/reward.py --" in line] == [[f"{code},en"]]


def test_a_language_of_no_source_retrains_nothing():
    show = "--eval=show: ; @echo $(reads-filter) , $(reads-tokenizer) , $(facts-tokenizer)"
    for profile, code, other in (("test", "ru", "kk"), ("test-kk", "kk", "ru")):
        listed = make("show", f"PROFILE={profile}", show).stdout
        assert listed.count(f"configs/languages/{code}.yaml") == listed.count("configs/languages/en.yaml") == 2
        assert f"configs/languages/{other}" not in listed
        assert listed.split()[-1] == code


def test_a_checkpoint_that_there_is_not_is_not_exported():
    done = subprocess.run(["make", "-n", "export", "EXPORT=stf"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "EXPORT=stf: say which checkpoint: init, cpt, merge or sft" in done.stderr
