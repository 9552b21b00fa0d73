"""bench_cpt and bench_sft: what they measure with, on cases worked out by hand, and both whole, on a tiny model."""

import json
import os

import pytest
import torch
from conftest import TEXT
from tiny_model import save as save_tiny

import bench_cpt
import bench_sft
from lib import models, training_peers
from lib.errors import UserError
from lib.losses import IGNORED

INSTRUCTIONS = TEXT.parent / "demo" / "instruct.jsonl"
FIGURES = {"tokens": 10, "seconds": 2, "cpu_seconds": 4, "tokens_per_second": 5.0, "tokens_per_cpu_second": 2.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture
def run(monkeypatch, capsys):
    """A benchmark's last line, its jobs run in this process: each of their own would import torch again."""
    monkeypatch.setattr(training_peers, "alone", lambda work, *arguments: work(*arguments))
    threads = torch.get_num_threads()

    def measured(main, **settings):
        main(rounds=1, steps=1, batch_size=2, threads=1, **settings)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    yield measured
    torch.set_num_threads(threads)


def test_documents_are_padded_and_their_first_tokens_are_no_targets():
    batch = training_peers.padded([[5, 6, 7], [8]], filler=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]


def test_the_plain_loss_is_equation_1_over_the_targets(model):
    trained, reference = models.load(model)[0], models.load(model)[0]
    models.head_weight(reference).data *= 1.5
    batch = training_peers.padded([[5, 6, 7], [8, 9]], filler=1)
    expected = []
    for ids in ([5, 6, 7], [8, 9]):
        p, q = (made(input_ids=torch.tensor([ids])).logits[0].softmax(-1) for made in (trained, reference))
        for place, target in enumerate(ids[1:]):
            expected.append(-p[place, target].log() + 0.5 * (p[place] * (p[place] / q[place]).log()).sum())
    found = training_peers.plain_loss(trained, reference, batch, kl_weight=0.5)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_the_first_step_is_not_counted():
    clock = training_peers.Clock()
    clock.ends = [(100.0, 50.0), (101.0, 53.0), (104.0, 54.0)]
    found = clock.figures(tokens=8)
    assert (found["seconds"], found["cpu_seconds"]) == (4.0, 4.0)
    assert (found["tokens_per_second"], found["tokens_per_cpu_second"]) == (2.0, 2.0)


def test_a_ratio_above_1_means_that_ours_is_better(capsys):
    slow = FIGURES | {"tokens_per_second": 4.0, "tokens_per_cpu_second": 5.0, "peak_mb": 300.0}
    runs = [FIGURES | {"peak_mb": peak} for peak in (100.0, 900.0, 200.0)]
    medians = training_peers.table({"ours": runs, "peer": [slow]})
    assert medians["ours"]["peak_mb"] == 200
    found = training_peers.ratios(medians, {"peer": "ours"})
    assert found == {"ratios": {"peer": 1.25}, "cpu_ratios": {"peer": 0.5}, "memory_ratio": {"peer": 1.5}}
    assert capsys.readouterr().out.splitlines()[2].split() == ["peer", "4.0", "5.0", "300"]


def test_padding_is_counted_over_all_passes():
    assert bench_cpt._padding([[0] * 4, [0] * 2, [0] * 6], per_pass=2) == pytest.approx(1 - 12 / 14, abs=1e-4)


def test_a_job_has_a_process_of_its_own():
    assert training_peers.alone(os.getpid) != os.getpid()


def test_bench_cpt_runs_and_both_sides_have_the_same_loss(model, run):
    head = {"positions": 128, "vocabulary": 500, "hidden": 16}
    found = run(bench_cpt.main, model=model, documents=TEXT / "ru.jsonl", sequence_length=64, **head)
    assert found["bench"] == "cpt"
    for name in ("ratios", "cpu_ratios", "memory_ratio"):
        assert set(found[name]) == {bench_cpt.PLAIN, bench_cpt.PLAIN_HEAD}
        assert min(found[name].values()) > 0
    assert set(found["ours"]) == {bench_cpt.OURS, bench_cpt.HALF, bench_cpt.OUR_HEAD}
    assert found["ours"]["ours"]["tokens"] == 2 * 64
    checks = found["checks"]
    assert checks["loss_ours"] > 5
    assert checks["loss_difference"] < 1e-4
    assert checks["gradient_difference"] < 1e-4
    assert checks["head_loss_difference"] < 1e-4


def test_too_little_text_is_an_error(model, run):
    with pytest.raises(UserError, match="too few texts for 2 steps"):
        run(bench_cpt.main, model=model, documents=TEXT / "ru.jsonl", sequence_length=10**6)


def test_bench_sft_runs_and_both_sides_have_the_same_loss(model, run):
    pytest.importorskip("trl")
    found = run(bench_sft.main, model=model, instructions=[INSTRUCTIONS], sequence_length=512)
    assert found["bench"] == "sft"
    peers = {f"TRL, {how}" for how in (bench_sft.WHOLE, bench_sft.BY_ROW)}
    assert set(found["ratios"]) == set(found["memory_ratio"]) == peers
    # Both read as much: rows are full but for a few per cent.
    tokens = {job: figures["tokens"] for job, figures in (found["ours"] | found["peers"]).items()}
    assert max(tokens.values()) < 1.2 * min(tokens.values())
    checks = found["checks"]
    assert checks["loss_difference"] < 1e-4
    # By itself TRL counts the line's end after an answer, too.
    assert checks["answer_tokens_trl_by_itself"] == checks["answer_tokens_ours"] + checks["dialogues_of_one_turn"] > 0


def test_a_missing_trl_is_an_error(model, run, monkeypatch):
    monkeypatch.setattr(training_peers, "installed", lambda package: package != "trl")
    with pytest.raises(UserError, match="trl is not installed; `make bench-sft`"):
        run(bench_sft.main, model=model, instructions=[INSTRUCTIONS])
