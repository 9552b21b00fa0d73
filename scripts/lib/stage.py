"""The contract of a stage: files in, one folder out, its `manifest.json` written last.

A stage builds `<out>.partial/` and renames it to `<out>/` on success, so a final name never holds half a result. Where `out`
is an address in object storage, that folder lies in data/.outbox/ until it is finished and copied up (lib/storage.py).
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lib import progress, storage
from lib.errors import UserError

MANIFEST = storage.MANIFEST
SETTINGS = "settings.json"
VERSIONED = ("torch", "transformers", "tokenizers", "sentencepiece", "datasketch", "lm_eval", "deepspeed")


class Output:
    """A stage's output while it is being built: its `folder`, and the facts for the manifest."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results: dict[str, object] = {}

    def record(self, **results: object) -> None:
        """Put figures under `results` in the manifest."""
        self.results.update(results)


@contextlib.contextmanager
def output(
    out: Path,
    *,
    inputs: Mapping[str, Path | None],
    settings: Mapping[str, object],
    resume: bool = False,
    adjustable: Collection[str] = (),
) -> Iterator[Output]:
    """Build a stage's output folder and, when the block ends well, its manifest and its final name.

    Args:
        out: the final folder, or an address; replaced as a whole if it exists.
        inputs: files and folders read, by name; each has to exist (None is an input not given).
        settings: the script's resolved arguments, saved in the manifest.
        resume: keep what an interrupted run of the same settings and inputs left in `<out>.partial/`.
        adjustable: settings that it may go on under when changed.

    Raises:
        UserError: an input is missing, or a resumable run was started with other settings or inputs.
    """
    started = time.time()
    to = out if storage.is_remote(out) else None
    if to is not None:
        out = storage.outbox(to)
        if _is_main_process():
            storage.check_writable(to)
    inputs = {name: path for name, path in inputs.items() if path is not None}
    described = {name: describe_input(name, path) for name, path in inputs.items()}
    paths = {"out", *inputs}
    settings = {name: _plain(value) for name, value in settings.items() if name not in paths}
    partial = out.with_name(out.name + ".partial")
    # A checkpoint of several processes is no other number's.
    processes = {"processes": int(os.environ.get("WORLD_SIZE", "1"))}
    _prepare(partial, {"settings": settings, "inputs": described, "launch": processes}, resume, adjustable)
    building = Output(partial)
    yield building
    if not _is_main_process():
        return
    (partial / SETTINGS).unlink(missing_ok=True)
    files = {
        path.relative_to(partial).as_posix(): path.stat().st_size
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "stage": Path(sys.argv[0]).stem,
        "settings": settings,
        "inputs": described,
        "results": building.results,
        "files": files,
        "seconds": round(time.time() - started, 1),
        "peak_memory_mb": peak_memory_mb(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
    }
    write_json(partial / MANIFEST, manifest)
    _replace(partial, out)
    progress.say(f"{manifest['stage']}: wrote {out} in {manifest['seconds']:,.0f} s, peak {peak_memory_mb():,.0f} MB")
    if to is not None:
        progress.say(f"should the copy break off, this goes on: python scripts/push.py --folder={out} --to={to}")
        storage.push(out, to)
        shutil.rmtree(out)
        progress.say(f"{manifest['stage']}: copied to {to}, manifest last")


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished stage.

    Raises:
        UserError: the folder has none, so it is not a stage's finished output.
    """
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {MANIFEST}, so no stage finished writing it; run its Make target first"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / MANIFEST}: not valid JSON ({error}); remove the folder and run its stage") from None


def describe_input(name: str, path: Path) -> dict[str, str]:
    """An input's path and a digest that changes when its content does."""
    if storage.is_remote(path):
        return {"path": str(path), "sha256": storage.digest(path)}
    if not path.exists():
        raise UserError(f"--{name}={path}: no such file or folder")
    proof = path / MANIFEST if path.is_dir() else path
    if proof.is_file():
        with proof.open("rb") as file:
            return {"path": path.as_posix(), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    listing = sorted(f"{f.relative_to(path)} {f.stat().st_size}" for f in path.rglob("*") if f.is_file())
    return {"path": path.as_posix(), "sha256": hashlib.sha256("\n".join(listing).encode()).hexdigest()}


def write_json(path: Path, content: object) -> None:
    """JSON written beside `path`, flushed to disk, then renamed to it."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def peak_memory_mb() -> int:
    """The largest resident memory of this process so far, in MB (10^6 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def commit() -> str:
    """The project's git commit: from GIT_COMMIT (set in the image), else from git, else 'unknown'."""
    if known := os.environ.get("GIT_COMMIT"):
        return known
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages in use that shape results."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        if package in sys.modules:
            found[package] = importlib.metadata.version(package)
    return found


def _prepare(partial: Path, identity: dict[str, object], resume: bool, adjustable: Collection[str]) -> None:
    if not _is_main_process():
        return
    if partial.exists() and resume and (partial / SETTINGS).is_file():
        identity = json.loads(json.dumps(identity))
        before = json.loads((partial / SETTINGS).read_text(encoding="utf-8"))
        changed = [
            f"{key}: {before[part].get(key)} then, {identity[part].get(key)} now"
            for part in identity
            if part in before
            for key in sorted(before[part].keys() | identity[part].keys())
            if key not in adjustable and before[part].get(key) != identity[part].get(key)
        ]
        if changed:
            raise UserError(
                f"{partial} holds an interrupted run with other settings ({'; '.join(changed)}): "
                f"set them back to go on with it, or remove that folder to start anew"
            )
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(partial / SETTINGS, identity)


def _replace(partial: Path, out: Path) -> None:
    """Give `partial` its final name; a folder can't be renamed over one that is not empty."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _plain(value: object) -> object:
    """A setting as JSON holds it."""
    if isinstance(value, Path) or hasattr(value, "fs"):  # an address is no Path
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
