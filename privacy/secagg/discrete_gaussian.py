"""Whole numbers from the discrete Gaussian centred at any x: one look-up in nearly every case, and exactly
the law.

Wanted is P(z | x) = p(z - x), p(d) = exp(-d^2 / (2 s^2)) / (s sqrt(2 pi)), s = 3; the sum over all z is 1 up
to 2 exp(-2 pi^2 s^2) < 1e-76. The law is taken apart (composition method, Devroye 1986, II.4) over the 2^16
values of a random 16-bit word r:

- r < A, the first A = 65508 words: z = floor(x + Y_r). The Y are fixed and about Gaussian, placed such that
  every window of length one holds at most 2^16 p(d) of them, d being the window's middle: c(z) <= 2^16 p(z - x).
- else, once in 2340: z by rejection with weights 2^16 p(z - x) - c(z), c(z) counting the r < A that give z.

Both together give each z with 2^16 p(z - x) in 2^16, whatever the table, as long as c <= 2^16 p; the tests
prove that for every window. The first branch works on x rounded to 2^-19, which c takes into account, so
that the law is that of the x given.

Precision: of all this only the weights are rounded. A probability is off by less than 1e-15 of itself, and
values beyond 29, with 1e-21 together, cannot occur. Over n draws this is a statistical distance of at most
1e-15 sqrt(n) + 1e-21 n (Pinsker's inequality; the relative errors add up in the divergence): 4e-10 for 10^7
coordinates, 10 sites and 1000 rounds. Not constant in time: whoever can watch this machine's caches is
outside the model.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64, KeyStream
from privacy.parameters import ROUNDING_STD

WORDS = 1 << 16
UNIT = 2.0**-18
"""The Y are multiples of this."""
_ORIGIN_BITS = 19
_ORIGIN = 1.5 * 2.0**33
"""Added to a sum below 2^32 in magnitude, it leaves in the float's last 52 bits the sum in steps of 2^-19,
rounded to nearest; `>> 19` is then the floor, modulo 2^32.
"""
_ROOM = 1.05
"""Atoms by which a window of length one stays under 2^16 p: less than one atom is lost by placing whole
atoms, the rest to the rounding of Y and x and to the series.
"""
_CENTRE = 13
_REACH = 40


def density(distance: Float64) -> Float64:
    """p(d) for each d: the probability of z = x + d."""
    out: Float64 = np.exp(distance * distance * (-0.5 / ROUNDING_STD**2))
    out *= 1.0 / (ROUNDING_STD * math.sqrt(2.0 * math.pi))
    return out


@dataclass(frozen=True)
class Atoms:
    """The table. sorted: (A,) float64, the Y in order. shifted: (2^16,) float64, Y + 1.5 * 2^33, padded.

    ceiling: what no weight of the residual reaches for |d| <= 13.5. tail: weights of k = 14, 15, ... 40 on
    both sides of the nearest whole number, from above; survival: their sums from the far end, over the total.
    """

    sorted: Float64
    shifted: Float64
    ceiling: float
    tail: Float64
    survival: Float64

    def count(self, z: Float64, x: Float64) -> npt.NDArray[np.intp]:
        """c(z): how many words of the first branch give z for each x (a multiple of 2^-19)."""
        from_z = z - x
        first = np.searchsorted(self.sorted, from_z)
        return np.searchsorted(self.sorted, from_z + 1.0) - first


@functools.cache
def atoms() -> Atoms:
    """Made at the first use, in some milliseconds; the same on every machine up to the last bit of `exp`."""
    place = np.arange(0.0, _CENTRE + 1.0, 2.0**-9)
    variance = ROUNDING_STD**2
    height = WORDS * density(place)
    slope = height * (-place / variance)
    third = height * (3.0 * place / variance**2 - (place / variance) ** 3)
    mass = WORDS * np.array([math.erf(t / (ROUNDING_STD * math.sqrt(2.0))) / 2.0 for t in place])
    # The sum of the atoms left of t whose windows hold 2^16 p - _ROOM: the inverse of averaging over a window.
    below = mass - _ROOM * place - slope / 24.0 + third * (7.0 / 5760.0)
    last = int(np.argmax(below))
    half = int(below[last])
    positive = np.interp(np.arange(half) + 0.5, below[: last + 1], place[: last + 1])
    positive = np.ceil(positive / UNIT) * UNIT
    table = np.concatenate([-positive[::-1], positive]) + 0.5
    shifted = np.full(WORDS, _ORIGIN)
    shifted[: table.size] += table
    tail = 2.0 * WORDS * density(np.arange(_CENTRE + 1.0, _REACH + 1.0) - 0.5)
    survival = np.cumsum(tail[::-1])[::-1]
    return Atoms(table, shifted, _ceiling(table), tail, survival / survival[0])


def _ceiling(table: Float64) -> float:
    """The most that 2^16 p(d) exceeds a window's atoms, over all |d| <= 13.5, with room for the rounding of x."""
    # The window of distance d is [d, d + 1), as z = floor(x + Y): it changes where d or d + 1 meets an atom.
    reach = _CENTRE + 0.5
    edges = np.concatenate([table, table - 1.0, [-reach, 0.0, reach]])
    edges = np.unique(edges[np.abs(edges) <= reach])
    left, right = edges[:-1], edges[1:]
    middle = (left + right) / 2.0
    inside = np.searchsorted(table, middle + 1.0) - np.searchsorted(table, middle)
    most = np.maximum(density(left), density(right)) * WORDS  # p is monotone on either side of 0
    return float((most - inside).max()) + 0.01


class Rounding:
    """Rounds one vector, chunk by chunk, each coordinate by its own draw; `settle` must come last.

    The few coordinates that take the second branch stay 0 until then: what is added to them meanwhile, modulo
    2^32, stays. Memory: 26 bytes per coordinate of a chunk, and 24 for each of the few.
    """

    def __init__(self, stream: KeyStream, chunk: int) -> None:
        """chunk: the most coordinates in one call, >= 1. The stream is used for nothing else."""
        self._stream = stream
        self._atoms = atoms()
        self._words = np.empty(chunk, dtype=np.uint16)
        self._index = np.empty(chunk, dtype=np.intp)
        self._drawn = np.empty(chunk, dtype=np.float64)
        self._positions: list[npt.NDArray[np.intp]] = []
        self._centres: list[Float64] = []

    def chunk(self, x: Float64, out: npt.NDArray[np.uint32], start: int) -> None:
        """(n,) float64 in grid steps, |x| < 2^31 -> `out`, (n,) uint32: the draws modulo 2^32. `x` is used up.

        start: where `out` begins within the vector.
        """
        table = self._atoms
        words, index, drawn = self._words[: x.size], self._index[: x.size], self._drawn[: x.size]
        self._stream.fill(words)
        late = np.flatnonzero(words >= table.sorted.size)
        np.copyto(index, words)
        np.take(table.shifted, index, out=drawn, mode="clip")  # "raise" would go through a buffer
        drawn += x
        fixed = drawn.view(np.uint64)  # the low 32 bits are wanted, and unsigned shifts are the vectorised ones
        fixed >>= _ORIGIN_BITS
        np.copyto(out, fixed, casting="unsafe")
        if late.size:
            out[late] = 0
            self._positions.append(late + start)
            self._centres.append(x[late])

    def settle(self, out: npt.NDArray[np.uint32]) -> None:
        """Add the draws still owed to the whole vector `out`, modulo 2^32, and forget them."""
        if self._positions:
            positions = np.concatenate(self._positions)
            draws = residual(np.concatenate(self._centres), self._stream)
            out[positions] += draws.astype(np.int64).astype(np.uint32)
        self._positions, self._centres = [], []


def residual(x: Float64, stream: KeyStream) -> Float64:
    """(n,) float64 -> (n,) float64 of whole numbers: the law of the second branch."""
    table = atoms()
    out = np.empty_like(x)
    pending = np.arange(x.size)
    rounded = (x + _ORIGIN) - _ORIGIN
    while pending.size:
        offset, envelope = _proposals(pending.size, table, stream)
        z = np.rint(x[pending]) + offset
        weight = WORDS * density(z - x[pending]) - table.count(z, rounded[pending])
        kept = stream.uniform53(pending.size) * envelope < weight
        out[pending[kept]] = z[kept]
        pending = pending[~kept]
    return out


def _proposals(count: int, table: Atoms, stream: KeyStream) -> tuple[Float64, Float64]:
    """Offsets k from the nearest whole number, and the weight's bound at each: flat to 13, then p itself."""
    width = 2 * _CENTRE + 1
    tail_total = float(table.tail.sum())
    draw = stream.uniform53(count) * (width * table.ceiling + tail_total)
    offset = np.floor(draw / table.ceiling) - _CENTRE
    envelope = np.full(count, table.ceiling)
    far = np.flatnonzero(offset > _CENTRE)
    if far.size:
        # A second draw, so that the tail keeps its precision however thin it gets.
        beyond = np.searchsorted(-table.survival, -stream.uniform53(far.size), side="right") - 1
        sign = np.where(stream.uniform53(far.size) < 0.5, -1.0, 1.0)
        offset[far] = sign * (beyond + _CENTRE + 1.0)
        envelope[far] = table.tail[beyond] / 2.0
    return offset, envelope
