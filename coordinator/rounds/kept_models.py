"""Models that passed a check: which one to go on from, and as rows and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.rounds.checks import Verdict, judge_check
from coordinator.rounds.optimiser import ModelPoint, from_bytes, to_bytes
from coordinator.rounds.runs import first_point
from coordinator.rounds.tables import ModelCheck
from protocol.evaluation import EvaluationReport
from protocol.study import StudyPlan


@dataclass(frozen=True)
class Passed:
    """A model that passed, and its score."""

    score: float
    point: ModelPoint


def after_check(
    plan: StudyPlan, plan_digest: str, at: ModelPoint, report: EvaluationReport, earlier: Passed | None
) -> tuple[Verdict, ModelPoint]:
    """What the check of the model `at` comes to, and the model to go on from: itself, or the last that passed, at first
    the plan's own. The number of rounds stays: none is repeated."""
    assert plan.spec.training.checks is not None
    verdict = judge_check(report, None if earlier is None else earlier.score, plan.spec.training.checks.tolerance)
    if not verdict.fell:
        return verdict, at
    good = first_point(plan, plan_digest) if earlier is None else earlier.point
    return verdict, replace(good, rounds=at.rounds)


def last_passed(verdict: Verdict, at: ModelPoint, earlier: Passed | None) -> Passed | None:
    """What the next check is held against: a model whose score is undefined was kept, and has passed nothing."""
    return earlier if verdict.fell or verdict.score.value is None else Passed(verdict.score.value, at)


def check_row(study: str, number: int, at: ModelPoint, verdict: Verdict, *, undone: int) -> ModelCheck:
    """The check of the model `at`, which is in it where it passed. undone: rounds since the check before."""
    passed = not verdict.fell and verdict.score.value is not None
    return ModelCheck(
        study=study,
        round=number,
        rounds=at.rounds,
        undone=undone if verdict.fell else 0,
        value=verdict.score.value,
        low=verdict.score.low,
        high=verdict.score.high,
        fell=verdict.fell,
        weights=to_bytes(at.weights) if passed else None,
        velocity=to_bytes(at.velocity) if passed else None,
        average=to_bytes(at.average) if passed else None,
        second=to_bytes(at.second) if passed and at.second is not None else None,
        averaged=at.averaged,
    )


def passed_of(row: ModelCheck) -> Passed | None:
    """The model of a check that it passed; None of any other."""
    if row.value is None or row.weights is None or row.velocity is None or row.average is None:
        return None
    vectors = from_bytes(row.weights), from_bytes(row.velocity), from_bytes(row.average)
    second = None if row.second is None else from_bytes(row.second)
    return Passed(row.value, ModelPoint(row.rounds, *vectors, row.averaged, second))
