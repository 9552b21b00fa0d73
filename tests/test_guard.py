"""What counts as a spike."""

import math
import random

import pytest

from lib.guard import FEWEST, MOST_IN_A_ROW, Guard


def settled(level=3.0, noise=0.05, steps=128):
    rng = random.Random(0)
    guard = Guard()
    assert not any(guard.judge(rng.gauss(level, noise)) for _ in range(steps))
    return guard


def test_a_spike_is_named_with_what_it_stands_out_from():
    assert settled().judge(3.2) is None  # 4 deviations
    found = settled().judge(3.4)
    assert found == "the cross-entropy is 3.400, and 2.997 ± 0.052 over the 128 steps before"


def test_nothing_is_a_spike_at_first_or_in_falling():
    guard = Guard()
    assert not any(guard.judge(ce) for ce in [3.0] * (FEWEST - 1))
    assert guard.judge(9.0) is None
    assert settled().judge(0.1) is None


def test_a_loss_that_hardly_varies_may_vary_a_little():
    guard = settled(noise=0.0001)
    assert guard.judge(3.09) is None
    assert settled(noise=0.0001).judge(3.11)


def test_harder_text_is_taken_for_what_it_is_after_a_few_steps():
    guard = settled()
    judged = [guard.judge(4.0) for _ in range(20)]
    assert judged[0]
    assert sum(map(bool, judged)) <= 5
    assert not any(judged[5:])


@pytest.mark.parametrize("losses", [(math.nan, 0.0), (math.inf, 0.0), (3.0, math.nan)])
def test_no_number_is_refused_from_the_first_step_on_and_not_remembered(losses):
    guard = Guard()
    assert guard.judge(*losses) == f"the loss is {sum(losses)}"
    assert not guard.recent


def test_skipping_ends_after_too_many_in_a_row():
    guard = Guard()
    assert [guard.skip() for _ in range(MOST_IN_A_ROW)] == [True] * (MOST_IN_A_ROW - 1) + [False]
    guard = Guard()
    for _ in range(3 * MOST_IN_A_ROW):
        assert guard.skip()
        guard.passed()
    assert guard.skipped == 3 * MOST_IN_A_ROW


def test_a_guard_made_of_its_state_judges_alike():
    guard = settled()
    guard.skip()
    other = Guard(**guard.state())
    assert other.state() == guard.state()
    assert other.judge(3.4) == guard.judge(3.4)
