"""Pairwise masks: both ends of a pair expand one key; one adds the stream and the other subtracts it.

A mask key is bound to everything that both sites must agree on. A coordinator that shows two sites different
cohorts, models, plans, rounds or attempts makes them derive different keys, and the sum is noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secagg.field import WIRE, Words

KEY_BYTES = 32
CHUNK_WORDS = 1 << 16
_ZEROS = bytes(CHUNK_WORDS * 4)
_COUNTER_START = bytes(16)
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


def apply_mask(words: Words, key: bytes, *, add: bool) -> None:
    """Add (or subtract) the AES-256-CTR stream of `key` to `words`, in place, modulo 2^32, 256 KiB at a time.

    The counter starts at 0: a key serves one attempt only, so no stream is ever used twice.
    """
    encryptor = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_START)).encryptor()
    buffer = bytearray(min(words.size, CHUNK_WORDS) * 4)
    stream = np.frombuffer(buffer, dtype=WIRE)
    view = memoryview(buffer)
    operation = np.add if add else np.subtract
    for start in range(0, words.size, CHUNK_WORDS):
        part = words[start : start + CHUNK_WORDS]
        size = part.size
        encryptor.update_into(memoryview(_ZEROS)[: size * 4], view[: size * 4])
        operation(part, stream[:size], out=part)
