"""The controller of the KL term's weight, by hand."""

import pytest

from lib import budget
from lib.errors import UserError

HELD = budget.Budget("en", base_bits=1.0, percent=2.0)


@pytest.mark.parametrize(
    ("bits", "factor"), [(1.02, 1.0), (1.04, 2.0), (1.5, 2.0), (1.0, 0.5), (0.9, 0.5), (1.03, 2**0.5), (1.01, 2**-0.5)]
)
def test_the_weight_follows_the_share_of_the_budget_that_is_used(bits, factor):
    assert HELD.limit == pytest.approx(1.02)
    assert budget.next_weight(0.3, HELD, bits, 0.3) == pytest.approx(0.3 * factor)


def test_the_weight_stays_within_a_hundred_of_the_first():
    weights = {}
    for bits in (2.0, 0.5):
        weight = 0.3
        for _ in range(20):
            weight = budget.next_weight(weight, HELD, bits, 0.3)
        weights[bits] = weight
    assert weights == {2.0: pytest.approx(30), 0.5: pytest.approx(0.003)}


def test_budgets_that_cannot_be_kept_to_are_refused():
    budget.check(None, 0.0, "en", {})
    budget.check(1.0, 0.1, "en", {"en": []})
    for arguments, why in (
        ((0.0, 0.1, "en", {"en": []}), "kl_target 0.0: has to be above 0"),
        ((1.0, 0.0, "en", {"en": []}), "which has to be above 0"),
        ((1.0, 0.1, "en", {"ru": []}), "no held-out text of the language 'en'"),
    ):
        with pytest.raises(UserError, match=why):
            budget.check(*arguments)
