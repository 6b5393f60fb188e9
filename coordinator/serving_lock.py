"""One server for one home."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import CloisterError


class CannotServe(CloisterError):
    """The port or the home is in use, or the server could not start."""

    code = "cannot-serve"


@contextmanager
def serving_lock(home: Path) -> Iterator[None]:
    """Hold the home for one server. Raises CannotServe when another process holds it."""
    descriptor = os.open(home / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CannotServe(
            f"The coordinator in {home} is already being served.", "Stop the other process first."
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
