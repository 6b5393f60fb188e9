"""Gaussian noise in float64 from a cryptographic stream.

The caveats to state: a float64 sampler is not an ideal Gaussian. Values are multiples of about 2^-53 of their size and
reach at most 8.7 standard deviations; no proof covers the sampler itself. That the low-order bits of a noised sum show
those of the sum (Mironov 2012) is closed for gradients by `privacy.dpsgd.noise_grid`: sum and result are multiples of
one step. What goes into a secure sum, gradients and counts alike, is rounded at random onto that sum's grid besides
(`privacy.secagg.quantization`).
"""

from __future__ import annotations

import math

import numpy as np

from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError

CHUNK = 1 << 15


def standard_gaussian(count: int, stream: KeyStream) -> Float64:
    """(count,) float64, independent N(0, 1) (Box and Muller 1958)."""
    out = np.empty(count, dtype=np.float64)
    for start in range(0, count, CHUNK):
        _fill(out[start : start + CHUNK], stream)
    return out


def add_gaussian(values: Float64, std: float, stream: KeyStream) -> None:
    """Add independent N(0, std^2) to every entry of `values` (any length, contiguous float64), in place.

    Raises ParameterError unless `std` is finite and above 0: noise that was forgotten must not pass silently.
    """
    if not (math.isfinite(std) and std > 0):
        raise ParameterError(f"The noise must have a standard deviation above 0, not {std}.", "Take it from the plan.")
    buffer = np.empty(min(CHUNK, max(values.size, 1)), dtype=np.float64)
    for start in range(0, values.size, CHUNK):
        part = values[start : start + CHUNK]
        draw = buffer[: part.size]
        _fill(draw, stream)
        draw *= std
        part += draw


def _fill(out: Float64, stream: KeyStream) -> None:
    half = (out.size + 1) // 2
    uniform = stream.uniform53(2 * half)
    radius = uniform[:half]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = uniform[half:]
    angle *= 2.0 * math.pi
    np.cos(angle, out=out[:half])
    out[:half] *= radius
    rest = out.size - half
    np.sin(angle[:rest], out=out[half:])
    out[half:] *= radius[:rest]
