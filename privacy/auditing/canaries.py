"""Canaries: made-up patients whose gradients are orthogonal, sent through the real clipping, sampling and noise.

One canary is the worst patient that the accounting allows for: at the model of zeros the log-loss gradient of its
records is half of `FEATURE` along an axis of its own, far beyond any clip, so every step that samples it adds the
whole clip to one coordinate that nobody else touches. An auditor who sees every noisy sum adds that coordinate up.

Canaries are spread over blocks. Each block is a cohort of its own with its own sampling and noise, so one patient is
in one block and the blocks together are exactly as private as one of them (parallel composition); a block of b
canaries needs b + 1 parameters only, where one cohort of all m would need m + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.dpsgd.per_patient import Index
from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError
from privacy.parameters import Mechanism, require_count

FEATURE = 1e6
"""A canary's only feature. The intercept's share of its clipped gradient is 1e-6."""

Included = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CanaryRecords:
    """One block. features: (R, b) float64. labels: (R,) of 1. patients: (R,) in 0..count-1, rising. count: b.

    A canary that the coin left out has no record: its contribution is zero, as zero-out adjacency has it.
    """

    features: Float64
    labels: Float64
    patients: Index
    count: int


Step = Callable[[CanaryRecords], Float64]
"""The code under audit: one private step of logistic regression at the model of zeros over a block, noise included.
Gives (b + 1,) float64, the intercept last. It reads the clip, sampling rate and noise from where the product does."""


def include_coins(canaries: int, stream: KeyStream) -> Included:
    """(m,) bool: each canary in with probability one half, independently; the auditor's secret."""
    return stream.uniform53(canaries) < 0.5


def block_records(included: Included, records: int) -> CanaryRecords:
    """The block's included canaries with `records` >= 1 equal records each."""
    require_count("the records of a canary", records, 1)
    patients = np.repeat(np.flatnonzero(included), records)
    features = np.zeros((patients.size, included.size))
    features[np.arange(patients.size), patients] = FEATURE
    return CanaryRecords(features, np.ones(patients.size), patients, int(included.size))


def score_canaries(included: Included, step: Step, *, steps: int, clip: float, block: int, records: int = 1) -> Float64:
    """(m,) float64: for each canary what `steps` runs of `step` added along its axis, in units of the clip.

    The matched filter: sufficient for Gaussian noise when everybody is sampled, near it when noise exceeds the clip.
    Raises ParameterError unless `block` divides m and the step gives (block + 1,) finite numbers.
    """
    require_count("the number of steps", steps, 1)
    require_count("the canaries of a block", block, 1)
    if included.size == 0 or included.size % block:
        raise ParameterError(f"Blocks of {block} do not part {included.size} canaries.", "Use a divisor.")
    scores = np.zeros(included.size)
    for start in range(0, included.size, block):
        part = slice(start, start + block)
        here = block_records(included[part], records)
        for _ in range(steps):
            noisy = step(here)
            if noisy.shape != (block + 1,) or not bool(np.isfinite(noisy).all()):
                raise ParameterError(
                    f"The audited step does not give {block + 1} finite numbers.",
                    "Audit a step of logistic regression.",
                )
            # The gradient of the log-loss of label 1 points down the feature.
            scores[part] -= noisy[:block]
    scores /= clip
    return scores


@dataclass(frozen=True)
class ScoreSpread:
    """Scores as the accounting expects them, both nearly normal. mean, std: of included canaries. std_out: of those
    left out, whose mean is 0."""

    mean: float
    std: float
    std_out: float


def expected_spread(mechanism: Mechanism, *, noise_divided_by: float = 1.0) -> ScoreSpread:
    """The spread of scores; `noise_divided_by` > 1 stands for a fault that lost so much of the noise (or, alike, let
    patients weigh so much more than the clip)."""
    steps, rate = mechanism.steps, mechanism.sampling_rate
    noise = (mechanism.noise_multiplier / noise_divided_by) ** 2
    return ScoreSpread(
        mean=steps * rate,
        std=math.sqrt(steps * (noise + rate * (1 - rate))),
        std_out=math.sqrt(steps * noise),
    )
