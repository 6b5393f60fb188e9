"""The two ledgers of a site, as pure values: what its cohort may spend, and what a study has used of its share.

Every method returns a new value or raises before anything changes, so the shell can store the new value in the
transaction that precedes the sending. Nothing is ever refunded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType

from privacy.errors import BudgetExceeded, ParameterError, ProtocolViolation
from privacy.parameters import require_count, require_positive, require_probability


@dataclass(frozen=True)
class Reservation:
    """What one study may cost a cohort: epsilon > 0 and 0 < delta < 1, at all its T + A steps."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_probability("delta", self.delta, allow_one=False)


@dataclass(frozen=True)
class CohortLedger:
    """What the patients of one cohort may spend over all studies: sum of epsilon <= E and sum of delta <= D.

    Later studies are chosen after seeing earlier results. For such adaptive choice of the parameters, basic
    composition is a valid filter (Rogers et al. 2016), tighter composed bounds are not; those are for showing.
    Sums are taken exactly, so that rounding never lets a study in.

    inherited: what the patients had been charged before this snapshot; see `succeed`.
    """

    epsilon_cap: float
    delta_cap: float
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    inherited_epsilon: float = 0.0
    inherited_delta: float = 0.0

    def __post_init__(self) -> None:
        require_positive("the epsilon cap", self.epsilon_cap)
        require_probability("the delta cap", self.delta_cap, allow_one=False)
        for value in (self.inherited_epsilon, self.inherited_delta):
            if not (math.isfinite(value) and value >= 0):
                raise ParameterError("An inherited charge is negative or not finite.", "Restore the ledger.")
        object.__setattr__(self, "reservations", MappingProxyType(dict(self.reservations)))

    @property
    def epsilon_spent(self) -> float:
        """Sum of epsilon over the inherited charge and all reservations; never below the exact sum."""
        return _round_up(self._sum_epsilon())

    @property
    def delta_spent(self) -> float:
        """Sum of delta, likewise."""
        return _round_up(self._sum_delta())

    @property
    def epsilon_remaining(self) -> float:
        """What may still be reserved; 0 or more."""
        return max(0.0, float(Fraction(self.epsilon_cap) - self._sum_epsilon()))

    def reserve(self, study: str, epsilon: float, delta: float) -> CohortLedger:
        """The ledger with the study's whole cost admitted. The same reservation again changes nothing.

        Raises BudgetExceeded where a sum would pass its cap, ParameterError for a study already reserved at another
        price: a reservation is neither lowered nor refunded, and a dearer plan is another study.
        """
        asked = Reservation(epsilon, delta)
        held = self.reservations.get(study)
        if held == asked:
            return self
        if held is not None:
            raise ParameterError(
                f"The study {study} holds a reservation at another price.", "Propose the changed plan as a new study."
            )
        after = replace(self, reservations={**self.reservations, study: asked})
        if after._sum_epsilon() > Fraction(self.epsilon_cap):
            raise BudgetExceeded(
                f"The study {study} would bring this cohort to epsilon {after.epsilon_spent:.4g} "
                f"of {self.epsilon_cap:.4g}.",
                f"Ask for at most epsilon {self.epsilon_remaining:.4g}, or use another cohort.",
            )
        if after._sum_delta() > Fraction(self.delta_cap):
            raise BudgetExceeded(
                f"The study {study} would bring this cohort to delta {after.delta_spent:.3g} of {self.delta_cap:.3g}.",
                "Ask for a smaller delta, or use another cohort.",
            )
        return after

    def succeed(self, others: tuple[CohortLedger, ...] = ()) -> CohortLedger:
        """The ledger of a new snapshot that shares a patient with this one's and the `others`' snapshots.

        Charges follow patients: the new snapshot starts with the largest epsilon and the largest delta of them.
        """
        all_of_them = (self, *others)
        return replace(
            self,
            reservations={},
            inherited_epsilon=max(ledger.epsilon_spent for ledger in all_of_them),
            inherited_delta=max(ledger.delta_spent for ledger in all_of_them),
        )

    def _sum_epsilon(self) -> Fraction:
        held = sum((Fraction(r.epsilon) for r in self.reservations.values()), Fraction(0))
        return Fraction(self.inherited_epsilon) + held

    def _sum_delta(self) -> Fraction:
        held = sum((Fraction(r.delta) for r in self.reservations.values()), Fraction(0))
        return Fraction(self.inherited_delta) + held


@dataclass(frozen=True)
class StudyCharges:
    """The noisy steps that a study has been charged for at this site, at most `steps_allowed` = T + A.

    charged: the (round, attempt) pairs, each once. The caller stores the new value durably before anything leaves;
    a charge whose bytes were then never sent stays charged.
    """

    steps_allowed: int
    charged: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        require_count("the steps allowed", self.steps_allowed, 1)
        if len(self.charged) > self.steps_allowed:
            raise ParameterError("More steps are charged than the plan allows.", "Restore the ledger.")

    @property
    def count(self) -> int:
        """Steps charged."""
        return len(self.charged)

    @property
    def remaining(self) -> int:
        """Steps left."""
        return self.steps_allowed - self.count

    def charge(self, round_number: int, attempt: int) -> StudyCharges:
        """The charges with one more step. Raises ProtocolViolation for a repeat, BudgetExceeded past T + A."""
        require_count("the round", round_number, 0)
        require_count("the attempt", attempt, 0)
        if (round_number, attempt) in self.charged:
            raise ProtocolViolation(
                f"Round {round_number}, attempt {attempt} is already charged.",
                "Resend the stored contribution, or begin a new attempt.",
            )
        if self.remaining == 0:
            raise BudgetExceeded(
                f"All {self.steps_allowed} steps of the study are charged.", "Stop the study, or propose a new one."
            )
        return replace(self, charged=self.charged | {(round_number, attempt)})


def _round_up(value: Fraction) -> float:
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)
