"""Passwords as Argon2id hashes (RFC 9106, its second recommended option: 64 MiB, 3 passes, 4 lanes)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from argon2.profiles import RFC_9106_LOW_MEMORY

from coordinator.errors import Unavailable

AT_ONCE = 2
"""Hashes computed at one time: anybody may ask for one, and each takes 64 MiB."""
_slots = threading.BoundedSemaphore(AT_ONCE)
_hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)


def hash_password(password: str) -> str:
    """The encoded hash, with its own random salt. Raises Unavailable while others take all slots."""
    with _slot():
        return _hasher.hash(password)


def verify_password(stored: str | None, password: str) -> bool:
    """Whether the password is the stored one's. None (nobody of that name) takes as long and is False.

    Raises Unavailable while others take all slots.
    """
    with _slot():
        try:
            return _hasher.verify(stored or _nobodys(), password) and stored is not None
        except (Argon2Error, InvalidHashError):
            return False


@contextmanager
def _slot() -> Iterator[None]:
    # Waiting would hold one of the server's threads: a flood of sign-ins must not stop what else it serves.
    if not _slots.acquire(blocking=False):
        raise Unavailable("Too many people sign in with a password at this moment.", "Try again in some seconds.")
    try:
        yield
    finally:
        _slots.release()


@cache
def _nobodys() -> str:
    return _hasher.hash("the hash that a name without a password is compared with")
