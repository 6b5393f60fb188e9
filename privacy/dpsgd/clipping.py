"""Clipping in L2, one gradient per patient (Abadi et al. 2016, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_positive

NOT_FINITE = "gradient-not-finite"
# Rounding in a norm of D squares and in the product is relatively below (D/2 + 4) 2^-53: this covers 16 million.
_SAFETY = 1.0 - 1e-9
_LARGEST = 1e150
_SMALLEST = 1e-150
LARGEST_CLIP = 1e100


@dataclass(frozen=True)
class Clipped:
    """gradients: (P, D) float64, each row's norm <= clip. refused: indices of the rows that count as 0.

    `reason` says why ("gradient-not-finite") or is None. Both stay at the site: they tell of single patients.
    """

    gradients: Float64
    refused: npt.NDArray[np.intp]
    reason: str | None


def clip_gradients(gradients: npt.NDArray[np.floating], clip: float) -> Clipped:
    """(P, D) float -> rows scaled by min(1, C/norm); a row with NaN or infinity counts as 0 and is reported.

    Norms are taken in float64 and never overflow. Raises ParameterError unless 0 < C <= 1e100 and there are two axes.
    """
    require_positive("the clip", clip)
    if clip > LARGEST_CLIP:
        raise ParameterError(f"A clip of {clip} is beyond {LARGEST_CLIP}.", "Use a clip near the gradients' size.")
    if gradients.ndim != 2:
        raise ParameterError("Per-patient gradients must have the shape (patients, parameters).", "Flatten them.")
    rows = gradients.astype(np.float64)
    refused = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    rows[refused] = 0.0
    largest = np.abs(rows).max(axis=1, initial=0.0)
    huge = largest > _LARGEST
    if huge.any():
        # Brought to a largest entry of C, such a row still exceeds the clip and can be squared.
        rows[huge] /= largest[huge, np.newaxis]
        rows[huge] *= clip
    norms = _norms(rows)
    over = norms > clip * _SAFETY
    if over.any():
        rows[over] *= (np.minimum(1.0, clip / norms[over]) * _SAFETY)[:, np.newaxis]
    return Clipped(rows, refused, NOT_FINITE if refused.size else None)


def _norms(rows: Float64) -> Float64:
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # Tiny entries would vanish when squared.
    scale = np.where((largest > 0) & (largest < _SMALLEST), largest, 1.0)
    scaled = rows / scale[:, np.newaxis] if (scale != 1.0).any() else rows
    norms: Float64 = np.sqrt(np.einsum("ij,ij->i", scaled, scaled)) * scale
    return norms
