"""What a training stage will take: arithmetic, time, memory and disk, from its workload and the model's shape.

Arithmetic is lib/utilisation.py's (Chowdhery et al. 2022, PaLM, appendix B: 6 FLOPs a parameter and token, 12 a layer, head and
pair of positions); Hoffmann et al. 2022's 6 N D is its check. Utilisation is model FLOPs over the peak, recomputation not counted.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lib import disk, footprint, machine, models, packing, shapes, stage, utilisation
from lib.errors import UserError
from lib.footprint import Zero
from lib.workload import ANSWERS, Workload

CPU = "cpu"
ROOT, ZERO3 = Path(__file__).parents[2], "configs/deepspeed/zero3.json"
# Of a processor (True) and of a GPU. The first is what two runs of SmolLM2 reached on two cores; of eleven others eight took within 20 % of
# the time that this says (docs/LOG.md). Llama 3: Grattafiori et al. 2024, arXiv 2407.21783, table 4; PaLM: Chowdhery et al. 2022.
UTILISATION = {True: 0.55, False: 0.4}
UTILISED = {
    True: "SmolLM2's on two cores",
    False: "Llama 3 had 0.38 to 0.43 on H100, PaLM 0.46; the paper's hours imply 0.57, or 0.43 if no reference was asked",
}
# What a file system of many disks gives one writer. A guess.
WRITTEN_PER_SECOND = 1e9
LANGUAGES, CHARACTERS_PER_TOKEN = 2, 4.0  # of the held-out text; 4.03 and 4.07 in the demo (fertility.json)
CONTEXT = 2e9  # CUDA's context, cuBLAS's and NCCL's workspaces. A guess.
# Of what comes and goes in a step, what the allocator holds besides: on CPUs measured (docs/LOG.md), on GPUs a guess.
SLACK = {True: 0.20, False: 0.05}
# Text on disk: bytes of a token of Russian, left of them by zstd, stages that keep a copy (fetch, dedup, filter), and tokens
# that came in for one that is trained on: the paper's 17 and 11 billion.
TEXT_BYTES, COMPRESSED, COPIES, CAME_IN = 7.2, 0.35, 3, 17 / 11
TEXT = "UTF-8 of Russian, what the paper's filter was given for a token it kept, zstd, stages that keep a copy"


class Device(NamedTuple):
    """What trains: `peak` in FLOP/s and `memory` in bytes of each of `count`, `utilisation` of the peak."""

    name: str
    peak: float
    memory: float
    count: int
    utilisation: float

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.name == CPU


@dataclasses.dataclass(frozen=True)
class Training:
    """How a stage trains, as far as memory and time depend on it.

    Attributes:
        config: of the base model.
        rows: of the vocabulary trained.
        bf16: mixed precision.
        split: DeepSpeed's; None without it.
        checkpointing: activations are recomputed.
        chunk: positions at a time in the head.
        slerp: the head keeps two sets of gradients.
        reference: its kind (lib/reference.py); None without one.
        reference_bytes: a weight of it.
        offload: it waits in the CPU's memory.
    """

    config: PreTrainedConfig
    rows: int
    bf16: bool
    split: Zero | None
    checkpointing: bool
    chunk: int
    slerp: bool = False
    reference: str | None = None
    reference_bytes: int = 2
    offload: bool = False

    @property
    def reference_rows(self) -> int:
        """Of its vocabulary: the base's, or the new one."""
        return self.rows if self.reference == "init" else self.config.vocab_size

    def model(self) -> PreTrainedModel:
        """Without weights, of the type that training keeps them in."""
        dtype = torch.bfloat16 if self.split is not None and self.bf16 else torch.float32
        return shapes.without_weights(self.config, self.rows, dtype)

    def frozen(self) -> PreTrainedModel:
        """The reference without weights."""
        return shapes.without_weights(self.config, self.reference_rows)


def device(name: str, count: int, share: float | None) -> Device:
    """An accelerator by the name it is rented under, or this machine's processor, whose peak is measured now.

    Args:
        name: of lib/utilisation.py's ACCELERATORS; passed over where `count` is 0.
        count: how many; 0 is the processor.
        share: utilisation; UTILISATION's if None.
    """
    share = UTILISATION[count == 0] if share is None else share
    if not 0 < share <= 1:
        raise UserError(f"--utilisation={share}: a share of the peak, above 0 and at most 1")
    if count == 0:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Device(CPU, utilisation.peak(torch.device("cpu"), torch.float32), memory, 1, share)
    known, gigabytes = utilisation.ACCELERATORS[name]
    return Device(name, utilisation.TERAFLOPS[known] * 1e12, gigabytes * 1e9, count, share)


def training(settings: Mapping, config: PreTrainedConfig, rows: int, on: Device) -> Training:
    """A stage's Training from its resolved settings."""
    bf16 = settings["precision"] == "bf16" or (settings["precision"] == "auto" and not on.is_cpu)
    if not bf16 and not on.is_cpu:
        raise UserError("precision: fp32 on a GPU: only peaks of bf16 products are known here")
    kind = settings.get("reference", "none")
    auto = bf16 or machine.cpu_has_bf16()
    small = {"auto": auto, "bfloat16": True, "float32": False}[settings.get("reference_dtype", "auto")]
    return Training(
        config,
        rows,
        bf16,
        footprint.zero(settings["deepspeed"]) if settings["deepspeed"] else None,
        settings["gradient_checkpointing"],
        settings["head_chunk"],
        settings.get("combine") == "slerp",
        None if kind == "none" else kind,
        2 if small else 4,
        settings.get("reference_offload", False),
    )


def memory(run: Training, work: Workload, on: Device) -> dict[str, float]:
    """Bytes of one device by part, when a step holds most."""
    parts = footprint.states(
        run.model().num_parameters(),
        split=run.split,
        bf16=run.bf16,
        processes=work.processes,
        accumulation=work.accumulation,
    )
    hidden = run.config.hidden_size
    asked = run.reference is not None and work.asked > 0
    parts["reference"] = 0.0
    if asked:
        frozen = run.frozen()
        whole = models.head_weight(frozen).numel() if run.offload else frozen.num_parameters()
        parts["reference"] = float(run.reference_bytes * whole)
    parts["activations"] = footprint.activations(
        run.config,
        work.rows,
        work.length,
        bf16=run.bf16,
        checkpointing=run.checkpointing,
        documents=work.documents if on.is_cpu else None,
    )
    parts["head"] = footprint.head(
        work.positions,
        run.rows,
        hidden,
        chunk=run.chunk,
        bf16=run.bf16,
        split=run.split is not None,
        reference=run.reference_rows if asked and run.reference != "chunk" else 0,
        pieces=run.reference == "first_piece",
        slerp=run.slerp,
    )
    parts["allocator"] = SLACK[on.is_cpu] * (parts["gradients"] + parts["activations"] + parts["head"])
    # On a processor: this process, in which the libraries of training are loaded already.
    parts["runtime"] = stage.peak_memory_mb() * 1e6 if on.is_cpu else CONTEXT
    return parts


def flops(run: Training, work: Workload) -> float:
    """Of the whole stage, on all devices: forward and backward, and the reference's forward. Nothing recomputed is counted."""
    total = 3 * utilisation.shape(run.model()).forward(
        work.tokens, work.tokens * work.predicted, work.tokens * work.pairs
    )
    if run.reference is not None and work.asked:
        tokens = work.tokens * work.asked * work.reference_tokens
        asked = work.tokens * work.asked * work.predicted
        # Its documents are longer by as much.
        pairs = tokens * work.pairs * work.reference_tokens
        total += utilisation.shape(run.frozen()).forward(tokens, asked, pairs)
    return total


def seconds(run: Training, work: Workload, settings: Mapping, on: Device) -> dict[str, float]:
    """By what takes them: training, held-out evaluations, checkpoints."""
    rate = on.peak * on.utilisation
    shape = utilisation.shape(run.model())
    recomputed = 4 / 3 if run.checkpointing else 1.0
    evaluations = 2 + (work.steps - 1) // settings["eval_steps"]
    tokens = LANGUAGES * settings["eval_characters"] / CHARACTERS_PER_TOKEN
    saves = -(-work.steps // settings["save_steps"])
    written = saves * checkpoint_bytes(run) + disk.model_bytes(run.model())
    return {
        "training": flops(run, work) * recomputed / (rate * work.processes),
        "evaluations": evaluations * shape.forward(tokens, tokens, tokens * work.length / 2) / rate,
        "checkpoints": written / WRITTEN_PER_SECOND,
    }


def checkpoint_bytes(run: Training) -> int:
    """Of one with its optimiser states, all processes' parts together."""
    return disk.checkpoint_bytes(run.model(), deepspeed=run.split is not None)


def stage_figures(run: Training, work: Workload, settings: Mapping, on: Device) -> dict[str, object]:
    """All of a stage, for the table: FLOPs, seconds and bytes of memory by part."""
    spent = seconds(run, work, settings, on)
    parameters = run.model().num_parameters()
    return {
        "parameters": parameters,
        "tokens": work.tokens,
        "steps": work.steps,
        "flops": flops(run, work),
        "six_n_d": 6 * parameters * work.tokens,
        "seconds": spent,
        "device_hours": on.count * sum(spent.values()) / 3600,
        "memory": memory(run, work, on),
    }


def disk_figures(runs: Mapping[str, Training], work: Mapping[str, Workload], settings: Mapping) -> dict[str, float]:
    """Bytes on disk by what takes them, at the most: checkpoints go when a stage ends."""
    run, tokens = runs["cpt"], work["cpt"].tokens
    base = shapes.without_weights(run.config, run.config.vocab_size, run.config.dtype or torch.float32)
    init = shapes.without_weights(run.config, run.rows, getattr(torch, settings["init"]["dtype"]))

    def checkpoints(name: str) -> float:
        saves = -(-work[name].steps // settings[name]["save_steps"])
        return min(settings[name]["keep_checkpoints"] + 1, saves) * checkpoint_bytes(runs[name])

    return {
        "text": tokens * TEXT_BYTES * CAME_IN * COMPRESSED * COPIES,
        "packed rows": tokens * (packing.token_type(run.rows)().itemsize + packing.POSITION_TYPE().itemsize),
        "base": disk.model_bytes(base),
        "init": disk.model_bytes(init),
        "cpt and sft": sum(disk.model_bytes(each.model()) for each in runs.values()),
        "checkpoints": max(map(checkpoints, runs)),
    }


def assumptions(
    on: Device, made: Mapping[str, Path | None], work: Mapping[str, Workload], dialogues: int | None, each: float
) -> list[dict[str, object]]:
    """What the figures rest on that was not counted: name, value, reason."""
    found: list[tuple[str, object, str]] = [
        ("utilisation", on.utilisation, UTILISED[on.is_cpu]),
        ("allocator", SLACK[on.is_cpu], f"of what comes and goes in a step; {'measured' if on.is_cpu else 'a guess'}"),
        ("writing a checkpoint", f"{WRITTEN_PER_SECOND / 1e9:g} GB/s", "a guess"),
        ("characters a token", CHARACTERS_PER_TOKEN, "of held-out text; as in the demo"),
        ("text on disk", f"{TEXT_BYTES} bytes a token x {CAME_IN:.2f} x {COMPRESSED} x {COPIES}", TEXT),
    ]
    if on.is_cpu:
        why = "fp32 products of this machine, measured now: on a busy one, too little"
        found.append(("peak", f"{on.peak / 1e9:,.0f} GFLOP/s", why))
    else:
        found.append(("context", f"{CONTEXT / 1e9:g} GB", "CUDA, cuBLAS and NCCL; a guess"))
        size = f"{on.memory / 1e9:g} GB, {on.peak / 1e12:g} TFLOP/s"
        found.append(("memory and peak", size, "the data sheet's, bf16, dense"))
    if not made["pack"]:
        found.append(("documents", "a row each", "nothing is packed yet; shorter ones cost less attention"))
    if not (made["tokenizer"] and made["instruct"]):
        number = "full rows" if dialogues is None else f"{dialogues:,} of {each:g} tokens"
        found.append(("dialogues", number, f"no instruction set yet; {ANSWERS:g} of their tokens are answers, a guess"))
    if work["cpt"].asked and work["cpt"].reference_tokens != 1:
        why = "by fertility.json" if made["tokenizer"] else "SmolLM2's, Russian and English four to one"
        ratio = round(work["cpt"].reference_tokens, 2)
        found.append(("tokens of the reference", ratio, f"for one of the new model's; {why}"))
    return [dict(zip(("name", "value", "reason"), row, strict=True)) for row in found]


def cures(run: Training, work: Workload, on: Device) -> dict[str, float]:
    """What a run that does not fit could change, each change alone and then all together, and the bytes it would take then."""
    fewer = max(work.rows // 2, 1)
    passes = work.accumulation * work.rows // fewer
    ends = [place for place in work.documents if place <= fewer * work.length]
    smaller = dataclasses.replace(work, rows=fewer, accumulation=passes, documents=ends)
    changes: dict[str, dict[str, object]] = {}
    if not run.checkpointing:
        changes["gradient_checkpointing: true"] = {"checkpointing": True}
    if not on.is_cpu and (run.split is None or run.split.stage < 3):
        changes[f"deepspeed: {ZERO3}"] = {"split": footprint.zero(ROOT / ZERO3)}
    if not on.is_cpu and run.reference is not None and work.asked and not run.offload:
        changes["reference_offload: true"] = {"offload": True}
    tried = {name: (change, work) for name, change in changes.items()}
    if fewer < work.rows:
        tried[f"batch_size: {fewer}, accumulation: {passes}"] = {}, smaller
    if len(tried) > 1:
        tried["all of these"] = {name: value for change in changes.values() for name, value in change.items()}, smaller
    return {
        name: sum(memory(dataclasses.replace(run, **change), each, on).values())
        for name, (change, each) in tried.items()
    }
