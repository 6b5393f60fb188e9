"""Opening a hospital's text file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from protocol.delimited import DatasetRefused


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[BinaryIO]:
    """The regular file at `path`, for reading. Raises DatasetRefused for a folder, a pipe, a device or no file."""
    try:
        # Without O_NONBLOCK opening a pipe that nobody writes would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DatasetRefused(
            f"{path} can't be read ({error.strerror}).", "Check the path and its permissions."
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DatasetRefused(f"{path} is not a regular file.", "Name a CSV file.")
    with os.fdopen(descriptor, "rb") as file:
        yield file
