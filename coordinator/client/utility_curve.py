"""How good a study's model gets at each epsilon, and what its audits would find: simulated over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coordinator.client.simulated_audit import audit_blocks, audit_plan
from coordinator.client.simulated_patients import Source
from coordinator.client.simulation import Simulated, SimulationRefused, seeded_entropy, simulate, simulated_plan
from privacy.auditing.one_run import AuditResult
from protocol.evaluation import HEADLINES, figures, kind_of
from protocol.study import StudyPlan, StudySpec

MOST_SEEDS = 1000
MOST_EPSILONS = 40
LARGEST_EPSILON = 100.0
ATTACKED = (
    "The attack tells who trained from who was held out by the loss alone (0.5: a coin), here exactly; a study sees it "
    "noised, if it plans the audit. Stronger attacks may find more, and these patients are not the study's."
)
AUDITED = (
    "The audit sends made-up worst-case patients through this machine's own sampling, clipping, noise and sum, at the "
    "plan's numbers, as an attacker sees it who colludes with as many sites as the plan tolerates. It bounds epsilon "
    "from below: a bound above the claim refutes it, a bound below proves nothing. It tries neither the model, nor the "
    "sites' machines, nor their random numbers."
)
OWN_DATA = (
    "A simulation charges no hospital's ledger and protects nobody: use your own or made-up patients only, and do not "
    "choose a study's parameters with patients who will take part in it."
)


@dataclass(frozen=True)
class Point:
    """One epsilon and its runs, one for each seed. epsilon None: without noise, for comparison. audited: what a one-run
    audit of the sum found, where one was asked for."""

    epsilon: float | None
    plan: StudyPlan
    runs: tuple[Simulated, ...]
    audited: AuditResult | None = None

    @property
    def values(self) -> list[float]:
        """What was measured, where it is defined."""
        return [run.measured for run in self.runs if run.measured is not None]

    @property
    def measure(self) -> str:
        """The name of what is measured."""
        return HEADLINES[kind_of(self.plan.spec.dataset)]

    @property
    def mean(self) -> float | None:
        """Its mean, or None where no run has one."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, or None below two of them."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def reported(self) -> list[tuple[float, float, float]]:
        """(value, low, high) of each run's own noised evaluation, where that says anything."""
        found = []
        for run in self.runs:
            told = figures(run.report)[0][1] if run.report else None
            if told and told.value is not None and told.low is not None and told.high is not None:
                found.append((told.value, told.low, told.high))
        return found

    @property
    def attacked(self) -> float | None:
        """The membership attack's AUC without noise, its mean over the seeds."""
        found = [run.attacked for run in self.runs if run.attacked is not None]
        return float(np.mean(found)) if found else None

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "epsilon": self.epsilon,
            "noise_multiplier": self.plan.noise_multiplier if self.epsilon is not None else 0.0,
            "epsilon_worst_site": self.plan.epsilon_worst_site if self.epsilon is not None else None,
            "measure": self.measure,
            "mean": self.mean,
            "sd": self.deviation,
            "attack_auc": self.attacked,
            "audit": None if self.audited is None else _audit(self.plan, self.audited),
            "runs": [_run(run, seed) for seed, run in enumerate(self.runs)],
        }


def _run(run: Simulated, seed: int) -> dict[str, Any]:
    reported = figures(run.report)[0][1].model_dump(mode="json") if run.report else None
    return {
        "seed": seed,
        "measured": run.measured,
        "reported": reported,
        "rounds": run.rounds,
        "attempts": run.attempts,
        "failure": run.failure,
        "selection": None if run.selection is None else run.selection.model_dump(mode="json"),
        "checks": [
            {
                "rounds": check.rounds,
                "score": check.score.model_dump(mode="json"),
                "against": check.against,
                "undone": check.undone,
            }
            for check in run.checks
        ],
        "rounds_undone": run.undone,
        "attack_auc": run.attacked,
        "membership": None if run.membership is None else run.membership.model_dump(mode="json"),
    }


def _audit(plan: StudyPlan, found: AuditResult) -> dict[str, Any]:
    design = found.design
    return {
        "epsilon_claimed": plan.epsilon,
        "delta": design.mechanism.delta,
        "epsilon_at_least": found.epsilon_lower,
        "confidence": design.confidence,
        "refuted": not found.passes,
        "canaries": design.canaries,
        "guesses": design.guesses,
        "correct": found.correct,
        "steps": design.mechanism.steps,
        "power_against_half_the_noise": found.power,
        "false_alarm": found.false_alarm,
    }


@dataclass(frozen=True)
class Curve:
    """The whole simulation. says: whose patients. The last point is the one without noise."""

    spec: StudySpec
    says: str
    points: tuple[Point, ...]

    @property
    def audited(self) -> bool:
        """Whether an audit was asked for."""
        return any(point.audited is not None for point in self.points)

    @property
    def refuted(self) -> list[float]:
        """The epsilons whose promise an audit refuted."""
        return [point.plan.epsilon for point in self.points if point.audited is not None and not point.audited.passes]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "study": self.spec.study,
            "patients": self.says,
            "delta": self.spec.privacy.delta,
            "note": OWN_DATA,
            "attack_note": ATTACKED,
            **({"audit_note": AUDITED} if self.audited else {}),
            "points": [point.to_dict() for point in self.points],
        }


def parse_epsilons(text: str) -> tuple[float, ...]:
    """ "0.5,1,2" -> its numbers, rising. Raises SimulationRefused."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not 1 <= len(values) <= MOST_EPSILONS or not all(0 < value <= LARGEST_EPSILON for value in values):
        raise SimulationRefused(
            "--epsilons is no list of numbers.",
            f"Give 1 to {MOST_EPSILONS} numbers above 0 and up to {LARGEST_EPSILON:g}, such as 0.5,1,2.",
        )
    return tuple(values)


def make_curve(
    spec: StudySpec,
    source: Source,
    *,
    epsilons: Sequence[float],
    seeds: int,
    missing: float = 0.0,
    audit: bool = False,
    told: Callable[[str, int], None] = lambda _what, _rounds: None,
    expected: Callable[[int], None] = lambda _steps: None,
) -> Curve:
    """Simulate every epsilon, then none, for each seed. The same arguments give the same curve.

    missing: the chance that a site's answer does not arrive in an attempt. audit: also audit the sum of each epsilon.
    told: (what runs, rounds and blocks of canaries done just now). expected: told once how many of them there will be,
    if every run ends well. Raises SimulationRefused, PlanRefused, PrivacyError, DatasetRefused.
    """
    if not 1 <= seeds <= MOST_SEEDS or not 0 <= missing < 1:
        raise SimulationRefused(
            f"{seeds} seeds, and answers missing with probability {missing:g}.",
            f"Give 1 to {MOST_SEEDS} seeds, and a probability from 0 to below 1.",
        )
    told("patients", 0)
    cohorts = [source.sites(seed) for seed in range(seeds)]
    told("calibrating", 0)
    plans = [(epsilon, simulated_plan(_at(spec, epsilon), source.counts)) for epsilon in (*epsilons, None)]
    rounds = sum(stage.rounds for _, plan in plans for stage in plan.stages)
    expected(rounds * seeds + (audit_blocks() * len(epsilons) if audit else 0))
    points = list[Point]()
    for epsilon, plan in plans:
        what = "without noise" if epsilon is None else f"epsilon {epsilon:g}"
        told(what, 0)
        runs = []
        for seed, sites in enumerate(cohorts):
            random = np.random.default_rng([seed, 3])

            def answers(random: np.random.Generator = random) -> bool:
                return bool(random.random() >= missing)

            runs.append(
                simulate(
                    plan,
                    sites,
                    seeded_entropy(seed, len(points)),
                    answers=answers,
                    noise=epsilon is not None,
                    committed=lambda what=what: told(what, 1),  # type: ignore[misc]
                )
            )
        audited = None
        if audit and epsilon is not None:
            told(f"auditing {what}", 0)
            entropy = seeded_entropy(seeds, len(points), 1)
            audited = audit_plan(plan, entropy, done=lambda what=what: told(f"auditing {what}", 1))  # type: ignore[misc]
        points.append(Point(epsilon, plan, tuple(runs), audited))
    return Curve(spec, source.says, tuple(points))


def _at(spec: StudySpec, epsilon: float | None) -> StudySpec:
    """The study at another epsilon; its limit for a site's worst case is reported, and does not end the curve."""
    changed: dict[str, Any] = {"epsilon_worst_site": None, **({} if epsilon is None else {"epsilon": epsilon})}
    return spec.model_copy(update={"privacy": spec.privacy.model_copy(update=changed)})
