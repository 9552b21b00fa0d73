"""Measure continued pre-training beside a plain transformers Trainer, and the chunked head beside the plain formula.

    python scripts/bench_cpt.py --model=checkpoints/demo/init --documents=data/demo/filter/documents

Reads:  a model (also the frozen reference), documents.
Prints: a table, and as the last line one JSON object (ratios above 1 mean that ours is better). Writes nothing.

On both sides the loss is CE + KL to the frozen model, and the documents are the same, each cut to the sequence length: ours
packs them; the Trainer pads them, one a row, as many a pass as hold the same number of tokens on average. The head is timed by
itself, forward and backward. Every job runs in a process of its own, in turn over the rounds, with the same threads and in
fp32; the first step warms up and is not counted; figures are medians.
"""

import inspect
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch

import cpt
from lib import cli, documents, losses, machine, models, packing, training_peers
from lib.errors import UserError
from lib.losses import IGNORED

OURS, HALF, PLAIN = "ours", "ours, reference in bf16", "Trainer, padded"
OUR_HEAD, PLAIN_HEAD = "our head", "plain head"
WARM_UP = 64  # positions of the head
HEAD_STEPS = 2
CHECKED = 4  # documents
CHECKED_TOKENS = 128  # of each, at most


def main(
    *,
    model: Path,
    documents: Path,
    language: str = "ru",
    sequence_length: int = 1024,
    batch_size: int = 2,
    steps: int = 2,
    kl_weight: float = 1.0,
    positions: int = 4096,
    vocabulary: int = 40_000,
    hidden: int = 576,
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Time both sides, round by round.

    Args:
        model: folder of the model.
        documents: file or folder of texts.
        language: of documents that name none; those of other languages are left out.
        sequence_length: tokens a row.
        batch_size: rows a step.
        steps: timed in each round.
        kl_weight: lambda.
        positions: of the head by itself.
        vocabulary: its rows.
        hidden: its width.
        rounds: of every job.
        threads: of torch; all cores if not given.
        seed: of the choice of documents.
    """
    threads = threads or os.cpu_count()
    length, passes = sequence_length, steps + 1
    everything = _encoded(documents, language, model, length, seed)
    per_pass = max(1, round(batch_size * length * len(everything) / sum(map(len, everything))))
    chosen = everything[: per_pass * (passes + 1)]
    rows = [_item(row) for row in packing.fill_rows(chosen, length)]
    if len(chosen) < per_pass * (passes + 1) or len(rows) < batch_size * passes:
        raise UserError(f"{documents}: too few texts for {passes} steps; lower --batch_size or --sequence_length")
    settings = {name: parameter.default for name, parameter in inspect.signature(cpt.main).parameters.items()} | {
        "batch_size": batch_size,
        "accumulation": 1,
        "max_steps": passes,
        "log_steps": 1,
        "kl_weight": kl_weight,
        "precision": "fp32",
    }
    padded = settings | {"batch_size": per_pass}
    head = positions, vocabulary, hidden, threads
    measured = training_peers.in_turn(
        {
            OURS: (training_peers.ours, model, rows, settings, torch.float32, threads),
            HALF: (training_peers.ours, model, rows, settings, torch.bfloat16, threads),
            PLAIN: (training_peers.plain_trainer, model, chosen[: per_pass * passes], padded, threads),
        },
        rounds,
    )
    measured |= training_peers.in_turn(
        {OUR_HEAD: (timed_head, losses.head_loss, *head), PLAIN_HEAD: (timed_head, losses.plain_head_loss, *head)},
        rounds,
    )
    checks = training_peers.alone(compared, model, chosen[:CHECKED], kl_weight, settings["head_chunk"], threads)
    checks |= {"padding_of_all_documents": _padding(everything, per_pass), "threads": threads}
    print(json.dumps(_summary(measured, checks), ensure_ascii=False))


def timed_head(loss: Callable, positions: int, vocabulary: int, hidden: int, threads: int) -> training_peers.Figures:
    """Time and peak memory of a head's mean CE + KL, forward and backward, in fp32 on random states and weights."""
    torch.set_num_threads(threads)
    generator = torch.manual_seed(0)
    states, ref_states = torch.randn(2, positions, hidden, generator=generator)
    weight, ref_weight = torch.randn(2, vocabulary, hidden, generator=generator) * hidden**-0.5
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    learned = states.requires_grad_(), weight.requires_grad_()

    def step(count: int) -> float:
        for leaf in learned:
            leaf.grad = None
        reference = losses.Distribution(ref_states[:count], ref_weight)
        each = {"ce_weight": 1 / count, "kl_weight": 1 / count}
        total = loss(states[:count], weight, targets[:count], reference=reference, **each).loss
        total.backward()
        return total.item()

    step(WARM_UP)
    loaded, begun = training_peers.peak_mb(), (time.perf_counter(), time.process_time())
    for _ in range(HEAD_STEPS):
        value = step(positions)
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return {
        **training_peers.speed(positions * HEAD_STEPS, wall, cpu),
        "seconds_per_step": wall / HEAD_STEPS,
        "added_mb": training_peers.peak_mb() - loaded,
        "loss": value,
    }


def compared(model: Path, texts: list[list[int]], kl_weight: float, chunk: int, threads: int) -> dict[str, float]:
    """The loss of the same documents, packed in one row for ours and padded for the Trainer, with the gradient's norm.

    So that the KL is not 0, the reference is the model with noise on its head.
    """
    torch.set_num_threads(threads)
    texts = [text[:CHECKED_TOKENS] for text in texts]
    trained, tokenizer = models.load(model, attention=machine.choose_attention("auto"))
    frozen = training_peers.frozen_reference(model)
    with torch.no_grad():
        weight = models.head_weight(frozen.model)
        weight += torch.randn(weight.shape, generator=torch.manual_seed(0)) * weight.std() * 0.1
    batch = training_peers.padded(texts, tokenizer.eos_token_id)
    plain = training_peers.plain_loss(trained, frozen.model, batch, kl_weight)
    plain.backward()
    grads = {name: parameter.grad for name, parameter in trained.named_parameters()}
    trained.zero_grad()
    training_peers.attach(trained, tokenizer, frozen, {"kl_weight": kl_weight, "head_chunk": chunk})
    (row,) = packing.fill_rows(texts, sum(map(len, texts)))
    items = [_item(row)]
    ours = trained(**packing.collate(items, flatten=False), **frozen.inputs(items)).loss
    ours.backward()
    apart = sum((grads[name] - parameter.grad).square().sum() for name, parameter in trained.named_parameters())
    norm = sum(grad.square().sum() for grad in grads.values())
    return {
        "loss_ours": ours.item(),
        "loss_trainer": plain.item(),
        "loss_difference": abs(ours.item() - plain.item()),
        "gradient_difference": (apart / norm).sqrt().item(),
    }


def _encoded(path: Path, language: str, model: Path, length: int, seed: int) -> list[list[int]]:
    """All documents in random order, each cut to `length` tokens."""
    tokenizer = models.load_tokenizer(model)
    texts = [read["text"] for read in documents.read(path, language=language) if read["language"] == language]
    random.Random(seed).shuffle(texts)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [ids[:length] for ids in packing.encode_documents(texts, tokenizer, start, end)]


def _item(row: packing.Row) -> dict[str, torch.Tensor]:
    tokens, positions = torch.from_numpy(row.tokens), torch.from_numpy(row.positions)
    return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, IGNORED)}


def _padding(texts: list[list[int]], per_pass: int) -> float:
    """The share of padding over all passes, not only those that are timed."""
    sizes = list(map(len, texts))
    passes = [sizes[begin : begin + per_pass] for begin in range(0, len(sizes), per_pass)]
    return round(1 - sum(sizes) / sum(len(part) * max(part) for part in passes), 4)


def _summary(measured: dict[str, list[training_peers.Figures]], checks: dict[str, object]) -> dict[str, object]:
    """A table on screen, and the figures."""
    medians = training_peers.table(measured)
    beside = {PLAIN: OURS, PLAIN_HEAD: OUR_HEAD}
    mine, plain = medians[OUR_HEAD], medians[PLAIN_HEAD]
    half = training_peers.ratios(medians, {PLAIN: HALF})
    checks["head_loss_difference"] = abs(mine["loss"] - plain["loss"])
    return {
        "bench": "cpt",
        **training_peers.ratios(medians, beside),
        "reference_in_bf16": half,
        "ours": {job: figures for job, figures in medians.items() if job not in beside},
        "peers": {job: medians[job] for job in beside},
        "checks": checks,
        "tokens_per_second": training_peers.spread(measured, "tokens_per_second"),
    }


if __name__ == "__main__":
    cli.run(main)
