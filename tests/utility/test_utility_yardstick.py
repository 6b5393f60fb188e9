"""The pooled yardstick and the measures, against the library, scikit-learn and pairs counted one by one."""

import math
import os

import correlated
import measures
import numpy as np
import pooled
import pytest
from cohorts import YEARS, hazard_labels
from sklearn.metrics import roc_auc_score

from privacy.accounting.epsilon import epsilon
from privacy.local.contribution import clipped_gradient_sum
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.parameters import Mechanism

RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize(("loss", "outputs"), [("logistic", 1), ("hazard", 3)])
def test_the_yardsticks_own_gradients_and_clipping_are_the_librarys(loss: str, outputs: int) -> None:
    x = RANDOM.normal(size=(50, 4))
    y = RANDOM.integers(0, 2 if loss == "logistic" else 2 * outputs + 1, 50).astype(np.float64)
    network, group = Network((4, outputs), loss), Group(x, y, np.arange(50), 50)
    found = pooled.train(
        x, y, 0 if loss == "logistic" else outputs, rounds=6, rate=1.0, clip=0.8, learning_rate=0.7, momentum=0.5,
        sigma=0.0, random=RANDOM,
    )  # fmt: skip
    weights, velocity, kept = np.zeros(network.parameters), np.zeros(network.parameters), []
    for _ in range(6):
        total = clipped_gradient_sum(group, network, weights, clip=0.8, sampling_rate=1.0, entropy=os.urandom)
        velocity = 0.5 * velocity + total / 50
        weights = weights - 0.7 * velocity
        kept.append(weights)
    np.testing.assert_allclose(found, np.mean(kept[3:], axis=0), atol=1e-7)
    assert np.abs(found).max() > 0.1


def test_the_yardsticks_noise_has_the_calibrated_size_and_calibration() -> None:
    sigma = pooled.noise_for(2.0, 1e-4, 0.25, 2)
    assert 1.99 < epsilon(Mechanism(sigma, 0.25, 2, 1e-4)) < 2.005  # the library's accountant
    draws = [
        pooled.train(
            np.zeros((8, 400)), np.zeros(8), 0, rounds=1, rate=0.5, clip=0.25, learning_rate=1.0, momentum=0.0,
            sigma=sigma, random=np.random.default_rng(seed),
        )[:-1]
        for seed in range(10)
    ]  # fmt: skip
    assert np.std(draws) == pytest.approx(sigma * 0.25 / (0.5 * 8), rel=0.05)


def test_auc_is_scikit_learns_and_undefined_for_one_outcome() -> None:
    y = RANDOM.integers(0, 2, 200).astype(np.float64)
    scores = np.round(RANDOM.normal(size=200) + y, 1)  # with ties
    assert measures.auc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    assert math.isnan(measures.auc(np.ones(5), np.arange(5.0)))


def test_concordance_counts_the_pairs_whose_order_is_known() -> None:
    time, event = np.ceil(RANDOM.exponential(size=60) * 8), RANDOM.integers(0, 2, 60).astype(np.float64)  # with ties
    risk = np.round(-time / 8 + RANDOM.normal(size=60), 1)
    right, pairs, tied = 0.0, 0, 0
    for i in range(60):
        for j in range(60):
            same_day = time[i] == time[j] and not event[j]
            if event[i] and (time[i] < time[j] or same_day):
                pairs, tied = pairs + 1, tied + same_day
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert tied
    assert measures.concordance(time, event, risk) == pytest.approx(right / pairs)
    assert math.isnan(measures.concordance(time, np.zeros(60), risk))


@pytest.mark.parametrize(
    ("time", "event", "risk", "found"),
    [
        ([1, 2, 3, 4], [1, 1, 1, 1], [4, 3, 2, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 1, 1], [1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4], [1, 1, 1, 1], [5, 5, 5, 5], 0.5),
        ([1, 2, 3], [0, 0, 1], [1, 2, 3], math.nan),  # nobody is known to outlive whom
        ([1, 2, 3], [0, 1, 0], [9, 2, 1], 1.0),  # the first was lost from sight before anybody died
        ([5, 5], [1, 1], [2, 1], math.nan),  # two deaths on one day are no pair
        ([5, 5], [1, 0], [2, 1], 1.0),  # seen alive on the day of the other's death
        ([2, 3, 5, 7, 7], [1, 0, 1, 1, 0], [3, 5, 2, 2, 1], (3 + 1.5 + 1) / 7),
    ],
)
def test_concordance_worked_by_hand(time: list[float], event: list[float], risk: list[float], found: float) -> None:
    said = measures.concordance(*(np.array(values, dtype=np.float64) for values in (time, event, risk)))
    assert said == pytest.approx(found, nan_ok=True)


def test_survival_labels_are_what_the_network_reads() -> None:
    time = np.array([0.0, 1.0, 1.0, 3.0, 12.0, 12.0])
    event = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    labels = hazard_labels(time, event)
    assert YEARS == (2.0, 5.0, 10.0)
    assert labels.tolist() == [1.0, 1.0, 0.0, 3.0, 6.0, 6.0]
    outcomes = Network((1, 3), "hazard").outcomes(labels)
    assert outcomes[[0, 1, 3, 4, 5]].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert math.isnan(outcomes[2])


def test_paired_intervals_leave_out_what_is_undefined() -> None:
    mean, low, high, number = measures.paired([1.0, 2.0, 4.0, math.nan], [0.0, 1.0, 2.0, 9.0])
    assert (number, mean) == (3, pytest.approx(4 / 3))
    half = 4.302652729911275 * np.std([1, 1, 2], ddof=1) / math.sqrt(3)
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))


def test_the_correlated_encoders_are_what_they_are_named_after() -> None:
    rounds = correlated.T
    encoder = correlated.toeplitz(rounds)
    np.testing.assert_allclose(encoder @ encoder, np.tril(np.ones((rounds, rounds))), atol=1e-9)
    tree = correlated.tree()
    np.testing.assert_allclose(np.linalg.pinv(tree) @ tree, np.eye(rounds), atol=1e-9)
    # A patient in every fourth round is in 15 leaves, in 15 nodes of 2, in 15 of 4, twice in 7 of 8 and once in one ...
    turn = np.arange(rounds) % 4 == 0
    assert correlated.turns_sensitivity(tree, 4) >= np.linalg.norm(tree @ turn)
    assert correlated.turns_sensitivity(np.eye(rounds), 4) == math.sqrt(15)
    assert correlated.turns_sensitivity(np.eye(rounds), 1) == math.sqrt(60)


def test_released_noise_is_what_the_recipe_makes_of_it() -> None:
    noise = correlated.Noise("as drawn", np.eye(correlated.T), 1.0, 1)
    draws = np.random.default_rng(4).normal(size=(correlated.T, 20_000))
    w, velocity, average = (np.zeros(20_000) for _ in range(3))
    for number in range(correlated.T):
        velocity = 0.9 * velocity + draws[number]
        w = w - 2.0 * velocity
        average += w / 30 if number >= 30 else 0.0
    assert correlated.released_noise(noise) == pytest.approx(average.std(), rel=0.02)
