"""What training a model takes of a device's memory, by part, before there is a device.

Weights, gradients and optimiser states: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, section 3.1 and 5), with the bytes a
parameter that DeepSpeed 0.19.8 counts (`estimate_zero2_model_states_mem_needs` and its sibling of stage 3). Activations are what
autograd keeps of a forward pass: Korthikanti et al. 2022 (arXiv 2205.05198, section 4) add that up layer by layer for GPT; here
the model's own layers run on tensors without data and what they keep is counted, so that it holds for any architecture and
for what transformers really does. For Mistral in bf16 that is 16 h + 2 (2 q + 2 kv) + 8 i bytes a token and layer (hidden, query,
key and feed-forward widths; tests/test_footprint.py), where their 34 h is GPT's. The head is lib/losses.py's.

All of it is of the moment when a step holds most: the end of the forward pass, in the head. Sizes are in bytes.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedConfig

from lib import attention as by_document

FUSED = "fused_as_counted"
# DeepSpeed's defaults (deepspeed/runtime/zero/config.py), in elements.
REDUCE_BUCKET, LIVE_PARAMETERS = 5e8, 1e9


class Zero(NamedTuple):
    """What a DeepSpeed file says of memory: the stage, and elements of its buffers."""

    stage: int
    bucket: float
    buckets: int
    live: float


def zero(path: Path) -> Zero:
    """A DeepSpeed JSON file's, with DeepSpeed's defaults."""
    told = json.loads(path.read_text(encoding="utf-8")).get("zero_optimization", {})

    def number(name: str, default: float) -> float:
        return default if told.get(name, "auto") == "auto" else float(told[name])

    return Zero(
        told.get("stage", 0),
        number("reduce_bucket_size", REDUCE_BUCKET),
        2 if told.get("overlap_comm") else 1,
        number("stage3_max_live_parameters", LIVE_PARAMETERS),
    )


def states(
    parameters: int, *, split: Zero | None, bf16: bool, processes: int = 1, accumulation: int = 1
) -> dict[str, float]:
    """Weights, gradients, optimiser states and communication buffers of one process.

    Without DeepSpeed all are fp32, and a step of one pass has no gradients yet where it holds most; in mixed precision autocast
    keeps a bf16 copy of every matrix besides. With it, weights are bf16 and fp32 ones count as the optimiser's.

    Args:
        parameters: trained.
        split: how DeepSpeed splits them over the processes; None without it.
        bf16: mixed precision.
        processes: that take part.
        accumulation: passes a step.
    """
    if split is None:
        return {
            "weights": (6 if bf16 else 4) * parameters,
            "gradients": 4 * parameters if accumulation > 1 else 0,
            "optimizer": 8 * parameters,
            # DDP's buckets, which gradients are copied to: torch's DistributedDataParallel, gradient_as_bucket_view.
            "buffers": 4 * parameters if processes > 1 else 0,
        }
    width = 2 if bf16 else 4
    whole = parameters if split.stage < 3 else parameters / processes
    # bf16 gradients and their fp32 sum (grad_accum_dtype); of one kind where all is fp32.
    gradients = (width + 4 if bf16 else width) * (parameters / processes if split.stage >= 2 else parameters)
    if split.stage >= 3 and bf16:
        gradients -= width * parameters / processes  # DeepSpeed counts the sum alone
    buffers = split.buckets * min(split.bucket, parameters) * width
    if split.stage >= 3:
        buffers += min(split.live, parameters) * width
    return {
        "weights": width * whole,
        "gradients": gradients,
        "optimizer": (12 if bf16 else 8) * (parameters / processes if split.stage >= 1 else parameters),
        "buffers": buffers,
    }


def activations(
    config: PreTrainedConfig,
    rows: int,
    length: int,
    *,
    bf16: bool,
    checkpointing: bool = False,
    documents: Sequence[int] | None = None,
) -> float:
    """What a forward pass keeps for the backward pass, without the head.

    Args:
        config: the model's; its vocabulary does not matter.
        rows: of a pass.
        length: tokens a row.
        bf16: in bf16 throughout (DeepSpeed's, and autocast's but for some sums).
        checkpointing: layers are recomputed: their inputs are kept, and what one of them keeps.
        documents: where documents end in the rows laid end to end (attention of lib/attention.py); None for flash attention, which
            keeps queries, keys, values, its output and a number a head and token (Dao 2022, arXiv 2205.14135).
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    config = copy.deepcopy(config)
    config.vocab_size, config.pad_token_id = 64, None
    ends = None if documents is None else np.asarray(documents)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=FUSED if ends is None else by_document.NAME,
            trust_remote_code=False,
        )
        model.train()
        body = model.get_decoder()
        ids = torch.zeros(rows, length, dtype=torch.long)
        given = {} if ends is None else {"cu_seq_lens_q": ends}
        kept = _kept(model, lambda: body(input_ids=ids, use_cache=False, **given))
    if not checkpointing:
        return kept
    layers = config.num_hidden_layers
    return layers * rows * length * config.hidden_size * dtype.itemsize + kept / layers


def head(
    positions: int,
    rows: int,
    hidden: int,
    *,
    chunk: int,
    bf16: bool,
    split: bool,
    reference: int = 0,
    pieces: bool = False,
    slerp: bool = False,
) -> float:
    """What lib/losses.py takes for the head at its peak, its gradients and the hidden states it was given included.

    Args:
        positions: predicted in a pass.
        rows: of the vocabulary.
        hidden: width.
        chunk: positions at a time.
        bf16: hidden states are bf16, and matrix products.
        split: weights are bf16 themselves (DeepSpeed); else fp32, and copied where products are in bf16.
        reference: rows of its vocabulary, where it is asked for distributions.
        pieces: it has another vocabulary.
        slerp: two sets of gradients.
    """
    width, chunk = 2 if bf16 else 4, min(chunk, positions)
    # The hidden states, those at counted positions, their gradient; the head's gradient.
    total = 3.0 * positions * hidden * width + 4 * rows * hidden
    if slerp:
        total += positions * hidden * width + 4 * rows * hidden + 4 * chunk * rows
    total += 2 * 4 * chunk * rows  # logits and probabilities
    if bf16 and not split:
        total += 2 * rows * hidden  # the head's copy
    # Their gradient and its product with the hidden states, before these are added up in fp32.
    by_weight = 2 * chunk * rows + 2 * rows * hidden if bf16 else 0
    of_reference = 0
    if reference:
        total += positions * hidden * width
        # log R and log Q / R. Pushed forward, with Q and P at its positions (all, at the most), and the slope spread over our own rows.
        of_reference = 4 * chunk * (max(3 * reference + rows, 2 * reference + 2 * rows) if pieces else 2 * reference)
    return total + max(by_weight, of_reference)


def _kept(model: torch.nn.Module, forward: Callable[[], object]) -> float:
    """Bytes of storage that autograd keeps of a forward pass, the model's own weights aside."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # noqa: F841 (holds the graph)
    return float(sum(storage.nbytes() for address, storage in storages.items() if address not in own))


def _flash(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    """Torch's CPU kernel keeps what flash attention keeps."""
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(FUSED, _flash)
AttentionMaskInterface.register(FUSED, lambda *_, **__: None)
