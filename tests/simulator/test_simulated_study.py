"""Studies over the coordinator's and the sites' own code, with sites that are slow, absent, broken or hostile."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from coordinator.audit.health import LogHealth
from coordinator.rounds.driver import RoundDriver
from coordinator.rounds.exchange import Answer, Unreached
from coordinator.studies.states import StudyState
from protocol.envelope import Envelope, seal
from protocol.evaluation import read_report
from protocol.release import EpsilonStatement
from protocol.round import CONTRIBUTION_TYPE, Packet
from protocol.signing import SigningKey
from tests.simulator import invariants
from tests.simulator.federation import PASS, Delivery, Federation

Begin = Callable[..., str]


def silent(*groups: str, site: str) -> Callable[[Delivery], Answer | None]:
    """The site works, but its answer to these requests is lost."""

    def fault(delivery: Delivery) -> Answer | None:
        if delivery.site.name == site and delivery.group in groups:
            delivery.answer()
            return None
        return PASS

    return fault


def answers(group: str, site: str, change: Callable[[Delivery], Answer | None]) -> Callable[[Delivery], Answer | None]:
    """The site's answer to one request is replaced."""
    return lambda delivery: change(delivery) if (delivery.site.name, delivery.group) == (site, group) else PASS


def test_a_study_runs_from_proposal_to_candidate(federation: Federation, begin: Begin) -> None:
    study = begin()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert [record["contributed"] for record in federation.records(study)] == [list(federation.sites)] * 4
    candidate = federation.candidate(study)
    assert candidate is not None
    report = read_report(candidate.evaluation)
    assert (report.mode, report.outside_guarantee, report.held_out) == ("noised", False, 80)
    statement, plan = EpsilonStatement.model_validate_json(candidate.epsilon), federation.plan(study)
    assert (statement.epsilon, statement.epsilon_worst_site) == (plan.epsilon, plan.epsilon_worst_site)
    assert statement.steps_charged == plan.spec.steps == 6
    assert (statement.rounds_executed, statement.attempts) == (3, 3)
    assert statement.epsilon_evaluation == pytest.approx(plan.spec.evaluation.epsilon)
    assert statement.epsilon < statement.epsilon_worst_site
    assert statement.epsilon_evaluation_worst_site == plan.epsilon_evaluation_worst_site
    assert statement.epsilon_evaluation < plan.epsilon_evaluation_worst_site
    epsilons = [record["epsilon"] for record in federation.records(study)]
    assert epsilons == sorted(epsilons)
    assert 0 < epsilons[0] < epsilons[2] < plan.epsilon


def test_another_study_adds_to_the_cohort_to_date(federation: Federation, begin: Begin) -> None:
    first, second = begin(), begin()
    for study in (first, second):
        assert federation.driver(study).run() is StudyState.CANDIDATE
    candidate = federation.candidate(second)
    assert candidate is not None
    totals = EpsilonStatement.model_validate_json(candidate.epsilon).epsilon_cohort_to_date
    assert all(total >= 2 * federation.plan(second).epsilon for total in totals.values())


def test_a_site_that_refused_takes_no_part(federation: Federation, begin: Begin) -> None:
    study = begin(refuse=("berlin",))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all("berlin" not in packets for _, _, packets in federation.exchange.requests)
    assert federation.charged(study, "berlin") == {}


def test_a_lost_answer_costs_an_attempt_and_the_site_comes_back(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.exchange.faults.append(silent("train-2-1", site="cologne"))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = federation.records(study)
    assert [record["attempts"] for record in rounds] == [1, 2, 1, 1]
    assert rounds[1]["invited"] == ["aachen", "berlin", "cologne", "dresden"]
    assert rounds[1]["contributed"] == ["aachen", "berlin", "dresden"]
    assert rounds[1]["excluded"] == {"cologne": "no-answer"}
    assert "cologne" in rounds[2]["contributed"]
    assert [record["seconds"] for record in rounds] == [0.5, 60.5, 0.5, 0.5]
    assert federation.charged(study, "cologne")[False] == 3
    assert federation.charged(study, "aachen")[False] == 4


def test_an_absent_site_is_not_invited_and_costs_nobody(federation: Federation, begin: Begin) -> None:
    study = begin()

    def leave() -> None:
        if federation.exchange.requests[-1][0] == "train.contribute":
            federation.exchange.absent.add("berlin")

    federation.exchange.after_request = leave
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = federation.records(study)
    assert rounds[0]["excluded"] == {}
    assert all(record["excluded"] == {"berlin": "not-invited"} for record in rounds[1:])
    assert [record["attempts"] for record in rounds] == [1, 1, 1, 1]


def test_a_site_that_never_answers_costs_a_logarithm_of_the_rounds(federation: Federation, begin: Begin) -> None:
    training = {"rounds": 9, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0}
    study = begin(training=training, privacy={"epsilon": 1.0, "delta": 1e-4, "retries": 5})
    federation.exchange.faults.append(
        lambda d: None if d.site.name == "dresden" and d.kind in ("train.contribute", "evaluate.histogram") else PASS
    )
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study, rounding=1e-5)  # nine rounds of full steps
    attempts = [record["attempts"] for record in federation.records(study) if record["phase"] == "train"]
    assert attempts == [2, 2, 1, 2, 1, 1, 1, 2, 1]


def test_an_attempt_with_fewer_than_the_minimum_counts_for_nothing_and_all_are_asked_again(
    federation: Federation, begin: Begin
) -> None:
    study = begin()
    for site in ("aachen", "berlin"):
        federation.exchange.faults.append(silent("train-2-1", site=site))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    second = federation.records(study)[1]
    assert (second["attempts"], second["contributed"]) == (2, list(federation.sites))


def test_fewer_than_the_minimum_is_never_success(federation: Federation, begin: Begin) -> None:
    study = begin()

    def leave() -> None:
        if federation.exchange.requests[-1][1] == "train-1-1":
            federation.exchange.absent |= {"aachen", "berlin"}

    federation.exchange.after_request = leave
    assert federation.driver(study).run() is StudyState.RUNNING
    federation.clock.seconds += federation.appliance.settings.patience
    assert federation.driver(study).run() is StudyState.FAILED
    invariants.check(federation, study)
    row = federation.row(study)
    assert row.reason == "too-few-sites"
    assert "at least 3" in (row.detail or "")
    assert len(federation.records(study)) == 1
    assert federation.events(study)[-1].labels["reason"] == "too-few-sites"


def test_the_study_fails_once_the_retries_are_used_up(federation: Federation, begin: Begin) -> None:
    study = begin(privacy={"epsilon": 1.0, "delta": 1e-4, "retries": 1})
    federation.exchange.faults += [silent("train-1-1", site="aachen"), silent("train-2-1", site="berlin")]
    assert federation.driver(study).run() is StudyState.FAILED
    invariants.check(federation, study)
    assert federation.row(study).reason == "retries-exhausted"


def test_a_missed_evaluation_is_tried_again_on_the_smaller_cohort(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.exchange.faults.append(silent("evaluate-1-1", site="aachen"))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    candidate = federation.candidate(study)
    assert candidate is not None
    assert read_report(candidate.evaluation).held_out == 60


def test_an_evaluation_missed_too_often_fails_the_study(federation: Federation, begin: Begin) -> None:
    study = begin(evaluation={"epsilon": 2.0, "attempts": 1, "bins": 4})
    federation.exchange.faults.append(silent("evaluate-1-1", site="aachen"))
    assert federation.driver(study).run() is StudyState.FAILED
    assert federation.row(study).reason == "evaluation-attempts-exhausted"
    invariants.check(federation, study)


def test_the_declared_exception_counts_exactly_and_says_so(federation: Federation, begin: Begin) -> None:
    study = begin(evaluation={"mode": "exact", "bins": 4, "attempts": 1})
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    candidate = federation.candidate(study)
    assert candidate is not None
    report = read_report(candidate.evaluation)
    assert (report.mode, report.outside_guarantee) == ("exact", True)
    assert EpsilonStatement.model_validate_json(candidate.epsilon).epsilon_evaluation is None
    evaluated = federation.events(study)[-2]
    assert (evaluated.labels["phase"], "norm" in evaluated.numbers) == ("evaluate", False)
    counts = np.array(json.loads(candidate.histogram))
    true = sum(site.worker.returned[candidate.weights_digest][-1] for site in federation.sites.values())
    np.testing.assert_array_equal(np.rint(counts), true)


def _corrupted(delivery: Delivery) -> bytes:
    said = bytearray(delivery.answer())
    said[-1] ^= 1
    return bytes(said)


def _shortened(delivery: Delivery) -> bytes:
    return delivery.answer()[:-4]


def _forged(delivery: Delivery) -> bytes:
    packet = Packet.from_bytes(delivery.answer())
    envelope = seal(CONTRIBUTION_TYPE, packet.envelope.payload, SigningKey.generate())
    return Packet(envelope, packet.body).to_bytes()


def _of_another_site(delivery: Delivery) -> bytes:
    packet = Packet.from_bytes(delivery.answer())
    document = json.loads(packet.envelope.payload)
    document["site"] = "berlin"
    return Packet(seal(CONTRIBUTION_TYPE, document, delivery.site.keys.identity), packet.body).to_bytes()


def _unsigned(delivery: Delivery) -> bytes:
    envelope = Packet.from_bytes(delivery.answer()).envelope
    broken = Envelope(envelope.payload_type, envelope.payload, ((envelope.signatures[0][0], bytes(64)),))
    return Packet(broken, b"").to_bytes()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: b"", "malformed"),
        (lambda _: b"\0" * 5000, "malformed"),
        (_corrupted, "wrong-body"),
        (_shortened, "wrong-length"),
        (_forged, "bad-signature"),
        (_unsigned, "bad-signature"),
        (_of_another_site, "wrong-site"),
        (lambda _: Unreached("offline"), "offline"),
        (lambda _: Unreached("unreadable"), "unreadable"),
    ],
)
def test_a_bad_contribution_is_left_out_by_a_code(
    federation: Federation, begin: Begin, change: Callable[[Delivery], Answer | None], code: str
) -> None:
    study = begin()
    federation.exchange.faults.append(answers("train-2-1", "aachen", change))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.records(study)[1]["excluded"] == {"aachen": code}


def test_a_replayed_contribution_is_left_out(federation: Federation, begin: Begin) -> None:
    study = begin()
    kept: list[bytes] = []

    def keep(delivery: Delivery) -> Answer:
        kept.append(delivery.answer())
        return kept[0]

    federation.exchange.faults += [
        answers("train-1-1", "aachen", keep),
        answers("train-2-1", "aachen", lambda _: kept[0]),
        answers("train-3-1", "berlin", lambda _: kept[0]),
    ]
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = federation.records(study)
    assert rounds[1]["excluded"] == {"aachen": "wrong-round"}
    assert rounds[2]["excluded"] == {"berlin": "bad-signature"}


def test_a_request_that_arrives_twice_is_answered_with_the_same_bytes(federation: Federation, begin: Begin) -> None:
    study = begin()

    def twice(delivery: Delivery) -> Answer:
        first, second = delivery.answer(), delivery.answer()
        assert first == second
        return second

    federation.exchange.faults.append(twice)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all(site.worker.noisy_steps == 4 for site in federation.sites.values())


def test_a_site_whose_worker_fails_refuses_and_stays_charged(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.sites["berlin"].worker.fails = True
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.records(study)[0]["excluded"] == {"berlin": "refused:training-failed"}
    assert federation.charged(study, "berlin")[False] == 2  # rounds 1 and 2; it sits round 3 out


def test_a_withdrawn_consent_stops_the_study_before_its_round_counts(federation: Federation, begin: Begin) -> None:
    study = begin()

    def withdraw() -> None:
        if federation.exchange.requests[-1][1] == "train-2-1":
            federation.consent(study, "dresden", "withdraw")

    federation.exchange.after_request = withdraw
    assert federation.driver(study).run() is StudyState.STOPPED
    invariants.check(federation, study)
    assert federation.row(study).reason == "consent-withdrawn"
    assert len(federation.records(study)) == 1


def test_no_round_is_asked_while_the_log_lacks_a_quorum(federation: Federation, begin: Begin) -> None:
    study = begin()

    class Unwitnessed:
        def health(self) -> LogHealth:
            return LogHealth(quorum=False, age_seconds=0, unwitnessed=9)

    driver = RoundDriver(
        federation.appliance, study, federation.exchange, watch=Unwitnessed(),
        monotonic=federation.clock.monotonic,
    )  # fmt: skip
    assert driver.run() is StudyState.RUNNING
    assert [event.event for event in federation.events(study)][-2:] == ["policy.decided", "study.waiting"]
    federation.clock.seconds += federation.appliance.settings.patience
    assert driver.run() is StudyState.FAILED
    row = federation.row(study)
    assert row.reason == "policy-denied"
    assert (row.detail or "").startswith("G09 ")
    assert all(kind.startswith("query.") for kind, _, _ in federation.exchange.requests)
    assert "policy.decided" in {event.event for event in federation.events(study)}


def test_keys_are_set_up_with_those_who_are_there(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.exchange.absent.add("aachen")
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.charged(study, "aachen")[False] == 0
    established = next(event for event in federation.events(study) if event.event == "study.keys-established")
    assert established.groups["absent"] == ("aachen",)


def test_a_key_set_up_that_a_site_does_not_complete_fails_and_names_it(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.exchange.faults.append(silent("keys-establish", site="cologne"))
    assert federation.driver(study).run() is StudyState.FAILED
    assert federation.row(study).reason == "keys-not-established"
    assert "cologne" in (federation.row(study).detail or "")
    assert all(site.worker.noisy_steps == 0 for site in federation.sites.values())


def test_a_forged_key_is_not_passed_on_as_a_site_s_own(federation: Federation, begin: Begin) -> None:
    study = begin()

    def forge(delivery: Delivery) -> Answer:
        envelope = Packet.from_bytes(delivery.answer()).envelope
        return Packet(seal(envelope.payload_type, envelope.payload, SigningKey.generate())).to_bytes()

    federation.exchange.faults.append(answers("keys-advertise", "berlin", forge))
    assert federation.driver(study).run() is StudyState.FAILED
    assert "berlin (bad-signature)" in (federation.row(study).detail or "")


def test_a_site_that_saw_another_transcript_stops_the_study_before_any_round(
    federation: Federation, begin: Begin
) -> None:
    """Where sites did not see the same keys their masks can't cancel: the set-up fails and no patient is charged."""
    study = begin()

    def another(delivery: Delivery) -> Answer:
        envelope = Packet.from_bytes(delivery.answer()).envelope
        document = json.loads(envelope.payload)
        document["message"] = {"transcript": "sha256:" + "0" * 64}
        return Packet(seal(envelope.payload_type, document, delivery.site.keys.identity)).to_bytes()

    federation.exchange.faults.append(answers("keys-establish", "berlin", another))
    assert federation.driver(study).run() is StudyState.FAILED
    assert federation.row(study).reason == "keys-not-established"
    detail = federation.row(study).detail or ""
    assert all(f"{name} (transcripts-differ)" in detail for name in federation.sites)
    assert all(site.worker.noisy_steps == 0 for site in federation.sites.values())
    assert not any(kind == "train.contribute" for kind, _, _ in federation.exchange.requests)
