"""What a declared grid of runs costs: every run and every selection score, by full composition.

Choosing the best of several private runs can be cheap where the others stay hidden (Liu and Talwar 2019; Papernot and
Steinke 2022). Here the coordinator sees every noisy sum of every run, so nothing less than the composition of all of
them is true, and one run's epsilon says nothing about the best of G.

Two groups pay, and no patient is in both: training patients for the runs, held-out patients for the scores by which
runs are compared and for the winner's evaluation. Learning rates, momentum, server rules and the clip are free to vary
between runs at no cost of their own; sigma, q and the number of steps are what is charged.

Where the order is declared, run i uses mechanism i whatever came before, and distributions compose tightly. Where a
search picks the next run by the scores of earlier ones, the privacy parameters themselves would be chosen adaptively,
and tight composition would not hold; so every run is then charged as the costliest: least sigma, largest q, most steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import FORECAST_INTERVAL, LEDGER_INTERVAL, composed_epsilon
from privacy.accounting.gaussian import gaussian_multiplier_for
from privacy.errors import ParameterError
from privacy.parameters import Mechanism, require_count, require_positive, require_probability, site_noise_multiplier

LARGEST_GRID = 1000
Order = Literal["declared", "searched"]


@dataclass(frozen=True)
class Score:
    """One noised selection score: a histogram of held-out patients, L2 sensitivity 1, in at most `attempts` attempts.

    noise_multiplier > 0. Raises ParameterError.
    """

    noise_multiplier: float
    attempts: int = 1

    def __post_init__(self) -> None:
        require_positive("the score's noise multiplier", self.noise_multiplier)
        require_count("the score's attempts", self.attempts, 1)


@dataclass(frozen=True)
class TuningGrid:
    """G runs, each scored once, and the evaluation of the winner. Raises ParameterError.

    runs: the mechanism of each, steps = T + A. order: declared (the list is run as it stands), or searched (the next
    run is picked by earlier scores). final: None where the winner's score is its evaluation. delta: the study's, at
    which everything is stated; the runs' own must be the same. The runs' noise counts every run, whether or not a
    search stopped early: what was signed is what is charged.
    """

    runs: tuple[Mechanism, ...]
    score: Score
    delta: float
    final: Score | None = None
    order: Order = "declared"

    def __post_init__(self) -> None:
        require_count("the number of runs", len(self.runs), 1)
        require_probability("delta", self.delta, allow_one=False)
        if len(self.runs) > LARGEST_GRID:
            raise ParameterError(f"A grid of {len(self.runs)} runs is beyond {LARGEST_GRID}.", "Declare fewer runs.")
        if self.order not in ("declared", "searched"):
            raise ParameterError(f"There is no order {self.order!r}.", "Use declared or searched.")
        if any(run.delta != self.delta for run in self.runs):
            raise ParameterError("A run has another delta than the grid.", "Use the study's delta throughout.")

    @property
    def charged(self) -> tuple[Mechanism, ...]:
        """What training patients are charged for: the runs as they are, or each as the costliest where searched."""
        if self.order == "declared":
            return self.runs
        dearest = Mechanism(
            min(run.noise_multiplier for run in self.runs),
            max(run.sampling_rate for run in self.runs),
            max(run.steps for run in self.runs),
            self.delta,
        )
        return (dearest,) * len(self.runs)

    @property
    def scores_charged(self) -> tuple[Mechanism, ...]:
        """What held-out patients are charged for: every attempt at every run's score, and at the final evaluation."""
        each = Mechanism(self.score.noise_multiplier, 1.0, len(self.runs) * self.score.attempts, self.delta)
        if self.final is None:
            return (each,)
        return (each, Mechanism(self.final.noise_multiplier, 1.0, self.final.attempts, self.delta))

    @property
    def steps(self) -> int:
        """Noisy training steps charged, all runs together."""
        return sum(run.steps for run in self.charged)

    def worst_site(self, sites: int, tolerated: int) -> TuningGrid:
        """The grid as one site pays it when all others collude: every sigma over sqrt(K - t). Raises ParameterError."""

        def share(sigma: float) -> float:
            return site_noise_multiplier(sigma, sites, tolerated)

        def of_score(score: Score) -> Score:
            return replace(score, noise_multiplier=share(score.noise_multiplier))

        return replace(
            self,
            runs=tuple(replace(run, noise_multiplier=share(run.noise_multiplier)) for run in self.runs),
            score=of_score(self.score),
            final=of_score(self.final) if self.final is not None else None,
        )


@dataclass(frozen=True)
class TuningCost:
    """What a person sees before consenting. Every epsilon is at the grid's delta, an upper bound.

    training: for a training patient, all runs together. held_out: for a held-out patient, all scores and the final
    evaluation. dearest_run: the costliest single run, what the study would have cost without tuning.
    """

    runs: int
    steps: int
    delta: float
    training: float
    held_out: float
    dearest_run: float

    @property
    def epsilon(self) -> float:
        """The larger of the two: what no patient exceeds."""
        return max(self.training, self.held_out)

    @property
    def price(self) -> float:
        """All runs over the costliest single one, 1 or more."""
        return self.training / self.dearest_run if self.dearest_run else math.inf


def tuning_cost(grid: TuningGrid, interval: float = LEDGER_INTERVAL) -> TuningCost:
    """The cost of the whole grid; LEDGER_INTERVAL to charge, FORECAST_INTERVAL to plan."""
    charged = grid.charged
    return TuningCost(
        runs=len(grid.runs),
        steps=grid.steps,
        delta=grid.delta,
        training=composed_epsilon(_merged(charged), grid.delta, interval),
        held_out=composed_epsilon(grid.scores_charged, grid.delta, interval),
        dearest_run=max(composed_epsilon((run,), grid.delta, interval) for run in set(charged)),
    )


def _merged(runs: tuple[Mechanism, ...]) -> tuple[Mechanism, ...]:
    """Runs of one sigma and one rate as one mechanism with the sum of their steps: the same, and quicker."""
    steps: dict[tuple[float, float, float], int] = {}
    for run in runs:
        key = (run.noise_multiplier, run.sampling_rate, run.delta)
        steps[key] = steps.get(key, 0) + run.steps
    return tuple(Mechanism(sigma, rate, count, delta) for (sigma, rate, delta), count in steps.items())


def tuned_noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int, runs: int) -> float:
    """The sigma of each of `runs` runs of `steps` = T + A steps for which all of them cost at most `epsilon`."""
    require_count("the number of runs", runs, 1)
    require_count("the number of steps", steps, 1)
    return noise_multiplier_for(epsilon, delta, sampling_rate, runs * steps)


def score_noise_multiplier(epsilon: float, delta: float, releases: int) -> float:
    """The noise of each of `releases` scores for which a held-out patient pays at most `epsilon` for all of them.

    m Gaussian releases at sigma are one at sigma / sqrt(m) (Dong et al. 2022, Corollary 3.3).
    """
    require_count("the number of releases", releases, 1)
    return gaussian_multiplier_for(epsilon, delta) * math.sqrt(releases)


@dataclass(frozen=True)
class Forecast:
    """One size of grid: what `runs` runs cost at one run's noise, and how much noise would keep one run's epsilon.

    noise_factor: over one run's multiplier; training utility is that of a cohort smaller by about this factor.
    """

    runs: int
    epsilon: float
    noise_multiplier: float
    noise_factor: float


def tuning_forecast(
    epsilon: float, delta: float, sampling_rate: float, steps: int, sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
) -> tuple[Forecast, ...]:
    """The price of grids of several sizes, for a study whose single run costs `epsilon` at `delta` in T + A `steps`.

    To be shown while a study is written: it takes some seconds for each size. Raises ParameterError.
    """
    for size in sizes:
        require_count("the number of runs", size, 1)
    alone = noise_multiplier_for(epsilon, delta, sampling_rate, steps)
    found = []
    for size in sizes:
        mechanism = Mechanism(alone, sampling_rate, size * steps, delta)
        held = tuned_noise_multiplier(epsilon, delta, sampling_rate, steps, size)
        found.append(Forecast(size, composed_epsilon((mechanism,), delta, FORECAST_INTERVAL), held, held / alone))
    return tuple(found)
