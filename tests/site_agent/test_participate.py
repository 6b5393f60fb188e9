"""A site in its rounds: what it answers, what it refuses, and that a refusal costs the patients nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from privacy.errors import BudgetExceeded, MissingContributors, OverflowRisk, ParameterError, PrivacyError
from privacy.secagg.refusals import Refusal, Refused
from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, seal
from protocol.errors import CloisterError
from protocol.round import KEY_ADVERT_TYPE, KeyReply, Packet, RefusalCode
from protocol.signing import SigningKey
from protocol.study import Evaluation
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy
from site_agent.consent.grant import withdraw
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.releases.fetch import root_of
from site_agent.training.refusals import CODES, code_of
from site_agent.training.sums import largest_parameter, sum_parameters
from site_agent.training.tables import CohortCharge, ConsumedAttempt
from site_agent.witness import repository
from tests.site_agent.federation_of_sites import NOW, Federation, Hospital, copy_of, federation, refusal_in

Case = tuple[Federation, SignedPlan]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, SignedPlan, Path]:
    """Everyone has granted; no keys yet."""
    folder = tmp_path_factory.mktemp("federation")
    world = federation(folder)
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    return world, signed, folder


@pytest.fixture
def granted(template: tuple[Federation, SignedPlan, Path], tmp_path: Path) -> Case:
    """Everyone has granted; no keys yet."""
    world, signed, folder = template
    return copy_of(world, folder, tmp_path), signed


@pytest.fixture
def running(granted: Case) -> Case:
    """Keys are set up."""
    world, signed = granted
    world.establish(signed)
    return granted


def steps(site: Hospital, *, held_out: bool = False) -> int:
    with transaction(site.engine) as session:
        rows = session.exec(select(CohortCharge).where(CohortCharge.held_out == held_out)).all()
        consumed = session.exec(
            select(ConsumedAttempt).where(ConsumedAttempt.phase == ("evaluate" if held_out else "train"))
        ).all()
    assert sum(row.steps_charged for row in rows) == len(consumed)
    return len(consumed)


def ask_all(world: Federation, request: bytes, kind: str = "train.contribute") -> dict[str, bytes]:
    return {name: site.participant().answer(kind, request) for name, site in sorted(world.hospitals.items())}


def refused_freely(site: Hospital, kind: str, request: bytes, code: str) -> None:
    """The request is refused with this code, signed and recorded, and nothing is charged or computed."""
    before = steps(site), steps(site, held_out=True), site.worker.computed  # type: ignore[attr-defined]
    assert refusal_in(site.participant().answer(kind, request), site) == code
    assert site.store.last_refusals(1)[0].code == code
    assert (steps(site), steps(site, held_out=True), site.worker.computed) == before  # type: ignore[attr-defined]


def test_a_round_sums_to_the_clipped_gradients_plus_the_planned_noise(running: Case) -> None:
    world, signed = running
    spread = []
    for number in range(1, 4):
        total = world.decode(signed, ask_all(world, world.round_request(signed, number)))
        assert total.shape == (3,)
        spread.append(total)
    clip, sites = signed.plan.spec.training.clip, 4
    # 240 training patients at rate 1/2: a sum beyond all of their clips and 8 sigma of noise is a bug.
    bound = 240 * clip + 8 * signed.plan.noise_multiplier * clip * (sites / (sites - 1)) ** 0.5
    assert np.abs(spread).max() < bound
    assert not np.array_equal(spread[0], spread[1])
    assert [steps(site) for site in world.hospitals.values()] == [3, 3, 3, 3]


def test_the_noise_in_the_sum_has_the_planned_variance(tmp_path: Path) -> None:
    """With a clip that leaves next to nothing of the gradients, what is left is the noise."""
    world = federation(tmp_path)
    training = world.spec.training.model_copy(update={"rounds": 40, "clip": 1e-3})
    world.spec = world.spec.model_copy(update={"training": training})
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    sums = []
    for number in range(1, 41):
        model = np.full(3, 0.0, dtype="<f8").tobytes()
        sums.append(world.decode(signed, ask_all(world, world.round_request(signed, number, model=model))))
    values = np.array(sums)
    expected = signed.plan.noise_multiplier * 1e-3 * (4 / 3) ** 0.5
    # Gradient sums are centred by their own mean; the sampling adds at most 240 * clip^2 / 4 to each variance.
    assert 0.7 * expected < values.std(axis=0).mean() < 1.3 * (expected**2 + 60 * 1e-6) ** 0.5


def test_no_contribution_alone_is_readable(running: Case) -> None:
    world, signed = running
    answers = ask_all(world, world.round_request(signed))
    words = np.frombuffer(b"".join(Packet.from_bytes(answer).body for answer in answers.values()), dtype="<u4")
    # Masked words are uniform over 32 bits; unmasked ones would lie within a few thousand grid steps of 0.
    assert (np.minimum(words, 2**32 - words.astype(np.uint64)) > 2**24).sum() >= words.size - 2


def test_the_same_request_is_answered_with_the_same_bytes_at_one_charge(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    request = world.round_request(signed)
    first = site.participant().answer("train.contribute", request)
    site.now = NOW + timedelta(hours=1)  # a coordinator that was down may collect it late
    assert site.participant().answer("train.contribute", request) == first
    assert steps(site) == 1


def test_a_second_attempt_on_a_smaller_cohort_opens_without_the_missing_site(running: Case) -> None:
    world, signed = running
    first = world.round_request(signed)
    for name in ("aarhus", "bergen", "cork"):
        world.hospitals[name].participant().answer("train.contribute", first)
    cohort = ("aarhus", "bergen", "cork")
    second = world.round_request(signed, 1, 2, cohort=cohort)
    answers = {name: world.hospitals[name].participant().answer("train.contribute", second) for name in cohort}
    assert np.isfinite(world.decode(signed, answers)).all()
    assert [steps(site) for site in world.hospitals.values()] == [2, 2, 2, 0]
    refused_freely(world.hospitals["delft"], "train.contribute", second, "not-in-cohort")


def test_evaluation_counts_every_held_out_patient_once(tmp_path: Path) -> None:
    world = federation(tmp_path, evaluation=Evaluation(mode="exact", bins=5))
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    request = world.round_request(signed, phase="evaluate")
    histogram = np.rint(world.decode(signed, ask_all(world, request, "evaluate.histogram"), "evaluate"))
    assert histogram.sum() == 80
    labels = sum(
        float(np.mean(site.arrays.y[site.arrays.patient == patient]) >= 0.5)
        for site in world.hospitals.values()
        for patient in range(60, 80)
    )
    assert histogram[5:].sum() == labels
    # The zero model scores everybody 1/2, in the third of five bins.
    assert histogram[2] + histogram[7] == 80
    site = world.hospitals["cork"]
    assert (steps(site), steps(site, held_out=True)) == (0, 1)
    again = world.round_request(signed, 1, 2, phase="evaluate")
    refused_freely(site, "evaluate.histogram", again, "ledger-exhausted")


def test_an_exact_evaluation_with_a_site_under_the_minimum_cell_is_refused(tmp_path: Path) -> None:
    """The others' counts are in the plan: an exact sum less theirs would be that site's, which never leaves it."""
    world = federation(tmp_path, evaluation=Evaluation(mode="exact", bins=5))
    sites = [
        item.model_copy(update={"held_out": 0 if item.name == "bergen" else item.held_out})
        for item in world.plan().sites
    ]
    signed = world.sign(world.plan(sites=sites))
    site = world.hospitals["cork"]
    site.grant(signed)
    everybody = world.round_request(signed, phase="evaluate")
    refused_freely(site, "evaluate.histogram", everybody, "not-enough-held-out")
    without = world.round_request(signed, phase="evaluate", cohort=("aarhus", "cork", "delft"))
    refused_freely(site, "evaluate.histogram", without, "keys-missing")


def test_a_noised_evaluation_may_be_tried_as_often_as_was_planned(running: Case) -> None:
    world, signed = running
    ask_all(world, world.round_request(signed, phase="evaluate"), "evaluate.histogram")
    second = world.round_request(signed, 1, 2, phase="evaluate")
    histogram = world.decode(signed, ask_all(world, second, "evaluate.histogram"), "evaluate")
    assert abs(histogram.sum() - 80) < 8 * signed.plan.evaluation_multiplier * (10 * 4 / 3) ** 0.5
    site = world.hospitals["cork"]
    refused_freely(site, "evaluate.histogram", world.round_request(signed, 1, 3, phase="evaluate"), "ledger-exhausted")
    refused_freely(site, "train.contribute", world.round_request(signed, 2), "phase-over")


def test_steps_beyond_the_calibrated_ones_are_refused(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    for attempt in range(1, 6):  # T + A = 3 + 2
        site.participant().answer("train.contribute", world.round_request(signed, 1, attempt))
    assert steps(site) == 5
    refused_freely(site, "train.contribute", world.round_request(signed, 1, 6), "ledger-exhausted")


def flip_a_bit(packet: bytes) -> bytes:
    return packet[:-1] + bytes([packet[-1] ^ 1])


ATTACKS: dict[str, tuple[Callable[[Federation, SignedPlan], bytes], str]] = {
    "shrunken cohort": (lambda w, s: w.round_request(s, cohort=("aarhus", "cork")), "cohort-too-small"),
    "this site alone": (lambda w, s: w.round_request(s, cohort=("cork",)), "cohort-too-small"),
    "a site listed thrice": (lambda w, s: w.round_request(s, cohort=("cork", "cork", "cork")), "malformed"),
    "a site of no plan": (lambda w, s: w.round_request(s, cohort=("aarhus", "bergen", "cork", "zug")), "unknown-site"),
    "without this site": (lambda w, s: w.round_request(s, cohort=("aarhus", "bergen", "delft")), "not-in-cohort"),
    "another plan": (lambda w, s: w.round_request(s, plan_digest="sha256:" + "0" * 64), "plan-not-granted"),
    "another study": (lambda w, s: w.round_request(s, study="hearts-two"), "plan-not-granted"),
    "forged": (lambda w, s: w.round_request(s, key=SigningKey.generate()), "bad-signature"),
    "another body": (lambda w, s: flip_a_bit(w.round_request(s)), "body-mismatch"),
    "too short a model": (lambda w, s: w.round_request(s, model=bytes(16)), "wrong-length"),
    "a round beyond the last": (lambda w, s: w.round_request(s, 4), "round-unknown"),
    "expired": (lambda w, s: w.round_request(s, expires_at=timestamp(NOW - timedelta(seconds=1))), "expired"),
    "of another phase": (lambda w, s: w.round_request(s, phase="evaluate"), "malformed"),
    "garbage": (lambda w, s: b"CLP1\0\0\0\4abcd", "malformed"),
    "nothing": (lambda w, s: b"", "malformed"),
    "not a number": (
        lambda w, s: w.round_request(s, model=np.array([np.nan, 0, 0], dtype="<f8").tobytes()),
        "model-not-finite",
    ),
    "a parameter beyond what the plan's rounds can reach": (
        lambda w, s: w.round_request(s, model=np.array([0, -1e9, 0], dtype="<f8").tobytes()),
        "model-too-large",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_request_is_refused_and_costs_nothing(running: Case, attack: str) -> None:
    world, signed = running
    forge, code = ATTACKS[attack]
    refused_freely(world.hospitals["cork"], "train.contribute", forge(world, signed), code)


def test_an_unknown_kind_is_refused(running: Case) -> None:
    world, signed = running
    refused_freely(world.hospitals["cork"], "train.exec", world.round_request(signed), "unknown-kind")


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "model-not-finite"), (np.inf, "model-not-finite"), (1e9, "model-too-large")]
)
def test_no_score_is_computed_under_absurd_parameters(running: Case, value: float, code: str) -> None:
    world, signed = running
    model = np.array([0, value, 0], dtype="<f8").tobytes()
    request = world.round_request(signed, phase="evaluate", model=model)
    refused_freely(world.hospitals["cork"], "evaluate.histogram", request, code)


def test_every_model_that_the_rounds_can_reach_is_within_the_bound(running: Case) -> None:
    """The largest sums that the grid can hold, all the same way, in the smallest cohort."""
    _, signed = running
    plan, training = signed.plan, signed.plan.spec.training
    cohort = plan.names[: plan.spec.minimum_sites]
    grid, _ = sum_parameters(plan.secure_sum("train", cohort))
    batch = training.sampling_rate * sum(plan.site(name).patients - plan.site(name).held_out for name in cohort)
    weight = velocity = 0.0
    for _ in range(training.rounds):
        velocity = training.momentum * velocity + grid.half_range / batch
        weight += training.learning_rate * velocity
    assert 0 < weight < largest_parameter(plan) < 1e9


def test_a_second_model_is_not_evaluated(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    site.participant().answer("evaluate.histogram", world.round_request(signed, phase="evaluate"))
    other = np.ones(3, dtype="<f8").tobytes()
    second = world.round_request(signed, 1, 2, phase="evaluate", model=other)
    refused_freely(site, "evaluate.histogram", second, "model-changed")
    with transaction(site.engine) as session:
        policy = WitnessPolicy.from_document(signed.plan.witness_policy)
        repository.accept_policy(session, policy, at=timestamp(NOW))
    # What a release of this plan will be compared with.
    assert root_of(site.settings).evaluated == {signed.digest: {1: frozenset({sha256_hex(bytes(24))})}}


def test_two_models_for_one_attempt(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    site.participant().answer("train.contribute", world.round_request(signed))
    other = world.round_request(signed, model=np.ones(3, dtype="<f8").tobytes())
    refused_freely(site, "train.contribute", other, "already-consumed")


def test_sites_that_are_shown_different_models_sum_to_noise(running: Case) -> None:
    world, signed = running
    grid, _ = sum_parameters(signed.plan.secure_sum("train", signed.plan.names))
    honest, mixed = [], []
    for attempt in (1, 2, 3):
        answers = ask_all(world, world.round_request(signed, attempt, 1))
        honest.append(world.decode(signed, answers))
    for site in world.hospitals.values():
        assert steps(site) == 3
    # Two more steps are left to each site: one attempt in which a single site is shown another model.
    for attempt in (2, 3):
        request = world.round_request(signed, 3, attempt)
        other = world.round_request(signed, 3, attempt, model=np.ones(3, dtype="<f8").tobytes())
        answers = {
            name: site.participant().answer("train.contribute", other if name == "delft" else request)
            for name, site in world.hospitals.items()
        }
        mixed.append(world.decode(signed, answers))
    clip = signed.plan.spec.training.clip
    limit = 240 * clip + 8 * signed.plan.noise_multiplier * clip * (4 / 3) ** 0.5
    # Noise is uniform over the whole range: all six coordinates stay within the limit with a chance below 10^-5.
    assert (limit / grid.half_range) ** 6 < 1e-5
    assert np.abs(honest).max() < limit < np.abs(mixed).max()


def test_rounds_do_not_go_back(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    site.participant().answer("train.contribute", world.round_request(signed, 2))
    refused_freely(site, "train.contribute", world.round_request(signed, 1), "round-over")
    refused_freely(site, "train.contribute", world.round_request(signed, 1, 7), "round-over")


def test_a_withdrawn_consent_ends_everything(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    request = world.round_request(signed)
    site.participant().answer("train.contribute", request)
    withdraw(site.engine, "hearts-one", key=site.keys.identity, site="cork", reason="other", now=NOW)
    refused_freely(site, "train.contribute", request, "plan-not-granted")
    refused_freely(site, "train.contribute", world.round_request(signed, 2), "plan-not-granted")
    assert site.store.keys("hearts-one", signed.digest) is None


def test_no_round_before_the_keys(granted: Case) -> None:
    world, signed = granted
    refused_freely(world.hospitals["cork"], "train.contribute", world.round_request(signed), "keys-missing")


def adverts(world: Federation, signed: SignedPlan) -> list[Envelope]:
    request = world.key_request(signed, "advertise", [])
    answers = ask_all(world, request, "query.keys")
    return [Packet.from_bytes(answer).envelope for answer in answers.values()]


def test_a_swapped_peer_key_is_refused(granted: Case) -> None:
    """The coordinator makes a key advert of its own in a peer's name: the plan pins another key for the peer."""
    world, signed = granted
    honest = adverts(world, signed)
    reply = KeyReply.model_validate_json(honest[0].payload)
    mine = seal(KEY_ADVERT_TYPE, reply.model_dump(mode="json"), world.coordinator)
    request = world.key_request(signed, "encapsulate", [mine, *honest[1:]])
    refused_freely(world.hospitals["cork"], "query.encapsulate", request, "bad-peer-signature")


def test_a_peer_cannot_advertise_in_anothers_name(granted: Case) -> None:
    world, signed = granted
    honest = adverts(world, signed)
    reply = KeyReply.model_validate_json(honest[0].payload)  # Aarhus' advert, signed by Bergen
    forged = seal(KEY_ADVERT_TYPE, reply.model_dump(mode="json"), world.hospitals["bergen"].keys.identity)
    request = world.key_request(signed, "encapsulate", [forged, *honest[1:]])
    refused_freely(world.hospitals["cork"], "query.encapsulate", request, "bad-peer-signature")


def test_a_missing_peer_is_refused(granted: Case) -> None:
    world, signed = granted
    honest = adverts(world, signed)
    request = world.key_request(signed, "encapsulate", honest[:3])
    refused_freely(world.hospitals["cork"], "query.encapsulate", request, "missing-site")


def test_key_steps_are_resent_and_begin_anew_only_before_the_first_round(granted: Case) -> None:
    world, signed = granted
    site = world.hospitals["cork"]
    request = world.key_request(signed, "advertise", [])
    first = site.participant().answer("query.keys", request)
    assert site.participant().answer("query.keys", request) == first
    smaller = world.key_request(signed, "advertise", [], cohort=("aarhus", "bergen", "cork"))
    assert site.participant().answer("query.keys", smaller) != first
    world.establish(signed)
    site.participant().answer("train.contribute", world.round_request(signed))
    refused_freely(site, "query.keys", smaller, "keys-in-use")


def test_a_failed_computation_stays_charged_and_says_nothing(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    request = world.round_request(signed)
    participant = site.participant(reached=lambda point: setattr(site.worker, "fail", point == "charged"))
    assert refusal_in(participant.answer("train.contribute", request), site) == "training-failed"
    assert steps(site) == 1
    site.worker.fail = False  # type: ignore[attr-defined]
    assert refusal_in(site.participant().answer("train.contribute", request)) == "consumed"


def test_a_worker_that_cannot_start_costs_nothing(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    site.worker.fail = True  # type: ignore[attr-defined]
    refused_freely(site, "train.contribute", world.round_request(signed), "training-failed")


def test_what_can_go_wrong_inside_is_an_answer_without_details(running: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    world, signed = running
    site = world.hospitals["cork"]

    def broken(*_: object, **__: object) -> bytes:
        raise CloisterError("patient 17 is ill")

    monkeypatch.setattr(site.worker, "open", broken)
    answer = site.participant().answer("train.contribute", world.round_request(signed))
    assert refusal_in(answer, site) == "internal"
    assert b"patient" not in answer


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "vector-not-finite"), (np.inf, "vector-not-finite"), (1e12, "vector-too-large")]
)
def test_what_secure_aggregation_refuses_is_told_by_its_own_code(
    running: Case, monkeypatch: pytest.MonkeyPatch, value: float, code: str
) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    vector = np.array([0.0, value, 0.0], dtype="<f8")
    monkeypatch.setattr(site.worker, "compute", lambda *_, **__: bytearray(vector.tobytes()))
    request = world.round_request(signed)
    assert refusal_in(site.participant().answer("train.contribute", request), site) == code
    assert steps(site) == 1, "what was charged stays charged"
    assert refusal_in(site.participant().answer("train.contribute", request), site) == "consumed"


def test_every_reason_of_the_library_has_one_code_of_its_own() -> None:
    reasons = {*Refusal, *(error.code for error in (OverflowRisk, ParameterError, BudgetExceeded, MissingContributors))}
    assert set(CODES) == reasons
    assert len(set(CODES.values())) == len(reasons)
    assert RefusalCode.INTERNAL not in CODES.values()
    for reason in Refusal:
        assert code_of(Refused(reason, "m", "r")) is CODES[reason]
    assert code_of(PrivacyError("of no known kind")) is RefusalCode.INTERNAL


CRASHING = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from site_agent.database import connect
from site_agent.keystore import load_keys
from site_agent.settings import SiteHome, load_settings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.participate import Participant
from site_agent.training.worker_client import WorkerClient
home, request, answer, point = SiteHome(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
def reached(name):
    if name == point:
        os._exit(9)
participant = Participant(
    settings=load_settings(home), keys=load_keys(home), worker=WorkerClient(home),
    store=BudgetStore(connect(home.database), reached=reached), reached=reached,
    clock=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC),
)
answer.write_bytes(participant.answer("train.contribute", request.read_bytes()))
os._exit(0)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("point", "charged", "code"),
    [("before-charge", 0, None), ("in-charge", 0, None), ("charged", 1, "consumed"), ("computed", 1, "consumed"),
     ("in-keep", 1, "consumed"), ("kept", 1, None), ("never", 1, None)],
)  # fmt: skip
def test_an_agent_killed_in_a_round_never_answers_twice(
    running: Case, tmp_path: Path, point: str, charged: int, code: str | None
) -> None:
    """A real process with a real worker is ended at every point; another takes over the same folder."""
    world, signed = running
    site = world.hospitals["cork"]
    site.engine.dispose()
    request, answer = tmp_path / "request", tmp_path / "answer"
    request.write_bytes(world.round_request(signed))
    arguments = [str(site.settings.home.path), str(request), str(answer), point]
    ended = subprocess.run([sys.executable, "-c", CRASHING, *arguments], check=False, timeout=120, capture_output=True)
    assert ended.returncode == (0 if point == "never" else 9), ended.stderr
    assert steps(site) == charged
    again = site.participant().answer("train.contribute", request.read_bytes())
    if code is not None:
        assert refusal_in(again, site) == code
        assert steps(site) == 1
        return
    assert steps(site) == 1
    assert site.participant().answer("train.contribute", request.read_bytes()) == again
    if charged:
        assert site.worker.computed == 0  # type: ignore[attr-defined]  # what was kept is sent, not made anew
    if point == "never":
        assert answer.read_bytes() == again
