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

    Norms are taken in float64 and never overflow. Raises ParameterError unless C > 0 and the array has two axes.
    """
    require_positive("the clip", clip)
    if gradients.ndim != 2:
        raise ParameterError("Per-patient gradients must have the shape (patients, parameters).", "Flatten them.")
    rows = gradients.astype(np.float64)
    refused = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    rows[refused] = 0.0
    norms = _norms(rows)
    over = norms > clip * _SAFETY
    if over.any():
        factors = np.minimum(1.0, clip / norms[over]) * _SAFETY
        rows[over] *= factors[:, np.newaxis]
    return Clipped(rows, refused, NOT_FINITE if refused.size else None)


def _norms(rows: Float64) -> Float64:
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)
    # Entries near the largest double would overflow when squared, and tiny ones would vanish.
    extreme = (largest > 1e150) | ((largest < 1e-150) & (largest > 0))
    norms: Float64 = np.empty(rows.shape[0])
    plain = ~extreme
    norms[plain] = np.sqrt(np.einsum("ij,ij->i", rows[plain], rows[plain]))
    scaled = rows[extreme] / scale[extreme, np.newaxis]
    norms[extreme] = np.sqrt(np.einsum("ij,ij->i", scaled, scaled)) * scale[extreme]
    return norms
