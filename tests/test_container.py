"""docker/: what can be held to account without an engine, a registry or a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
# What the GPU image has beyond base.txt, all of it wanted by torch 2.8 or DeepSpeed.
GPU_ONLY = {"deepspeed", "einops", "hjson", "msgpack", "ninja", "py-cpuinfo", "setuptools", "triton"}


def tool(name):
    """A program of requirements/dev.txt, in this virtual environment or on the PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed (requirements/dev.txt)")
    return found


def compose(*arguments, **environment):
    command = [tool("docker-compose"), "-f", str(COMPOSE), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def pins(name):
    """Package to version of a requirements file; every line is pinned."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def arguments_of_dockerfile():
    return dict(re.findall(r"^ARG (\w+)=?(.*)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))


def test_dockerfile_lints():
    run = subprocess.run([tool("hadolint"), "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_dockerfile_needs_no_frontend_and_ends_as_a_user():
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not re.search(r"^# *syntax *=", text, re.MULTILINE)  # would be fetched, which fails offline
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["${USER_ID}:${GROUP_ID}"]
    assert "ENTRYPOINT" not in text
    assert text.index("COPY requirements/") < text.index("pip install --requirement") < text.index("COPY --chown")


def test_compose_is_valid():
    run = compose("config", "-q")
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_compose_services():
    given = {"USER_ID": "4242", "GIT_COMMIT": "abc", "HF_TOKEN": "hf_1", "OPENAI_API_KEY": "sk-1"}
    run = compose("--profile", "test", "config", "--format", "json", **given)
    services = json.loads(run.stdout)["services"]
    assert sorted(services) == ["cpu", "gpu", "test"]
    assert services["test"]["profiles"] == ["test"]  # not built or started by who does not ask for it
    (reservation,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (reservation["driver"], reservation["count"], reservation["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert "deploy" not in services["cpu"]
    for service in services.values():
        mounted = {
            mount["target"]: mount.get("read_only", False) for mount in service["volumes"] if mount["type"] == "bind"
        }
        assert mounted == {"/vikhr/data": False, "/vikhr/checkpoints": False, "/vikhr/configs": True}
        assert {mount["target"] for mount in service["volumes"] if mount["type"] == "volume"} == {"/vikhr/.cache"}
        assert service["environment"]["HF_TOKEN"] == "hf_1"
        assert service["build"]["args"]["USER_ID"] == "4242"
        assert set(service["build"]["args"]) <= set(arguments_of_dockerfile())
        assert not {"hf_1", "sk-1"} & set(service["build"]["args"].values())  # they would stay in the image's history
    assert services["cpu"]["build"]["args"]["REQUIREMENTS"] == "requirements/base.txt"
    assert services["test"]["build"]["args"]["REQUIREMENTS"] == "requirements/dev.txt"


def test_every_cache_is_in_the_volume_and_the_volume_is_the_users():
    text = DOCKERFILE.read_text(encoding="utf-8")
    caches = dict(re.findall(r"(\w+)=(/vikhr/\.cache\S*)", text))
    assert {"XDG_CACHE_HOME", "HF_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"} == set(
        caches
    )
    # A new volume has the owner of the folder that it covers.
    assert re.search(r"install --directory --owner=vikhr --group=vikhr .*/vikhr/\.cache$", text, re.MULTILINE)


def test_no_secret_has_a_value_in_the_file():
    service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["x-service"]
    assert {"HF_TOKEN", "OPENAI_API_KEY"} <= set(service["environment"])
    assert all("=" not in variable for variable in service["environment"])


def test_context_is_a_list_of_what_may_enter():
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")
    ]
    assert rules[0] == "*"
    for needed in (
        "Makefile",
        "requirements/",
        "scripts/",
        "configs/",
        "data/builtin/",
        "tests/",
        "cluster/",
        "pyproject.toml",
    ):
        assert f"!{needed}" in rules
    assert rules.index("!data/") < rules.index("data/*") < rules.index("!data/builtin/")
    assert rules.index("!checkpoints/") < rules.index("checkpoints/*")


def test_gpu_requirements_are_the_base_with_another_torch():
    base, gpu = pins("base.txt"), pins("gpu.txt")
    assert set(gpu) - set(base) == GPU_ONLY
    assert {name: gpu[name] for name in base if name != "torch"} == {n: v for n, v in base.items() if n != "torch"}


def test_image_torch_and_flash_attention_belong_together():
    given = arguments_of_dockerfile()
    assert re.match(r"nvidia/cuda:12\.8\.\d+-base-ubuntu24\.04$", given["BASE_IMAGE"])  # torch 2.8's CUDA; Python 3.12
    assert given["FLASH_ATTN"] == "2.8.3"  # has wheels for torch 2.4 to 2.8, CUDA 12
    assert pins("gpu.txt")["torch"] == "2.8.0"
    assert pins("gpu.txt")["triton"] == "3.4.0"  # torch 2.8.0 asks for exactly this one


def test_object_storage_fits_the_base():
    storage, base = pins("storage.txt"), pins("base.txt")
    assert storage["s3fs"] == base["fsspec"]  # it asks for exactly this one
    assert not storage.keys() & base.keys()


def test_the_image_tells_what_is_in_it():
    text = DOCKERFILE.read_text(encoding="utf-8")
    listed = re.search(
        r"cyclonedx-py environment .*--output-file /opt/venv/sbom.json /opt/venv/bin/python$", text, re.M
    )
    assert text.index("pip check") < listed.start() < text.index("COPY --from=build /opt/venv")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_every_number_from_the_profile(stage):
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert settings["zero_optimization"]["stage"] == stage
    for filled_in in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert settings[filled_in] == "auto"
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}  # bf16 would lose most of 128 accumulated passes
    assert "optimizer" not in settings  # DeepSpeed's own would be compiled at run time
