"""Learning rates over a run, against values worked out by hand."""

import functools
import math

import pytest

from lib import schedules
from lib.errors import UserError


def rates(schedule, steps, warmup_steps=0, decay_share=0.2):
    return [
        schedules.factor(schedule, step, steps=steps, warmup_steps=warmup_steps, decay_share=decay_share)
        for step in range(steps + 1)
    ]


def test_each_schedule_by_hand():
    assert rates("constant", 4, 2) == [0, 0.5, 1, 1, 1]
    assert rates("linear", 6, 2) == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    assert rates("cosine", 4) == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0])


def test_wsd_holds_its_peak_and_comes_down_along_one_minus_the_root():
    assert rates("wsd", 10, 2, 0.4) == pytest.approx(
        [0, 0.5, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0]
    )
    assert rates("wsd", 4, 2, 1.0) == pytest.approx([0, 0.5, 1, 1 - math.sqrt(0.5), 0])  # no decay within the warm-up
    assert rates("wsd", 100)[:81] == [1.0] * 81


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_no_schedule_leaves_0_to_1_in_runs_of_any_length(schedule):
    for steps in range(1, 12):
        for warmup_steps in range(13):
            assert all(0 <= rate <= 1 for rate in rates(schedule, steps, warmup_steps))


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_decay_that_is_none_is_refused(share):
    with pytest.raises(UserError, match=f"decay_share {share}: has to be above 0"):
        schedules.check("wsd", share)
    schedules.check("cosine", share)


def test_the_body_starts_embedding_steps_later_with_a_warm_up_of_its_own():
    shared = [0.0, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0].__getitem__
    body = functools.partial(schedules.body_factor, shared=shared, embedding_steps=3)
    assert [body(step, warmup_steps=2) for step in range(8)] == [0, 0, 0, 0, 0.5, 0.4, 0.2, 0]
    assert [body(step, warmup_steps=0) for step in range(8)] == [0, 0, 0, 0.8, 0.6, 0.4, 0.2, 0]
