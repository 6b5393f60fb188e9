"""The files that a manifest names: opened below one folder, through no link, and read up to a cap.

A file that can't be used is a BadFile with one of a few fixed reasons: no path, header or value stands in them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from protocol.delimited import DatasetRefused

MAX_FILE_BYTES = 256 << 20
MAX_PATH_BYTES = 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class BadFile(Exception):
    """One record's file can't be used. reason: a fixed phrase, fit for a log and a message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RecordFolder:
    """An open folder. `read` gives a file below it, whatever is renamed or linked meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen: set[tuple[int, int]] = set()

    def read(self, named: str) -> bytes:
        """The whole file, 1 byte to 256 MiB. Raises BadFile: not below the folder, a link, absent, named before."""
        parts = named.split("/")
        if "\0" in named or len(named.encode()) > MAX_PATH_BYTES or any(part in ("", ".", "..") for part in parts):
            raise BadFile("not a plain path below the manifest's folder")
        descriptor = self._open(parts)
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise BadFile("not a regular file")
        with os.fdopen(descriptor, "rb") as file:
            if not 0 < about.st_size <= MAX_FILE_BYTES:
                raise BadFile(f"an empty file, or one of more than {MAX_FILE_BYTES >> 20} MiB")
            if (about.st_dev, about.st_ino) in self._seen:
                raise BadFile("the same file as in an earlier row")
            self._seen.add((about.st_dev, about.st_ino))
            try:
                return file.read(about.st_size)
            except OSError:
                raise BadFile("the file can't be read") from None

    def _open(self, parts: list[str]) -> int:
        current = os.dup(self._descriptor)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = inner
            return os.open(parts[-1], _FILE, dir_fd=current)
        except OSError:
            raise BadFile("no such file below the manifest's folder, or a link") from None
        finally:
            os.close(current)


@contextlib.contextmanager
def record_folder(path: Path) -> Iterator[RecordFolder]:
    """The folder at `path`, itself perhaps a link. Raises DatasetRefused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DatasetRefused(
            f"{path} is no folder that can be read ({error.strerror}).", "Name the folder that the files lie in."
        ) from None
    try:
        yield RecordFolder(descriptor)
    finally:
        os.close(descriptor)
