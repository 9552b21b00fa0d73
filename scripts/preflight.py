"""Look whether this machine has what a profile needs, before hours of work find out.

    python3 scripts/preflight.py --profile=vikhr-7b --gpus=8 --gpu_gb=80 --hub=mistralai/Mistral-7B-v0.1 --disk_gb=600

Reads: nvidia-smi, the hub, the free space under data/ and checkpoints/. Writes: nothing.
Exit status 2 and one error that lists all that is missing.

Plain argparse and no imports from lib/, unlike the other scripts: Make runs it with the system's Python before the
virtual environment, and so Fire, exists. For the same reason an old Python has to be able to read it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

HUB = "https://huggingface.co"
HUB_SECONDS = 15
OFF = ("", "0", "false", "no", "off")


def main() -> int:
    """Print one line if everything is there, one error if not; the exit status."""
    needs = _parse()
    missing = [*check_gpus(needs.gpus, needs.gpu_gb), *check_disk(needs.disk_gb, needs.profile)]
    if needs.hub is not None:
        missing += check_hub([name for name in needs.hub.split(",") if name])
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        print(
            f"error: this machine can't run PROFILE={needs.profile}:\n{listed}\n"
            "PROFILE=demo is the same pipeline on two CPU cores, with no GPU and no hub.",
            file=sys.stderr,
        )
        return 2
    print(f"preflight: this machine has what PROFILE={needs.profile} needs")
    return 0


def check_gpus(count: int, gigabytes: float) -> list[str]:
    """`count` visible NVIDIA GPUs of `gigabytes` (10^9 bytes) each."""
    if not count:
        return []
    wanted = f"{count} with {gigabytes:g} GB each are needed" if gigabytes else f"{count} are needed"
    found = visible_gpus()
    if not found:
        why = "nvidia-smi is not installed" if shutil.which("nvidia-smi") is None else "nvidia-smi lists none"
        if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
            why += f", CUDA_VISIBLE_DEVICES is '{os.environ['CUDA_VISIBLE_DEVICES']}'"
        return [
            f"no NVIDIA GPU found ({why}), {wanted}: use a machine that has them; in a container, start it with "
            "--gpus=all and the NVIDIA container toolkit (compose's service gpu does)"
        ]
    large = [gpu for gpu in found if gpu[1] >= gigabytes]
    if len(large) >= count:
        return []
    listed = ", ".join(f"{name} {size:.0f} GB" for name, size in found)
    return [
        f"{len(large)} of the {len(found)} visible GPUs will do ({listed}), {wanted}: with fewer, say GPUS= and raise "
        "accumulation in cpt.yaml and sft.yaml; with smaller ones, set gradient_checkpointing and zero3 there, and say NEEDS="
    ]


def visible_gpus() -> list[tuple[str, float]]:
    """Name and memory (10^9 bytes) of the GPUs that CUDA_VISIBLE_DEVICES leaves, by nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = []
    for line in answer.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 4:  # "No devices were found"
            continue
        index, uuid, name, mebibytes = parts
        if chosen is None or any(c and (c == index or uuid.startswith(c)) for c in chosen.replace(" ", "").split(",")):
            gpus.append((name, float(mebibytes) * 2**20 / 1e9 if mebibytes.isdigit() else 0.0))
    return gpus


def check_disk(gigabytes: float, profile: str) -> list[str]:
    """`gigabytes` free where the results go; what the profile has already written counts as free."""
    if not gigabytes:
        return []
    folders = [Path("data"), Path("checkpoints")]
    present = [folder if folder.exists() else Path() for folder in folders]
    free = sum({folder.stat().st_dev: shutil.disk_usage(folder).free for folder in present}.values())
    own = [folder / part for folder in folders for part in (profile, "raw", "models")]
    written = sum(path.lstat().st_size for folder in own for path in folder.rglob("*") if not path.is_dir())
    if free + written >= gigabytes * 1e9:
        return []
    done = f" and {written / 1e9:.0f} GB already written" if written > 1e9 else ""
    return [
        f"{free / 1e9:.0f} GB free{done} for data/ and checkpoints/, {gigabytes:g} GB are needed: free some, or make "
        "them links to a larger disk"
    ]


def check_hub(repositories: list[str]) -> list[str]:
    """The model hub answers, and lets us read `repositories`."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() not in OFF:
        print("preflight: HF_HUB_OFFLINE is set, so everything from the hub has to be in its cache already")
        return []
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    token = hub_token()
    missing = []
    for path in [f"{name}/resolve/main/config.json" for name in repositories] or [""]:
        status, why = ask(f"{endpoint}/{path}", token)
        name = path.partition("/resolve/")[0]
        if status == 0 or status >= 500:
            return [
                f"the model hub {endpoint} can't be reached ({why}): check the network and the proxy, name a mirror in "
                "HF_ENDPOINT, or fill the cache elsewhere and set HF_HUB_OFFLINE=1"
            ]
        if name and status in (401, 403):
            said = "HF_TOKEN is refused" if token else "HF_TOKEN is not set"
            missing.append(
                f"{name} is gated or private and {said} (HTTP {status}): accept its terms at {endpoint}/{name}, make a "
                "token that may read it, and put it in the environment as HF_TOKEN"
            )
        elif name and status == 404:
            missing.append(f"{endpoint} has no {name} (HTTP 404): check HF_ENDPOINT and the name")
    return missing


def hub_token() -> str:
    """HF_TOKEN, or the one that `hf auth login` stored; never printed."""
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"].strip()
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    path = Path(os.environ.get("HF_TOKEN_PATH", f"{home}/token")).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def ask(url: str, token: str) -> tuple[int, str]:
    """HTTP status of a HEAD request, 0 where there is no answer, and the reason."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "vikhr-preflight"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for where a redirect leads
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            return answer.status, "answered"
    except urllib.error.HTTPError as error:
        return error.code, f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return 0, str(getattr(error, "reason", error)) or type(error).__name__


def _parse() -> argparse.Namespace:
    about = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about[0], epilog=about[2], formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--profile", required=True, help="its name, for the message and its folders")
    parser.add_argument("--gpus", type=int, default=0, help="NVIDIA GPUs")
    parser.add_argument("--gpu_gb", type=float, default=0, help="memory of each GPU, in GB (10^9 bytes)")
    parser.add_argument("--disk_gb", type=float, default=0, help="disk space for data/ and checkpoints/, in GB")
    parser.add_argument(
        "--hub", nargs="?", const="", help="the model hub; with names, a,b: and leave to read these models there"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
