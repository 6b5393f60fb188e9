"""Noised float64 values onto the grid by discrete-Gaussian randomised rounding.

A value v becomes an integer z with P(z) proportional to exp(-(z - x)^2 / (2 s^2)), x = v / step, s = 3.
Rounded like this, the modular sum over sites is post-processing of the exact sum plus Gaussian noise, up
to a divergence below 8 h D T exp(-pi^2 s^2) < 1e-25 (Peikert 2010, Theorem 3.1): sensitivity stays exactly
C. Rounding each site to nearest would not be; rounding before the noise would inflate the sensitivity to C
+ step sqrt(D).

Sampling is by rejection. Propose z = nearest(y), y ~ N(x, s^2). The proposal's mass over the target's is,
with d = z - x, proportional to h(d) = integral over |u| <= 1/2 of exp(-u^2 / (2 s^2)) cosh(d u / s^2) du,
smallest at 0: accept with probability h(0) / h(d), refusing about one value in 220. As cosh(a) <=
exp(a^2/2), h(d)/h(0) is at most exp(d^2 / (8 s^4)), so 1 - d^2 / (8 s^4) bounds the acceptance from below
and settles nearly all values at once.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.dpsgd.noise import standard_gaussian
from privacy.entropy import Float64, KeyStream
from privacy.errors import OverflowRisk, ProtocolViolation
from privacy.parameters import ROUNDING_STD, Grid
from privacy.secagg.field import Words

CHUNK = 1 << 15
_SQUEEZE = 1.0 / (8.0 * ROUNDING_STD**4)
_SERIES_TERMS = 14


def _series() -> tuple[float, ...]:
    """Coefficients of h(d)/h(0) in d^2: m_2k / (s^4k (2k)! m_0), m_2k the moments of the truncated Gaussian.

    At 9 standard deviations (d = 27) the first term left out is below 1e-18 of h(0).
    """
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = nodes / 2.0
    density = np.exp(-(u**2) / (2.0 * ROUNDING_STD**2)) * weights / 2.0
    total = float(density.sum())
    return tuple(
        float((density * u ** (2 * k)).sum()) / (total * ROUNDING_STD ** (4 * k) * math.factorial(2 * k))
        for k in range(_SERIES_TERMS)
    )


_COEFFICIENTS = _series()


def acceptance(distance: Float64) -> Float64:
    """h(0)/h(d) for each d = z - x, |d| <= 27: the probability of keeping a proposal."""
    square = distance * distance
    out = np.full_like(square, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        out *= square
        out += coefficient
    return 1.0 / out


def round_discrete_gaussian(x: Float64, stream: KeyStream) -> Float64:
    """(n,) float64 in grid steps -> (n,) float64 of whole numbers, each from the discrete Gaussian centred
    at its x.

    |x| below 2^52, where whole numbers are exact. Memory: a few arrays of length n; callers pass chunks.
    """
    out = _propose(x, stream)
    pending = _rejected(out - x, stream)
    while pending.size:
        centre = x[pending]
        again = _propose(centre, stream)
        out[pending] = again
        pending = pending[_rejected(again - centre, stream)]
    return out


def _propose(x: Float64, stream: KeyStream) -> Float64:
    y = standard_gaussian(x.size, stream)
    y *= ROUNDING_STD
    y += x
    rounded: Float64 = np.rint(y, out=y)
    return rounded


def _rejected(distance: Float64, stream: KeyStream) -> npt.NDArray[np.intp]:
    uniform = stream.uniform53(distance.size)
    bound = distance * distance
    bound *= -_SQUEEZE
    bound += 1.0
    unsettled = np.flatnonzero(uniform >= bound)
    refused: npt.NDArray[np.intp] = unsettled[uniform[unsettled] >= acceptance(distance[unsettled])]
    return refused


def quantize(values: Float64, grid: Grid, stream: KeyStream) -> Words:
    """(D,) float64, already noised -> (D,) uint32: rounded at random to the grid, modulo 2^32. Works in
    chunks.

    Raises ProtocolViolation for NaN or infinity, and OverflowRisk for a value that alone exceeds half the
    modulus: the values are already noised, so a refusal tells no more than they do.
    """
    out = np.empty(values.size, dtype=np.uint32)
    signed = out.view(np.int32)
    limit = grid.modulus / 2 - 16 * ROUNDING_STD
    inverse = 1.0 / grid.step
    for start in range(0, values.size, CHUNK):
        scaled = values[start : start + CHUNK] * inverse
        reach = max(float(scaled.max()), -float(scaled.min()))
        if not math.isfinite(reach):
            raise ProtocolViolation(
                "A contribution holds a value that is not finite.",
                "Refuse the round and check the training data.",
            )
        if reach >= limit:
            raise OverflowRisk(
                "A contribution exceeds what the modulus holds.", "Check the clip, or plan a coarser grid."
            )
        signed[start : start + CHUNK] = round_discrete_gaussian(scaled, stream).astype(np.int32)
    return out
