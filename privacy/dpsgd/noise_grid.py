"""Noise whose low-order bits tell nothing: the sum and its noise are multiples of one step.

Adding floating-point noise to a floating-point sum leaves traces of the sum in the low bits of the result, by which
values can be told apart whatever epsilon says (Mironov 2012, "On significance of the least significant bits for
differential privacy"). Here, coordinate by coordinate, with R(v) the multiple of the step g nearest to v:

    result = fl(R(x) + R(N)),    N ~ N(0, std^2),    fl: rounding to the result's own floating point.

Why that is private:

- Each patient is clipped to C' = C - g sqrt(D) instead of C. R moves each of D coordinates by at most g / 2, so the
  rounded sums of neighbours, |x - x'| <= C', are at most C' + 2 sqrt(D) g / 2 = C apart: R(x) has sensitivity C, and
  the accountant's Gaussian mechanism is R(x) + N.
- R(x) is a multiple of g, so R(x) + R(N) = R(R(x) + N), but for ties, which N hits with probability 0. IEEE 754
  promises of an addition that it applies fl to that exact number. So the result is the Gaussian mechanism's, processed.
- R(N) is exact: |N| < 9 std, and g is chosen such that 9 std <= 2^24 g for a sum in float32, 2^53 g in float64. R(x) is
  exact whatever x is: scaling by a power of two is, and a number beyond 2^24 g is a multiple of g already. So nothing
  is clamped, and g depends on no patient.
- The results are multiples of g for every x; before fl, they are those of x = 0 moved by R(x). No low bit shows more.

What stays: N itself is no ideal Gaussian but Box and Muller's from uniforms of 52 or 53 bits, evaluated in float64 and
ending near 8.6 standard deviations; and x has the rounding errors of its own precision (see `bookkeeping`).

The price is a clip lowered by g sqrt(D) / C: with std = C, by 0.0003 for 100,000 parameters in float32 and by 0.003 for
11 million, and in float64 by less than 1e-9 for either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError
from privacy.parameters import require_count, require_positive

MOST_PRICE = 1 / 256
"""A grid that lowers the clip by more is not used."""
REACH = 9.0
"""Standard deviations that neither sampler of this package reaches."""
FINEST = -44
"""The step is not finer than about 2^-44 of the clip, so that nothing overflows however small the noise is."""
_LARGEST_POWER = 100
"""Of the step, either way: neither it nor its inverse is near the ends of float32."""
SIGNIFICANT_BITS = {np.dtype(np.float32): 24, np.dtype(np.float64): 53}


@dataclass(frozen=True)
class NoiseGrid:
    """step: g, a power of two. clip: C', to which each patient is clipped. sensitivity: C, that of the rounded sum, in
    L2, for one patient zeroed out. All three in the gradients' unit.
    """

    step: float
    clip: float
    sensitivity: float

    @property
    def price(self) -> float:
        """(C - C') / C: by how much the clip is lowered."""
        return 1.0 - self.clip / self.sensitivity

    def round_(self, values: npt.NDArray[np.floating]) -> None:
        """Each of `values`, float32 or float64 of any shape, becomes the nearest multiple of the step, in place.

        Around an addition of noise in float64 it gives the mechanism above: of the sum before, of the result after.
        """
        values *= values.dtype.type(1.0 / self.step)
        np.rint(values, out=values)
        values *= values.dtype.type(self.step)


def noise_grid(length: int, clip: float, std: float, dtype: npt.DTypeLike = np.float32) -> NoiseGrid | None:
    """The finest grid on which noise of `std` is exact in a sum of `length` coordinates of `dtype` (float32 or float64)
    that shall have the sensitivity `clip`. None where it would lower the clip by more than MOST_PRICE or the numbers
    are near the ends of float32: such a sum takes noise in float64, without a grid.

    Raises ParameterError unless there is a coordinate, and clip and std are finite and above 0.
    """
    require_count("the number of coordinates", length, 1)
    require_positive("the clip", clip)
    require_positive("the noise's standard deviation", std)
    bits = SIGNIFICANT_BITS.get(np.dtype(dtype))
    if bits is None:
        raise ParameterError(f"There is no noise grid for {np.dtype(dtype)}.", "Sum in float32 or float64.")
    power = max(math.frexp(REACH * std)[1] - bits, math.frexp(clip)[1] + FINEST)
    if abs(power) > _LARGEST_POWER:
        return None
    step = 2.0**power
    # What rounding in this line itself could lose is taken off as well.
    lowered = (clip - step * math.sqrt(length)) * (1.0 - 2.0**-50)
    grid = NoiseGrid(step, lowered, clip)
    return grid if lowered > 0 and grid.price <= MOST_PRICE else None
