"""The ledgers refuse before they change, count exactly, and never give back."""

import pytest

from privacy.accounting.ledger import CohortLedger, Reservation, StudyCharges
from privacy.errors import BudgetExceeded, ParameterError, ProtocolViolation


def test_reservations_add_up_and_stop_at_the_caps() -> None:
    ledger = CohortLedger(epsilon_cap=8.0, delta_cap=3e-5)
    after = ledger.reserve("one", 3.0, 1e-5).reserve("two", 5.0, 1e-5)
    assert after.epsilon_spent == 8.0
    assert after.epsilon_remaining == 0.0
    with pytest.raises(BudgetExceeded, match="epsilon") as caught:
        after.reserve("three", 1e-12, 1e-5)
    assert "at most epsilon 0" in caught.value.remedy
    assert ledger.epsilon_spent == 0.0
    assert after.epsilon_spent == 8.0


def test_delta_has_its_own_cap() -> None:
    ledger = CohortLedger(8.0, 2e-5).reserve("one", 1.0, 2e-5)
    with pytest.raises(BudgetExceeded, match="delta"):
        ledger.reserve("two", 1.0, 1e-12)


def test_sums_are_exact_so_that_rounding_lets_nothing_in() -> None:
    ledger = CohortLedger(0.3, 0.5)
    ledger = ledger.reserve("a", 0.1, 0.1).reserve("b", 0.1, 0.1)
    # 0.1 as a double is above a tenth, 0.3 is below three tenths: three of them exceed it.
    with pytest.raises(BudgetExceeded):
        ledger.reserve("c", 0.1, 0.1)
    many = CohortLedger(1.0, 0.5).reserve("a", 1.0, 0.1)
    with pytest.raises(BudgetExceeded):
        many.reserve("b", 1e-300, 0.1)  # vanishes in a float sum


def test_the_same_reservation_again_is_the_same_ledger_and_another_price_is_refused() -> None:
    ledger = CohortLedger(8.0, 1e-4).reserve("one", 3.0, 1e-5)
    assert ledger.reserve("one", 3.0, 1e-5) is ledger
    for price in ((2.0, 1e-5), (4.0, 1e-5), (3.0, 2e-5)):
        with pytest.raises(ParameterError, match="another price"):
            ledger.reserve("one", *price)


def test_a_stored_ledger_cannot_be_edited_through_its_mapping() -> None:
    held = {"one": Reservation(1.0, 1e-5)}
    ledger = CohortLedger(8.0, 1e-4, held)
    held.clear()
    assert ledger.epsilon_spent == 1.0
    with pytest.raises(TypeError):
        ledger.reservations["two"] = Reservation(1.0, 1e-5)


def test_charges_follow_patients_into_a_new_snapshot() -> None:
    old = CohortLedger(8.0, 1e-4).reserve("one", 3.0, 1e-5)
    other = CohortLedger(8.0, 1e-4).reserve("two", 1.0, 5e-5)
    new = old.succeed((other,))
    assert new.epsilon_spent == 3.0
    assert new.delta_spent == 5e-5
    assert not new.reservations
    with pytest.raises(BudgetExceeded):
        new.reserve("three", 5.1, 1e-5)
    again = new.reserve("three", 5.0, 1e-5).succeed()
    assert again.epsilon_spent == 8.0


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon_cap": 0.0},
        {"epsilon_cap": float("inf")},
        {"delta_cap": 1.0},
        {"inherited_epsilon": -1.0},
        {"inherited_delta": float("nan")},
    ],
)
def test_ledger_parameters(bad: dict) -> None:
    with pytest.raises(ParameterError):
        CohortLedger(**{"epsilon_cap": 8.0, "delta_cap": 1e-4, **bad})


@pytest.mark.parametrize("price", [(0.0, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_price_out_of_range_is_refused(price: tuple[float, float]) -> None:
    with pytest.raises(ParameterError):
        CohortLedger(8.0, 1e-4).reserve("one", *price)


def test_steps_are_charged_once_each_up_to_the_limit() -> None:
    charges = StudyCharges(steps_allowed=3).charge(0, 0).charge(0, 1)
    assert (charges.count, charges.remaining) == (2, 1)
    with pytest.raises(ProtocolViolation, match="already charged"):
        charges.charge(0, 1)
    full = charges.charge(1, 0)
    with pytest.raises(BudgetExceeded, match="All 3 steps"):
        full.charge(2, 0)
    with pytest.raises(ProtocolViolation):
        full.charge(1, 0)
    assert charges.count == 2


def test_charges_out_of_range_are_refused() -> None:
    with pytest.raises(ParameterError):
        StudyCharges(0)
    with pytest.raises(ParameterError):
        StudyCharges(1, frozenset({(0, 0), (1, 0)}))
    for bad in ((-1, 0), (0, -1), (True, 0)):
        with pytest.raises(ParameterError):
            StudyCharges(3).charge(*bad)
