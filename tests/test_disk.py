"""Room for checkpoints."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_model import model as tiny_model

from lib import disk
from lib.errors import UserError


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=size))


@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_is_what_a_checkpoint_takes(tmp_path, tied):
    model = tiny_model(4000, tie_word_embeddings=tied)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert disk.checkpoint_bytes(model, deepspeed=False) == pytest.approx(disk.folder_bytes(tmp_path), rel=0.05)
    assert disk.model_bytes(model) == 4 * model.num_parameters()
    assert disk.checkpoint_bytes(model, deepspeed=True) == (2 * 4 + 12) * model.num_parameters()


def test_a_run_that_will_not_fit_is_refused_with_what_it_needs(tmp_path, monkeypatch):
    def check(keep, saves):
        disk.check_before_run(tmp_path, tmp_path / "checkpoints", 10**9, 10**8, keep, saves)

    free(monkeypatch, 3_000_000_000)
    with pytest.raises(
        UserError, match=r"3\.2 GB needed for 3 checkpoints of 1\.0 GB and the model of 100\.0 MB, 3\.0 GB free"
    ):
        check(keep=2, saves=10)
    check(keep=1, saves=10)
    check(keep=2, saves=2)  # fewer than are kept
    (tmp_path / "checkpoints").mkdir()
    with (tmp_path / "checkpoints" / "optimizer.pt").open("wb") as file:
        file.truncate(200_000_000)  # of an interrupted run, which goes on from it
    check(keep=2, saves=10)


def test_a_checkpoint_that_will_not_fit_is_refused(tmp_path, monkeypatch):
    free(monkeypatch, 1_010_000_000)
    with pytest.raises(UserError, match=r"1\.0 GB needed for the checkpoint of step 7, 1\.0 GB free: stopped before"):
        disk.check_before_checkpoint(tmp_path, 10**9, 7)
    disk.check_before_checkpoint(tmp_path, 9 * 10**8, 7)
