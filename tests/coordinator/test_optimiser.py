"""Momentum and averaging over noisy sums, against the same written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.rounds.optimiser import (
    averaged_rounds,
    candidate_weights,
    from_bytes,
    initial_point,
    step,
    to_bytes,
)
from protocol.canonical import sha256_hex
from protocol.model import LogisticRegression, MultilayerPerceptron, parameter_count
from protocol.training import Training

PLAN = sha256_hex(b"plan")


def training(rounds: int, **changes: float) -> Training:
    return Training.model_validate(
        {"rounds": rounds, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 2.0, "momentum": 0.9, **changes}
    )


@pytest.mark.parametrize(
    ("rounds", "share", "kept"), [(60, 0.5, 30), (3, 0.5, 2), (5, 0.0, 1), (4, 1.0, 4), (1, 0.5, 1)]
)
def test_the_last_share_of_the_rounds_is_averaged(rounds: int, share: float, kept: int) -> None:
    assert averaged_rounds(training(rounds, average_last=share)) == kept


def test_steps_are_heavy_ball_and_the_candidate_is_the_mean_of_the_last_half() -> None:
    plan, sums = training(4), np.random.default_rng(1).normal(size=(4, 3))
    point = initial_point(LogisticRegression(architecture="logistic_regression"), 2, PLAN)
    weights, velocity, path = np.zeros(3), np.zeros(3), []
    for noisy in sums:
        point = step(point, noisy, 50.0, plan)
        velocity = 0.9 * velocity + noisy / 50.0
        weights = weights - 2.0 * velocity
        path.append(weights)
        np.testing.assert_array_equal(point.weights, weights)
    assert point.rounds == 4
    np.testing.assert_allclose(candidate_weights(point), (path[2] + path[3]) / 2, rtol=1e-15)


def test_a_sum_that_does_not_fit_is_refused() -> None:
    point = initial_point(LogisticRegression(architecture="logistic_regression"), 2, PLAN)
    for bad in (np.zeros(4), np.array([0.0, np.nan, 0.0]), np.array([0.0, np.inf, 0.0])):
        with pytest.raises(ValueError, match="length"):
            step(point, bad, 50.0, training(4))
    with pytest.raises(ValueError, match="averaged"):
        candidate_weights(point)


def test_hidden_layers_begin_alike_for_all_who_know_the_plan_and_differ_between_plans() -> None:
    model = MultilayerPerceptron(architecture="mlp", hidden=(8, 4))
    first, again = initial_point(model, 5, PLAN), initial_point(model, 5, PLAN)
    assert first.digest == again.digest
    assert first.digest != initial_point(model, 5, sha256_hex(b"another")).digest
    assert first.weights.size == parameter_count(model, 5)
    bound = np.sqrt(6 / (5 + 8))
    layer, bias = first.weights[:40], first.weights[40:48]
    assert np.abs(layer).max() <= bound
    assert np.unique(layer).size == 40
    assert not bias.any()


def test_vectors_cross_as_little_endian_doubles() -> None:
    values = np.array([1.0, -2.5, 1e-300])
    assert to_bytes(values) == b"".join(np.float64(value).tobytes() for value in values)
    np.testing.assert_array_equal(from_bytes(to_bytes(values)), values)
