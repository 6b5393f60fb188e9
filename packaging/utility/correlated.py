"""Would correlated noise (DP-FTRL) help a study with 3 to 50 sites? Measured at equal epsilon, on made-up patients.

Under the secure sum, noise that is correlated over rounds can be shared between sites just as independent noise can, so
the number of sites matters through the number of patients alone. Compared, all at 60 rounds and the recipe's own
momentum and averaging:

- independent: Poisson sampling, one Gaussian a round (what the product does);
- independent, everybody in every round;
- banded, amplified: square-root Toeplitz encoder cut to b bands, columns of norm 1; patients parted into b groups that
  take turns, sampled within their turn at b q (Choquette-Choo et al. 2023, arXiv:2306.08153: the cost of ceil(T / b)
  steps at rate b q);
- square-root Toeplitz and binary tree (with the least-squares decoder), patients in four groups that take turns,
  without amplification (Kairouz et al. 2021; Denisov et al. 2022): the sensitivity is the encoder applied to one
  patient's turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from arms import DELTA, RECIPE
from measures import auc
from numpy.typing import NDArray

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.gaussian import gaussian_multiplier_for

Matrix = NDArray[np.float64]
T = RECIPE.rounds
PATIENTS_PER_SITE, WIDTH = 60, 20
SITES = (3, 10, 50)
EPSILONS = (0.5, 1.0, 3.0)
BANDS = (2, 4, 8)
GROUPS = 4


@dataclass(frozen=True)
class Noise:
    """name: of the mechanism. mixing: (T, m), the rounds' noise over the clip = mixing @ independent standard normals.
    rate: sampling rate within the turn. groups: how many take turns."""

    name: str
    mixing: Matrix
    rate: float
    groups: int


def toeplitz(bands: int) -> Matrix:
    """(T, T) lower triangular: the first coefficients of the square root of the prefix sum."""
    coefficients = np.cumprod([1.0] + [(2 * k - 1) / (2 * k) for k in range(1, T)])
    coefficients[bands:] = 0
    return np.array([[coefficients[i - j] if i >= j else 0.0 for j in range(T)] for i in range(T)])


def tree() -> Matrix:
    """(nodes, T): the sums that a binary tree over the rounds holds."""
    rows, size = [], 1
    while size <= 2 ** math.ceil(math.log2(T)):
        rows += [[1.0 if start <= j < start + size else 0.0 for j in range(T)] for start in range(0, T, size)]
        size *= 2
    return np.array(rows)


def turns_sensitivity(encoder: Matrix, groups: int) -> float:
    """The largest L2 norm of the encoder applied to one group's turns; entries are >= 0, so this is the worst sign."""
    turns = [np.arange(T) % groups == g for g in range(groups)]
    return max(float(np.linalg.norm(encoder[:, turn].sum(axis=1))) for turn in turns)


def mechanisms(epsilon: float) -> list[Noise]:
    """All of them at `epsilon`, DELTA."""
    one = gaussian_multiplier_for(epsilon, DELTA)
    q = RECIPE.sampling_rate
    found = [
        Noise("independent, sampled", noise_multiplier_for(epsilon, DELTA, q, T) * np.eye(T), q, 1),
        Noise("independent, everybody each round", one * math.sqrt(T) * np.eye(T), 1.0, 1),
    ]
    for bands in BANDS:
        encoder = toeplitz(bands)
        encoder /= np.linalg.norm(encoder, axis=0)
        rate = min(1.0, q * bands)
        sigma = noise_multiplier_for(epsilon, DELTA, rate, math.ceil(T / bands))
        found.append(Noise(f"banded, {bands} bands, sampled", sigma * np.linalg.inv(encoder), rate, bands))
    for name, encoder in (("square-root Toeplitz, in turns", toeplitz(T)), ("binary tree, in turns", tree())):
        sigma = one * turns_sensitivity(encoder, GROUPS)
        found.append(Noise(name, sigma * np.linalg.pinv(encoder), 1.0, GROUPS))
    return found


def released_noise(noise: Noise) -> float:
    """Standard deviation, in one coordinate, of what the noise alone leaves in the averaged weights, in units of
    C / (q n): the recipe is linear in it."""
    position, velocity, average = np.zeros((T,)), np.zeros((T,)), np.zeros((T,))
    for number in range(T):
        velocity = RECIPE.momentum * velocity
        velocity[number] += 1.0
        position = position - RECIPE.learning_rate * velocity
        if number >= T // 2:
            average = average + position / (T - T // 2)
    return float(np.linalg.norm(average @ noise.mixing))


def simulate(noise: Noise, sites: int, seeds: int) -> list[float]:
    """AUC on new patients, for each seed; all seeds at once."""
    random = np.random.default_rng([sites, 7])
    count = sites * PATIENTS_PER_SITE
    rule = random.normal(size=(seeds, WIDTH)) * 2.0 / math.sqrt(WIDTH)

    def people(number: int) -> tuple[Matrix, Matrix]:
        x = random.normal(size=(seeds, number, WIDTH))
        chance = 1 / (1 + np.exp(-np.einsum("snd,sd->sn", x, rule)))
        ones = np.ones((seeds, number, 1))
        scaled = np.concatenate([np.clip(x, -3, 3) / math.sqrt(WIDTH), ones], axis=2)
        return scaled, (random.random((seeds, number)) < chance).astype(np.float64)

    x, y = people(count)
    x_test, y_test = people(1000)
    norm = np.linalg.norm(x, axis=2)
    group = np.arange(count) % noise.groups
    draw = np.random.default_rng([sites, noise.groups, 8])
    z = np.einsum("tm,smd->std", noise.mixing, draw.normal(size=(seeds, noise.mixing.shape[1], WIDTH + 1)))
    w, velocity, average = (np.zeros((seeds, WIDTH + 1)) for _ in range(3))
    batch = count * noise.rate / noise.groups
    for number in range(T):
        chosen = (draw.random((seeds, count)) < noise.rate) & (group == number % noise.groups)
        error = 1 / (1 + np.exp(-np.einsum("snd,sd->sn", x, w))) - y
        weight = error * np.minimum(1, RECIPE.clip / np.maximum(np.abs(error) * norm, 1e-12)) * chosen
        total = np.einsum("sn,snd->sd", weight, x) + RECIPE.clip * z[:, number]
        velocity = RECIPE.momentum * velocity + total / batch
        w = w - RECIPE.learning_rate * velocity
        if number >= T // 2:
            average += w
    scores = np.einsum("snd,sd->sn", x_test, average)
    return [auc(y_test[s], scores[s]) for s in range(seeds)]


def compare(seeds: int, sites: tuple[int, ...] = SITES) -> list[dict[str, object]]:
    """One row for each epsilon, number of sites and mechanism."""
    rows: list[dict[str, object]] = []
    for epsilon in EPSILONS:
        found = mechanisms(epsilon)
        for count in sites:
            for noise in found:
                batch = noise.rate / noise.groups
                rows.append(
                    {
                        "epsilon": epsilon,
                        "sites": count,
                        "mechanism": noise.name,
                        "noise": released_noise(noise) / batch,
                        "auc": simulate(noise, count, seeds),
                    }
                )
    return rows
