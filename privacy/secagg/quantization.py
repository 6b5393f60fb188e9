"""Noised float64 values onto the grid by discrete-Gaussian randomised rounding.

A value v becomes an integer z with P(z) proportional to exp(-(z - x)^2 / (2 s^2)), x = v / step, s = 3.
Rounded like this, the modular sum over sites is post-processing of the exact sum plus Gaussian noise, up
to a divergence below 8 h D T exp(-pi^2 s^2) < 1e-25 (Peikert 2010, Theorem 3.1): sensitivity stays exactly
C. Rounding each site to nearest would not be; rounding before the noise would inflate the sensitivity to C
+ step sqrt(D). How the draws are made, and how exactly: `privacy.secagg.discrete_gaussian`.
"""

from __future__ import annotations

import math

import numpy as np

from privacy.entropy import Float64, KeyStream
from privacy.errors import OverflowRisk
from privacy.parameters import ROUNDING_STD, Grid
from privacy.secagg.discrete_gaussian import Rounding
from privacy.secagg.field import Words
from privacy.secagg.refusals import Refusal, Refused

CHUNK = 1 << 15
"""Coordinates at a time: what one chunk needs stays in a core's own cache."""

_BLOCK = 1 << 13
"""Short enough that no library starts threads for it."""


class Quantizer:
    """One vector onto `grid`, in chunks of at most CHUNK coordinates; `finish` must come last.

    Between a chunk and `finish` the words may be added to, modulo 2^32, which is how masks are laid on while
    a chunk is still in the cache.
    """

    def __init__(self, grid: Grid, stream: KeyStream) -> None:
        """stream: fresh, and used for nothing else."""
        self._rounding = Rounding(stream, CHUNK)
        self._inverse = 1.0 / grid.step
        self._limit = grid.modulus / 2 - 16 * ROUNDING_STD
        self._scaled = np.empty(CHUNK, dtype=np.float64)

    def chunk(self, values: Float64, out: Words, start: int) -> None:
        """(n,) float64 -> `out` (n,) uint32, which begins at `start` in the vector and may lie over `values`.

        Raises Refused for NaN or infinity, and OverflowRisk for a value that alone exceeds half the modulus:
        the values are already noised, so a refusal tells no more than they do.
        """
        with np.errstate(over="ignore"):  # refused below
            scaled = np.multiply(values, self._inverse, out=self._scaled[: values.size])
        if not self._plainly_within(scaled):
            self._check(values, scaled)
        self._rounding.chunk(scaled, out, start)

    def _plainly_within(self, scaled: Float64) -> bool:
        """Whether the sums of squares alone show every |x| below the limit: one quick pass, no false yes."""
        square = self._limit * self._limit
        blocks = range(0, scaled.size, _BLOCK)
        return all(float(np.dot(part, part)) < square for part in (scaled[at : at + _BLOCK] for at in blocks))

    def _check(self, values: Float64, scaled: Float64) -> None:
        reach = max(float(scaled.max()), -float(scaled.min()))
        if reach < self._limit:
            return
        # A finite value may exceed what float64 holds once it is divided by the step.
        if math.isnan(reach) or not bool(np.isfinite(values).all()):
            raise Refused(
                Refusal.NOT_FINITE,
                "A contribution holds a value that is not finite.",
                "Refuse the round and check the training data.",
            )
        raise OverflowRisk("A contribution exceeds what the modulus holds.", "Check the clip, or plan a coarser grid.")

    def finish(self, out: Words) -> None:
        """Complete the whole vector `out`."""
        self._rounding.settle(out)


def quantize(values: Float64, grid: Grid, stream: KeyStream) -> Words:
    """(D,) float64, already noised -> (D,) uint32: rounded at random to the grid, modulo 2^32.

    Raises as `Quantizer.chunk`.
    """
    out = np.empty(values.size, dtype=np.uint32)
    quantizer = Quantizer(grid, stream)
    for start in range(0, values.size, CHUNK):
        part = slice(start, start + CHUNK)
        quantizer.chunk(values[part], out[part], start)
    quantizer.finish(out)
    return out
