"""One private sum: sample patients, clip each gradient, add up. Noise is the caller's next step (add_gaussian).

The sum, the sample and the refusals are secret until the noise is in. Divide by the plan's expected batch, never by
the actual one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.sampling import poisson_sample
from privacy.entropy import Float64, KeyStream


@dataclass(frozen=True)
class PrivateSum:
    """total: (D,) float64, not yet noised. sensitivity: the clip, in L2, for one patient zeroed out.

    refused: how many sampled patients counted as 0, with the reason; for the site's own eyes.
    """

    total: Float64
    sensitivity: float
    refused: int
    reason: str | None


def clipped_sum(gradients: npt.NDArray[np.floating], clip: float) -> PrivateSum:
    """Sum of the clipped rows of (P, D) gradients of patients already sampled; P = 0 gives zeros. ParameterError."""
    clipped = clip_gradients(gradients, clip)
    return PrivateSum(clipped.gradients.sum(axis=0), clip, int(clipped.refused.size), clipped.reason)


def private_sum(
    gradients: npt.NDArray[np.floating], clip: float, sampling_rate: float, stream: KeyStream
) -> PrivateSum:
    """Sum over a Poisson sample of (P, D) per-patient gradients, clipped to C: a zero vector for an empty sample.

    Where gradients are dear, take `poisson_sample` first, compute those of the sample, and call `clipped_sum`.
    Raises ParameterError.
    """
    mask = poisson_sample(gradients.shape[0], sampling_rate, stream)
    return clipped_sum(gradients[mask], clip)
