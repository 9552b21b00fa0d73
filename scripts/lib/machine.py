"""What a training run runs on: attention, precision, processes and Trainer's arguments for them."""

import importlib.util
import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import TrainingArguments

from lib.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
Attention = Literal["auto", "sdpa", "flash_attention_2"]


def on_cuda() -> bool:
    """Whether this run trains on an NVIDIA GPU."""
    return torch.cuda.is_available()


def choose_attention(attention: Attention) -> str:
    """'auto' is flash attention where it is installed and there is a GPU, else torch's own.

    Raises:
        UserError: flash attention is asked for and missing.
    """
    installed = _is_installed("flash_attn")
    if attention == "auto":
        return "flash_attention_2" if on_cuda() and installed else "sdpa"
    if attention == "flash_attention_2" and not (on_cuda() and installed):
        missing = "no GPU is visible" if installed else "the package flash-attn is not installed"
        raise UserError(f"attention: flash_attention_2 is asked for, but {missing}; say attention: sdpa")
    return attention


def arguments(
    folder: Path,
    *,
    learning_rate: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    weight_decay: float,
    warmup_steps: int,
    schedule: Schedule,
    max_grad_norm: float,
    batch_size: int,
    accumulation: int,
    epochs: float,
    max_steps: int | None,
    precision: Precision,
    gradient_checkpointing: bool,
    deepspeed: Path | None,
    save_steps: int,
    log_steps: int,
    keep_checkpoints: int,
    seed: int,
) -> TrainingArguments:
    """Trainer's arguments from a script's settings; checkpoints go to `folder`/checkpoints.

    With DeepSpeed it has to be called before the trained model is loaded, and after the frozen one.
    """
    bf16 = precision == "bf16" or (precision == "auto" and on_cuda() and torch.cuda.is_bf16_supported())
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun's
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        learning_rate=learning_rate,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        max_grad_norm=max_grad_norm,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps or -1,
        bf16=bf16,
        activation_checkpointing=gradient_checkpointing,
        deepspeed=str(deepspeed) if deepspeed else None,
        save_steps=save_steps,
        logging_steps=log_steps,
        save_total_limit=keep_checkpoints,
        seed=seed,
        data_seed=seed,
        use_cpu=not on_cuda(),
        ddp_backend="gloo" if several and not on_cuda() else None,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def optimiser_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Those of a script's settings that `arguments` takes."""
    return {name: value for name, value in settings.items() if name in inspect.signature(arguments).parameters}


def count_steps(rows: int, batch_size: int, accumulation: int, epochs: float, max_steps: int | None) -> int:
    """The optimiser steps of a run of these settings, as Trainer counts them."""
    processes = int(os.environ.get("WORLD_SIZE") or torch.cuda.device_count() or 1)  # without torchrun: DataParallel
    return max_steps or math.ceil(epochs * math.ceil(rows / (batch_size * accumulation * processes)))


def finish_distributed() -> None:
    """End a process of several cleanly: gloo ranks sometimes abort at exit after all the work is done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        os._exit(0)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
