"""Pooled training, the yardstick: all patients in one table, one noise, written apart from the product.

Nothing of `privacy` is used here: the gradients, the clipping, the sampling and the calibration are this file's own,
so that a fault of the library would show as a difference.
"""

from __future__ import annotations

import dp_accounting
import numpy as np
from dp_accounting.pld import PLDAccountant
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier at which `steps` sampled Gaussian steps cost `epsilon`, by bisection."""

    def cost(sigma: float) -> float:
        accountant = PLDAccountant(value_discretization_interval=2e-4)
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        return float(accountant.get_epsilon(delta))

    low, high = 0.5, 200.0
    while high - low > 5e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > epsilon else (low, middle)
    return high


def train(
    x: Matrix,
    y: Matrix,
    intervals: int,
    *,
    rounds: int,
    rate: float,
    clip: float,
    learning_rate: float,
    momentum: float,
    sigma: float,
    random: np.random.Generator,
) -> Matrix:
    """(outputs (D + 1)) weights then biases, the mean of the last half of the rounds.

    intervals 0: logistic regression. Else the label is 2 k + e and one logistic regression for each interval is fitted
    to those who lived to its beginning.
    """
    rows, width = x.shape
    outputs = max(1, intervals)
    if intervals:
        reached = np.arange(intervals) <= (y // 2)[:, None]
        target = (np.arange(intervals) == (y // 2)[:, None]) & (y % 2 == 1)[:, None]
        counts = reached & (target | (np.arange(intervals) < (y // 2)[:, None]))
    else:
        target, counts = (y == 1)[:, None], np.ones((rows, 1), dtype=bool)
    ones = np.hstack([x, np.ones((rows, 1))])
    theta = np.zeros((outputs, width + 1))
    drift, sums, kept = np.zeros_like(theta), np.zeros_like(theta), 0
    for number in range(1, rounds + 1):
        pick = random.uniform(size=rows) < rate
        inputs = ones[pick]
        chance = 0.5 * (1 + np.tanh(inputs @ theta.T / 2))
        error = np.where(counts[pick], chance - target[pick], 0.0)
        each = error[:, :, None] * inputs[:, None, :]
        size = np.sqrt((each**2).sum(axis=(1, 2)))
        each = each / np.maximum(1.0, size / clip)[:, None, None]
        step = (each.sum(axis=0) + random.normal(0.0, 1.0, theta.shape) * sigma * clip) / (rate * rows)
        drift = momentum * drift + step
        theta = theta - learning_rate * drift
        if number > rounds // 2:
            sums, kept = sums + theta, kept + 1
    theta = sums / kept
    return np.concatenate([theta[:, :-1].ravel(), theta[:, -1]])
