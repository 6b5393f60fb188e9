"""Pairwise masks: both ends of a pair expand one key (AES-256 in counter mode, privacy.entropy.KeyStream); one
adds the stream and the other subtracts it.

A mask key is bound to everything that both sites must agree on. A coordinator that shows two sites different
cohorts, models, plans, rounds or attempts makes them derive different keys, and the sum is noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.entropy import KeyStream
from privacy.secagg.field import WIRE, Words

KEY_BYTES = 32
_MASK_LABEL = b"cloister/secagg/mask-key/v1"
_COHORT_LABEL = b"cloister/secagg/cohort/v1"


def encode_fields(*fields: bytes | str | int) -> bytes:
    """Each field as an 8-byte big-endian length and its bytes: no two lists of fields share an encoding.

    Text is UTF-8; whole numbers >= 0 are 8 bytes, big-endian.
    """
    parts: list[bytes] = []
    for field in fields:
        if isinstance(field, str):
            content = field.encode("utf-8")
        elif isinstance(field, int):
            content = field.to_bytes(8, "big")
        else:
            content = bytes(field)
        parts += [len(content).to_bytes(8, "big"), content]
    return b"".join(parts)


def cohort_digest(cohort: Iterable[str]) -> bytes:
    """SHA-256 over the sorted names: the same for every order in which a cohort is listed."""
    return hashlib.sha256(encode_fields(_COHORT_LABEL, *sorted(cohort))).digest()


def derive_key(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) with an empty salt: 32 bytes from a 32-byte secret that is already uniform."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def mask_key(
    pair_root: bytes,
    *,
    study: str,
    plan_digest: bytes,
    purpose: str,
    round_number: int,
    attempt: int,
    cohort: Iterable[str],
    model_digest: bytes,
    length: int,
    modulus: int,
) -> bytes:
    """The 32-byte key of one pair for one attempt. Purpose and length part training sums from evaluation
    sums.
    """
    info = encode_fields(
        _MASK_LABEL,
        study,
        plan_digest,
        purpose,
        round_number,
        attempt,
        cohort_digest(cohort),
        model_digest,
        length,
        modulus,
    )
    return derive_key(pair_root, info)


class Mask:
    """One pair's stream for one attempt, laid on a vector part by part, in order.

    A key serves one attempt only, so no stream is ever used twice.
    """

    def __init__(self, key: bytes, *, add: bool) -> None:
        """add: whether this end adds; the other subtracts."""
        self._stream = KeyStream(key)
        self._operation = np.add if add else np.subtract

    def apply(self, part: Words, buffer: npt.NDArray[np.uint32]) -> None:
        """Lay the next words of the stream on `part`, in place, modulo 2^32. buffer: of type WIRE, at least as
        long; it is overwritten.
        """
        stream = buffer[: part.size]
        self._stream.fill(stream)
        self._operation(part, stream, out=part)


def mask_buffer(size: int) -> npt.NDArray[np.uint32]:
    """A buffer for `Mask.apply` on parts of at most `size` words."""
    return np.empty(size, dtype=WIRE)
