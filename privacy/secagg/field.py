"""The integers modulo 2^32 in which masked vectors live: uint32 with native wrap-around, little-endian on
the wire.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import Grid
from privacy.secagg.refusals import Refusal, Refused

Words = npt.NDArray[np.uint32]
WORD_BYTES = 4
WIRE = np.dtype("<u4")


def as_bytes(words: Words) -> memoryview:
    """(D,) uint32 -> a read-only view of 4 D bytes, little-endian; no copy where the machine is."""
    return words.astype(WIRE, copy=False).data.cast("B").toreadonly()


def words_of(data: bytes | bytearray | memoryview) -> Words:
    """A read-only (D,) view of little-endian bytes. Raises Refused unless 4 divides the length."""
    if len(data) % WORD_BYTES:
        raise Refused(
            Refusal.WRONG_LENGTH,
            f"A masked vector of {len(data)} bytes is not a whole number of 32-bit words.",
            "Send it again, whole.",
        )
    return np.frombuffer(data, dtype=WIRE).astype(np.uint32, copy=False)


def decode_centred(words: Words, grid: Grid) -> Float64:
    """(D,) uint32 -> (D,) float64: the representative in [-M/2, M/2) times the grid step. Exact in
    float64.
    """
    if not math.isfinite(grid.step):
        raise ParameterError("The grid step is not finite.", "Take the grid from the plan.")
    out: Float64 = words.view(np.int32).astype(np.float64)
    out *= grid.step
    return out
