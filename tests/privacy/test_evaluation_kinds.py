"""Survival, regression and segmentation from one histogram: values against direct formulas, intervals by coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, roc_auc_score

from privacy.errors import ParameterError
from privacy.evaluation.bounded import evaluate_dice, evaluate_residuals, value_histogram
from privacy.evaluation.intervals import Estimate
from privacy.evaluation.survival import evaluate_survival

BINS = 10


def people(rng: np.random.Generator, count: int, lost: float) -> tuple[np.ndarray, np.ndarray]:
    """(risks, groups): who lived 0, had the event 1, or was lost 2; the chance of being lost knows nothing else."""
    event = (rng.random(count) < 0.4).astype(int)
    risks = np.where(event, rng.beta(3, 2, count), rng.beta(2, 3, count))
    return risks, np.where(rng.random(count) < lost, 2, event)


def survival_counts(risks: np.ndarray, groups: np.ndarray) -> np.ndarray:
    place = np.minimum((risks * BINS).astype(int), BINS - 1) + BINS * groups
    return np.bincount(place, minlength=3 * BINS).astype(float)


def test_survival_figures_are_those_of_the_binned_risks() -> None:
    risks, groups = people(np.random.default_rng(1), 500, 0.2)
    binned = (np.minimum(np.floor(risks * BINS), BINS - 1) + 0.5) / BINS
    known, lost = groups < 2, groups == 2
    found = evaluate_survival(survival_counts(risks, groups), 0.0, np.random.default_rng(2), draws=300)
    assert found.auc.value == pytest.approx(roc_auc_score(groups[known], binned[known]))
    assert found.auc_if_lost_lived.value == pytest.approx(roc_auc_score(groups == 1, binned))
    assert found.auc_if_lost_died.value == pytest.approx(roc_auc_score(groups >= 1, binned))
    assert found.lost.value == pytest.approx(lost.mean())
    assert found.predicted.value == pytest.approx(binned.mean())
    assert found.observed_least.value == pytest.approx((groups == 1).mean())
    assert found.observed_most.value == pytest.approx((groups >= 1).mean())


def test_without_anybody_lost_the_three_aucs_are_one() -> None:
    risks, groups = people(np.random.default_rng(3), 200, 0.0)
    found = evaluate_survival(survival_counts(risks, groups), 0.0, np.random.default_rng(2), draws=300)
    assert found.auc.value == found.auc_if_lost_lived.value == found.auc_if_lost_died.value
    assert found.lost.value == 0
    assert found.observed_least.value == found.observed_most.value


def residual_counts(residuals: np.ndarray, limit: float) -> np.ndarray:
    return value_histogram(residuals, 2 * BINS, -limit, limit)


def test_regression_figures_are_those_of_the_binned_residuals() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(120, 15, 600)
    said = truth + rng.normal(2, 9, 600)
    limit, spread, width = 45.0, 15.0, 4.5
    found = evaluate_residuals(residual_counts(said - truth, limit), 0.0, limit, spread, rng, draws=300)
    assert found.mae.value == pytest.approx(mean_absolute_error(truth, said), abs=width / 4)
    assert found.rmse.value == pytest.approx(math.sqrt(mean_squared_error(truth, said)), abs=width / 4)
    assert found.bias.value == pytest.approx((said - truth).mean(), abs=width / 4)
    assert found.skill.value == pytest.approx(1 - found.rmse.value**2 / spread**2)
    assert found.skill.low < found.skill.value < found.skill.high
    assert found.outermost.value == 0


def test_a_residual_beyond_the_limit_counts_at_it_and_is_told() -> None:
    found = evaluate_residuals(
        residual_counts(np.array([1e300, -1e300, 0.1, 0.2]), 3.0), 0.0, 3.0, 1.0, np.random.default_rng(1), draws=300
    )
    assert found.outermost.value == 0.5
    assert found.rmse.value <= 3.0


def test_dice_is_the_mean_of_the_binned_scores() -> None:
    scores = np.random.default_rng(5).beta(6, 2, 400)
    found = evaluate_dice(value_histogram(scores, BINS, 0.0, 1.0), 0.0, np.random.default_rng(1), draws=300)
    assert found.dice.value == pytest.approx(scores.mean(), abs=0.02)
    assert found.above_half.value == pytest.approx((scores >= 0.5).mean())


def test_one_patient_is_one_count() -> None:
    values = np.random.default_rng(6).normal(0, 2, 40)
    whole = residual_counts(values, 3.0)
    for index in range(40):
        assert np.linalg.norm(whole - residual_counts(np.delete(values, index), 3.0)) == 1.0


def covered(estimates: list[Estimate], truth: float) -> float:
    defined = [e for e in estimates if e.low is not None and e.high is not None]
    assert len(defined) > 0.9 * len(estimates)
    return sum(e.low <= truth <= e.high for e in defined) / len(defined)


def test_intervals_cover_the_truth_under_noise() -> None:
    rng = np.random.default_rng(7)
    noise, runs, patients = 3.0, 150, 400
    errors, dice, lost = [], [], []
    risks, groups = people(rng, 400_000, 0.3)
    exact = evaluate_survival(survival_counts(risks, groups), 0.0, rng, draws=300).auc_if_lost_died.value
    assert exact is not None
    for _ in range(runs):
        counts = residual_counts(rng.normal(0.5, 1.0, patients), 3.0) + rng.normal(0, noise, 2 * BINS)
        errors.append(evaluate_residuals(counts, noise, 3.0, 1.0, rng, draws=300).rmse)
        counts = value_histogram(rng.beta(6, 2, patients), BINS, 0.0, 1.0) + rng.normal(0, noise, BINS)
        dice.append(evaluate_dice(counts, noise, rng, draws=300).dice)
        counts = survival_counts(*people(rng, patients, 0.3)) + rng.normal(0, noise, 3 * BINS)
        lost.append(evaluate_survival(counts, noise, rng, draws=300).auc_if_lost_died)
    assert covered(errors, math.sqrt(1.25)) >= 0.9
    assert covered(dice, 0.75) >= 0.9
    assert covered(lost, exact) >= 0.9


def test_too_few_patients_for_the_noise_define_nothing() -> None:
    rng = np.random.default_rng(8)
    residuals = evaluate_residuals(residual_counts(np.zeros(20), 3.0), 10.0, 3.0, 1.0, rng, draws=300)
    assert residuals.rmse.value is None
    assert "noise" in (residuals.skill.reason or "")
    died = evaluate_survival(survival_counts(np.array([0.2] * 30), np.zeros(30, int)), 0.0, rng, draws=300)
    assert died.auc.value is None
    assert "label 1" in (died.auc.reason or "")


@pytest.mark.parametrize(
    "counts", [np.zeros(0), np.zeros(7), np.full(12, np.nan), np.zeros((2, 6)), np.zeros(2 * 3 * 1001)]
)
def test_a_sum_of_another_form_is_refused(counts: np.ndarray) -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(ParameterError):
        evaluate_survival(counts, 1.0, rng)
    with pytest.raises(ParameterError):
        evaluate_residuals(counts, 1.0, 3.0, 1.0, rng)
    with pytest.raises(ParameterError):
        evaluate_dice(counts, 1.0, rng)
    with pytest.raises(ParameterError):
        value_histogram(np.array([0.1, np.nan]), 10, 0.0, 1.0)
