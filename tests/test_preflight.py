"""scripts/preflight.py as Make runs it: with the system's Python, a fake nvidia-smi and a fake hub."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "preflight.py"
A100 = "{index}, GPU-{index}aaa, NVIDIA A100-SXM4-80GB, 81920"
T4 = "{index}, GPU-{index}bbb, Tesla T4, 15360"
TOKEN = "hf_secret_of_the_test"
FREE = ("open/model", "/open/model/resolve/main/config.json")
GATED = ("gated/model", "/gated/model/resolve/main/config.json")


@pytest.fixture
def machine(tmp_path):
    """A folder without GPUs and a call of the script in it; `gpus` are lines of nvidia-smi."""

    def look(*flags, gpus=None, **environment):
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        if gpus is not None:
            lines = "\n".join(line.format(index=index) for index, line in enumerate(gpus))
            smi = tools / "nvidia-smi"
            smi.write_text(
                f"#!{shutil.which('bash')}\nwhile read -r line; do echo \"$line\"; done <<'END'\n{lines}\nEND\n"
            )
            smi.chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        for name in ("CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
            clean.pop(name, None)
        return subprocess.run(
            [sys.executable, str(SCRIPT), "--profile=big", *flags],
            env={**clean, "PATH": str(tools), "HF_HOME": str(tmp_path / "hf"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return look


@pytest.fixture
def hub():
    """A hub on this machine: one open model, one gated one that TOKEN opens; the paths that were asked for."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            server.asked.append((self.path, self.headers.get("Authorization")))
            opened = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            known = {"/": 200, FREE[1]: 200, GATED[1]: 200 if opened else 401}
            self.send_response(known.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def items(run):
    """The listed lacks of a failed call."""
    assert run.returncode == 2, run.stdout + run.stderr
    first, *rest, last = run.stderr.splitlines()
    assert first == "error: this machine can't run PROFILE=big:"
    assert last.startswith("PROFILE=demo is the same pipeline")
    assert all(line.startswith("  - ") for line in rest)
    return [line[4:] for line in rest]


def test_nothing_needed(machine):
    run = machine()
    assert (run.returncode, run.stdout, run.stderr) == (0, "preflight: this machine has what PROFILE=big needs\n", "")


def test_all_that_is_missing_is_listed_at_once(machine):
    gpu, disk, hub = items(
        machine("--gpus=8", "--gpu_gb=80", "--hub", "--disk_gb=1e9", HF_ENDPOINT="http://127.0.0.1:9")
    )
    assert gpu.startswith(
        "no NVIDIA GPU found (nvidia-smi is not installed), 8 with 80 GB each are needed: use a machine"
    )
    assert "1e+09 GB are needed" in disk
    assert hub.startswith("the model hub http://127.0.0.1:9 can't be reached (")


def test_enough_gpus(machine):
    assert machine("--gpus=8", "--gpu_gb=80", gpus=[A100] * 8).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "visible", "said"),
    [
        (["No devices were found"], None, "no NVIDIA GPU found (nvidia-smi lists none), 2 with 80 GB each are needed"),
        ([A100], None, "1 of the 1 visible GPUs will do (NVIDIA A100-SXM4-80GB 86 GB), 2 with 80 GB each are needed"),
        ([A100, T4], None, "1 of the 2 visible GPUs will do (NVIDIA A100-SXM4-80GB 86 GB, Tesla T4 16 GB), 2 with 80"),
        ([A100] * 4, "3", "1 of the 1 visible GPUs will do"),
        ([A100] * 4, "", "no NVIDIA GPU found (nvidia-smi lists none, CUDA_VISIBLE_DEVICES is ''), 2 with 80"),
    ],
)
def test_too_few_gpus(machine, gpus, visible, said):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    (gpu,) = items(machine("--gpus=2", "--gpu_gb=80", gpus=gpus, **environment))
    assert gpu.startswith(said)


def test_gpus_chosen_by_uuid(machine):
    assert machine("--gpus=2", "--gpu_gb=80", gpus=[T4, A100, A100], CUDA_VISIBLE_DEVICES="GPU-1aaa,2").returncode == 0


def test_what_is_already_written_counts_as_free(machine, tmp_path):
    free = shutil.disk_usage(tmp_path).free / 1e9
    (tmp_path / "checkpoints" / "big").mkdir(parents=True)
    with (tmp_path / "checkpoints" / "big" / "model.safetensors").open("wb") as file:
        file.truncate(5_000_000_000_000)  # sparse: takes no space
    assert machine(f"--disk_gb={free + 4000:.0f}").returncode == 0
    (disk,) = items(machine(f"--disk_gb={free + 6000:.0f}"))
    assert "and 5000 GB already written" in disk


def test_open_hub(machine, hub):
    assert machine("--hub", HF_ENDPOINT=hub.address).returncode == 0
    assert machine(f"--hub={FREE[0]}", HF_ENDPOINT=f"{hub.address}/").returncode == 0
    assert hub.asked == [("/", None), (FREE[1], None)]


def test_gated_model_needs_a_token(machine, hub):
    (said,) = items(machine(f"--hub={FREE[0]},{GATED[0]}", HF_ENDPOINT=hub.address))
    assert said.startswith(
        "gated/model is gated or private and HF_TOKEN is not set (HTTP 401): accept its terms at http"
    )
    assert machine(f"--hub={GATED[0]}", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN).returncode == 0


def test_stored_token_is_used(machine, hub, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(f"{TOKEN}\n")
    assert machine(f"--hub={GATED[0]}", HF_ENDPOINT=hub.address).returncode == 0


def test_refused_token_is_not_printed(machine, hub):
    run = machine(f"--hub={GATED[0]}", HF_ENDPOINT=hub.address, HF_TOKEN="hf_wrong")
    assert items(run)[0].startswith("gated/model is gated or private and HF_TOKEN is refused")
    assert "hf_wrong" not in run.stdout + run.stderr
    assert hub.asked[-1] == (GATED[1], "Bearer hf_wrong")


def test_unknown_model(machine, hub):
    (said,) = items(machine("--hub=no/such", HF_ENDPOINT=hub.address))
    assert said == f"{hub.address} has no no/such (HTTP 404): check HF_ENDPOINT and the name"


def test_offline_hub_is_not_asked(machine, hub):
    run = machine(f"--hub={GATED[0]}", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert run.returncode == 0
    assert run.stdout.startswith("preflight: HF_HUB_OFFLINE is set")
    assert hub.asked == []


def test_mistyped_flag_is_refused(machine):
    run = machine("--gpu=8")
    assert run.returncode == 2
    assert "unrecognized arguments: --gpu=8" in run.stderr


def test_needs_the_standard_library_only():
    source = SCRIPT.read_text(encoding="utf-8")
    imported = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names
