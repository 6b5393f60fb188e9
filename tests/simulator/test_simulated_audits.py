"""A simulation of a study with checks, a membership audit and a grid: the federation's own decisions; and what
`--audit` says of a sum that keeps its promise and of one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.client import simulated_audit
from coordinator.client.simulated_audit import audit_design, audit_plan
from coordinator.client.simulated_sites import attack_auc
from coordinator.client.simulation import seeded_entropy, simulate, simulated_plan
from coordinator.database import reading
from coordinator.rounds.optimiser import from_bytes
from coordinator.rounds.repository import RoundRepository
from coordinator.studies.states import StudyState
from privacy.auditing.one_run import best_guesses
from privacy.local.patients import Cohort
from privacy.parameters import Mechanism
from protocol.membership import MembershipReport
from protocol.study import StudyPlan
from tests.simulator.computing_worker import ComputingWorker
from tests.simulator.federation import NAMES, Federation, study_spec
from tests.simulator.test_simulation_agrees import COHORTS, HELD_OUT, PATIENTS

Begin = Callable[..., str]
COUNTS = dict.fromkeys(NAMES, (PATIENTS, HELD_OUT))
ASKED: dict[str, Any] = {
    "training": {
        "rounds": 9, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 2.0,
        "checks": {"every": 3, "epsilon": 8.0, "tolerance": 0.1, "retries": 0},
    },
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 1},
    "evaluation": {"epsilon": 2.0, "attempts": 1, "bins": 4},
    "audit": {"membership": {"mode": "on", "epsilon": 1.0, "bins": 10, "attempts": 1}},
}  # fmt: skip


def misjudged(cohort: Cohort) -> Cohort:
    """Those held out have the opposite outcome: what trains well scores worse than a coin, and every check falls."""
    return Cohort(cohort.training, replace(cohort.held_out, y=1.0 - cohort.held_out.y))


@pytest.mark.parametrize("falls", [False, True], ids=["passes", "falls"])
def test_checks_and_membership_audit_come_out_as_the_federation_has_them(
    federation: Federation, begin: Begin, falls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts = {name: misjudged(cohort) if falls else cohort for name, cohort in COHORTS.items()}
    study, entropy = begin(**ASKED), seeded_entropy(11)
    for name, site in federation.sites.items():
        monkeypatch.setattr(site, "worker", ComputingWorker(cohorts[name], entropy))
        site.restart()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    candidate = federation.candidate(study)
    assert candidate is not None
    found = simulate(federation.plan(study), cohorts, seeded_entropy(11))
    with reading(federation.appliance.engine) as session:
        rows = RoundRepository(session).checks(study)
    assert [(check.rounds, check.undone) for check in found.checks] == [(row.rounds, row.undone) for row in rows]
    assert [check.rounds for check in found.checks] == [3, 6]
    assert [check.undone for check in found.checks] == ([3, 3] if falls else [0, 0])
    assert found.undone == (6 if falls else 0)
    for check, row in zip(found.checks, rows, strict=True):
        # The interval is simulated from the very counts, which both round onto the grid at random.
        assert check.score.value == pytest.approx(row.value, abs=1e-3)
        assert check.score.high == pytest.approx(row.high, abs=0.02)
    assert found.weights is not None
    np.testing.assert_allclose(found.weights, from_bytes(candidate.weights), atol=1e-4)
    assert candidate.membership is not None
    told = MembershipReport.model_validate_json(candidate.membership)
    assert found.membership is not None
    assert found.membership.ran
    assert told.advantage is not None
    assert found.membership.advantage is not None
    assert (found.membership.members, found.membership.non_members) == (240, 80)
    assert found.membership.advantage.value == pytest.approx(told.advantage.value, abs=1e-3)
    assert (found.rounds, found.attempts) == (9, 9)


def test_an_attack_on_misjudged_patients_finds_the_members(federation: Federation, begin: Begin) -> None:
    plan = federation.plan(begin(**ASKED))
    honest = simulate(plan, COHORTS, seeded_entropy(2), noise=False)
    apart = {name: misjudged(cohort) for name, cohort in COHORTS.items()}
    given_away = attack_auc(plan, apart, honest.weights)  # type: ignore[arg-type]
    assert honest.attacked is not None
    assert abs(honest.attacked - 0.5) < 0.12
    assert given_away is not None
    assert given_away > 0.8
    nobody = {name: Cohort(cohort.training, cohort.training.block(0, 0)) for name, cohort in COHORTS.items()}
    assert attack_auc(plan, nobody, honest.weights) is None  # type: ignore[arg-type]


def test_a_membership_audit_that_no_cohort_answers_is_told_and_the_model_is_there() -> None:
    plan = simulated_plan(study_spec(**ASKED), COUNTS)
    rounds = sum(stage.rounds for stage in plan.stages if stage.phase != "membership")
    answers = iter([True] * (rounds * len(NAMES)))
    found = simulate(plan, COHORTS, seeded_entropy(3), answers=lambda: next(answers, False))
    assert found.failure is None
    assert found.weights is not None
    assert found.membership is not None
    assert not found.membership.ran
    assert found.membership.reason


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_an_audit_of_the_planned_sum_stays_below_its_claim(mode: str) -> None:
    found = audit_plan(planned(mode), seeded_entropy(5))
    assert found.passes
    assert 0 < found.epsilon_lower < found.design.epsilon
    assert found.false_alarm < 1e-3
    assert found.design.guesses == audit_design(planned(mode)).guesses


def planned(mode: str) -> StudyPlan:
    training: dict[str, Any] = {"rounds": 4, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 1.0}
    privacy: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-5, "retries": 1}
    if mode == "local":
        training |= {"local_steps": 2, "largest_delta": 2.0, "server": {"rule": "fedavg"}}
        privacy["mode"] = "local"
    return simulated_plan(study_spec(training=training, privacy=privacy), COUNTS)


FAULTS: dict[str, dict[str, Any]] = {
    "noise": {"noise_std": lambda given: given / 3},
    "clip": {"clip": lambda given: given * 3},
    "sampling": {"sampling_rate": lambda _: 1.0, "noise_std": lambda given: given / 1.5},
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_step_that_breaks_the_promise_is_refuted(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each site's own step does something else than the plan says, and nothing tells the audit."""
    kept = simulated_audit.private_gradient_sum

    def broken(*given: Any, **stated: Any) -> Any:
        return kept(*given, **{**stated, **{name: change(stated[name]) for name, change in FAULTS[fault].items()}})

    monkeypatch.setattr(simulated_audit, "private_gradient_sum", broken)
    found = audit_plan(planned("distributed"), seeded_entropy(6))
    assert not found.passes
    assert found.epsilon_lower > found.design.epsilon


def test_the_guesses_that_are_made_are_fixed_by_public_numbers_alone() -> None:
    private, loose = Mechanism(16.0, 0.25, 60, 1e-5), Mechanism(1.0, 0.25, 60, 1e-5)
    assert best_guesses(private, 4000) >= best_guesses(loose, 4000)
    for mechanism in (private, loose):
        guesses = best_guesses(mechanism, 4000)
        assert guesses % 2 == 0
        assert 2 <= guesses <= 4000


def test_a_grid_is_simulated_with_its_choice() -> None:
    tuned = {
        "tuning": {"grid": [{"learning_rate": 0.01}, {"learning_rate": 2.0}]},
        "training": {"rounds": 4, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 1.0},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "retries": 1},
        "evaluation": {"epsilon": 8.0, "attempts": 2, "bins": 10},
        "audit": ASKED["audit"],
    }
    found = simulate(simulated_plan(study_spec(**tuned), COUNTS), COHORTS, seeded_entropy(4))
    assert found.failure is None
    assert found.selection is not None
    assert found.selection.runs == (1, 2)
    assert found.membership is not None
    assert found.membership.ran
    assert found.rounds == 8
