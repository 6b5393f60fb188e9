"""The runs of a tuned study: which entry of the grid comes next, and which of the models is released. Pure.

A study without tuning is one run of its own training, whose score is the released model's evaluation. Every decision
follows from the plan and the noised scores of the runs so far, so a driver that starts anew decides alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.rounds.optimiser import ModelPoint, candidate_weights, initial_point
from privacy.entropy import Float64
from protocol.evaluation import LOWER_IS_BETTER, EvaluationReport, figures
from protocol.release import Selection
from protocol.study import StudyPlan
from protocol.training import Training

RANDOM_TRIALS = 3
"""How many entries a search takes at random before it goes by scores."""
_TUNED = ("learning_rate", "momentum", "clip", "average_last", "largest_delta")


@dataclass(frozen=True)
class Run:
    """One run as it was scored. weights: (D,), what was scored. score: the noised figure, None where undefined."""

    number: int
    entry: int
    weights: Float64
    score: float | None


def score_of(report: EvaluationReport) -> float | None:
    """The first figure of the report, by which runs are compared."""
    return figures(report)[0][1].value


def first_point(plan: StudyPlan, plan_digest: str) -> ModelPoint:
    """The model before any round, with the first run's entry."""
    return _begun(plan, plan_digest, ())


def is_last(plan: StudyPlan, point: ModelPoint) -> bool:
    """Whether the evaluation that comes next is the released model's own."""
    return plan.spec.tuning is None or point.run > plan.spec.runs


def scored(point: ModelPoint, report: EvaluationReport) -> Run:
    """The run of this model, with what its evaluation said."""
    return Run(point.run, point.entry, candidate_weights(point), score_of(report))


def point_after(plan: StudyPlan, plan_digest: str, runs: Sequence[Run]) -> ModelPoint:
    """Where to go on after these runs: the first model again for the next run, or the best run's for its evaluation."""
    if len(runs) < plan.spec.runs:
        return _begun(plan, plan_digest, runs)
    best = best_of(plan, runs)
    zeros = np.zeros_like(best.weights)
    return ModelPoint(0, best.weights, zeros, best.weights, 1, run=len(runs) + 1, entry=best.entry)


def best_of(plan: StudyPlan, runs: Sequence[Run]) -> Run:
    """The run with the best noised score, the earliest of equals; one whose score is undefined comes last."""
    sign = -1.0 if plan.kind in LOWER_IS_BETTER else 1.0
    return max(runs, key=lambda run: (-np.inf if run.score is None else sign * run.score, -run.number))


def selection_of(plan: StudyPlan, runs: Sequence[Run]) -> Selection | None:
    """What the release says of the choice; None for a study without tuning."""
    tuning = plan.spec.tuning
    if tuning is None:
        return None
    return Selection(
        entries=len(tuning.grid),
        order=tuning.order,
        runs=tuple(run.entry for run in runs),
        scores=tuple(run.score for run in runs),
        chosen=best_of(plan, runs).entry,
        changes=tuning.grid[best_of(plan, runs).entry - 1],
    )


def _begun(plan: StudyPlan, plan_digest: str, runs: Sequence[Run]) -> ModelPoint:
    spec, tuning = plan.spec, plan.spec.tuning
    entry = 0
    if tuning is not None:
        entry = len(runs) + 1 if tuning.order == "declared" else searched_entry(plan, plan_digest, runs)
    point = initial_point(spec.model, spec.dataset.shape, plan_digest)
    return ModelPoint(0, point.weights, point.velocity, point.average, 0, run=len(runs) + 1, entry=entry)


def searched_entry(plan: StudyPlan, plan_digest: str, runs: Sequence[Run]) -> int:
    """The entry to run next: Optuna's sampler suggests a point among the grid's values from the runs so far, told anew
    each time, and the nearest entry that was not run is taken. Seeded by the plan: the same runs give the same entry.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = plan.spec.trainings[1:]
    axes = {name: sorted({_value(training, name) for training in grid}) for name in _TUNED}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1) for name, values in axes.items()
    }
    places = [{name: axes[name].index(_value(training, name)) for name in axes} for training in grid]
    seed = int.from_bytes(hashlib.sha256(f"{plan_digest} run {len(runs) + 1}".encode()).digest()[:4], "big")
    study = optuna.create_study(
        direction="minimize" if plan.kind in LOWER_IS_BETTER else "maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS),
    )
    for run in runs:
        failed = optuna.trial.TrialState.FAIL if run.score is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(state=failed, params=places[run.entry - 1], distributions=space, value=run.score)
        )
    wanted = study.ask(space).params
    taken = {run.entry for run in runs}
    left = [number for number in range(1, len(grid) + 1) if number not in taken]
    return min(left, key=lambda number: (_distance(places[number - 1], wanted, axes), number))


def _value(training: Training, name: str) -> float:
    found = getattr(training, name)
    return -1.0 if found is None else float(found)


def _distance(place: dict[str, int], wanted: dict[str, int], axes: dict[str, list[float]]) -> float:
    return sum(((place[name] - wanted[name]) / (len(values) - 1)) ** 2 for name, values in axes.items())
