"""Model FLOPs utilisation: the arithmetic that training needs, over what the hardware could do in that time.

Counted (multiply and add are two): a trained model's matrices 6 for each parameter and token, forward and backward, the head's
only at positions that are predicted; attention 12 x layers x heads x head size for each pair of a token and one that it may look
at, so packed documents and causality are counted as they are. A frozen reference has no backward pass and counts a third.
Recomputed activations do not count. Looked-up embeddings cost nothing.
"""

import time
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from lib import models

# Dense bf16 matrix products, TFLOP/s, by the vendors' data sheets; the first name that is part of the device's counts.
TERAFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "MI300X": 1307,
    "RTX 4090": 165,  # with sums in fp32, by the whitepaper of its architecture (Ada)
}
# Accelerators by the name they are rented under: what the table above calls them, and memory in GB by the same data sheets. Drivers
# report 5 to 7 % more (GiB).
ACCELERATORS = {
    "A100-80": ("A100", 80),
    "A100-40": ("A100", 40),
    "H100": ("H100", 80),
    "H200": ("H200", 141),
    "L40S": ("L40S", 48),
    "4090": ("RTX 4090", 24),
}
# Of the measured product. Five rounds had been off by a factor of two when other programs computed too.
SIDE, ROUNDS = 1024, 20


class Shape(NamedTuple):
    """What a model's arithmetic depends on."""

    body: int  # parameters of the matrices between embedding and head
    head: int
    attention: int  # layers x heads x head size

    def forward(self, tokens: float, predicted: float, pairs: float) -> float:
        """FLOPs of a forward pass over tokens, of which some are predicted, with so many pairs that attention compares."""
        return 2 * self.body * tokens + 2 * self.head * predicted + 4 * self.attention * pairs


def shape(model: PreTrainedModel) -> Shape:
    """A decoder's shape; DeepSpeed's partitioned weights in full."""
    head, embedding = models.head_weight(model), model.get_input_embeddings().weight
    size = {id(p): getattr(p, "ds_numel", None) or p.numel() for p in model.parameters()}
    config = model.config
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        sum(size.values()) - sum(size[matrix] for matrix in {id(head), id(embedding)}),
        size[id(head)],
        config.num_hidden_layers * heads * head_size,
    )


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products on a device: by its name where the table has it (bf16), else measured, in 0.2 s or so."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, teraflops in TERAFLOPS.items():
            if known in name:
                return teraflops * 1e12
    matrix = torch.randn(SIDE, SIDE, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    return max(2 * SIDE**3 / _seconds(matrix) for _ in range(ROUNDS))


def _seconds(matrix: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if matrix.is_cuda else lambda: None
    wait()
    begun = time.perf_counter()
    torch.mm(matrix, matrix)
    wait()
    return time.perf_counter() - begun
