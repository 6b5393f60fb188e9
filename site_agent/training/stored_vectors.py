"""Masked vectors on disk, piece by piece: written and read through SQLite's incremental blobs, so that one that is
large is never in memory a second time. What is sent again is what is stored here."""

from __future__ import annotations

import sqlite3
from typing import Any, cast

from sqlalchemy import text
from sqlmodel import Session

from protocol.errors import CloisterError

PIECE = 1 << 20
_TABLE, _COLUMN = "stored_vector", "vector"


class VectorMissing(CloisterError):
    """The stored vector is gone or shorter than it was: the answer can't be sent again."""

    code = "vector-missing"


def write(session: Session, attempt: int, vector: bytes | memoryview) -> None:
    """Store the vector of a consumed attempt, in the caller's transaction."""
    session.connection().execute(
        text("INSERT INTO stored_vector (attempt, vector) VALUES (:attempt, zeroblob(:length))"),
        {"attempt": attempt, "length": len(vector)},
    )
    with _blob(session, attempt, readonly=False) as blob:
        view = memoryview(vector).cast("B")
        for start in range(0, len(view), PIECE):
            blob.write(view[start : start + PIECE])


def read(session: Session, attempt: int, start: int, stop: int) -> bytes:
    """Bytes start to stop of a stored vector. Raises VectorMissing."""
    try:
        with _blob(session, attempt, readonly=True) as blob:
            blob.seek(start)
            data = cast(bytes, blob.read(stop - start))
    except (sqlite3.Error, ValueError):
        data = b""
    if len(data) != stop - start:
        raise VectorMissing("A stored contribution is gone.", "Wait for the next attempt; nothing has to be done.")
    return data


def _blob(session: Session, attempt: int, *, readonly: bool) -> Any:
    connection = cast(sqlite3.Connection, session.connection().connection.driver_connection)
    return connection.blobopen(_TABLE, _COLUMN, attempt, readonly=readonly)
