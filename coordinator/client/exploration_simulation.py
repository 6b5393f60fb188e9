"""An exploration in one process: the driver's own decisions, the sites' arithmetic, answers beside the truth.

As `simulation` has it for a study that trains: only messages, signatures and masks are left out, and nothing is
charged, so the patients must be the researcher's own or made up. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coordinator.client.results import COLUMNS, rows_of
from coordinator.client.simulated_patients import Source
from coordinator.client.simulation import seeded_entropy, simulated_papers
from coordinator.rounds.attempts import grid_of, unmasked_sum
from coordinator.rounds.exploration_result import Kept, centers_after, exploration_result, query_of
from coordinator.rounds.states import Attempt, AttemptStatus, Begin, Design, Fail, Finish, Progress, next_action
from coordinator.studies.exploration_plan import build_exploration_plan
from coordinator.studies.plan import plan_digest
from coordinator.terminal import table
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.local.patients import Cohort
from privacy.parameters import plan_grid
from privacy.secagg.field import WIRE
from privacy.secagg.quantization import quantize
from privacy.statistics.answers import answers
from privacy.statistics.clusters import private_cluster_sum
from privacy.statistics.queries import patient_vectors, private_statistics
from protocol.exploration import ExplorationPlan, ExplorationResult, ExplorationSpec
from protocol.round import Phase

_NO_TIME = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class SimulatedExploration:
    """One run. failure: why there is no result. exact: the statistics without noise, in the result's order."""

    attempts: int
    failure: str | None = None
    result: ExplorationResult | None = None
    exact: tuple[float, ...] = ()


@dataclass(frozen=True)
class Explored:
    """Several runs of one exploration, each with its own noise. says: whose patients they are."""

    spec: ExplorationSpec
    says: str
    runs: tuple[SimulatedExploration, ...]

    def rows(self) -> list[tuple[Any, ...]]:
        """For each number of the statistics: the first run's answer, the truth, and over all runs how far the answers
        were off in the mean and how many intervals held the truth."""
        good = [run for run in self.runs if run.result is not None]
        if not good:
            return []
        numbers = [self._of_statistics(run) for run in good]
        found = []
        for index, (what, column, of, value, low, high, unit) in enumerate(numbers[0]):
            exact = [run.exact[index] for run in good]
            told = [rows[index] for rows in numbers]
            off = float(np.mean([abs(row[3] - truth) for row, truth in zip(told, exact, strict=True)]))
            held = sum(row[4] <= truth <= row[5] for row, truth in zip(told, exact, strict=True))
            found.append((what, column, of, value, low, high, unit, exact[0], off, f"{held} of {len(good)}"))
        return found

    @staticmethod
    def _of_statistics(run: SimulatedExploration) -> list[tuple[Any, ...]]:
        assert run.result is not None
        return [row for row in rows_of(run.result) if not row[0].startswith("cluster")]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        names = (*COLUMNS, "exact", "mean_error", "held")
        return {
            "study": self.spec.study,
            "says": self.says,
            "epsilon": self.spec.privacy.epsilon,
            "statistics": [dict(zip(names, row, strict=True)) for row in self.rows()],
            "runs": [
                {
                    "attempts": run.attempts,
                    "failure": run.failure,
                    "result": None if run.result is None else run.result.model_dump(mode="json"),
                }
                for run in self.runs
            ],
        }

    def text(self) -> str:
        """For a person."""
        privacy = self.spec.privacy
        shown = [
            (*row[:3], *(f"{number:.4g}" for number in row[3:6]), row[6], f"{row[7]:.4g}", f"{row[8]:.3g}", row[9])
            for row in self.rows()
        ]
        lines = [
            f"{self.spec.study}: simulated {len(self.runs)} times at epsilon {privacy.epsilon:g}, delta "
            f"{privacy.delta:g}; {self.says}",
            table((*COLUMNS, "exact", "mean error", "held"), shown),
        ]
        for run in self.runs[:1]:
            for number, cluster in enumerate(run.result.clusters if run.result is not None else (), 1):
                size, center = cluster.patients, cluster.center
                told = "perhaps nobody"
                if center is not None:
                    told = ", ".join(f"{column} {figure.value:.4g}" for column, figure in center.items())
                lines.append(f"cluster {number}: {size.value:.0f} patients ({size.low:.0f} to {size.high:.0f}); {told}")
        lines += [f"failed: {run.failure}" for run in self.runs if run.failure]
        return "\n".join(lines)


def explore_simulated(
    spec: ExplorationSpec, source: Source, *, seeds: int, missing: float, told: Callable[[str, int], None]
) -> Explored:
    """Run it once for each seed. missing: how likely a site's answer is lost. Raises SimulationRefused, PlanRefused,
    PrivacyError."""
    plan = build_exploration_plan(spec, simulated_papers(spec, source.counts), ())
    runs = []
    for seed in range(seeds):
        runs.append(
            simulate_exploration(plan, source.sites(seed), seeded_entropy(seed), answers_come=_answers(seed, missing))
        )
        told(f"epsilon {spec.privacy.epsilon:g}", 1)
    return Explored(spec, source.says, tuple(runs))


def _answers(seed: int, missing: float) -> Callable[[], bool]:
    random = np.random.default_rng([seed, 3])
    return lambda: bool(random.random() >= missing)


def simulate_exploration(
    plan: ExplorationPlan,
    sites: Mapping[str, Cohort],
    entropy: Entropy,
    *,
    answers_come: Callable[[], bool] = lambda: True,
) -> SimulatedExploration:
    """Run the plan to its result or its failure. answers_come: asked once for each site of each attempt."""
    design, progress, digest = Design.of(plan), Progress(established=plan.names), plan_digest(plan)
    kept: dict[Phase, list[Kept]] = {"statistics": [], "cluster": []}
    while True:
        action = next_action(design, plan.names, progress, frozenset(plan.names), patient=False)
        steps = sum(progress.steps(phase) for phase in design.on_training)
        if isinstance(action, Fail):
            return SimulatedExploration(steps, failure=f"{action.code}: {action.detail}")
        if isinstance(action, Finish):
            [statistics] = kept["statistics"]
            result = exploration_result(plan, digest, statistics, kept["cluster"], completed_at=_NO_TIME)
            exact = _exact(plan, [sites[name] for name in statistics.contributed])
            return SimulatedExploration(steps, result=result, exact=exact)
        if not isinstance(action, Begin):
            raise AssertionError(f"a simulation never has to {type(action).__name__.lower()}")
        attempt = Attempt(action.phase, action.round, action.attempt, action.cohort)
        late = {name: "no-answer" for name in action.cohort if not answers_come()}
        there = tuple(name for name in action.cohort if name not in late)
        closed = replace(attempt, status=AttemptStatus.ABANDONED, contributed=there, excluded=late)
        if not late:
            centers = centers_after(plan, digest, kept["cluster"])
            kept[attempt.phase].append(Kept(attempt.cohort, _sum(plan, attempt, sites, centers, entropy)))
            closed = replace(attempt, status=AttemptStatus.COMMITTED, contributed=attempt.cohort)
        progress = progress.after(attempt).after(closed)


def _sum(
    plan: ExplorationPlan, attempt: Attempt, sites: Mapping[str, Cohort], centers: Float64, entropy: Entropy
) -> Float64:
    planned = plan.secure_sum(attempt.phase, attempt.cohort)
    assert planned.noise_multiplier is not None
    std = plan_grid(
        planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
    ).site_std
    bodies = {}
    for name in attempt.cohort:
        group = sites[name].training
        if attempt.phase == "statistics":
            queries = [query_of(one) for one in plan.spec.resolved()]
            vector = private_statistics(group, queries, noise_std=std, entropy=entropy)
        else:
            axes = [query_of(one) for one in plan.spec.cluster_axes()]
            vector = private_cluster_sum(group, axes, centers, noise_std=std, entropy=entropy)
        words = quantize(vector, grid_of(planned), KeyStream.fresh(entropy))
        bodies[name] = words.astype(WIRE, copy=False).tobytes()
    return unmasked_sum(planned, attempt.cohort, bodies)


def _exact(plan: ExplorationPlan, cohorts: Sequence[Cohort]) -> tuple[float, ...]:
    """The figures of the statistics as they are, without noise."""
    queries = [query_of(one) for one in plan.spec.resolved()]
    total = np.sum([patient_vectors(cohort.training, queries).sum(axis=0) for cohort in cohorts], axis=0)
    patients = sum(cohort.training.patients for cohort in cohorts)
    found = answers(queries, total, noise_std=0.0, patients=patients)
    return tuple(figure.value for answer in found for figure in answer.figures)
