"""Fetch an audit bundle from the coordinator, once a quorum of sites has cosigned what was logged so far."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from coordinator.client.account import AccountError
from coordinator.client.audit_bundle import read_archive
from coordinator.client.connection import Connection, CoordinatorRefused
from protocol.checkpoint import TreeHead
from protocol.note import MAX_NOTE_BYTES, Note


def fetch_bundle(connection: Connection, *, wait_seconds: float, pause_seconds: float) -> bytes:
    """The bundle's tar, covering at least the log as it is now; waits that long for cosignatures.

    Raises CoordinatorRefused (unavailable) when too few sites cosign in time.
    """
    note = connection.download("/v1/log/checkpoint", limit=MAX_NOTE_BYTES)
    size = TreeHead.parse(Note.parse(note).text).size
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return connection.download("/v1/audit/export", minimum_size=size)
        except CoordinatorRefused as error:
            if error.code != "unavailable" or time.monotonic() >= deadline:
                raise
        time.sleep(pause_seconds)


def write_bundle(archive: bytes, out: Path) -> None:
    """Write a bundle: the tar as it is, or its files in a new folder. Whole or not at all; never over another."""
    if out.exists():
        raise AccountError(f"{out} exists already.", "Name another place, or remove it first.")
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        if out.suffix == ".tar":
            _write(fresh, archive)
        else:
            files = read_archive(archive)
            fresh.mkdir(parents=True)
            for name, data in files.items():
                _write(fresh / name, data)
        fresh.rename(out)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)
        fresh.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
