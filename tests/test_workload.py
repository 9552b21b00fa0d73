"""How much there is to train on, by settings and by what is made."""

from pathlib import Path

import pytest
import torch
from tiny_model import model as tiny_model
from torch.utils.flop_counter import FlopCounterMode

from lib import forecast, shapes, utilisation, workload
from lib.errors import UserError
from lib.footprint import Zero

ROOT = Path(__file__).parents[1]
PAPER = sorted((ROOT / "configs" / "vikhr-7b").glob("*.yaml"))
NOTHING = {"tokenizer": None, "pack": None, "instruct": None}


def test_the_papers_steps():
    settings = {stage: workload.settings(stage, PAPER) for stage in ("pack", "cpt", "sft")}
    cpt = workload.of_cpt(settings["cpt"], settings["pack"], 8, "mistral-7b", NOTHING, None)
    rows = 11_000_000_000 // 1024
    assert (cpt.steps, cpt.tokens) == (-(-rows // (3 * 128 * 8)), rows * 1024)
    assert (cpt.asked, cpt.reference_tokens, cpt.predicted, cpt.pairs) == (1.0, 1.0, 1.0, 512.5)
    sft = workload.of_sft(settings["sft"], 8, NOTHING, 680_000, 400)
    # 265,625 rows are 11,068 passes of 24, these 173 steps of 64; three epochs.
    assert (sft.steps, sft.tokens) == (519, 680_000 * 400 * 3)
    assert sft.asked == 0


def test_settings_take_the_scripts_defaults():
    assert workload.settings("cpt", [])["batch_size"] == 3
    assert workload.settings("cpt", PAPER)["learning_rate"] == 1e-3
    assert workload.vocabulary_rows({"vocab_size": 1001}, {"pad_to_multiple": 64}, None) == 1024


def test_what_nothing_says_has_to_be_given():
    cpt, sft = (workload.settings(stage, []) for stage in ("cpt", "sft"))
    with pytest.raises(UserError, match="--train_tokens"):
        workload.of_cpt(cpt, workload.settings("pack", []), 1, "x", NOTHING, None)
    with pytest.raises(UserError, match="--dialogues"):
        workload.of_sft(sft, 1, NOTHING, None, 400)
    limited = workload.of_sft(sft | {"max_steps": 10}, 2, NOTHING, None, 400)
    assert (limited.steps, limited.tokens) == (10, 10 * 3 * 64 * 2 * 1024)


@pytest.mark.parametrize(("kl_on", "fraction", "share"), [("all", 1.0, 1.0), ("replay", 0.5, 0.1), ("all", 0.25, 0.25)])
def test_the_reference_is_asked_about_its_share(kl_on, fraction, share):
    cpt = workload.settings("cpt", []) | {"kl_on": kl_on, "kl_fraction": fraction, "replay_share": 0.2, "max_steps": 1}
    pack = workload.settings("pack", [])
    assert workload.of_cpt(cpt, pack, 1, "x", NOTHING, None).asked == pytest.approx(share)
    assert workload.of_cpt(cpt | {"kl_weight": 0.0}, pack, 1, "x", NOTHING, None).asked == 0
    other = workload.of_cpt(cpt | {"reference": "chunk"}, pack, 1, "x", NOTHING, None)
    assert other.reference_tokens == workload.OTHER_TOKENS


def test_packed_documents_are_counted():
    rows = [
        torch.tensor(row) for row in ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2])
    ]
    pairs, ends = workload._packed(rows, 2, 6)
    assert pairs == pytest.approx((21 + 13 + 21 + 21) / 24)
    # The first pass, whose documents of 6, 2 and 4 keep more scores than 6, 3 and 3.
    assert ends == [0, 6, 8, 12]
    assert workload._packed([], 2, 6) == (3.5, [0, 6, 12])


def work(**given):
    whole = {
        "length": 24, "rows": 1, "accumulation": 1, "processes": 1, "steps": 1, "tokens": 24.0, "predicted": 1.0, "pairs": 24.0,
        "asked": 0.0, "reference_tokens": 1.0, "documents": [0, 24],
    }  # fmt: skip
    return workload.Workload(**whole | given)


def run(config, **given):
    whole = {"config": config, "rows": 400, "bf16": False, "split": None, "checkpointing": False, "chunk": 512}
    return forecast.Training(**whole | given)


CPU = forecast.Device("cpu", 1e12, 16e9, 1, 0.5)


def test_arithmetic_is_what_torch_counts():
    model = tiny_model(400, attn_implementation="eager")
    ids = torch.arange(24)[None]
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    with FlopCounterMode(display=False) as frozen, torch.no_grad():
        model(input_ids=ids)
    alone = forecast.flops(run(model.config), work())
    assert alone == pytest.approx(counted.get_total_flops(), rel=0.03)
    held = forecast.flops(run(model.config, reference="init"), work(asked=1.0))
    assert held - alone == pytest.approx(frozen.get_total_flops(), rel=0.02)
    assert forecast.flops(run(model.config, reference="init"), work(asked=0.25)) - alone == pytest.approx(
        (held - alone) / 4
    )


def test_time_is_arithmetic_over_what_is_reached():
    model = tiny_model(400)
    settings = {"eval_steps": 4, "eval_characters": 480, "save_steps": 3}
    spent = forecast.seconds(run(model.config), work(steps=10), settings, CPU)
    assert spent["training"] == pytest.approx(forecast.flops(run(model.config), work()) / 0.5e12)
    # At the beginning, after 4 and 8 steps and at the end, 240 tokens each, half a row before each of them.
    assert spent["evaluations"] == pytest.approx(4 * utilisation.shape(model).forward(240, 240, 240 * 12) / 0.5e12)
    # Four checkpoints of weights and two moments, and the model.
    assert spent["checkpoints"] == pytest.approx((4 * 3 + 1) * 4 * model.num_parameters() / 1e9)
    again = forecast.seconds(run(model.config, checkpointing=True), work(steps=10), settings, CPU)
    assert again["training"] == pytest.approx(spent["training"] * 4 / 3)


def test_a_reference_that_waits_outside_leaves_its_head():
    model = tiny_model(400)
    gpu = forecast.Device("A100-80", 312e12, 80e9, 8, 0.4)
    split = Zero(2, 5e8, 2, 1e9)
    given = {"reference": "init", "bf16": True, "split": split}
    parts = forecast.memory(run(model.config, **given), work(asked=1.0), gpu)
    assert parts["reference"] == 2 * model.num_parameters()
    assert forecast.memory(run(model.config, offload=True, **given), work(asked=1.0), gpu)["reference"] == 2 * 400 * 32
    assert forecast.memory(run(model.config, **given), work(), gpu)["reference"] == 0
    assert parts["runtime"] == forecast.CONTEXT


def test_the_papers_profile_fits_where_the_paper_trained_it():
    settings = {stage: workload.settings(stage, PAPER) for stage in ("pack", "cpt")}
    config, _ = shapes.read(ROOT / "configs" / "sources" / "mistral-7b.yaml")
    gpu = forecast.device("A100-80", 8, None)
    cpt = workload.of_cpt(settings["cpt"], settings["pack"], 8, "mistral-7b", NOTHING, None)
    parts = forecast.memory(forecast.training(settings["cpt"], config, 40_000, gpu), cpt, gpu)
    # 2 bytes a weight of the model and of the reference, and 18 shared by eight.
    assert parts["weights"] == parts["reference"] == 2 * 7_307_268_096
    assert parts["gradients"] + parts["optimizer"] == 18 * 7_307_268_096 / 8
    assert 60e9 < sum(parts.values()) < gpu.memory
    hours = forecast.flops(forecast.training(settings["cpt"], config, 40_000, gpu), cpt) / gpu.peak / 3600
    assert hours / 1000 == pytest.approx(0.57, abs=0.01)  # of the peak, if 1,000 A100-hours (section 3.4) are for that


def test_a_utilisation_is_a_share():
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(UserError, match="--utilisation="):
            forecast.device("A100-80", 8, share)
    assert forecast.device("4090", 2, 0.3) == forecast.Device("4090", 165e12, 24e9, 2, 0.3)
