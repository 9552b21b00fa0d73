"""Room on the disk for a run's checkpoints, found out before they are written."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from lib.errors import UserError

MARGIN = 1.02  # tokenizers, states of random numbers, the log
MASTER_AND_MOMENTS = 12  # bytes a parameter of DeepSpeed's fp32 weights and AdamW's two moments


def model_bytes(model: PreTrainedModel) -> int:
    """A model's weights on disk; DeepSpeed's partitioned ones in full."""
    return sum(_numel(parameter) * parameter.element_size() for parameter in model.parameters())


def checkpoint_bytes(model: PreTrainedModel, deepspeed: bool) -> int:
    """A checkpoint of a model trained with AdamW: weights and two moments.

    DeepSpeed writes the weights twice, and beside them fp32 weights and moments; all processes' parts together are counted,
    so that they fit on one disk.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if deepspeed:
        return 2 * model_bytes(model) + MASTER_AND_MOMENTS * sum(map(_numel, trained))
    return model_bytes(model) + 2 * sum(_numel(parameter) * parameter.element_size() for parameter in trained)


def folder_bytes(folder: Path) -> int:
    """What lies in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_before_run(folder: Path, checkpoints: Path, checkpoint: int, model: int, keep: int, saves: int) -> None:
    """Refuse a run whose checkpoints will not fit.

    Args:
        folder: on the disk in question.
        checkpoints: where they go; what an interrupted run has left there is counted as room.
        checkpoint: bytes of one.
        model: bytes of the finished model, written beside the last ones.
        keep: how many are kept; while one more is written there is one more.
        saves: how many the whole run writes.

    Raises:
        UserError: there is too little room.
    """
    most = min(keep + 1, saves)
    needed = MARGIN * (most * checkpoint + model)
    free = _free(folder) + folder_bytes(checkpoints)
    if free < needed:
        raise UserError(
            f"{folder}: {_spelt(needed)} needed for {most} checkpoint{'s' * (most > 1)} of {_spelt(checkpoint)} and the model of "
            f"{_spelt(model)}, {_spelt(free)} free: make room, or lower keep_checkpoints ({keep})"
        )


def check_before_checkpoint(folder: Path, checkpoint: int, step: int) -> None:
    """Refuse a checkpoint that will not fit, before the disk is full.

    Raises:
        UserError: there is too little room.
    """
    needed, free = MARGIN * checkpoint, _free(folder)
    if free < needed:
        raise UserError(
            f"{folder}: {_spelt(needed)} needed for the checkpoint of step {step}, {_spelt(free)} free: stopped before the disk is "
            "full, with the checkpoints before it as they were; make room, the same command goes on from the last"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _numel(parameter: object) -> int:
    return getattr(parameter, "ds_numel", None) or parameter.numel()  # ZeRO-3 leaves an empty tensor


def _spelt(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
