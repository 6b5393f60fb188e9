"""What a coordinator that holds the right signing key but breaks the rules can get out of honest sites: nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from coordinator.rounds.attempts import compose, grid_of, packet_of
from coordinator.rounds.optimiser import initial_point
from coordinator.rounds.states import Begin as BeginAttempt
from privacy.errors import MissingContributors
from privacy.secagg.server import SecureSum
from protocol.canonical import sha256_hex
from protocol.envelope import seal
from protocol.round import CONTRIBUTION_TYPE, KEY_REQUEST_TYPE, KeyRequest, Packet, RoundRefusal, envelopes_to_body
from site_agent.federation.upload import announced_in
from tests.simulator.federation import NAMES, Federation

Begin = Callable[..., str]


class Stop(BaseException):
    """The honest driver is taken out of the way here."""


@pytest.fixture
def study(federation: Federation, begin: Begin) -> str:
    """A study whose sites have their keys and were asked for nothing yet."""
    return _with_keys(federation, begin())


def _with_keys(federation: Federation, name: str) -> str:
    def stop() -> None:
        if federation.exchange.requests[-1][1] == "keys-establish":
            raise Stop

    federation.exchange.after_request = stop
    with pytest.raises(Stop):
        federation.driver(name).run()
    return name


class Hostile:
    """Composes requests as it likes, signed with the coordinator's own key."""

    def __init__(self, federation: Federation, study: str) -> None:
        self.federation, self.study = federation, study
        self.plan = federation.plan(study)
        self.digest = federation.row(study).plan_digest or ""
        point = initial_point(self.plan.spec.model, self.plan.spec.dataset.width, self.digest)
        self.model = point.vector()

    def request(
        self, cohort: tuple[str, ...] = NAMES, *, round_number: int = 1, attempt: int = 1, model: bytes | None = None,
        plan_digest: str | None = None,
    ) -> bytes:  # fmt: skip
        vector = model or self.model
        recorded = compose(
            BeginAttempt("train", round_number, attempt, cohort),
            study=self.study,
            plan_digest=plan_digest or self.digest,
            model_digest=sha256_hex(vector),
            entry=0,
            signer=self.federation.appliance.keys.coordinator,
            now=self.federation.clock.now(),
            deadline_seconds=60,
        )
        return packet_of(recorded, vector)

    def ask(self, site: str, packet: bytes) -> Packet:
        said = self.federation.sites[site].participant.answer("train.contribute", packet)
        return Packet.from_bytes(said)

    def refusal(self, site: str, packet: bytes) -> str:
        said = self.ask(site, packet)
        assert said.envelope.payload_type != CONTRIBUTION_TYPE
        return RoundRefusal.model_validate_json(said.envelope.payload).code

    def words(self, site: str, packet: bytes) -> np.ndarray:
        """The masked vector that a site gives, from its own disk: the packet announces it."""
        said = self.federation.sites[site].participant.answer("train.contribute", packet)
        announced = announced_in(said)
        assert announced is not None, "the model is large enough to come in chunks"
        key, manifest = announced
        return np.frombuffer(self.federation.sites[site].store.vector(key, 0, manifest.length), dtype="<u4")

    def summed(self, bodies: dict[str, bytes]) -> np.ndarray:
        planned = self.plan.secure_sum("train", tuple(bodies))
        running = SecureSum(tuple(bodies), planned.length)
        for site, body in bodies.items():
            running.add(site, body)
        return running.result(grid_of(planned))


@pytest.fixture
def hostile(federation: Federation, study: str) -> Hostile:
    return Hostile(federation, study)


@pytest.mark.parametrize(
    ("cohort", "code"),
    [
        (("aachen", "berlin"), "cohort-too-small"),
        (("aachen",), "cohort-too-small"),
        (("berlin", "cologne", "dresden"), "not-in-cohort"),
        (("aachen", "berlin", "essen"), "unknown-site"),
        (("berlin", "aachen", "cologne"), "malformed"),
        (("aachen", "aachen", "aachen", "berlin"), "malformed"),
    ],
)
def test_a_cohort_that_was_not_agreed_on_is_refused(hostile: Hostile, cohort: tuple[str, ...], code: str) -> None:
    assert hostile.refusal("aachen", hostile.request(cohort)) == code
    assert hostile.federation.charged(hostile.study, "aachen")[False] == 0


def test_another_plan_s_digest_is_refused(hostile: Hostile) -> None:
    assert hostile.refusal("aachen", hostile.request(plan_digest=sha256_hex(b"other"))) == "plan-not-granted"


def test_a_round_beyond_the_plan_is_refused(hostile: Hostile) -> None:
    assert hostile.refusal("aachen", hostile.request(round_number=4)) == "round-unknown"


def test_sites_that_are_shown_different_models_send_noise(hostile: Hostile) -> None:
    other = (np.frombuffer(hostile.model) + 1.0).tobytes()
    bodies = {}
    for index, name in enumerate(NAMES):
        bodies[name] = hostile.ask(name, hostile.request(model=other if index % 2 else hostile.model)).body
    _assert_noise(hostile, bodies)


def test_sites_that_are_shown_different_cohorts_send_noise(hostile: Hostile) -> None:
    first = hostile.ask("aachen", hostile.request(("aachen", "berlin", "cologne"))).body
    rest = {name: hostile.ask(name, hostile.request()).body for name in NAMES[1:]}
    _assert_noise(hostile, {"aachen": first, **rest})


def test_sites_that_are_shown_different_attempts_send_noise(hostile: Hostile) -> None:
    bodies = {name: hostile.ask(name, hostile.request(attempt=1 + (name == "aachen"))).body for name in NAMES}
    _assert_noise(hostile, bodies)


def test_a_subset_of_the_contributions_is_noise_and_never_summed(hostile: Hostile) -> None:
    bodies = {name: hostile.ask(name, hostile.request()).body for name in NAMES}
    planned = hostile.plan.secure_sum("train", NAMES)
    running = SecureSum(NAMES, planned.length)
    for name in NAMES[:3]:
        running.add(name, bodies[name])
    with pytest.raises(MissingContributors):
        running.result(grid_of(planned))
    _assert_noise(hostile, {name: bodies[name] for name in NAMES[:3]})
    true = sum(site.worker.returned[sha256_hex(hostile.model)][-1] for site in hostile.federation.sites.values())
    np.testing.assert_allclose(hostile.summed(bodies), true, atol=1e-4)


def test_the_same_attempt_with_another_model_is_refused(hostile: Hostile) -> None:
    hostile.ask("aachen", hostile.request())
    other = (np.frombuffer(hostile.model) + 1.0).tobytes()
    assert hostile.refusal("aachen", hostile.request(model=other)) == "already-consumed"
    smaller = hostile.request(("aachen", "berlin", "cologne"))
    assert hostile.refusal("aachen", smaller) == "already-consumed"
    assert hostile.federation.charged(hostile.study, "aachen")[False] == 1


def test_an_attempt_that_was_passed_is_gone(hostile: Hostile) -> None:
    hostile.ask("aachen", hostile.request(round_number=2))
    assert hostile.refusal("aachen", hostile.request(round_number=1)) == "round-over"


def test_the_ledger_ends_it_whatever_the_coordinator_says(hostile: Hostile) -> None:
    steps = hostile.plan.spec.steps
    for attempt in range(1, steps + 1):
        assert hostile.ask("aachen", hostile.request(attempt=attempt)).envelope.payload_type == CONTRIBUTION_TYPE
    assert hostile.refusal("aachen", hostile.request(attempt=steps + 1)) == "ledger-exhausted"
    assert hostile.federation.sites["aachen"].worker.noisy_steps == steps


def test_a_request_that_another_key_signed_is_refused(hostile: Hostile) -> None:
    packet = Packet.from_bytes(hostile.request())
    stolen = seal(packet.envelope.payload_type, packet.envelope.payload, hostile.federation.researcher_key)
    assert hostile.refusal("aachen", replace(packet, envelope=stolen).to_bytes()) == "bad-signature"


def test_new_keys_are_refused_once_an_attempt_was_answered(hostile: Hostile) -> None:
    hostile.ask("aachen", hostile.request())
    body = envelopes_to_body(())
    cohort = ("aachen", "berlin", "cologne")
    request = KeyRequest(
        study=hostile.study, plan_digest=hostile.digest, step="advertise", cohort=cohort, body=sha256_hex(body)
    )
    envelope = seal(KEY_REQUEST_TYPE, request.model_dump(mode="json"), hostile.federation.appliance.keys.coordinator)
    said = hostile.federation.sites["aachen"].participant.answer("query.keys", Packet(envelope, body).to_bytes())
    assert RoundRefusal.model_validate_json(Packet.from_bytes(said).envelope.payload).code == "keys-in-use"


def _combined(vectors: list[np.ndarray], signs: tuple[int, ...]) -> np.ndarray:
    total = np.zeros_like(vectors[0])
    for words, sign in zip(vectors, signs, strict=True):
        total += words * np.uint32(sign % 2**32)
    return total


def _is_uniform(words: np.ndarray) -> bool:
    """Bytes evenly spread, and no more small numbers of either sign than chance has; 1e-9 for each of 900 tests."""
    evenly = stats.chisquare(np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)).pvalue
    small = int((np.abs(words.view(np.int32).astype(np.int64)) < 2**22).sum())
    chance = stats.binomtest(small, words.size, 2**23 / 2**32, alternative="greater").pvalue
    return bool(evenly > 1e-9 and chance > 1e-9)


def test_a_site_that_is_said_to_have_dropped_and_a_forked_round_leave_every_combination_uniform(
    federation: Federation, begin: Begin
) -> None:
    """It collects attempt 1 from all four, says that dresden dropped out, gets attempt 2 from the rest, and then asks
    two of them for the same round's third attempt with another model than the third. From the sites' own disks, every
    sum and difference of what it holds is uniform unless it is made of whole cohorts."""
    name = _with_keys(federation, begin(model={"architecture": "mlp", "hidden": [64, 64]}))
    hostile, rest = Hostile(federation, name), NAMES[:3]
    first = [hostile.words(site, hostile.request()) for site in NAMES]
    second = [hostile.words(site, hostile.request(rest, attempt=2)) for site in rest]
    other = (np.frombuffer(hostile.model) + 1.0).tobytes()
    forked = [
        hostile.words(site, hostile.request(rest, attempt=3, model=other if site == "cologne" else hostile.model))
        for site in rest
    ]
    tested = 0
    for one in itertools.product((0, 1), repeat=4):
        for two in itertools.product((-1, 0, 1), repeat=3):
            if len(set(one)) > 1 or len(set(two)) > 1:
                assert _is_uniform(_combined(first + second, one + two)), (one, two)
                tested += 1
    assert tested == 16 * 27 - 2 * 3
    for signs in itertools.product((-1, 0, 1), repeat=3):
        if any(signs):
            assert _is_uniform(_combined(forked, signs)), "a fork never decodes, whole or not"
    assert not _is_uniform(_combined(first, (1, 1, 1, 1))), "and what was agreed on does"
    assert all(federation.charged(name, site)[False] == 3 for site in rest)


def _assert_noise(hostile: Hostile, bodies: dict[str, bytes]) -> None:
    """The sum tells nothing: its coordinates are spread over the whole modulus, a million times the true sums."""
    grid = grid_of(hostile.plan.secure_sum("train", NAMES))
    assert np.abs(hostile.summed(bodies)).max() > grid.half_range / 1000
