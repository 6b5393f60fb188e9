"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def write_durably(path: Path, data: bytes, *, mode: int = PRIVATE_FILE) -> None:
    """Put `data` at `path`: after a crash there is the old file or the new one, never a part. OSError on failure."""
    write_stream(path, lambda file: file.write(data), mode=mode)


def write_stream(path: Path, write: Callable[[BinaryIO], object], *, mode: int = PRIVATE_FILE) -> None:
    """As `write_durably`, with the bytes written by `write(file)`. Whatever `write` raises leaves no file."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def make_private_folder(path: Path) -> None:
    """Make `path` and what is missing above it; `path` itself is open to its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """New files and folders are open to their owner alone, those that libraries make too."""
    previous = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(previous)
