"""AUC, accuracy, Brier score and calibration from a (noised) histogram, each with its interval.

All are post-processing. An interval covers two independent sources and combines them by squares about the estimate,
side by side (MOVER: Zou and Donner 2008). The sample of patients: simulated multinomial histograms, on the logit
scale, so that it stays within (0, 1) and is wide where a class is small. The noise, whose size is known: the values
that a test does not reject at 5 % (Fieller 1954 for the ratios, see `_noise_variance` for the AUC), which stays
right where noise makes a denominator uncertain.

Scores are known to a bin only: ties within a bin count one half, and a score stands for its bin's middle. A model that
ranks better than chance within a bin has a higher AUC than its histogram shows, so half the tied pairs go to the
upper side of its interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.evaluation.histogram import ScoreHistogram
from privacy.parameters import require_count

Z = 1.959963984540054
"""Standard deviations of a two-sided 95 % interval."""
DRAWS = 2000
FEWEST_STDS = 3.0
"""A total under this many standard deviations of its own noise defines no ratio."""
_GRID = 4001


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


@dataclass(frozen=True)
class ReliabilityGroup:
    """Scores from `score_from` to `score_to`: their mean as predicted, and the observed share of label 1."""

    score_from: float
    score_to: float
    predicted: float | None
    observed: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What one histogram says. patients, positives: counts as estimated.

    accuracy: at a threshold of 0.5. calibration_in_the_large: observed minus predicted share of label 1.
    expected_calibration_error: over the reliability groups; its interval takes every group to its own end at once and
    is wider than 95 % asks for.
    """

    patients: Estimate
    positives: Estimate
    auc: Estimate
    accuracy: Estimate
    brier: Estimate
    calibration_in_the_large: Estimate
    expected_calibration_error: Estimate
    reliability: tuple[ReliabilityGroup, ...]


def evaluate(histogram: ScoreHistogram, rng: np.random.Generator, *, draws: int = DRAWS, groups: int = 5) -> Evaluation:
    """All metrics of a histogram. The same seed gives the same intervals; the randomness protects nothing.

    draws: simulated histograms, >= 200. groups: reliability groups, at most the bins. Raises ParameterError.
    """
    require_count("the number of draws", draws, 200)
    require_count("the number of groups", groups, 1)
    if groups > histogram.bins:
        raise ParameterError("More reliability groups than bins.", "Use at most one group per bin.")
    simulation = _Simulation(histogram, rng, draws)
    bins, tau = histogram.bins, histogram.noise_std
    total_std, class_std = math.sqrt(2 * bins) * tau, math.sqrt(bins) * tau
    total, positives = float(histogram.counts.sum()), float(histogram.positives.sum())
    reliability = tuple(_group(simulation, part) for part in np.array_split(np.arange(bins), groups))
    negatives = total - positives
    smaller = min(positives, negatives)
    too_few = _too_few(total, total_std, "held-out patients")
    one_class = (
        too_few or _too_few(positives, class_std, "patients of label 1") or _too_few(negatives, class_std, "of label 0")
    )

    def ratio(statistic: Ratio) -> Estimate:
        return Estimate.undefined(too_few) if too_few else simulation.ratio(statistic, total)

    return Evaluation(
        patients=Estimate(total, total - Z * total_std, total + Z * total_std),
        positives=Estimate(positives, positives - Z * class_std, positives + Z * class_std),
        auc=Estimate.undefined(one_class) if one_class else simulation.auc(smaller),
        accuracy=ratio(accuracy(bins)),
        brier=ratio(brier(bins)),
        calibration_in_the_large=ratio(calibration_in_the_large(bins)),
        expected_calibration_error=_expected_calibration_error(histogram, reliability, too_few),
        reliability=reliability,
    )


def _too_few(count: float, std: float, what: str) -> str | None:
    if count <= 0.5:
        return f"There are no {what}." if std == 0 else f"No {what} can be told from the noise."
    if count < FEWEST_STDS * std:
        return f"Too few {what} to tell from the noise (standard deviation {std:.1f})."
    return None


@dataclass(frozen=True)
class Ratio:
    """A statistic that is a ratio of two linear sums over the counts: (2 bins,) weights each, and its bounds."""

    numerator: Float64
    denominator: Float64
    low: float = 0.0
    high: float = 1.0

    def of(self, counts: Float64) -> Float64:
        """(n, 2 bins) counts -> (n,) values."""
        # Noise may drive a total to 0 or below; one half is as close to 0 as a count can tell.
        values: Float64 = (counts @ self.numerator) / np.maximum(counts @ self.denominator, 0.5)
        return values


def middles(bins: int) -> Float64:
    """(bins,) the middle score of each bin."""
    values: Float64 = (np.arange(bins) + 0.5) / bins
    return values


def accuracy(bins: int) -> Ratio:
    """Share of patients with label 0 scored below 0.5 or label 1 scored at or above."""
    right = np.zeros(2 * bins)
    right[: bins // 2] = 1.0
    right[bins + bins // 2 :] = 1.0
    return Ratio(right, np.ones(2 * bins))


def brier(bins: int) -> Ratio:
    """Mean squared difference of middle score and label; binning changes it by at most 1/bins."""
    middle = middles(bins)
    return Ratio(np.concatenate([middle**2, (1 - middle) ** 2]), np.ones(2 * bins))


def calibration_in_the_large(bins: int) -> Ratio:
    """Observed minus mean predicted share of label 1, in [-1, 1]."""
    middle = middles(bins)
    return Ratio(np.concatenate([-middle, 1 - middle]), np.ones(2 * bins), low=-1.0)


def auc(counts: Float64) -> Float64:
    """(n, 2 bins) -> (n,): the chance that label 1 scores above label 0, ties one half. Unclipped under noise."""
    bins = counts.shape[1] // 2
    negatives, positives = counts[:, :bins], counts[:, bins:]
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = np.maximum(positives.sum(axis=1) * negatives.sum(axis=1), 0.25)
    values: Float64 = (positives * below).sum(axis=1) / pairs
    return values


class _Simulation:
    """One histogram, and the histograms that other patients might have given."""

    def __init__(self, histogram: ScoreHistogram, rng: np.random.Generator, draws: int) -> None:
        self.histogram = histogram
        self.clean = self._cleaned(histogram)
        size = max(1, round(float(self.clean.sum())))
        # One pseudo-patient per label keeps a perfectly separated sample from looking certain.
        smoothed = self.clean + 1.0 / histogram.bins
        self.other_patients = rng.multinomial(size, smoothed / smoothed.sum(), size=draws).astype(np.float64)

    @staticmethod
    def _cleaned(histogram: ScoreHistogram) -> Float64:
        """Counts at least 0 with each label's total as it was (or 0)."""
        parts = []
        for part in (histogram.negatives, histogram.positives):
            kept = np.maximum(part, 0.0)
            total = max(float(part.sum()), 0.0)
            parts.append(kept * (total / kept.sum()) if kept.sum() > 0 else kept)
        return np.concatenate(parts)

    def ratio(self, statistic: Ratio, count: float) -> Estimate:
        """Value and interval of a ratio that rests on `count` patients."""
        span = statistic.high - statistic.low
        value = _within(float(statistic.of(self.histogram.counts[np.newaxis, :])[0]), statistic.low, statistic.high)
        unit = (value - statistic.low) / span
        below, above = _logit_sides(unit, float(statistic.of(self.other_patients).std()) / span, count)
        candidates = np.linspace(statistic.low, statistic.high, _GRID)
        weights = statistic.numerator - candidates[:, np.newaxis] * statistic.denominator
        variance = self.histogram.noise_std**2 * (weights**2).sum(axis=1)
        sides = self._noise_sides(value, candidates, weights @ self.histogram.counts, variance)
        return _combined(value, (below * span, above * span), sides, statistic.low, statistic.high)

    def auc(self, smaller_class: float) -> Estimate:
        """Value and interval of the AUC, where the smaller class has so many patients."""
        value = _within(float(auc(self.histogram.counts[np.newaxis, :])[0]), 0.0, 1.0)
        below, above = _logit_sides(value, float(auc(self.other_patients).std()), smaller_class)
        bins = self.histogram.bins
        kernel = np.tri(bins, bins, -1) + np.eye(bins) / 2  # [b, b']: label 1 in b against label 0 in b'
        candidates = np.linspace(0.0, 1.0, _GRID)
        negatives, positives = self.histogram.negatives, self.histogram.positives
        score = positives @ kernel @ negatives - candidates * positives.sum() * negatives.sum()
        variance = _noise_variance(kernel, negatives, positives, candidates, self.histogram.noise_std)
        sides = self._noise_sides(value, candidates, score, variance)
        clean_negatives, clean_positives = self.clean[:bins], self.clean[bins:]
        tied = float(clean_negatives @ clean_positives) / max(
            float(clean_negatives.sum() * clean_positives.sum()), 0.25
        )
        return _combined(value, (below, above + tied / 2), sides, 0.0, 1.0)

    def _noise_sides(self, value: float, candidates: Float64, score: Float64, variance: Float64) -> tuple[float, float]:
        """How far below and above `value` lie candidates that the noise alone would explain."""
        if self.histogram.noise_std == 0:
            return 0.0, 0.0
        kept = candidates[score**2 <= Z**2 * variance]
        if kept.size == 0:
            return 0.0, 0.0
        return max(0.0, value - float(kept[0])), max(0.0, float(kept[-1]) - value)


def _noise_variance(
    kernel: Float64, negatives: Float64, positives: Float64, candidates: Float64, noise_std: float
) -> Float64:
    """Variance from noise of p M n, M = kernel - theta, at each candidate theta; p and n are noised counts.

    With true counts it is tau^2 (|M n|^2 + |M' p|^2) + tau^4 |M|^2. Noised counts raise each square by
    tau^2 |M|^2 on average, so subtracting tau^4 |M|^2 instead of adding it makes the estimate unbiased.
    """
    bins = kernel.shape[0]

    def square(vector: Float64, total: float) -> Float64:
        # |vector - theta total 1|^2 for every theta at once.
        values: Float64 = vector @ vector - 2 * candidates * total * vector.sum() + candidates**2 * total**2 * bins
        return values

    squares = square(kernel @ negatives, float(negatives.sum())) + square(positives @ kernel, float(positives.sum()))
    frobenius = (kernel**2).sum() - 2 * candidates * kernel.sum() + candidates**2 * bins**2
    floor = noise_std**2 * frobenius
    variance: Float64 = noise_std**2 * np.maximum(squares - floor, floor)
    return variance


def _within(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _logit_sides(value: float, spread: float, count: float) -> tuple[float, float]:
    """How far a 95 % interval of standard deviation `spread`, taken on the logit scale, reaches below and above."""
    shrunk = (value * count + 0.5) / (count + 1.0)
    logit = math.log(shrunk / (1.0 - shrunk))
    reach = Z * spread / (shrunk * (1.0 - shrunk))
    low, high = (1.0 / (1.0 + math.exp(-_within(x, -700.0, 700.0))) for x in (logit - reach, logit + reach))
    # Measured from the farther of the two centres: shrinking must not cost the interval an end.
    return max(value, shrunk) - low, high - min(value, shrunk)


def _combined(
    value: float, sampling: tuple[float, float], noise: tuple[float, float], low: float, high: float
) -> Estimate:
    below, above = math.hypot(sampling[0], noise[0]), math.hypot(sampling[1], noise[1])
    return Estimate(value, max(low, value - below), min(high, value + above))


def _group(simulation: _Simulation, part: npt.NDArray[np.intp]) -> ReliabilityGroup:
    histogram = simulation.histogram
    bins = histogram.bins
    start, end = float(part[0]) / bins, float(part[-1] + 1) / bins
    totals = histogram.negatives[part] + histogram.positives[part]
    count = float(totals.sum())
    too_few = _too_few(count, math.sqrt(2 * part.size) * histogram.noise_std, "patients in this group")
    if too_few:
        return ReliabilityGroup(start, end, None, Estimate.undefined(too_few))
    numerator, denominator = np.zeros(2 * bins), np.zeros(2 * bins)
    numerator[part + bins] = 1.0
    denominator[part] = denominator[part + bins] = 1.0
    predicted = _within(float((totals * middles(bins)[part]).sum() / count), start, end)
    return ReliabilityGroup(start, end, predicted, simulation.ratio(Ratio(numerator, denominator), count))


def _expected_calibration_error(
    histogram: ScoreHistogram, reliability: tuple[ReliabilityGroup, ...], too_few: str | None
) -> Estimate:
    if too_few:
        return Estimate.undefined(too_few)
    totals = histogram.negatives + histogram.positives
    parts = np.array_split(totals, len(reliability))
    defined = [
        (float(part.sum()), group.predicted, group.observed)
        for part, group in zip(parts, reliability, strict=True)
        if group.predicted is not None
    ]
    whole = sum(count for count, _, _ in defined)
    if not defined:
        return Estimate.undefined("No group of scores has enough patients to tell from the noise.")
    value = low = high = 0.0
    for count, predicted, observed in defined:
        assert observed.value is not None  # a group with a prediction has its observation
        assert observed.low is not None
        assert observed.high is not None
        share = count / whole
        value += share * abs(observed.value - predicted)
        low += share * max(0.0, observed.low - predicted, predicted - observed.high)
        high += share * max(observed.high - predicted, predicted - observed.low)
    return Estimate(value, low, min(1.0, high))
