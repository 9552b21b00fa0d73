"""What this machine's processor is and can do, and who makes use of it. Light to import."""

import functools
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def flags() -> frozenset[str]:
    """Linux's names for its extensions (avx512f, avx512_bf16, amx_bf16, ...); none where there is no /proc/cpuinfo.

    Not by torch.cpu.get_capabilities, which older versions of torch than base.txt's may lack (the GPU image has one).
    """
    return frozenset(_told("flags").split())


def name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    return _told("model name") or platform.machine()


def _told(key: str) -> str:
    """What /proc/cpuinfo says of the first processor; nothing where it is silent or not there."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def has_bf16() -> bool:
    """Whether it multiplies in bf16."""
    return bool(flags() & {"avx512_bf16", "amx_bf16"})


def multiply_by_onednn() -> None:
    """Have torch ask oneDNN, not MKL, for products of fp32 matrices on a CPU, where oneDNN makes them in fp32 too.

    MKL leaves AVX-512 aside on processors other than Intel's, where oneDNN is twice as fast (docs/LOG.md). Torch asks it at
    precision 'medium' only, which permits products of bf16; oneDNN makes them where there is AMX, so not there.
    """
    import torch

    if "avx512f" in flags() and "amx_bf16" not in flags() and not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")
