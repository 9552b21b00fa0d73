"""Records of a run and what is made of them."""

import math
import xml.etree.ElementTree as ET

import pytest

from lib import journal, plots, trackers
from lib.errors import UserError
from lib.training import SUMS


def test_an_intervals_figures_by_hand():
    sums = dict.fromkeys(SUMS, 0.0) | {
        "ce_target": 60.0, "positions_target": 20.0, "bytes_target": 80.0, "ce_replay": 20.0, "positions_replay": 20.0,
        "bytes_replay": 100.0, "kl": 3.0, "kl_positions": 30.0, "loss": 5.0, "steps": 2.0, "tokens": 50.0, "flops": 7.0,
    }  # fmt: skip
    found = journal.interval(sums, ("ru", "en"), seconds=10)
    assert found == {
        "loss": 2.5, "ce": 2.0, "kl": 0.1, "tokens_per_second": 5.0, "flops": 7.0, "seconds": 10,
        "bits_per_byte": {"ru": pytest.approx(0.75 / math.log(2)), "en": pytest.approx(0.2 / math.log(2))},
    }  # fmt: skip
    nothing = journal.interval(dict.fromkeys(SUMS, 0.0), ("ru", "en"), seconds=10)
    assert (nothing["ce"], nothing["kl"], nothing["bits_per_byte"]) == (0, 0, {})


def test_a_line_has_its_figures_in_order():
    record = {
        "step": 7, "ce": 2.0, "kl": 0.1, "kl_weight": 0.3, "bits_per_byte": {"ru": 1.1, "en": 0.9}, "lr": 1e-3, "grad_norm": 1.5,
        "tokens_per_second": 1234.5, "utilisation": 0.417, "skipped": 2,
    }  # fmt: skip
    assert journal.line(record, 20, 90.0) == (
        "step     7/20 | ce 2.0000 | kl 0.1000 | bits/byte ru 1.100 en 0.900 | lr 1.00e-03 | grad 1.50 | 1,234 tok/s | "
        "41.7% of peak | 2 skipped | left 1.5 min"
    )


@pytest.mark.parametrize(
    ("seconds", "spelt"), [(30, "0.5 min"), (3600, "1 h 0 min"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")]
)
def test_time_left(seconds, spelt):
    assert journal.remaining(seconds) == spelt


def test_records_of_lost_steps_and_a_cut_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal.append_lines(path, [{"step": step} for step in range(5)])
    with path.open("a") as file:
        file.write('{"step": 5')
    assert len(journal.read_lines(path)) == 5
    journal.keep_until(path, 3)
    assert [record["step"] for record in journal.read_lines(path)] == [0, 1, 2, 3]
    journal.keep_until(path, 0)
    assert not path.exists()


def test_trackers_get_every_number_by_its_path():
    record = {"step": 3, "ce": 1.0, "held_out": {"ru": 1.5, "en": 2}, "grad_norm": None, "note": "x"}
    assert dict(trackers.flat(record)) == {"ce": 1.0, "held_out/ru": 1.5, "held_out/en": 2}


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="report_to: trackio: the package is not installed; pip install trackio"):
        trackers.require(["trackio"])


def test_the_forgetting_plot_has_a_dot_an_evaluation():
    def held(step, ru, en, **more):
        return {"step": step, "tokens": 10 * step, "held_out": {"en": en, "ru": ru}, **more}

    records = [
        held(0, 1.9, 1.10),
        {"step": 1, "tokens": 10, "kl": 0.2},
        held(2, 1.6, 1.15),
        {"step": 3, "tokens": 30, "kl": 0.4},
    ]
    assert plots.forgetting(records[:2], replay="en") is None
    assert plots.forgetting([held(0, 1, 1), held(1, 1, 1)], replay="de") is None
    svg = plots.forgetting([*records, held(4, 1.4, 1.12, budget=1.13)], replay="en")
    root = ET.fromstring(svg)
    assert "Held-out en, bits per byte (dashed: the budget)" in svg
    assert "KL to the reference" in svg
    assert svg.count("step 4") == 2
    assert "step 0" in svg
    # One dot is one use of a marker: three evaluations and the hollow first; two with a KL before them and their first.
    assert len(root.findall(".//{*}use[@style]")) >= 7
    without = plots.forgetting([held(0, 1.9, 1.1), held(2, 1.6, 1.15)], replay="en")
    assert "KL to the reference" not in without
    assert "budget" not in without
