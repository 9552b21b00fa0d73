"""What a training run runs on: attention, precision, processes and Trainer's arguments for them.

Processes are torchrun's (scripts/launch.py), one a GPU (on CPUs over gloo); RANK and WORLD_SIZE tell them apart, on one
machine and on several. Their folders are on a file system that all of them share: the process of rank 0 writes what there is one of.
"""

import contextlib
import ctypes
import datetime
import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import TrainingArguments

from lib import attention as by_document
from lib import processor
from lib.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]
Attention = Literal["auto", "sdpa", "flash_attention_2"]
# Of mallopt: blocks from this size on go back to the system when they are freed, and so does that much at the heap's end. In bytes.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = (-3, 1 << 30), (-1, (1 << 31) - 1)
# How long a process waits for the others before it counts them as lost. Longest it waits while the first one writes a checkpoint's
# weights: a 7B model's 28 GB in fp32 are there in 5 minutes at 100 MB/s, a slow shared disk. Also what torch itself gives NCCL.
TIMEOUT_SECONDS = 600
# What a launcher would say to one process alone; torch finds a free port for 0.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def on_cuda() -> bool:
    """Whether this run trains on an NVIDIA GPU."""
    return torch.cuda.is_available()


def choose_attention(attention: Attention) -> str:
    """'auto' is flash attention where it is installed and there is a GPU, on a GPU without it torch's own, and on CPUs that one
    document by document.

    Raises:
        UserError: flash attention is asked for and missing.
    """
    installed = _is_installed("flash_attn")
    if attention == "auto" and not on_cuda():
        return by_document.NAME
    if attention == "auto":
        return "flash_attention_2" if installed else "sdpa"
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
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> TrainingArguments:
    """Trainer's arguments from a script's settings; checkpoints go to `folder`/checkpoints.

    With DeepSpeed it has to be called before the trained model is loaded, and after the frozen one: ZeRO-3 splits over the
    processes whatever is loaded from then on, and a frozen model has to be whole on each.

    Raises:
        UserError: DeepSpeed is asked for and missing, or its settings are.
    """
    several = count_processes() > 1
    if deepspeed is not None:
        _start_deepspeed(deepspeed, timeout_seconds)
    elif several and not on_cuda():
        # Here, because TrainingArguments pass no timeout on where there are only CPUs.
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout_seconds))
    if not on_cuda():
        keep_freed_memory()
    made = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        learning_rate=learning_rate,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps or -1,
        bf16=trains_in_bf16(precision),
        activation_checkpointing=gradient_checkpointing,
        deepspeed=str(deepspeed) if deepspeed else None,
        save_steps=save_steps,
        logging_steps=log_steps,
        save_total_limit=keep_checkpoints,
        seed=seed,
        data_seed=seed,
        use_cpu=not on_cuda(),
        ddp_backend="gloo" if several and not on_cuda() else None,
        ddp_timeout=timeout_seconds,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    # Without a launcher Trainer would put several visible GPUs to use by DataParallel, whose copies of a model know nothing of a
    # patched forward (lib/objective.py).
    made._n_gpu = min(made.n_gpu, 1)
    return made


def optimiser_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Those of a script's settings that `arguments` takes."""
    return {name: value for name, value in settings.items() if name in inspect.signature(arguments).parameters}


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tensors: the system's zeroing of new pages is a ninth of a step on a CPU."""
    with contextlib.suppress(AttributeError, OSError):  # another library than glibc
        library = ctypes.CDLL(None)
        for parameter, size in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(parameter, size)


def return_freed_memory() -> None:
    """Have the C library give the pages of freed blocks back: what `keep_freed_memory` keeps falls to pieces that fit no later tensor.

    A run's peak otherwise grows by some 200 MB a step for as long as it lasts (docs/LOG.md). Best called where a step holds most, so
    that what is given back is what it can't use.
    """
    if not on_cuda():
        with contextlib.suppress(AttributeError, OSError):  # another library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def count_processes() -> int:
    """How many GPUs, or processes on CPUs, share a step, on all machines together; known before `arguments`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def trains_in_bf16(precision: Precision) -> bool:
    """Whether training is in mixed precision; 'auto' is on a GPU that has bf16."""
    return precision == "bf16" or (precision == "auto" and on_cuda() and torch.cuda.is_bf16_supported())


def cpu_has_bf16() -> bool:
    """Whether this run is on a CPU with instructions for bf16 products: a frozen model's forward pass takes half the time there.

    Training's takes four fifths, and learns less at first (docs/LOG.md), so it stays in fp32.
    """
    return not on_cuda() and processor.has_bf16()


def device() -> torch.device:
    """Where this process trains, for what is loaded before `arguments`."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda() else torch.device("cpu")


def finish_distributed() -> None:
    """End a process of several cleanly: gloo ranks sometimes abort at exit after all the work is done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # os._exit does not
        os._exit(0)


def _start_deepspeed(settings: Path, timeout_seconds: int = TIMEOUT_SECONDS) -> None:
    """Ready DeepSpeed for TrainingArguments, without a launcher as one process alone (DeepSpeed would ask MPI)."""
    if not settings.is_file():
        raise UserError(f"deepspeed: {settings}: no such file")
    if not _is_installed("deepspeed"):
        raise UserError(
            "deepspeed: asked for, but the package is not installed; the GPU image has it, or "
            "pip install -r requirements/deepspeed.txt"
        )
    if "RANK" not in os.environ:
        os.environ.update(ALONE)
    # accelerate warns that DeepSpeed accumulates, not itself; torch, of DeepSpeed's older names for its functions.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if on_cuda():
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    # Its reductions by shared memory, for inference, would be compiled first: a minute, and only where there is a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Here, because TrainingArguments make a process group that DeepSpeed knows nothing of if there are only CPUs.
    deepspeed.init_distributed(dist_backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
