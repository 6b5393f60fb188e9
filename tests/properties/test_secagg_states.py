"""Whatever a coordinator asks and whenever a site crashes: of what leaves the site, no two vectors share a mask key.

The shell's duty is modelled as it is: state and bytes are stored in one transaction before anything is sent, a repeat
is answered from the stored bytes. The machine's own duty is what is checked.
"""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from privacy.errors import PrivacyError
from privacy.parameters import Grid
from privacy.secagg import client
from privacy.secagg.client import SecAggSite
from privacy.secagg.field import words_of
from tests.privacy.secagg_federation import PLAN, make_sites

NAMES = ("ana", "bo", "cy", "dee")
LENGTH = 8
ALLOWED = 2
MODELS = (b"m" * 32, b"n" * 32)
REAL_MASK_KEY = client.mask_key
CRASH = st.sampled_from(["never", "never", "before the transaction", "after the transaction"])


class SiteAndItsDisk(RuleBasedStateMachine):
    """`bo` is watched from its first advert; its peers only give it what to work with."""

    def __init__(self) -> None:
        super().__init__()
        self.sites = make_sites(NAMES, LENGTH, allowed={"training": ALLOWED})
        self.adverts = {name: self.sites[name].advertise(os.urandom) for name in NAMES if name != "bo"}
        self.disk = self.sites["bo"].export_state()
        self.answers: dict[object, bytes] = {}
        self.asked_for: dict[tuple[int, int], object] = {}
        self.sent: list[tuple[object, np.ndarray]] = []
        self.keys_of_sent: list[bytes] = []
        self.used: list[bytes] = []
        self.committed = -1
        client.mask_key = self._watched_mask_key  # passes through; only looks on

    def teardown(self) -> None:
        client.mask_key = REAL_MASK_KEY

    def _watched_mask_key(self, *arguments: object, **named: object) -> bytes:
        key = REAL_MASK_KEY(*arguments, **named)  # type: ignore[arg-type]
        self.used.append(key)
        return key

    def _machine(self) -> SecAggSite:
        return SecAggSite.restore(self.disk)

    # The set-up, each step able to crash before it is stored or to be asked again

    def _ready(self) -> bool:
        return self._machine().ready

    @precondition(lambda self: not self._ready())
    @rule(crash=CRASH)
    def advertise(self, crash: str) -> None:
        machine = self._machine()
        advert = machine.advertise(os.urandom)
        if crash != "before the transaction":
            self.disk = machine.export_state()
            assert self.adverts.setdefault("bo", advert) == advert

    @precondition(lambda self: "bo" in self.adverts)
    @rule(crash=CRASH)
    def encapsulate(self, crash: str) -> None:
        machine = self._machine()
        message = machine.on_adverts(self.adverts.values())
        if crash != "before the transaction":
            self.disk = machine.export_state()
            assert self.answers.setdefault("encapsulations", message) == message  # type: ignore[comparison-overlap]

    @precondition(lambda self: "encapsulations" in self.answers and not self._ready())
    @rule(crash=CRASH)
    def establish(self, crash: str) -> None:
        machine = self._machine()
        others = [self.sites[name].on_adverts(self.adverts.values()) for name in NAMES if name != "bo"]
        machine.on_encapsulations([*others, self.answers["encapsulations"]])  # type: ignore[list-item]
        if crash != "before the transaction":
            self.disk = machine.export_state()

    # Rounds: everything that a coordinator may ask, in any order

    @precondition(lambda self: self._ready())
    @rule(
        round_number=st.integers(0, 2),
        attempt=st.integers(0, 2),
        cohort=st.sampled_from([NAMES, NAMES[:3], ("bo", "cy", "dee"), ("bo", "cy")]),
        model=st.sampled_from(MODELS),
        crash=CRASH,
    )
    def contribute(self, round_number: int, attempt: int, cohort: tuple[str, ...], model: bytes, crash: str) -> None:
        request = (round_number, attempt, cohort, model)
        if request in self.answers:  # the shell resends what it stored
            assert self.asked_for[round_number, attempt] == request
            return
        machine = self._machine()
        self.used = []
        before = machine.export_state()
        try:
            data = bytes(
                machine.contribute(
                    round_number, attempt, cohort, model, np.zeros(LENGTH), Grid(1.0), os.urandom, plan_digest=PLAN
                )
            )
        except PrivacyError:
            assert machine.export_state() == before
            return
        assert len(cohort) >= 3
        assert round_number > self.committed
        if crash == "before the transaction":
            return  # nothing was stored and nothing sent
        self.disk = machine.export_state()
        self.answers[request] = data
        # Only one request of a number is ever answered.
        assert self.asked_for.setdefault((round_number, attempt), request) == request
        # Sent now, or after the restart from the stored bytes: the attacker has it either way.
        self.sent.append((request, words_of(data)))
        self.keys_of_sent += self.used

    @precondition(lambda self: self._ready())
    @rule(round_number=st.integers(0, 2), crash=CRASH)
    def commit(self, round_number: int, crash: str) -> None:
        machine = self._machine()
        machine.commit(round_number)
        if crash != "before the transaction":
            self.disk = machine.export_state()
            self.committed = max(self.committed, round_number)

    @invariant()
    def no_key_masks_two_vectors(self) -> None:
        assert len(set(self.keys_of_sent)) == len(self.keys_of_sent)
        assert len(self.keys_of_sent) == sum(len(request[2]) - 1 for request, _ in self.sent)  # type: ignore[index]

    @invariant()
    def no_two_vectors_differ_by_rounding_alone(self) -> None:
        # The same from outside: the values are all zero, so equal masks would leave a difference of some steps.
        for index, (_, one) in enumerate(self.sent):
            for _, other in self.sent[:index]:
                assert np.abs((one - other).view(np.int32).astype(np.int64)).max() > 200

    @invariant()
    def no_more_than_the_plan_allows(self) -> None:
        assert len(self.sent) <= ALLOWED


TestSiteAndItsDisk = SiteAndItsDisk.TestCase
TestSiteAndItsDisk.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
