"""From the summed histogram to the candidate: what was measured, and the epsilons that go with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any, Literal

import numpy as np

from coordinator.rounds.optimiser import to_bytes
from coordinator.rounds.tables import Candidate
from privacy.accounting.epsilon import LEDGER_INTERVAL
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from privacy.entropy import Float64
from privacy.evaluation.bounded import DiceEvaluation, ResidualEvaluation, evaluate_dice, evaluate_residuals
from privacy.evaluation.histogram import ScoreHistogram
from privacy.evaluation.intervals import Estimate
from privacy.evaluation.metrics import evaluate
from privacy.evaluation.survival import SurvivalEvaluation, evaluate_survival
from privacy.parameters import plan_grid
from protocol.canonical import sha256_hex
from protocol.dataset import NumberLabel
from protocol.evaluation import (
    ClassificationReport,
    EvaluationReport,
    Interval,
    RegressionReport,
    SegmentationReport,
    SubgroupFigure,
    SurvivalReport,
    cells,
    kind_of,
    measured,
    residual_limit,
)
from protocol.plan import Plan, SecureSum
from protocol.release import EpsilonStatement, Selection
from protocol.study import StudyPlan
from protocol.subgroups import MINIMUM_SUBGROUP, group_names

GROUPS = 5
"""Reliability groups of the calibration error."""


@dataclass(frozen=True)
class Evidence:
    """What a candidate rests on. earlier: the plans of other studies that began to train, for the cohort's total."""

    plan: StudyPlan
    rounds_executed: int
    attempts: int
    rounds_digest: str
    report: EvaluationReport
    histogram: Float64
    earlier: tuple[Plan, ...]
    created_at: str
    selection: Selection | None = None
    rounds_undone: int = 0


def evaluate_histogram(
    plan: StudyPlan, cohort: tuple[str, ...], counts: Float64, phase: Literal["evaluate", "check"] = "evaluate"
) -> EvaluationReport:
    """What the sum of the cohort's histograms says. counts: as decoded, laid out as `protocol.evaluation.cells` has it.

    The simulation behind the intervals is seeded with the counts, so that anybody who holds them gets the same.
    Raises PrivacyError for counts that are not finite.
    """
    planned = plan.secure_sum(phase, cohort)
    noise_std = noise_std_of(planned)
    if planned.noise_multiplier is None:
        counts = np.rint(counts)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(to_bytes(counts)).digest(), "big"))
    common = {
        "mode": "exact" if planned.noise_multiplier is None else "noised",
        "outside_guarantee": planned.noise_multiplier is None,
        "held_out": sum(plan.site(site).held_out for site in cohort),
        "bins": plan.spec.evaluation.bins,
    }
    length = cells(plan.kind, plan.spec.evaluation.bins)
    report = _report(plan, common, counts[:length], noise_std, rng)
    if phase == "check" or not plan.spec.evaluation.subgroups:
        return report
    parts = counts[length:].reshape(-1, length)
    names = [name for one in plan.spec.evaluation.subgroups for name in group_names(one, plan.spec.dataset)]
    found = [_of_group(plan, common, name, part, noise_std, rng) for name, part in zip(names, parts, strict=True)]
    return report.model_copy(update={"subgroups": tuple(found)})


def _of_group(
    plan: StudyPlan, common: dict[str, Any], name: str, counts: Float64, noise_std: float, rng: np.random.Generator
) -> SubgroupFigure:
    """Nothing but its name for a subgroup of too few patients, by the noised counts."""
    patients = round(float(counts.sum()))
    if patients < MINIMUM_SUBGROUP:
        few = Interval(value=None, reason=f"fewer than {MINIMUM_SUBGROUP} held-out patients by the noised counts")
        return SubgroupFigure(group=name, patients=None, value=few)
    _, value = measured(_report(plan, common, counts, noise_std, rng))
    return SubgroupFigure(group=name, patients=patients, value=value)


def _report(
    plan: StudyPlan, common: dict[str, Any], counts: Float64, noise_std: float, rng: np.random.Generator
) -> EvaluationReport:
    label = plan.spec.dataset.label
    match kind_of(plan.spec.dataset):
        case "classification":
            histogram = ScoreHistogram(counts, noise_std)
            found = evaluate(histogram, rng, groups=min(GROUPS, histogram.bins))
            told = {
                "auc": interval_of(found.auc),
                "accuracy": interval_of(found.accuracy),
                "calibration_error": interval_of(found.expected_calibration_error),
            }
            return ClassificationReport.model_validate({**common, **told})
        case "survival":
            return SurvivalReport.model_validate({**common, **_intervals(evaluate_survival(counts, noise_std, rng))})
        case "regression":
            assert isinstance(label, NumberLabel)
            limit = residual_limit(label)
            residuals = evaluate_residuals(counts, noise_std, limit, label.scale, rng)
            scale = {"unit": label.unit, "limit": limit, "spread": label.scale}
            return RegressionReport.model_validate({**common, **scale, **_intervals(residuals)})
        case "segmentation":
            return SegmentationReport.model_validate({**common, **_intervals(evaluate_dice(counts, noise_std, rng))})


def _intervals(found: SurvivalEvaluation | ResidualEvaluation | DiceEvaluation) -> dict[str, Interval]:
    return {field.name: interval_of(getattr(found, field.name)) for field in fields(found)}


def noise_std_of(planned: SecureSum) -> float:
    """Standard deviation of the noise on each coordinate with the whole cohort's shares; 0 for an exact sum."""
    if planned.noise_multiplier is None:
        return 0.0
    grid = plan_grid(planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier)
    return grid.sum_std(planned.sites)


def interval_of(estimate: Estimate) -> Interval:
    """As documents have it."""
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high, reason=estimate.reason)


def candidate_row(evidence: Evidence, weights: Float64) -> Candidate:
    """The candidate with its evidence as JSON."""
    vector = to_bytes(weights)
    return Candidate(
        study=evidence.plan.spec.study,
        weights=vector,
        weights_digest=sha256_hex(vector),
        rounds_digest=evidence.rounds_digest,
        evaluation=json.dumps(evidence.report.model_dump(mode="json")),
        histogram=json.dumps([float(value) for value in evidence.histogram]),
        epsilon=json.dumps(epsilon_statement(evidence).model_dump(mode="json")),
        created_at=evidence.created_at,
    )


def epsilon_statement(evidence: Evidence) -> EpsilonStatement:
    """The epsilons and what they rest on. Epsilon is that of all T + A steps, whatever was executed."""
    plan, spec = evidence.plan, evidence.plan.spec
    privacy = spec.privacy
    return EpsilonStatement(
        unit=privacy.unit,
        adjacency="zero-out",
        epsilon=plan.epsilon,
        delta=privacy.delta,
        epsilon_worst_site=plan.epsilon_worst_site,
        epsilon_cohort_to_date=cohort_to_date((*evidence.earlier, plan), plan.names),
        epsilon_evaluation=evaluation_epsilon(plan),
        epsilon_evaluation_worst_site=plan.epsilon_evaluation_worst_site,
        epsilon_membership=None if plan.membership is None else plan.membership.epsilon,
        epsilon_membership_worst_site=None if plan.membership is None else plan.membership.epsilon_worst_site,
        epsilon_checks=None if plan.checks is None else plan.checks.epsilon,
        epsilon_checks_worst_site=None if plan.checks is None else plan.checks.epsilon_worst_site,
        rounds_undone=evidence.rounds_undone,
        steps_charged=spec.steps,
        rounds_executed=evidence.rounds_executed,
        attempts=evidence.attempts,
        sampling=f"Poisson, each patient of each site with probability {spec.training.sampling_rate:g} a step",
        accountant=(
            f"privacy loss distributions, dp-accounting {metadata.version('dp-accounting')}, "
            f"discretisation {LEDGER_INTERVAL:g}"
        ),
        trust=_trust(plan),
        selection=evidence.selection,
    )


def _trust(plan: StudyPlan) -> str:
    privacy = plan.spec.privacy
    tolerated = privacy.colluders + privacy.dropouts
    bound = (
        f"while at most {tolerated} of the {len(plan.sites)} sites are absent or collude: each "
        "adds its share of the noise and the coordinator sees sums only; the numbers for the worst case of a site hold "
        "if all others collude"
    )
    if privacy.mode == "local":
        return (
            "epsilon of the model holds whatever other sites and the coordinator do: each site adds all the noise "
            f"itself, in each of its {plan.spec.training.local_steps} private steps a round. That of the evaluation "
            f"holds {bound}"
        )
    return f"epsilon holds {bound}"


def evaluation_epsilon(plan: StudyPlan) -> float | None:
    """What all planned evaluations cost the held-out patients at the plan's delta; None where the mode is exact."""
    if plan.evaluation_multiplier == 0:
        return None
    spec = plan.spec
    return repeated_gaussian_epsilon(plan.evaluation_multiplier, spec.evaluations, spec.privacy.delta)


def cohort_to_date(plans: Iterable[Plan], sites: tuple[str, ...]) -> dict[str, float]:
    """Per site the sum of epsilon over these studies of this coordinator, each at all its steps (basic composition).

    It is an upper bound for any patient who trains at the site; the site's own ledger goes by patient and also knows
    studies of other coordinators.
    """
    totals = dict.fromkeys(sites, 0.0)
    for plan in plans:
        audited = plan.membership if isinstance(plan, StudyPlan) else None
        for site in plan.names:
            if site in totals:
                totals[site] += plan.epsilon + (0.0 if audited is None else audited.epsilon)
    return totals
