"""Models that passed a check, as rows and back."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.rounds.checks import Verdict
from coordinator.rounds.optimiser import ModelPoint, from_bytes, to_bytes
from coordinator.rounds.tables import ModelCheck


@dataclass(frozen=True)
class Passed:
    """A model that passed, and its score."""

    score: float
    point: ModelPoint


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
