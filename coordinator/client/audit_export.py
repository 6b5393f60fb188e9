"""Fetch an audit bundle from the coordinator, once a quorum of sites has cosigned what was logged so far.

The bundle goes to disk as it comes: a log of any length is exported in the same memory.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from coordinator.client.account import AccountError
from coordinator.client.audit_bundle import AUDIT_FILES
from coordinator.client.connection import Connection, CoordinatorRefused
from protocol.bundle import MAX_FILE, layout
from protocol.checkpoint import TreeHead
from protocol.note import MAX_NOTE_BYTES, Note

WRITING_SECONDS = 600.0  # that the coordinator may take to write the bundle before it sends it
_CHUNK = 1 << 20


def fetch_bundle(
    connection: Connection, file: BinaryIO, *, wait_seconds: float, pause_seconds: float,
    path: str = "/v1/audit/export", **query: str,
) -> None:  # fmt: skip
    """Write the bundle's tar to `file`, covering at least the log as it is now; waits that long for cosignatures.

    path, query: of another document that the coordinator makes from a bundle.

    Raises CoordinatorRefused (unavailable) when too few sites cosign in time.
    """
    note = connection.download("/v1/log/checkpoint", limit=MAX_NOTE_BYTES)
    size = TreeHead.parse(Note.parse(note).text).size
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            connection.download_to(
                file, path, limit=MAX_FILE, timeout_seconds=WRITING_SECONDS, minimum_size=size, **query
            )
        except CoordinatorRefused as error:
            if error.code != "unavailable" or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(pause_seconds)


def write_bundle(out: Path, fill: Callable[[BinaryIO], object]) -> int:
    """Let `fill` write a bundle's tar, and keep it at `out`: as it is for a name in .tar, else its files in a folder.

    Whole or not at all, and never over another. The archive's bytes. Raises AccountError when `out` exists, Malformed
    for a folder of what is no bundle.
    """
    if out.exists():
        raise AccountError(f"{out} exists already.", "Name another place, or remove it first.")
    archive = out.with_name(f".{out.name}.{os.getpid()}.new")
    folder = archive.with_suffix(".files")
    try:
        with archive.open("x+b") as file:
            fill(file)
            size = file.seek(0, os.SEEK_END)
            if out.suffix == ".tar":
                _sync(file)
                archive.rename(out)
            else:
                _unpack(file, size, folder)
                folder.rename(out)
        return size
    finally:
        if folder.is_dir():
            shutil.rmtree(folder)
        archive.unlink(missing_ok=True)


def _unpack(archive: BinaryIO, size: int, folder: Path) -> None:
    def read_at(at: int, length: int) -> bytes:
        archive.seek(at)
        return archive.read(length)

    folder.mkdir(parents=True)
    for name, (at, length) in layout(read_at, size, AUDIT_FILES).items():
        archive.seek(at)
        with (folder / name).open("xb") as file:
            while length and (chunk := archive.read(min(length, _CHUNK))):
                file.write(chunk)
                length -= len(chunk)
            _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
