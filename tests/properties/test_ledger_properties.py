"""A site that charges first never under-counts, wherever it crashes; the cohort ledger never passes its caps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from privacy.accounting.ledger import CohortLedger, StudyCharges
from privacy.errors import BudgetExceeded, PrivacyError, ProtocolViolation
from privacy.parameters import Grid
from privacy.secagg.client import SecAggSite
from tests.privacy.secagg_federation import MODEL, PLAN, ready_sites

NAMES = ["ana", "bo", "cy"]
STATE = ready_sites(NAMES, 2)["ana"].export_state()
ALLOWED = 6


class SiteUnderCrashes(RuleBasedStateMachine):
    """A site's durable store (charges, key state, contribution: one transaction) and what the network has seen."""

    @initialize()
    def begin(self) -> None:
        self.stored_charges = StudyCharges(ALLOWED)
        self.stored_state = STATE
        self.stored_bytes: dict[tuple[int, int], bytes] = {}
        self.seen: dict[tuple[int, int], set[bytes]] = {}

    def _answer(self, round_number: int, attempt: int, crash: str) -> None:
        key = (round_number, attempt)
        if key in self.stored_bytes:
            self.seen.setdefault(key, set()).add(self.stored_bytes[key])
            return
        charges = self.stored_charges.charge(round_number, attempt)
        site = SecAggSite.restore(self.stored_state)
        drawn = iter(range(1000))
        data = site.contribute(
            round_number,
            attempt,
            NAMES,
            MODEL,
            np.array([1.0, -1.0]),
            Grid(2.0**-16),
            lambda count: bytes([next(drawn)]) * count,
            plan_digest=PLAN,
        )
        if crash == "before the transaction":
            return
        self.stored_charges, self.stored_state = charges, site.export_state()
        self.stored_bytes[key] = bytes(data)
        if crash == "after the transaction":
            return
        self.seen.setdefault(key, set()).add(bytes(data))

    @rule(
        round_number=st.integers(0, 5),
        attempt=st.integers(0, 3),
        crash=st.sampled_from(["never", "before the transaction", "after the transaction"]),
    )
    def asked(self, round_number: int, attempt: int, crash: str) -> None:
        before = self.stored_charges
        try:
            self._answer(round_number, attempt, crash)
        except (BudgetExceeded, ProtocolViolation):
            assert self.stored_charges == before

    @rule(round_number=st.integers(0, 5))
    def committed(self, round_number: int) -> None:
        site = SecAggSite.restore(self.stored_state)
        site.commit(round_number)
        self.stored_state = site.export_state()

    @invariant()
    def everything_seen_is_charged_once_and_never_differs(self) -> None:
        assert set(self.seen) <= self.stored_charges.charged
        assert len(self.seen) <= self.stored_charges.count <= ALLOWED
        assert all(len(versions) == 1 for versions in self.seen.values())


SiteUnderCrashes.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSiteUnderCrashes = SiteUnderCrashes.TestCase

PRICES = st.tuples(st.floats(1e-6, 5.0), st.floats(1e-12, 1e-3))


@settings(max_examples=200, deadline=None)
@given(
    epsilon_cap=st.floats(0.1, 10.0),
    delta_cap=st.floats(1e-9, 1e-2),
    prices=st.lists(st.tuples(st.sampled_from("abcdefgh"), PRICES), max_size=20),
    snapshots=st.sets(st.integers(0, 20)),
)
def test_cohort_ledger_never_passes_its_caps_nor_forgets(
    epsilon_cap: float, delta_cap: float, prices: list, snapshots: set
) -> None:
    ledger = CohortLedger(epsilon_cap, delta_cap)
    admitted_epsilon = admitted_delta = Fraction(0)
    for index, (study, (epsilon, delta)) in enumerate(prices):
        if index in snapshots:
            spent = ledger.epsilon_spent, ledger.delta_spent
            ledger = ledger.succeed()
            assert (ledger.epsilon_spent, ledger.delta_spent) == spent
        before = ledger
        try:
            ledger = ledger.reserve(study, epsilon, delta)
        except PrivacyError:
            assert ledger is before
            continue
        if ledger is not before:
            admitted_epsilon += Fraction(epsilon)
            admitted_delta += Fraction(delta)
        assert Fraction(ledger.epsilon_spent) >= admitted_epsilon
        assert Fraction(ledger.delta_spent) >= admitted_delta
        assert admitted_epsilon <= Fraction(epsilon_cap)
        assert admitted_delta <= Fraction(delta_cap)


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30), allowed=st.integers(1, 10))
def test_steps_are_counted_exactly(pairs: list, allowed: int) -> None:
    charges, accepted = StudyCharges(allowed), set()
    for pair in pairs:
        try:
            charges = charges.charge(*pair)
        except (ProtocolViolation, BudgetExceeded):
            assert pair in accepted or len(accepted) == allowed
        else:
            assert pair not in accepted
            accepted.add(pair)
    assert charges.charged == accepted
    assert charges.count == len(accepted) <= allowed
