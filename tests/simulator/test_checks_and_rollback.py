"""Checks between rounds: what they cost, when the model goes back, and that no round is ever asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.database import reading
from coordinator.rounds.checks import judge_check
from coordinator.rounds.repository import RoundRepository
from coordinator.rounds.tables import ModelCheck
from coordinator.studies.plan import plan_checks
from coordinator.studies.states import StudyState
from protocol.checks import Checks
from protocol.evaluation import ClassificationReport, Interval
from protocol.release import EpsilonStatement
from protocol.study import StudySpec
from tests.simulator.federation import Federation, study_spec
from tests.simulator.test_membership_audit import charges
from tests.site_agent.federation_of_sites import federation as sites_of
from tests.site_agent.federation_of_sites import refusal_in

TRAINING = {
    "rounds": 6,
    "sampling_rate": 0.25,
    "clip": 0.25,
    "learning_rate": 1.0,
    "checks": {"every": 2, "epsilon": 2.0, "tolerance": 0.1, "retries": 1},
}
ASKED = ["train-1", "train-2", "check-1", "train-3", "train-4", "check-2", "train-5", "train-6", "evaluate-1"]
Begin = Callable[..., str]


def rows(federation: Federation, study: str) -> list[ModelCheck]:
    with reading(federation.appliance.engine) as session:
        return RoundRepository(session).checks(study)


def asked(federation: Federation) -> list[str]:
    """The rounds in the order in which sites were asked, each attempt."""
    groups = [group.rsplit("-", 1)[0] for _, group, _ in federation.exchange.requests]
    return [group for group in groups if not group.startswith("keys")]


def poison(federation: Federation, *bad: int) -> None:
    """From now on the models of these checks, by number, score the wrong way round at every site."""
    seen: list[str] = []

    def poisoned(model: str) -> bool:
        if model not in seen:
            seen.append(model)
        return seen.index(model) + 1 in bad

    for site in federation.sites.values():
        site.worker.poisoned = poisoned


def test_checks_are_rounds_of_their_own_charged_to_held_out_patients(federation: Federation, begin: Begin) -> None:
    study = begin(training=TRAINING)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert asked(federation) == ASKED
    plan = federation.plan(study)
    assert plan.checks is not None
    for site in federation.sites:
        charged = charges(federation, study, site)
        assert charged["check", True] == (2, pytest.approx(plan.checks.epsilon))
        assert charged["train", False][0] == 6
    assert [row.fell for row in rows(federation, study)] == [False, False]
    candidate = federation.candidate(study)
    assert candidate is not None
    told = EpsilonStatement.model_validate_json(candidate.epsilon)
    assert (told.epsilon_checks, told.rounds_undone) == (plan.checks.epsilon, 0)
    assert plan.checks.epsilon == pytest.approx(2.0)


def test_a_score_that_fell_takes_the_model_back_and_no_round_is_repeated(federation: Federation, begin: Begin) -> None:
    study = begin(training=TRAINING)
    poison(federation, 2)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert asked(federation) == ASKED
    first, second = rows(federation, study)
    assert (first.fell, second.fell, second.undone) == (False, True, 2)
    models = {(record["phase"], record["round"]): record["model"] for record in federation.records(study)}
    assert models["check", 2] == models["check", 1] == models["train", 2]
    assert models["train", 4] != models["check", 2]
    started = next(a for a in federation.attempts(study) if (a.attempt.phase, a.attempt.round) == ("train", 5))
    assert started.model_digest == models["train", 2]
    event = [event for event in federation.events(study) if event.event == "model.checked"][-1]
    assert (event.labels["decision"], event.labels["reason"]) == ("rolled-back", "score-fell")
    assert event.digests["model"] == models["train", 2]
    assert charges(federation, study, "aachen")["train", False][0] == 6  # what was undone stays charged
    candidate = federation.candidate(study)
    assert candidate is not None
    assert EpsilonStatement.model_validate_json(candidate.epsilon).rounds_undone == 2


def test_a_model_that_never_passed_goes_back_to_the_first(federation: Federation, begin: Begin) -> None:
    study = begin(training=TRAINING)
    poison(federation, 1)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    first, second = rows(federation, study)
    assert (first.fell, first.undone, second.fell) == (True, 2, False)
    models = {(a.attempt.phase, a.attempt.round): a.model_digest for a in federation.attempts(study)}
    assert models["train", 3] == models["train", 1]


def test_a_driver_that_ends_after_a_roll_back_goes_on_from_the_restored_model(
    federation: Federation, begin: Begin
) -> None:
    study = begin(training=TRAINING)
    poison(federation, 2)

    class Killed(Exception):
        pass

    def kill() -> None:
        if federation.exchange.requests[-1][1] == "train-5-1":
            raise Killed

    federation.exchange.after_request = kill
    with pytest.raises(Killed):
        federation.driver(study).run()
    federation.exchange.after_request = lambda: None
    assert federation.driver(study).run() is StudyState.CANDIDATE
    sent = [a for a in federation.attempts(study) if (a.attempt.phase, a.attempt.round) == ("train", 5)]
    assert len(sent) == 1
    models = {(record["phase"], record["round"]): record["model"] for record in federation.records(study)}
    assert sent[0].model_digest == models["train", 2]
    assert charges(federation, study, "berlin")["train", False][0] == 6


def test_a_coordinator_that_rolls_back_to_ask_for_a_round_again_is_refused(tmp_path: Path) -> None:
    from sqlmodel import select

    from protocol.training import Training
    from site_agent.database import transaction
    from site_agent.training.tables import CohortCharge

    world = sites_of(tmp_path, training=Training.model_validate({**TRAINING, "rounds": 3}))
    signed = world.sign(world.plan(checks=plan_checks(world.spec)))
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    site = world.hospitals["cork"]

    def ask(kind: str, phase: str, number: int, attempt: int = 1, model: bytes | None = None) -> bytes:
        request = world.round_request(signed, number, attempt, phase=phase, model=model)
        return site.participant().answer(kind, request)

    ask("train.contribute", "train", 1)
    ask("train.contribute", "train", 2)
    ask("evaluate.check", "check", 1)

    def charged() -> int:
        with transaction(site.engine) as session:
            return sum(row.steps_charged for row in session.exec(select(CohortCharge)))

    assert charged() == 3
    other = np.full(signed.plan.parameters, 0.25, dtype="<f8").tobytes()
    for number, attempt in ((2, 2), (1, 2), (2, 3)):
        assert refusal_in(ask("train.contribute", "train", number, attempt, other), site) == "phase-over"
    assert refusal_in(ask("train.contribute", "train", 2, 1, other), site) == "already-consumed"
    assert charged() == 3
    ask("train.contribute", "train", 3, 1, other)  # an earlier model under a new round's number: what a roll-back is
    assert refusal_in(ask("evaluate.check", "check", 1, 2), site) == "phase-over"
    assert charged() == 4


def report(value: float | None, low: float | None = None, high: float | None = None) -> ClassificationReport:
    score = Interval(value=value, low=low, high=high)
    nothing = Interval(value=None)
    return ClassificationReport(
        mode="noised", outside_guarantee=False, held_out=80, bins=4, auc=score, accuracy=nothing,
        calibration_error=nothing,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "passed", "fell"),
    [
        ((0.75, 0.7, 0.8), 0.9, False),  # the interval reaches the tolerance
        ((0.75, 0.7, 0.79), 0.9, True),
        ((0.3, 0.25, 0.35), None, True),
        ((0.45, 0.38, 0.52), None, False),
        ((None, None, None), 0.9, False),  # noise says nothing
    ],
)
def test_the_model_goes_back_only_where_the_score_has_surely_fallen(
    score: tuple[float | None, ...], passed: float | None, fell: bool
) -> None:
    assert judge_check(report(*score), passed, 0.1).fell is fell


def test_checks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves no check"):
        study_spec(training={**TRAINING, "checks": {"every": 6}})
    spec: StudySpec = study_spec(training={**TRAINING, "checks": Checks(every=5).model_dump()})
    assert spec.training.check_count == 1
    assert plan_checks(study_spec()) is None
