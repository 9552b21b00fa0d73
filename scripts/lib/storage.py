"""Object storage (s3://, gs://, hf://, what else fsspec knows): read where it lies, and written a finished folder at a time.

A script that reads corpora takes addresses beside paths: a UPath, which has the methods of a pathlib.Path (pathlib itself
would make `s3:/` of `s3://`). Parquet is read by row group, JSON Lines as a stream; nothing is copied first.

A stage is always built in a folder of this machine, for building needs what an object store has not: renaming, appending,
memory maps. What is finished is then copied up, its manifest last. So an address with a manifest.json holds the whole folder
that the manifest lists, as a local folder does; a copy that broke off has none, and the next one sends only what is missing.
Each object is compared with its file, by size and by MD5 where the store tells it (an S3 store's ETag), by reading it back
where it does not. Nothing locks an address: two machines that copy to the same one at a time spoil it until the next copy.

Credentials are found by fsspec's file systems in the environment or their own files (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN, ...), and are never in an address, a setting or a message.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pydantic

from lib import progress
from lib.errors import UserError

MANIFEST = "manifest.json"
REPLACED = "manifest.json.replaced"  # what an unfinished copy is taking the place of
OUTBOX = Path("data/.outbox")  # where a stage whose output is an address is built
PART = 50 << 20  # bytes; s3fs sends larger files (from two of them) in such parts, of which their ETag is made
BLOCK = 8 << 20  # bytes compared at a time
INSTALL = "pip install -r requirements/storage.txt"
ADDRESS = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
# What stores' libraries raise besides OSError, by the package that defines it.
LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx", "httpx2")
SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
SHORTEST_SECRET = 8  # characters; shorter ones are words


def is_address(text: str) -> bool:
    """Whether a text is an address (`s3://bucket/folder`) and no path."""
    return ADDRESS.match(text) is not None


def is_remote(path: Path) -> bool:
    """Whether a path that a script was given is an address."""
    return is_address(str(path))


def place(text: str) -> Path:
    """An address as a UPath, which is used like a Path.

    Raises:
        UserError: its file system is not known or not installed, or it holds credentials.
    """
    where, _, rest = text.partition("://")
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise UserError(f"{where}://...: credentials do not belong in an address; put them in the environment")
    try:
        from upath import UPath  # here, because it is no part of requirements/base.txt

        # Folders are no objects, so none is made for a copy; of a local disk that is asked for.
        there = UPath(text.rstrip("/"), **({"auto_mkdir": True} if where in ("file", "local") else {}))
        _ = there.fs
    except ImportError as error:
        raise UserError(f"{text}: {error}; {INSTALL}, or what that names") from None
    except ValueError as error:
        raise UserError(f"{text}: {error}") from None
    return there


def named(text: str) -> Path:
    """The path or address that a text names."""
    return place(text) if is_address(text) else Path(text)


def _place_or_path(value: object, path: pydantic.ValidatorFunctionWrapHandler) -> Path:
    return place(value) if isinstance(value, str) and is_address(value) else path(value)


# The annotation of a script's argument that may be an address.
Place = Annotated[Path, pydantic.WrapValidator(_place_or_path)]


def listing(there: Path) -> dict[str, dict]:
    """What the store tells of each object at or below an address, by its name from there; '' is the address itself.

    Raises:
        UserError: the store can't be reached or refuses, or has no such bucket.
    """
    with talking(there):
        there.fs.invalidate_cache()
        found = there.fs.find(there.path, detail=True)
    root = there.path.rstrip("/")
    named = {name.removeprefix(root).lstrip("/"): facts for name, facts in found.items()}
    return {name: facts for name, facts in sorted(named.items()) if facts["type"] == "file"}


def files(there: Path) -> list[Path]:
    """The objects at or below an address, sorted; the address itself if it is one.

    Raises:
        UserError: as `listing`; also if there are none.
    """
    found = listing(there)
    if not found:
        raise UserError(f"{there}: no such file or folder")
    return [there / name if name else there for name in found]


def digest(there: Path) -> str:
    """A SHA-256 that changes with the content: of a finished stage's manifest, else of sizes and what the store hashes.

    Raises:
        UserError: as `files`.
    """
    found = listing(there)
    if not found:
        raise UserError(f"{there}: no such file or folder")
    if MANIFEST in found:
        return hashlib.sha256(_content(there / MANIFEST)).hexdigest()
    told = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "created")
    lines = [
        f"{name} {facts['size']} {next((facts[key] for key in told if facts.get(key)), '')}"
        for name, facts in found.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def source(file: Path) -> Path | io.RawIOBase:
    """What a library's reader is given: a path as it is, an address as an open file."""
    return _Object(file) if is_remote(file) else file


def opened(file: Path) -> io.BufferedIOBase:
    """A file or an object, open for reading bytes."""
    return io.BufferedReader(_Object(file), BLOCK) if is_remote(file) else file.open("rb")


@contextlib.contextmanager
def copied(there: Path, cache: Path) -> Iterator[Path]:
    """A temporary folder (below `cache`) with the objects below an address, or the one copied file.

    Raises:
        UserError: as `files`; or it breaks off.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="storage-", dir=cache) as name:
        folder = Path(name) / there.name
        for file in progress.bar(files(there), title="copy", unit="files"):
            here = folder if file == there else folder / file.relative_to(there).as_posix()
            here.parent.mkdir(parents=True, exist_ok=True)
            with talking(file):
                file.fs.get_file(file.path, str(here))
        yield folder


def outbox(to: Path) -> Path:
    """The folder of this machine in which a stage is built whose output is an address."""
    return OUTBOX / str(to).replace("://", "/")


def check_writable(to: Path) -> None:
    """Write and remove an object, so that hours of work don't find out.

    Raises:
        UserError: it can't be done, for a reason that is told.
    """
    if str(to).startswith("hf://"):
        raise UserError(f"{to}: the hub is only read here; write locally, and publish with `hf upload`")
    probe = (to / ".writable").path
    with talking(to):
        to.fs.pipe_file(probe, b"probe")
        to.fs.rm_file(probe)


def push(folder: Path, to: Path) -> Counter[str]:
    """Copy a stage's finished folder to an address, manifest last; counts of objects `sent` and `kept`, and `bytes` sent.

    An address that holds an earlier output of a stage is made to hold this one.

    Raises:
        UserError: the folder is not what its manifest says, the address holds something else, or the store can't be
            reached or refuses. The same call goes on.
    """
    ours = _listed(folder)
    check_writable(to)
    there = listing(to)
    missing = [name for name in ours if name not in there or not _same(folder / name, to / name, there[name])]
    if not missing:
        return Counter(kept=len(ours))
    missing = [*(name for name in missing if name != MANIFEST), MANIFEST]
    done: Counter[str] = Counter(kept=len(ours) - len(missing))
    replacing = _clear(to, there, ours)
    sizes = {name: (folder / name).stat().st_size for name in ours}
    with progress.bar(total=sum(sizes[name] for name in missing), title="push", unit="B") as bar:
        for name in missing:
            with talking(to / name, "what has arrived stays there, the same command goes on"):
                if name == MANIFEST and replacing:
                    to.fs.rm_file((to / REPLACED).path)
                to.fs.put_file(str(folder / name), (to / name).path)
                facts = to.fs.info((to / name).path)
            if not _same(folder / name, to / name, facts):
                raise UserError(f"{to / name}: what arrived is not what was sent; run the same command again")
            bar.update(sizes[name])
            done.update(sent=1, bytes=sizes[name])
    return done


def _listed(folder: Path) -> list[str]:
    """The files of a finished stage, its manifest last."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder}: no {MANIFEST} of a finished stage; run its Make target first") from None
    for name, size in told.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name}: missing, or not of the {size:,} bytes that {MANIFEST} tells")
    return [*told, MANIFEST]


def _clear(to: Path, there: dict[str, dict], ours: list[str]) -> bool:
    """Take the manifest away from what is to be replaced, then whatever of it the new output lacks; whether there was any.

    What no manifest lists is somebody else's and stays; a copy that is killed here finds the old list again.
    """
    old = next((name for name in (MANIFEST, REPLACED) if name in there), None)
    try:
        before = _content(to / old) if old else b'{"files": {}}'
        replaced = {MANIFEST, REPLACED, *json.loads(before)["files"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{to / MANIFEST} is not a stage's; choose an empty address, or remove what is there") from None
    if foreign := sorted(there.keys() - replaced - set(ours)):
        raise UserError(
            f"{to} holds {len(foreign)} objects of something else ({', '.join(foreign[:3])}); choose an empty address, or "
            "remove them"
        )
    with talking(to):
        if old == MANIFEST:
            to.fs.pipe_file((to / REPLACED).path, before)
            to.fs.rm_file((to / MANIFEST).path)
        for name in sorted(there.keys() & replaced - set(ours) - {REPLACED}):
            to.fs.rm_file((to / name).path)
    return old is not None


def _same(file: Path, there: Path, facts: dict) -> bool:
    """Whether an object has a file's content."""
    if facts["size"] != file.stat().st_size:
        return False
    if facts.get("ETag") and facts["ETag"].strip('"') == _etag(file):
        return True
    with file.open("rb") as ours, opened(there) as theirs:
        while block := ours.read(BLOCK):
            if theirs.read(len(block)) != block:
                return False
    return True


def _etag(file: Path) -> str:
    """The tag that an S3 store gives a file that s3fs sends: MD5, of several parts the MD5 of theirs and their number."""
    size = file.stat().st_size
    parts = []
    with file.open("rb") as opened_file:
        while part := opened_file.read(PART if size >= 2 * PART else 2 * PART):
            parts.append(hashlib.md5(part, usedforsecurity=False))
    if size < 2 * PART:
        return (parts or [hashlib.md5(usedforsecurity=False)])[0].hexdigest()
    whole = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}"


def _content(file: Path) -> bytes:
    with talking(file):
        return file.fs.cat_file(file.path)


class _Object(io.RawIOBase):
    """An object open for reading; when the connection fails, that is said, and is never taken for a damaged file."""

    def __init__(self, file: Path):
        self.name = str(file)
        with talking(file):
            self._file = file.fs.open(file.path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        with talking(self.name):
            return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def talking(there: Path | str, hope: str = "the same command goes on") -> Iterator[None]:
    """What a store or its library complains of as one line for the user; whatever else is raised is a bug."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_theirs(error):
            raise
        if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
            advice = (
                "check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...)"
            )
        elif isinstance(error, FileNotFoundError):
            advice = "check the name"
        else:
            advice = f"check the network (and AWS_ENDPOINT_URL, of a store that is not Amazon's); {hope}"
        raise UserError(f"{there}: {_said(error)}; {advice}") from None


def _is_theirs(error: Exception) -> bool:
    if isinstance(error, OSError | TimeoutError):
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return any(kind.__module__.partition(".")[0] in LIBRARIES for kind in type(error).__mro__)


def _said(error: Exception) -> str:
    """An error's text on one line, without what is secret in the environment."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text[:300]
