"""The KL term's weight, adapted so that the replay language loses no more than it may.

After each held-out evaluation the weight is multiplied by 2^(used - 1), used being the loss so far as a share of the allowed
loss, and the factor kept from 1/2 to 2: it doubles where twice the budget (or more) is used up, is left alone exactly on it, and
is halved where nothing is lost. So it takes an evaluation or two to answer and doesn't swing: at the budget the factor is 1.
"""

from typing import NamedTuple

from lib.errors import UserError

FARTHEST = 100.0  # from the weight a run begins with, up and down


class Budget(NamedTuple):
    """The held-out loss of a language is to stay within `percent` of the base model's."""

    language: str
    base_bits: float  # per byte, of the base model on the same text
    percent: float

    @property
    def limit(self) -> float:
        """Bits per byte."""
        return self.base_bits * (1 + self.percent / 100)

    def used(self, bits: float) -> float:
        """The share of the allowed loss that is lost; negative where the model is better than the base."""
        return (bits / self.base_bits - 1) * 100 / self.percent


def next_weight(weight: float, budget: Budget, bits: float, first_weight: float) -> float:
    """The weight after an evaluation of `bits` per byte, in a run that began with `first_weight`."""
    factor = 2.0 ** min(max(budget.used(bits) - 1.0, -1.0), 1.0)
    return min(max(weight * factor, first_weight / FARTHEST), first_weight * FARTHEST)


def check(kl_target: float | None, kl_weight: float, language: str, held_out: object) -> None:
    """Refuse a budget that can't be kept to.

    Raises:
        UserError: a percentage not above 0, a weight of 0 to start from, or no held-out text of the language.
    """
    if kl_target is None:
        return
    if kl_target <= 0:
        raise UserError(f"kl_target {kl_target}: has to be above 0, in per cent of the base model's held-out loss")
    if kl_weight <= 0:
        raise UserError(
            f"kl_target {kl_target} adapts kl_weight, which has to be above 0 to begin with (it is {kl_weight})"
        )
    if language not in held_out:
        raise UserError(f"kl_target {kl_target}: there is no held-out text of the language '{language}' to keep to it")
