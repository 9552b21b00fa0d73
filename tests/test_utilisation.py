"""FLOPs counted by formula against those that torch counts, and the peak."""

import pytest
import torch
from tiny_model import model as tiny_model
from torch.utils.flop_counter import FlopCounterMode

from lib import utilisation


@pytest.mark.parametrize("tied", [False, True])
def test_the_formula_is_what_torch_counts(tied):
    model = tiny_model(400, tie_word_embeddings=tied, attn_implementation="eager")
    shape, length = utilisation.shape(model), 24
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids, labels=ids).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # Eager attention compares all pairs, the mask comes after.
    ours = shape.forward(length, length, length * length)
    assert forward.get_total_flops() == pytest.approx(ours, rel=0.02)
    assert backward.get_total_flops() == pytest.approx(2 * ours, rel=0.03)
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    assert shape.body + shape.head == model.num_parameters() - (0 if tied else 400 * 32)
    assert vectors < 0.01 * shape.body


def test_a_partitioned_weight_counts_in_full():
    model = tiny_model(400)
    whole = utilisation.shape(model)
    for parameter in model.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.data = torch.empty(0)
    assert utilisation.shape(model) == whole


def test_peaks_by_name_and_by_measuring(monkeypatch):
    measured = utilisation.peak(torch.device("cpu"), torch.float32)
    assert 1e9 < measured < 1e14
    for name, teraflops in {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H20": 148,
        "NVIDIA L40S": 362, "NVIDIA L4": 121,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert utilisation.peak(torch.device("cuda"), torch.bfloat16) == teraflops * 1e12
