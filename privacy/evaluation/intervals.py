"""A value from a (noised) histogram with its interval: the machinery that all metrics share.

All is post-processing. An interval covers two independent sources and combines them by squares about the estimate,
side by side (MOVER: Zou and Donner 2008). The sample of patients: simulated multinomial histograms, on the logit
scale, so that it stays within its bounds and is wide where a class is small. The noise, whose size is known: the values
that a test does not reject at 5 % (Fieller 1954 for ratios), which stays right where noise makes a denominator
uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privacy.entropy import Float64

Z = 1.959963984540054
"""Standard deviations of a two-sided 95 % interval."""
DRAWS = 2000
FEWEST_STDS = 3.0
"""A total under this many standard deviations of its own noise defines no ratio."""
GRID = 4001


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, or None throughout with the reason why it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None

    @classmethod
    def undefined(cls, reason: str) -> Estimate:
        """No value, for `reason`."""
        return cls(None, None, None, reason)

    def mapped(self, change: Callable[[float], float]) -> Estimate:
        """The same under a monotone function, rising or falling."""
        if self.value is None or self.low is None or self.high is None:
            return self
        ends = change(self.low), change(self.high)
        return Estimate(change(self.value), min(ends), max(ends))


@dataclass(frozen=True)
class Ratio:
    """A statistic that is a ratio of two linear sums over the counts: (cells,) weights each, and its bounds."""

    numerator: Float64
    denominator: Float64
    low: float = 0.0
    high: float = 1.0

    def of(self, counts: Float64) -> Float64:
        """(n, cells) counts -> (n,) values."""
        # Noise may drive a total to 0 or below; one half is as close to 0 as a count can tell.
        values: Float64 = (counts @ self.numerator) / np.maximum(counts @ self.denominator, 0.5)
        return values


class Simulation:
    """One histogram, and the histograms that other patients might have given.

    counts: (cells,) float64, in `parts` equal parts one after another, each of whose totals means something by itself.
    noise_std: of the noise on each count; 0 for an exact histogram. draws: simulated histograms.
    """

    def __init__(self, counts: Float64, noise_std: float, parts: int, rng: np.random.Generator, draws: int) -> None:
        self.counts, self.noise_std = counts, noise_std
        self.clean = _cleaned(counts, parts)
        size = max(1, round(float(self.clean.sum())))
        # One pseudo-patient per part keeps a perfectly separated sample from looking certain.
        smoothed = self.clean + parts / counts.size
        self.other_patients = rng.multinomial(size, smoothed / smoothed.sum(), size=draws).astype(np.float64)

    def ratio(self, statistic: Ratio, count: float) -> Estimate:
        """Value and interval of a ratio that rests on `count` patients."""
        span = statistic.high - statistic.low
        value = within(float(statistic.of(self.counts[np.newaxis, :])[0]), statistic.low, statistic.high)
        unit = (value - statistic.low) / span
        below, above = logit_sides(unit, float(statistic.of(self.other_patients).std()) / span, count)
        candidates = np.linspace(statistic.low, statistic.high, GRID)
        weights = statistic.numerator - candidates[:, np.newaxis] * statistic.denominator
        variance = self.noise_std**2 * (weights**2).sum(axis=1)
        sides = noise_sides(value, candidates, weights @ self.counts, variance)
        return combined(value, (below * span, above * span), sides, statistic.low, statistic.high)


def _cleaned(counts: Float64, parts: int) -> Float64:
    """Counts at least 0 with each part's total as it was (or 0)."""
    found = []
    for part in np.split(counts, parts):
        kept = np.maximum(part, 0.0)
        total = max(float(part.sum()), 0.0)
        found.append(kept * (total / kept.sum()) if kept.sum() > 0 else kept)
    return np.concatenate(found)


def too_few(count: float, std: float, what: str) -> str | None:
    """Why a count that the noise moves by `std` defines no ratio, or None."""
    if count <= 0.5:
        return f"There are no {what}." if std == 0 else f"No {what} can be told from the noise."
    if count < FEWEST_STDS * std:
        return f"Too few {what} to tell from the noise (standard deviation {std:.1f})."
    return None


def noise_sides(value: float, candidates: Float64, score: Float64, variance: Float64) -> tuple[float, float]:
    """How far below and above `value` lie candidates that the noise alone would explain."""
    if not variance.any():
        return 0.0, 0.0
    kept = candidates[score**2 <= Z**2 * variance]
    if kept.size == 0:
        return 0.0, 0.0
    return max(0.0, value - float(kept[0])), max(0.0, float(kept[-1]) - value)


def within(value: float, low: float, high: float) -> float:
    """The nearest value from low to high."""
    return min(high, max(low, value))


def logit_sides(value: float, spread: float, count: float) -> tuple[float, float]:
    """How far a 95 % interval of standard deviation `spread`, taken on the logit scale, reaches below and above."""
    shrunk = (value * count + 0.5) / (count + 1.0)
    logit = math.log(shrunk / (1.0 - shrunk))
    reach = Z * spread / (shrunk * (1.0 - shrunk))
    low, high = (1.0 / (1.0 + math.exp(-within(x, -700.0, 700.0))) for x in (logit - reach, logit + reach))
    # Measured from the farther of the two centres: shrinking must not cost the interval an end.
    return max(value, shrunk) - low, high - min(value, shrunk)


def combined(
    value: float, sampling: tuple[float, float], noise: tuple[float, float], low: float, high: float
) -> Estimate:
    """Both sources about the value, cut to low .. high."""
    below, above = math.hypot(sampling[0], noise[0]), math.hypot(sampling[1], noise[1])
    return Estimate(value, max(low, value - below), min(high, value + above))
