"""The Gaussian mechanism used once, exactly (Balle and Wang 2018, Theorem 8), and privacy for groups.

For the evaluation histogram: one count per held-out patient, L2 sensitivity 1, everyone included.
"""

from __future__ import annotations

import math
import sys

from dp_accounting import gaussian_mechanism

from privacy.errors import ParameterError
from privacy.parameters import require_count, require_positive, require_probability

_ROUND_UP = 1.0 + 1e-9


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Epsilon >= 0 of one release with noise of `noise_multiplier` times the sensitivity."""
    require_positive("the noise multiplier", noise_multiplier)
    require_probability("delta", delta, allow_one=False)
    return float(gaussian_mechanism.get_epsilon_gaussian(noise_multiplier, delta))


def repeated_gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon >= 0 of `releases` >= 1 such releases together: they cost what one of multiplier / sqrt(releases) costs
    (Dong, Roth and Su 2022, Corollary 3.3)."""
    require_positive("the noise multiplier", noise_multiplier)
    require_count("the number of releases", releases, 1)
    return gaussian_epsilon(noise_multiplier / math.sqrt(releases), delta)


def gaussian_multiplier_for(epsilon: float, delta: float) -> float:
    """The smallest multiplier whose epsilon at `delta` does not exceed `epsilon` > 0, rounded up by 1e-9 of itself."""
    require_positive("epsilon", epsilon)
    require_probability("delta", delta, allow_one=False)
    return float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta)) * _ROUND_UP


def group_privacy(epsilon: float, delta: float, sites: int) -> tuple[float, float]:
    """(m epsilon, delta (e^(m epsilon) - 1)/(e^epsilon - 1)) for a patient who appears at m = `sites` sites.

    Vadhan 2017, Lemma 2.2, with its geometric sum taken exactly. The second value is at most 1, where it says
    nothing. Raises ParameterError for epsilon < 0 or m < 1.
    """
    require_count("the number of sites", sites, 1)
    require_probability("delta", delta, allow_one=False)
    if not epsilon >= 0:
        raise ParameterError(f"Epsilon must be at least 0 and is {epsilon}.", "Correct epsilon.")
    exponent = (sites - 1) * epsilon
    if exponent > math.log(sys.float_info.max) / 2:
        return sites * epsilon, 1.0
    factor = math.fsum(math.exp(index * epsilon) for index in range(sites))
    return sites * epsilon, min(1.0, delta * factor)
