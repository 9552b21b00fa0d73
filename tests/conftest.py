"""Fixtures: a subprocess runner for the scripts, and no network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "data" / "builtin" / "text"

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Only loopback may be reached from a test's own process."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def script():
    """Run a script of the project as a user would; returns the finished process (text output)."""

    def run(name, *flags, env=None, timeout=240):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, flags)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env={**os.environ, **(env or {})}
        )

    return run


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny model's; a test file that wants another one has a fixture of that name."""
    import tiny_model  # here, because it takes torch along

    return tiny_model.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    import tiny_model

    return tiny_model.model(len(tokenizer))
