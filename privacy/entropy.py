"""Random streams for noise, sampling and rounding, expanded from a seed that the caller draws.

The caller passes the operating system's generator (`os.urandom`) as `Entropy`; nothing here has a global
state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.errors import ParameterError

Float64 = npt.NDArray[np.float64]

Entropy = Callable[[int], bytes]
"""`entropy(n)` returns n fresh bytes from a cryptographic generator, never the same twice."""

SEED_BYTES = 32
CHUNK_BYTES = 1 << 18
_ZEROS = bytes(CHUNK_BYTES)
_NONCE = bytes(12)
_HALF_ULP = 2.0**-54


class KeyStream:
    """AES-256 in counter mode over zeros: a fast cryptographic generator with a 32-byte seed.

    The counter block starts at 2, as AES-GCM has it under a nonce of zeros (NIST SP 800-38D), for OpenSSL
    runs GCM with wide instructions that it does not use for plain counter mode: twice as fast, the same
    bytes. No tag is ever made. A seed is for one use: the same seed gives the same stream, of at most 64 GB.
    Not safe to share between threads.
    """

    def __init__(self, seed: bytes) -> None:
        """Raises ParameterError unless `seed` has 32 bytes."""
        if len(seed) != SEED_BYTES:
            raise ParameterError(
                f"A random stream needs a seed of {SEED_BYTES} bytes and got {len(seed)}.",
                "Draw the seed from the operating system's generator.",
            )
        self._encryptor = Cipher(algorithms.AES(bytes(seed)), modes.GCM(_NONCE)).encryptor()

    @classmethod
    def fresh(cls, entropy: Entropy) -> KeyStream:
        """A stream on a seed drawn now from `entropy`."""
        return cls(entropy(SEED_BYTES))

    def fill(self, buffer: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next bytes of the stream, in place."""
        view = buffer.data.cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            part = view[start : start + CHUNK_BYTES]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(part)], part)

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        out = np.empty(count, dtype=np.uint8)
        self.fill(out)
        return out.tobytes()

    def uniform53(self, count: int) -> Float64:
        """`count` float64 values (k + 1/2)/2^53 with k uniform over 0..2^53-1: in (0, 1), never 0."""
        words = np.empty(count, dtype=np.uint64)
        self.fill(words)
        words >>= np.uint64(11)
        out = words.astype(np.float64)
        out *= 2.0**-53
        out += _HALF_ULP
        # For k = 2^53 - 1 the sum rounds to 1.0; the largest double under 1 keeps the interval open.
        np.minimum(out, 1.0 - 2.0**-53, out=out)
        return out
