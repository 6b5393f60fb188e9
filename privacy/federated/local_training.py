"""Local DP-SGD: several private steps at one site, each with the full noise sigma C, and one model delta in the end.

Every step is a Poisson-sampled Gaussian of its own, so the site's guarantee rests on no other site and on no secure
sum: E local steps in each of T + A attempts cost what (T + A) E steps cost at the site's own sigma and q. The delta,
any bound put on it, the averaging and the server's rule are post-processing and cost nothing (Abadi et al. 2016;
McMahan et al. 2017). A patient is at one site, so what holds for the site holds for the released model; a patient at m
sites has group privacy m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import LEDGER_INTERVAL, epsilon
from privacy.accounting.ledger import StudyCharges
from privacy.entropy import Entropy, Float64
from privacy.errors import ParameterError
from privacy.local.contribution import clipped_gradient_sum, private_gradient_sum
from privacy.local.model import CPU, Hardware, LocalModel
from privacy.local.patients import Group
from privacy.parameters import Mechanism, require_count, require_positive, require_probability

if TYPE_CHECKING:
    from privacy.local.ranks import Ranks


@dataclass(frozen=True)
class LocalTraining:
    """What one site does in one attempt, fixed by the plan. Raises ParameterError.

    steps: E >= 1 private steps. learning_rate > 0. clip: C > 0, one patient's gradient in L2.
    sampling_rate: q in (0, 1]. noise_multiplier: sigma > 0; each step's noise is sigma C.
    momentum: heavy-ball within the attempt, in [0, 1), beginning anew with each. expected_batch > 0: q times the site's
    public count of training patients, the divisor whatever the actual batch is. largest_delta: an L2 bound on the
    delta, or None.
    """

    steps: int
    learning_rate: float
    clip: float
    sampling_rate: float
    noise_multiplier: float
    expected_batch: float
    momentum: float = 0.0
    largest_delta: float | None = None

    def __post_init__(self) -> None:
        require_count("the number of local steps", self.steps, 1)
        require_positive("the local learning rate", self.learning_rate)
        require_positive("the clip", self.clip)
        require_probability("the sampling rate", self.sampling_rate, allow_one=True)
        require_positive("the noise multiplier", self.noise_multiplier)
        require_positive("the expected batch", self.expected_batch)
        if not 0 <= self.momentum < 1:
            raise ParameterError(f"The momentum must be in [0, 1) and is {self.momentum}.", "Correct the momentum.")
        if self.largest_delta is not None:
            require_positive("the largest delta", self.largest_delta)

    @property
    def noise_std(self) -> float:
        """sigma C: the noise of one step, nothing of it shared with other sites."""
        return self.noise_multiplier * self.clip

    def mechanism(self, attempts: int, delta: float) -> Mechanism:
        """What `attempts` = T + A attempts are charged as at this site: attempts x steps noisy steps."""
        require_count("the number of attempts", attempts, 1)
        return Mechanism(self.noise_multiplier, self.sampling_rate, attempts * self.steps, delta)

    def steps_charged(self, charges: StudyCharges) -> int:
        """Noisy steps that a study's charges stand for: each charged attempt is E of them, executed or not."""
        return charges.count * self.steps


def local_noise_multiplier(epsilon: float, delta: float, sampling_rate: float, attempts: int, steps: int) -> float:
    """The site's own sigma for which `attempts` = T + A attempts of `steps` local steps cost at most `epsilon`."""
    require_count("the number of attempts", attempts, 1)
    require_count("the number of local steps", steps, 1)
    return noise_multiplier_for(epsilon, delta, sampling_rate, attempts * steps)


def released_epsilon(sites: Iterable[Mechanism], interval: float = LEDGER_INTERVAL) -> float:
    """Epsilon of the model that all sites' deltas made: the largest of the sites' own, for each patient is at one.

    Raises ParameterError for no site, or for sites with different deltas.
    """
    found = list(sites)
    if not found or len({mechanism.delta for mechanism in found}) != 1:
        raise ParameterError("The sites do not share one delta.", "Account every site at the study's delta.")
    return max(epsilon(mechanism, interval) for mechanism in found)


def local_delta(
    group: Group,
    model: LocalModel,
    weights: Float64,
    training: LocalTraining,
    *,
    entropy: Entropy,
    hardware: Hardware = CPU,
    ranks: Ranks | None = None,
) -> Float64:
    """(P,) float64: the site's model after `training.steps` private steps from `weights` (P,), minus `weights`.

    All of it is post-processing of noised sums, so it may be sent. With `largest_delta` it is scaled down to that L2
    norm where it is longer: a bound for a secure sum's grid, and on what one site can move, at no cost in privacy.
    A site without patients makes the same noisy steps. Raises ParameterError: for weights that do not fit, and for
    steps that ran away beyond float64, of which it says nothing else.
    """

    def noisy_sum(current: Float64) -> Float64:
        return private_gradient_sum(
            group,
            model,
            current,
            clip=training.clip,
            sampling_rate=training.sampling_rate,
            noise_std=training.noise_std,
            entropy=entropy,
            hardware=hardware,
            ranks=ranks,
        )

    return _delta(weights, training, noisy_sum)


def delta_without_noise(
    group: Group, model: LocalModel, weights: Float64, training: LocalTraining, *, entropy: Entropy
) -> Float64:
    """(P,) as `local_delta`, of clipped sums that nothing is added to: a comparison, which may never leave a site."""

    def bare_sum(current: Float64) -> Float64:
        return clipped_gradient_sum(
            group, model, current, clip=training.clip, sampling_rate=training.sampling_rate, entropy=entropy
        )

    return _delta(weights, training, bare_sum)


def _delta(weights: Float64, training: LocalTraining, gradient_sum: Callable[[Float64], Float64]) -> Float64:
    current = np.array(weights, dtype=np.float64)
    velocity = np.zeros_like(current)
    for _ in range(training.steps):
        total = gradient_sum(current)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below, or by the next step
            velocity = training.momentum * velocity + total / training.expected_batch
            current = current - training.learning_rate * velocity
    delta: Float64 = current - weights
    if not bool(np.isfinite(delta).all()):
        raise ParameterError("The local steps ran away beyond float64.", "Lower the local learning rate.")
    return delta if training.largest_delta is None else bounded(delta, training.largest_delta)


def bounded(delta: Float64, largest: float) -> Float64:
    """(P,) scaled to an L2 norm of at most `largest` > 0. Raises ParameterError."""
    require_positive("the largest delta", largest)
    scale = float(np.abs(delta).max(initial=0.0))
    norm = scale * math.sqrt(float(np.sum(np.square(delta / scale)))) if scale > 0 else 0.0
    return delta if norm <= largest else delta * (largest / norm * (1.0 - 1e-12))
