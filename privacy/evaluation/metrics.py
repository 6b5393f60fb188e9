"""AUC, accuracy, Brier score and calibration from a (noised) histogram, each with its interval (see `intervals`).

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
from privacy.evaluation.intervals import (
    DRAWS,
    GRID,
    Estimate,
    Ratio,
    Simulation,
    Z,
    combined,
    logit_sides,
    noise_sides,
    too_few,
    within,
)
from privacy.parameters import require_count


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
    simulation = Simulation(histogram.counts, histogram.noise_std, 2, rng, draws)
    bins, tau = histogram.bins, histogram.noise_std
    total_std, class_std = math.sqrt(2 * bins) * tau, math.sqrt(bins) * tau
    total, positives = float(histogram.counts.sum()), float(histogram.positives.sum())
    reliability = tuple(_group(histogram, simulation, part) for part in np.array_split(np.arange(bins), groups))
    negatives = total - positives
    smaller = min(positives, negatives)
    nobody = too_few(total, total_std, "held-out patients")
    one_class = (
        nobody or too_few(positives, class_std, "patients of label 1") or too_few(negatives, class_std, "of label 0")
    )

    def ratio(statistic: Ratio) -> Estimate:
        return Estimate.undefined(nobody) if nobody else simulation.ratio(statistic, total)

    return Evaluation(
        patients=Estimate(total, total - Z * total_std, total + Z * total_std),
        positives=Estimate(positives, positives - Z * class_std, positives + Z * class_std),
        auc=Estimate.undefined(one_class) if one_class else _auc(simulation, (tau, tau), smaller),
        accuracy=ratio(accuracy(bins)),
        brier=ratio(brier(bins)),
        calibration_in_the_large=ratio(calibration_in_the_large(bins)),
        expected_calibration_error=_expected_calibration_error(histogram, reliability, nobody),
        reliability=reliability,
    )


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


def auc_estimate(
    negatives: Float64,
    positives: Float64,
    noise_stds: tuple[float, float],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
) -> Estimate:
    """The AUC of (bins,) counts of each class, the noise of whose cells has these standard deviations."""
    bins, smaller = negatives.size, min(float(negatives.sum()), float(positives.sum()))
    for counts, std, what in zip((negatives, positives), noise_stds, ("label 0", "label 1"), strict=True):
        why = too_few(float(counts.sum()), math.sqrt(bins) * std, f"patients of {what}")
        if why:
            return Estimate.undefined(why)
    simulation = Simulation(np.concatenate([negatives, positives]), 0.0, 2, rng, draws)
    return _auc(simulation, noise_stds, smaller)


def _auc(simulation: Simulation, noise_stds: tuple[float, float], smaller_class: float) -> Estimate:
    """Value and interval of the AUC, where the smaller class has so many patients."""
    value = within(float(auc(simulation.counts[np.newaxis, :])[0]), 0.0, 1.0)
    below, above = logit_sides(value, float(auc(simulation.other_patients).std()), smaller_class)
    negatives, positives = np.split(simulation.counts, 2)
    bins = negatives.size
    kernel = np.tri(bins, bins, -1) + np.eye(bins) / 2  # [b, b']: label 1 in b against label 0 in b'
    candidates = np.linspace(0.0, 1.0, GRID)
    score = positives @ kernel @ negatives - candidates * positives.sum() * negatives.sum()
    variance = _noise_variance(kernel, negatives, positives, candidates, noise_stds)
    sides = noise_sides(value, candidates, score, variance)
    clean_negatives, clean_positives = np.split(simulation.clean, 2)
    pairs = max(float(clean_negatives.sum() * clean_positives.sum()), 0.25)
    tied = float(clean_negatives @ clean_positives) / pairs
    return combined(value, (below, above + tied / 2), sides, 0.0, 1.0)


def _noise_variance(
    kernel: Float64, negatives: Float64, positives: Float64, candidates: Float64, noise_stds: tuple[float, float]
) -> Float64:
    """Variance from noise of p M n, M = kernel - theta, at each candidate theta; p and n are noised counts.

    With true counts it is s^2 |M n|^2 + t^2 |M' p|^2 + s^2 t^2 |M|^2, s and t the noise of p's and n's cells. Noised
    counts raise each of the squares by s^2 t^2 |M|^2 on average, so subtracting that once instead of adding it makes
    the estimate unbiased.
    """
    bins = kernel.shape[0]

    def square(vector: Float64, total: float) -> Float64:
        # |vector - theta total 1|^2 for every theta at once.
        values: Float64 = vector @ vector - 2 * candidates * total * vector.sum() + candidates**2 * total**2 * bins
        return values

    of_negatives, of_positives = (std**2 for std in noise_stds)
    squares = of_positives * square(kernel @ negatives, float(negatives.sum()))
    squares += of_negatives * square(positives @ kernel, float(positives.sum()))
    frobenius = (kernel**2).sum() - 2 * candidates * kernel.sum() + candidates**2 * bins**2
    floor = of_negatives * of_positives * frobenius
    variance: Float64 = np.maximum(squares - floor, floor)
    return variance


def _group(histogram: ScoreHistogram, simulation: Simulation, part: npt.NDArray[np.intp]) -> ReliabilityGroup:
    bins = histogram.bins
    start, end = float(part[0]) / bins, float(part[-1] + 1) / bins
    totals = histogram.negatives[part] + histogram.positives[part]
    count = float(totals.sum())
    nobody = too_few(count, math.sqrt(2 * part.size) * histogram.noise_std, "patients in this group")
    if nobody:
        return ReliabilityGroup(start, end, None, Estimate.undefined(nobody))
    numerator, denominator = np.zeros(2 * bins), np.zeros(2 * bins)
    numerator[part + bins] = 1.0
    denominator[part] = denominator[part + bins] = 1.0
    predicted = within(float((totals * middles(bins)[part]).sum() / count), start, end)
    return ReliabilityGroup(start, end, predicted, simulation.ratio(Ratio(numerator, denominator), count))


def _expected_calibration_error(
    histogram: ScoreHistogram, reliability: tuple[ReliabilityGroup, ...], nobody: str | None
) -> Estimate:
    if nobody:
        return Estimate.undefined(nobody)
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
