"""From noised sums to what a researcher reads: post-processing, the same for everybody who holds the sums. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.entropy import Float64
from privacy.parameters import plan_grid
from privacy.statistics.answers import Answer, Figure, answers
from privacy.statistics.clusters import clusters, initial_centers, next_centers
from privacy.statistics.queries import Query
from protocol.dataset import DatasetSchema, NumberLabel
from protocol.exploration import (
    ClusterResult,
    Estimated,
    ExplorationPlan,
    ExplorationResult,
    StatisticResult,
)
from protocol.round import Phase
from protocol.statistics import Resolved, Statistic


@dataclass(frozen=True)
class Kept:
    """A committed round's noised sum, and over which sites it is."""

    contributed: tuple[str, ...]
    total: Float64


def query_of(resolved: Resolved) -> Query:
    """The same statistic for the arithmetic."""
    return Query(**vars(resolved))


def noise_of(plan: ExplorationPlan, phase: Phase, contributed: tuple[str, ...]) -> float:
    """Standard deviation of each coordinate of the phase's sum over these sites."""
    planned = plan.secure_sum(phase, contributed)
    assert planned.noise_multiplier is not None
    parameters = plan_grid(
        planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
    )
    return parameters.sum_std(len(contributed))


def centers_after(plan: ExplorationPlan, plan_digest: str, sums: Sequence[Kept]) -> Float64:
    """(k, m) the centres after these rounds of the clustering, from those that the plan's digest gives. Raises
    PrivacyError for sums that are not of this plan; (0, 0) for a plan without clustering."""
    clustering = plan.spec.clustering
    if clustering is None:
        return np.empty((0, 0))
    centers = initial_centers(clustering.clusters, len(clustering.columns), plan_digest)
    for kept in sums:
        centers = next_centers(kept.total, centers, noise_std=noise_of(plan, "cluster", kept.contributed))
    return centers


def exploration_result(
    plan: ExplorationPlan,
    plan_digest: str,
    statistics: Kept,
    steps: Sequence[Kept],
    *,
    completed_at: str,
) -> ExplorationResult:
    """What was found. steps: the clustering's sums, in order. Raises PrivacyError for sums of another plan."""
    spec = plan.spec
    std = noise_of(plan, "statistics", statistics.contributed)
    patients = plan.patients(statistics.contributed)
    found = answers([query_of(one) for one in spec.resolved()], statistics.total, noise_std=std, patients=patients)
    told = zip(spec.statistics, spec.resolved(), found, strict=True)
    return ExplorationResult(
        study=spec.study,
        plan_digest=plan_digest,
        epsilon=plan.epsilon,
        delta=spec.privacy.delta,
        patients=patients,
        patients_clustered=plan.patients(steps[-1].contributed) if steps else None,
        noise_std=std,
        statistics=tuple(_statistic(spec.dataset, statistic, one, answer) for statistic, one, answer in told),
        clusters=_clusters(plan, plan_digest, steps) if steps else (),
        completed_at=completed_at,
    )


def _clusters(plan: ExplorationPlan, plan_digest: str, steps: Sequence[Kept]) -> tuple[ClusterResult, ...]:
    last = steps[-1]
    axes = plan.spec.cluster_axes()
    names = plan.spec.clustering.columns if plan.spec.clustering is not None else ()
    found = clusters(
        last.total,
        centers_after(plan, plan_digest, steps[:-1]),
        [query_of(axis) for axis in axes],
        noise_std=noise_of(plan, "cluster", last.contributed),
        patients=plan.patients(last.contributed),
    )
    return tuple(
        ClusterResult(
            patients=_estimated(one.patients),
            center=None
            if one.center is None
            else {name: _estimated(figure) for name, figure in zip(names, one.center, strict=True)},
        )
        for one in found
    )


def _statistic(schema: DatasetSchema, statistic: Statistic, resolved: Resolved, answer: Answer) -> StatisticResult:
    return StatisticResult(
        statistic=statistic,
        unit=_unit(schema, statistic),
        names=_names(schema, statistic, resolved),
        figures=tuple(_estimated(figure) for figure in answer.figures),
    )


def _names(schema: DatasetSchema, statistic: Statistic, resolved: Resolved) -> tuple[str, ...]:
    match statistic.kind:
        case "mean":
            return ("mean",)
        case "count":
            return (str(statistic.level),)
        case "quantiles":
            return tuple(f"{probability:g}" for probability in statistic.probabilities)
    if resolved.edges:
        return tuple(f"{low:g} to {high:g}" for low, high in zip(resolved.edges, resolved.edges[1:], strict=False))
    levels = next((feature.levels for feature in schema.features if feature.name == statistic.column), (0, 1))
    return tuple(str(level) for level in levels)


def _unit(schema: DatasetSchema, statistic: Statistic) -> str:
    if statistic.kind not in ("mean", "quantiles"):
        return "patients"
    if isinstance(schema.label, NumberLabel) and schema.label.name == statistic.column:
        return schema.label.unit
    return next((feature.unit for feature in schema.features if feature.name == statistic.column), "")


def _estimated(figure: Figure) -> Estimated:
    return Estimated(value=figure.value, low=figure.low, high=figure.high)
