"""Means of one bounded value per patient from a (noised) histogram of it: a residual, or a Dice score.

A value stands for its bin's middle, so a mean is known to half a bin, and values beyond the bounds count at them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.evaluation.histogram import MOST_BINS
from privacy.evaluation.intervals import DRAWS, Estimate, Ratio, Simulation, too_few
from privacy.evaluation.metrics import middles
from privacy.parameters import require_count, require_positive


@dataclass(frozen=True)
class ResidualEvaluation:
    """mae, rmse, bias in the residual's unit. skill: 1 - rmse^2 / spread^2. outermost: the share of the two outermost
    cells."""

    mae: Estimate
    rmse: Estimate
    bias: Estimate
    skill: Estimate
    outermost: Estimate


@dataclass(frozen=True)
class DiceEvaluation:
    """The mean, and the share of patients with at least 0.5."""

    dice: Estimate
    above_half: Estimate


def value_histogram(values: npt.NDArray[np.floating], bins: int, low: float, high: float) -> Float64:
    """(P,) one value per patient -> (bins,) counts of the equal parts of low .. high; a value beyond counts in the
    outermost. Raises ParameterError for a value that is no number, without naming it."""
    require_count("the number of bins", bins, 2)
    if values.ndim != 1 or not bool(np.isfinite(values).all()):
        raise ParameterError("A value is not a finite number.", "Check the model's output.")
    place = np.floor((np.clip(values.astype(np.float64), low, high) - low) / (high - low) * bins).astype(np.int64)
    return np.bincount(np.minimum(place, bins - 1), minlength=bins).astype(np.float64)


def evaluate_residuals(
    counts: Float64, noise_std: float, limit: float, spread: float, rng: np.random.Generator, *, draws: int = DRAWS
) -> ResidualEvaluation:
    """counts: (2 bins,) of residuals in equal parts of -limit .. limit. spread: the standard deviation that a model is
    compared with. Raises ParameterError."""
    require_positive("the residuals' limit", limit)
    require_positive("the spread", spread)
    simulation, total, nobody = _opened(counts, noise_std, 2, rng, draws)
    middle = (2.0 * middles(counts.size) - 1.0) * limit
    ends = np.zeros(counts.size)
    ends[[0, -1]] = 1.0

    def mean(weights: Float64, low: float, high: float) -> Estimate:
        if nobody:
            return Estimate.undefined(nobody)
        return simulation.ratio(Ratio(weights, np.ones(counts.size), low, high), total)

    squared = mean(middle**2, 0.0, limit**2)
    return ResidualEvaluation(
        mae=mean(np.abs(middle), 0.0, limit),
        rmse=squared.mapped(math.sqrt),
        bias=mean(middle, -limit, limit),
        skill=squared.mapped(lambda value: 1.0 - value / spread**2),
        outermost=mean(ends, 0.0, 1.0),
    )


def evaluate_dice(counts: Float64, noise_std: float, rng: np.random.Generator, *, draws: int = DRAWS) -> DiceEvaluation:
    """counts: (bins,) of Dice scores in equal parts of [0, 1], an even number of them. Raises ParameterError."""
    simulation, total, nobody = _opened(counts, noise_std, 1, rng, draws)
    above = (np.arange(counts.size) >= counts.size / 2).astype(np.float64)

    def mean(weights: Float64) -> Estimate:
        return Estimate.undefined(nobody) if nobody else simulation.ratio(Ratio(weights, np.ones(counts.size)), total)

    return DiceEvaluation(dice=mean(middles(counts.size)), above_half=mean(above))


def _opened(
    counts: Float64, noise_std: float, parts: int, rng: np.random.Generator, draws: int
) -> tuple[Simulation, float, str | None]:
    if counts.ndim != 1 or not counts.size or counts.size % 2 or not bool(np.isfinite(counts).all()):
        raise ParameterError("A histogram has an even number of finite counts.", "Check the sum.")
    if counts.size > 2 * MOST_BINS or not (math.isfinite(noise_std) and noise_std >= 0):
        raise ParameterError("A histogram has too many bins or no size of noise.", "Take both from the plan.")
    total = float(counts.sum())
    nobody = too_few(total, math.sqrt(counts.size) * noise_std, "held-out patients")
    return Simulation(counts, noise_std, parts, rng, draws), total, nobody
