"""The score histogram and what is derived from it: values against direct formulas, intervals against coverage."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from privacy.errors import ParameterError
from privacy.evaluation.histogram import ScoreHistogram, score_histogram
from privacy.evaluation.metrics import Evaluation, evaluate


def simulated(rng: np.random.Generator, count: int, prevalence: float) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.random(count) < prevalence
    return np.where(labels, rng.beta(3, 1.5, count), rng.beta(1.5, 3, count)), labels.astype(int)


def evaluated(counts: np.ndarray, noise_std: float = 0.0) -> Evaluation:
    return evaluate(ScoreHistogram(counts, noise_std), np.random.default_rng(1), draws=400)


def test_histogram_counts_each_patient_once_with_its_edges() -> None:
    scores = np.array([0.0, 0.499999, 0.5, 1.0, 0.25])
    counts = score_histogram(scores, np.array([0, 1, 0, 1, 1]), 4)
    assert counts.tolist() == [1, 0, 1, 0, 0, 2, 0, 1]
    assert score_histogram(np.empty(0), np.empty(0, int), 2).tolist() == [0, 0, 0, 0]


def test_zeroing_one_patient_moves_the_histogram_by_one() -> None:
    scores, labels = simulated(np.random.default_rng(2), 30, 0.4)
    whole = score_histogram(scores, labels, 10)
    for index in range(30):
        kept = np.delete(np.arange(30), index)
        assert np.linalg.norm(whole - score_histogram(scores[kept], labels[kept], 10)) == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "bins"),
    [
        ([1.1], [0], 4),
        ([-0.1], [0], 4),
        ([math.nan], [0], 4),
        ([0.5], [2], 4),
        ([0.5], [0], 3),
        ([0.5], [0], 0),
        ([0.5], [0], 1002),
        ([0.5, 0.5], [0], 4),
    ],
)
def test_histogram_refuses_what_is_out_of_range(scores: list, labels: list, bins: int) -> None:
    with pytest.raises(ParameterError) as caught:
        score_histogram(np.array(scores), np.array(labels), bins)
    assert caught.value.remedy


def test_metrics_are_those_of_the_binned_scores() -> None:
    scores, labels = simulated(np.random.default_rng(3), 400, 0.4)
    bins = 20
    binned = (np.minimum(np.floor(scores * bins), bins - 1) + 0.5) / bins
    result = evaluated(score_histogram(scores, labels, bins))
    assert result.auc.value == pytest.approx(roc_auc_score(labels, binned))
    assert result.accuracy.value == pytest.approx(np.mean((scores >= 0.5) == labels))
    assert result.brier.value == pytest.approx(brier_score_loss(labels, binned))
    assert result.calibration_in_the_large.value == pytest.approx(labels.mean() - binned.mean())
    assert result.patients.value == 400
    assert result.positives.value == labels.sum()
    assert abs(result.auc.value - roc_auc_score(labels, scores)) < 0.01
    for estimate in (result.auc, result.accuracy, result.brier, result.expected_calibration_error):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    group = result.reliability[2]
    inside = (scores >= group.score_from) & (scores < group.score_to)
    assert group.observed.value == pytest.approx(labels[inside].mean())
    assert group.predicted == pytest.approx(binned[inside].mean())


def test_same_seed_same_intervals_and_noise_widens_them() -> None:
    counts = score_histogram(*simulated(np.random.default_rng(4), 300, 0.4), 10)
    exact, again, noisy = evaluated(counts), evaluated(counts), evaluated(counts, 4.0)
    assert exact == again
    for name in ("auc", "accuracy", "brier", "calibration_in_the_large", "expected_calibration_error"):
        narrow, wide = getattr(exact, name), getattr(noisy, name)
        assert wide.high - wide.low > narrow.high - narrow.low


def test_one_class_only_is_undefined_with_its_reason() -> None:
    result = evaluated(score_histogram(np.array([0.2, 0.7, 0.9]), np.ones(3, int), 10))
    assert result.auc.value is None
    assert result.auc.low is None
    assert "label 0" in result.auc.reason
    assert result.accuracy.value == pytest.approx(2 / 3)
    assert result.reliability[2].observed.reason
    empty = evaluated(np.zeros(20))
    assert empty.accuracy.value is None
    assert empty.expected_calibration_error.value is None
    assert "no held-out patients" in empty.brier.reason


def test_too_few_patients_under_the_noise_is_undefined_with_its_reason() -> None:
    counts = score_histogram(*simulated(np.random.default_rng(5), 60, 0.3), 20)
    result = evaluated(counts, 10.0)
    assert result.auc.value is None
    assert "noise" in result.auc.reason
    assert result.accuracy.value is None


def test_perfect_separation_is_not_reported_as_certain() -> None:
    counts = score_histogram(np.array([0.1] * 15 + [0.9] * 15), np.array([0] * 15 + [1] * 15), 10)
    result = evaluated(counts)
    assert result.auc.value == 1.0
    assert result.auc.low < 0.99
    assert result.accuracy.low < 0.99


@pytest.mark.parametrize("noise_std", [0.0, 1.5, 4.3])
def test_intervals_cover_the_population_values(noise_std: float) -> None:
    rng = np.random.default_rng(6)
    runs, count, prevalence = 200, 180, 0.4
    big = simulated(rng, 200_000, prevalence)
    truth = {
        "auc": roc_auc_score(big[1], big[0]),
        "accuracy": np.mean((big[0] >= 0.5) == big[1]),
        "brier": brier_score_loss(big[1], big[0]),
        "calibration_in_the_large": big[1].mean() - big[0].mean(),
    }
    covered = dict.fromkeys(truth, 0)
    defined = dict.fromkeys(truth, 0)
    for _ in range(runs):
        counts = score_histogram(*simulated(rng, count, prevalence), 10) + rng.normal(0, noise_std, 20) * (
            noise_std > 0
        )
        result = evaluate(ScoreHistogram(counts, noise_std), rng, draws=200)
        for name, value in truth.items():
            estimate = getattr(result, name)
            if estimate.value is not None:
                defined[name] += 1
                covered[name] += estimate.low <= value <= estimate.high
    for name in truth:
        assert defined[name] > 0.7 * runs
        # 93 % less two standard errors of a share seen in that many runs.
        allowed = 0.93 - 2 * math.sqrt(0.93 * 0.07 / defined[name])
        assert covered[name] / defined[name] >= allowed, name


@pytest.mark.parametrize(
    ("counts", "noise_std"),
    [
        (np.zeros(3), 0.0),
        (np.zeros(6), 0.0),
        (np.array([1.0, math.nan, 0, 0]), 0.0),
        (np.zeros(4), -1.0),
        (np.zeros(4), math.inf),
    ],
)
def test_a_histogram_that_is_none_is_refused(counts: np.ndarray, noise_std: float) -> None:
    with pytest.raises(ParameterError):
        ScoreHistogram(counts, noise_std)


def test_evaluation_parameters() -> None:
    histogram = ScoreHistogram(np.ones(8), 0.0)
    for bad in ({"draws": 10}, {"groups": 0}, {"groups": 5}):
        with pytest.raises(ParameterError):
            evaluate(histogram, np.random.default_rng(0), **bad)
