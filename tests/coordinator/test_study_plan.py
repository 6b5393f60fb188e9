"""Plans: the noise keeps its promise, the counts are the sites' own, and what can't be planned is said by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator.rounds.evaluation import cohort_to_date, evaluation_epsilon
from coordinator.rounds.optimiser import expected_batch
from coordinator.studies.plan import (
    EnrolledSite,
    Papers,
    PlanRefused,
    RegisteredDataset,
    build_plan,
    calibrate,
    forecast,
    plan_digest,
    planned_approvers,
    planned_sites,
    schema_digest,
    spent,
)
from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.parameters import Mechanism
from protocol.canonical import sha256_hex
from protocol.identifiers import Role
from protocol.plan import PlannedApprover, PlannedSite
from protocol.review import ReviewPolicy
from protocol.signing import SigningKey
from protocol.study import StudyPlan, StudySpec
from tests.simulator.federation import NAMES, SCHEMA, study_spec

KEYS = {name: SigningKey.generate().public.text for name in (*NAMES, "carl", "lena", "mona", "coordinator")}
ENROLLED = {name: EnrolledSite(name, KEYS[name]) for name in NAMES}
DATASETS = [RegisteredDataset(name, schema_digest(SCHEMA), sha256_hex(name.encode()), 80, 20) for name in NAMES]
REVIEW = ReviewPolicy()
PEOPLE = [
    PlannedApprover(person="carl", role=Role.COMPLIANCE_OFFICER, key=KEYS["carl"]),
    PlannedApprover(person="lena", role=Role.CLINICAL_LEAD, key=KEYS["lena"]),
    PlannedApprover(person="mona", role=Role.AUDITOR, key=KEYS["mona"]),
]


def plan_of(spec: StudySpec) -> StudyPlan:
    return build_plan(spec, papers(planned_sites(spec, ENROLLED, DATASETS)), planned_approvers(PEOPLE, "rosa", REVIEW))


def papers(sites: tuple[PlannedSite, ...]) -> Papers:
    return Papers(
        proposal_digest=sha256_hex(b"proposal"),
        submitter="rosa",
        sites=sites,
        packs={"gdpr": sha256_hex(b"gdpr")},
        witness_policy={},
        coordinator=KEYS["coordinator"],
        created_at="2026-03-01T12:00:00Z",
    )


@pytest.mark.parametrize("promised", [0.5, 1.0, 3.0])
def test_the_noise_keeps_the_promise_at_all_steps_and_hardly_more(promised: float) -> None:
    spec = study_spec(privacy={"epsilon": promised, "delta": 1e-4, "retries": 3})
    plan = plan_of(spec)
    steps = spec.training.rounds + spec.privacy.retries
    charged = epsilon(Mechanism(plan.noise_multiplier, spec.training.sampling_rate, steps, 1e-4))
    assert charged == plan.epsilon
    assert 0.99 * promised < plan.epsilon <= promised


def test_a_site_s_worst_case_is_its_own_share_of_the_noise_alone() -> None:
    for dropouts, tolerated in ((0, 1), (1, 2)):
        spec = study_spec(
            privacy={"epsilon": 1.0, "delta": 1e-4, "retries": 3, "dropouts": dropouts}, minimum_sites=3 + dropouts
        )
        plan = plan_of(spec)
        alone = plan.noise_multiplier / math.sqrt(4 - tolerated)
        assert plan.epsilon_worst_site == epsilon(Mechanism(alone, 0.25, spec.steps, 1e-4))
        assert plan.epsilon_worst_site > plan.epsilon
        one_evaluation = plan.evaluation_multiplier / math.sqrt(spec.evaluation.attempts)
        assert plan.epsilon_evaluation_worst_site == pytest.approx(
            gaussian_epsilon(one_evaluation / math.sqrt(4 - tolerated), 1e-4)
        )
        assert plan.epsilon_evaluation_worst_site > spec.evaluation.epsilon


def test_all_planned_evaluations_together_cost_what_was_promised() -> None:
    plan = plan_of(study_spec(evaluation={"epsilon": 2.0, "attempts": 4, "bins": 4}))
    assert evaluation_epsilon(plan) == pytest.approx(2.0, rel=1e-6)
    assert gaussian_epsilon(plan.evaluation_multiplier, 1e-4) < 1.0
    exact = plan_of(study_spec(evaluation={"mode": "exact", "bins": 4}))
    assert (evaluation_epsilon(exact), exact.epsilon_evaluation_worst_site) == (None, None)


def test_the_forecast_rises_to_the_total_and_spending_is_never_understated() -> None:
    spec = study_spec(training={"rounds": 300, "sampling_rate": 0.1, "clip": 1.0, "learning_rate": 1.0})
    sigma = calibrate(spec, 4).noise_multiplier
    curve = forecast(spec, sigma)
    values = [value for _, value in curve]
    assert values == sorted(values)
    assert curve[-1][0] == spec.steps
    assert spent(curve, 0) == 0
    for steps in (1, 77, 150, spec.steps):
        assert spent(curve, steps) >= epsilon(Mechanism(sigma, 0.1, steps, 1e-4)) - 1e-3
    assert spent(curve, spec.steps + 5) == curve[-1][1]


def test_the_expected_batch_is_a_constant_of_the_plan() -> None:
    plan = plan_of(study_spec())
    assert expected_batch(plan, NAMES) == 0.25 * 4 * 60
    assert expected_batch(plan, NAMES[:3]) == 0.25 * 3 * 60


def test_the_digest_changes_with_anything_in_the_plan() -> None:
    plan = plan_of(study_spec())
    assert plan_digest(plan) == plan_digest(plan_of(study_spec()))
    other = plan.model_copy(update={"noise_multiplier": plan.noise_multiplier + 1e-4})
    assert plan_digest(other) != plan_digest(plan)


def test_the_cohort_to_date_adds_every_study_a_site_was_planned_in() -> None:
    first, second = plan_of(study_spec()), plan_of(study_spec("hearts-2", NAMES[:3]))
    totals = cohort_to_date((first, second), NAMES)
    assert totals["aachen"] == first.epsilon + second.epsilon
    assert totals["dresden"] == first.epsilon


@pytest.mark.parametrize(
    ("enrolled", "datasets", "changes", "message"),
    [
        ({"dresden": None}, {}, {}, "Not enrolled here: dresden"),
        ({}, {}, {"recipients": ["aachen", "zwolle"]}, "Not enrolled here: zwolle"),
        ({}, {"berlin": None, "cologne": None}, {}, "is registered by berlin, cologne"),
        ({}, {"berlin": {"schema_digest": sha256_hex(b"other")}}, {}, "is registered by berlin"),
        ({}, {"cologne": {"patients": 10}}, {}, "Not more than 10 patients at cologne"),
        ({}, {"cologne": {"held_out": 0}, "berlin": {"held_out": 0}}, {}, "Only 2 of the invited sites hold patients"),
        ({}, {}, {"privacy": {"epsilon": 1.0, "delta": 0.01}}, "not below 1 in 320 patients"),
        ({}, {}, {"privacy": {"epsilon": 1.0, "delta": 1e-4, "epsilon_worst_site": 1.2}}, "worst case is epsilon 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_named(
    enrolled: dict[str, None],
    datasets: dict[str, dict[str, object] | None],
    changes: dict[str, object],
    message: str,
) -> None:
    spec = study_spec(**changes)
    known = {name: site for name, site in ENROLLED.items() if name not in enrolled}
    rows = [
        replace(row, **(datasets.get(row.site) or {})) for row in DATASETS if datasets.get(row.site, {}) is not None
    ]
    with pytest.raises(PlanRefused, match=message) as refused:
        build_plan(spec, papers(planned_sites(spec, known, rows)), planned_approvers(PEOPLE, "rosa", REVIEW))
    assert refused.value.remedy


def test_the_submitter_is_no_approver_and_both_roles_are_needed() -> None:
    assert [person.person for person in planned_approvers(PEOPLE, "rosa", REVIEW)] == ["carl", "lena"]
    with pytest.raises(PlanRefused, match="in the role compliance officer"):
        planned_approvers(PEOPLE, "carl", REVIEW)
