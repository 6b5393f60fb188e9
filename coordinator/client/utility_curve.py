"""How good a study's model gets at each epsilon: simulated over several seeds, as figures, a table and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.client.simulated_patients import Source
from coordinator.client.simulation import Simulated, SimulationRefused, seeded_entropy, simulate, simulated_plan
from coordinator.terminal import table
from protocol.evaluation import HEADLINES, figures, kind_of
from protocol.study import StudyPlan, StudySpec

MOST_SEEDS = 1000
MOST_EPSILONS = 40
LARGEST_EPSILON = 100.0
OWN_DATA = (
    "A simulation charges no hospital's ledger and protects nobody: use your own or made-up patients only, and do not "
    "choose a study's parameters with patients who will take part in it."
)
PICTURE, TABLE = "utility.png", "utility.csv"
_COLUMNS = (
    "epsilon", "delta", "noise_multiplier", "epsilon_worst_site", "seed", "measure", "measured", "reported",
    "reported_low",
    "reported_high", "rounds", "attempts", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One epsilon and its runs, one for each seed. epsilon None: without noise, for comparison."""

    epsilon: float | None
    plan: StudyPlan
    runs: tuple[Simulated, ...]

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

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "epsilon": self.epsilon,
            "noise_multiplier": self.plan.noise_multiplier if self.epsilon is not None else 0.0,
            "epsilon_worst_site": self.plan.epsilon_worst_site if self.epsilon is not None else None,
            "measure": self.measure,
            "mean": self.mean,
            "sd": self.deviation,
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
    }


@dataclass(frozen=True)
class Curve:
    """The whole simulation. says: whose patients. The last point is the one without noise."""

    spec: StudySpec
    says: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "study": self.spec.study,
            "patients": self.says,
            "delta": self.spec.privacy.delta,
            "note": OWN_DATA,
            "points": [point.to_dict() for point in self.points],
        }

    def text(self) -> str:
        """For a person."""
        rows = [
            (
                "no noise" if point.epsilon is None else f"{point.epsilon:g}",
                None if point.epsilon is None else f"{point.plan.epsilon_worst_site:.2f}",
                None if point.epsilon is None else f"{point.plan.noise_multiplier:.3f}",
                None if point.mean is None else f"{point.mean:.4f}",
                None if point.deviation is None else f"{point.deviation:.4f}",
                _reported(point),
                f"{sum(run.failure is None for run in point.runs)} of {len(point.runs)}",
            )
            for point in self.points
        ]
        head = (
            "epsilon",
            "worst site",
            "noise",
            self.points[0].measure,
            "sd",
            "the study's own interval",
            "ended well",
        )
        failures = sorted({run.failure for point in self.points for run in point.runs if run.failure})
        limit = self.spec.privacy.epsilon_worst_site
        over = [f"{p.epsilon:g}" for p in self.points if p.epsilon and limit and p.plan.epsilon_worst_site > limit]
        return "\n".join(
            [
                f"{self.spec.study}: {self.says}; delta {self.spec.privacy.delta:g}",
                table(head, rows),
                *(f"failed: {failure}" for failure in failures),
                *([f"above the study's limit for a site's worst case ({limit:g}): {', '.join(over)}"] if over else []),
                OWN_DATA,
            ]
        )

    def csv(self) -> str:
        """One line for each run."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for point in self.points:
            for seed, run in enumerate(point.runs):
                told = figures(run.report)[0][1] if run.report else None
                private = point.epsilon is not None
                writer.writerow(
                    [
                        point.epsilon if private else "inf",
                        self.spec.privacy.delta if private else "",
                        point.plan.noise_multiplier if private else 0,
                        point.plan.epsilon_worst_site if private else "",
                        seed,
                        point.measure,
                        run.measured,
                        *((told.value, told.low, told.high) if told else ("", "", "")),
                        run.rounds,
                        run.attempts,
                        run.failure or "",
                    ]
                )
        return out.getvalue()

    def picture(self) -> bytes:
        """PNG: mean and standard deviation over the seeds of what is measured, against epsilon, and without noise."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.0, 4.4), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        shown = [point for point in self.points if point.epsilon is not None and point.mean is not None]
        axes.errorbar(
            [point.epsilon or 0.0 for point in shown],
            [point.mean or 0.0 for point in shown],
            yerr=[point.deviation or 0.0 for point in shown],
            marker="o",
            capsize=3,
            label=f"private (mean and sd of {len(self.points[0].runs)} seeds)",
        )
        plain = self.points[-1].mean
        if plain is not None:
            axes.axhline(plain, linestyle="--", color="grey", label=f"the same without noise ({plain:.3f})")
        if shown:
            axes.set_xscale("log")
            axes.set_xticks([point.epsilon or 0.0 for point in shown], [f"{point.epsilon:g}" for point in shown])
            axes.minorticks_off()
        axes.set_xlabel(f"epsilon of the released model (delta {self.spec.privacy.delta:g}, one patient)")
        axes.set_ylabel(f"{self.points[0].measure}, held-out patients")
        axes.set_title(f"{self.spec.study}: {self.spec.model.architecture}\n{self.says}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()


def _reported(point: Point) -> str | None:
    if point.epsilon is None or not point.reported:
        return None
    _, low, high = np.mean(np.array(point.reported), axis=0)
    return f"{low:.3f} to {high:.3f}"


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
    told: Callable[[str, int], None] = lambda _what, _rounds: None,
) -> Curve:
    """Simulate every epsilon, then none, for each seed. The same arguments give the same curve.

    missing: the chance that a site's answer does not arrive in an attempt. told: (what runs, rounds done just now).
    Raises SimulationRefused, PlanRefused, PrivacyError, DatasetRefused.
    """
    if not 1 <= seeds <= MOST_SEEDS or not 0 <= missing < 1:
        raise SimulationRefused(
            f"{seeds} seeds, and answers missing with probability {missing:g}.",
            f"Give 1 to {MOST_SEEDS} seeds, and a probability from 0 to below 1.",
        )
    told("patients", 0)
    cohorts = [source.sites(seed) for seed in range(seeds)]
    points = list[Point]()
    for epsilon in (*epsilons, None):
        what = "without noise" if epsilon is None else f"epsilon {epsilon:g}"
        told(what, 0)
        plan = simulated_plan(_at(spec, epsilon), source.counts)
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
        points.append(Point(epsilon, plan, tuple(runs)))
    return Curve(spec, source.says, tuple(points))


def _at(spec: StudySpec, epsilon: float | None) -> StudySpec:
    """The study at another epsilon; its limit for a site's worst case is reported, and does not end the curve."""
    changed: dict[str, Any] = {"epsilon_worst_site": None, **({} if epsilon is None else {"epsilon": epsilon})}
    return spec.model_copy(update={"privacy": spec.privacy.model_copy(update=changed)})


def rounds_in_all(spec: StudySpec, epsilons: int, seeds: int) -> int:
    """How many rounds a curve takes, evaluations among them, when every run ends well."""
    return (epsilons + 1) * seeds * spec.rounds


def write_curve(curve: Curve, out: Path) -> tuple[Path, Path]:
    """Write picture and table into the folder, which is made; each appears whole or not at all. OSError."""
    contents = {PICTURE: curve.picture(), TABLE: curve.csv().encode()}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        partial = out / f".{name}.partial"
        try:
            partial.write_bytes(data)
            partial.replace(out / name)
        finally:
            partial.unlink(missing_ok=True)
    return out / PICTURE, out / TABLE
