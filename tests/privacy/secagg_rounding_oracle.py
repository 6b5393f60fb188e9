"""Randomised rounding the slow way, which shares nothing with the product's table: the tests' oracle.

Propose z = nearest(y), y ~ N(x, s^2). The proposal's mass over the target's is, with d = z - x, proportional to
h(d) = integral over |u| <= 1/2 of exp(-u^2 / (2 s^2)) cosh(d u / s^2) du, smallest at 0: accept with probability
h(0) / h(d), refusing about one value in 220.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.dpsgd.noise import standard_gaussian
from privacy.entropy import KeyStream
from privacy.parameters import ROUNDING_STD

_TERMS = 14


def _series() -> list[float]:
    """Coefficients of h(d)/h(0) in d^2; at d = 27 the first one left out is below 1e-18 of h(0)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = nodes / 2.0
    density = np.exp(-(u**2) / (2.0 * ROUNDING_STD**2)) * weights / 2.0
    return [
        float((density * u ** (2 * k)).sum()) / (float(density.sum()) * ROUNDING_STD ** (4 * k) * math.factorial(2 * k))
        for k in range(_TERMS)
    ]


_COEFFICIENTS = _series()


def acceptance(distance: np.ndarray) -> np.ndarray:
    """h(0)/h(d) for each d = z - x, |d| <= 27."""
    return 1.0 / np.polynomial.polynomial.polyval(distance * distance, _COEFFICIENTS)


def round_slowly(x: np.ndarray, stream: KeyStream) -> np.ndarray:
    """(n,) float64 -> (n,) float64 of whole numbers."""
    out = np.empty_like(x)
    pending = np.arange(x.size)
    while pending.size:
        centre = x[pending]
        z = np.rint(centre + ROUNDING_STD * standard_gaussian(centre.size, stream))
        kept = stream.uniform53(centre.size) < acceptance(z - centre)
        out[pending[kept]] = z[kept]
        pending = pending[~kept]
    return out
