"""Our mechanisms as dp_accounting events, under zero-out adjacency.

Neighbouring data sets differ in one patient at one site, whose contribution is replaced by zero: the number of
patients and the expected batch are public constants of the plan, and a patient's absence cannot be told from a
contribution of zero. dp_accounting calls this REPLACE_SPECIAL (Kairouz et al. 2021, arXiv:2103.00039, Definition
1.1). ADD_OR_REMOVE_ONE would treat the counts as secret; REPLACE_ONE would double the sensitivity to 2C, which no
comparison in the literature does. For the Poisson-sampled Gaussian, REPLACE_SPECIAL and ADD_OR_REMOVE_ONE have the
same privacy loss distribution, so published numbers for the latter are test vectors for ours.

A patient who appears at m sites is m zero-outs away: see privacy.accounting.gaussian.group_privacy.
"""

from __future__ import annotations

from typing import Any

import dp_accounting

from privacy.parameters import Mechanism, require_positive

ADJACENCY = dp_accounting.NeighboringRelation.REPLACE_SPECIAL


def gaussian_event(noise_multiplier: float, sampling_rate: float, steps: int) -> Any:
    """`steps` Poisson-sampled Gaussian steps as a DpEvent; sampling_rate = 1 samples everyone."""
    require_positive("the noise multiplier", noise_multiplier)
    step: Any = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        step = dp_accounting.PoissonSampledDpEvent(sampling_rate, step)
    return dp_accounting.SelfComposedDpEvent(step, steps)


def training_event(mechanism: Mechanism) -> Any:
    """A mechanism as a DpEvent, for the record and for other accountants."""
    return gaussian_event(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)
