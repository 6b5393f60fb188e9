"""The log's only SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, update
from sqlmodel import Session, col, select

from coordinator.audit.tables import LogCheckpoint, LogCosignature, LogEntry, LogHead, LogPolicy, LogWitness
from coordinator.database import one_row
from coordinator.errors import Conflict

PAGE = 2048  # entries that are read at once


class CheckpointConflict(Conflict):
    """Another sequencer has published a head meanwhile."""

    code = "checkpoint-conflict"


@dataclass(frozen=True)
class Head:
    """The published head: `size` leaves under `root`; indices below `assigned` are given out."""

    size: int
    assigned: int
    root: bytes


class LogRepository:
    """Reads and writes in the caller's session."""

    def __init__(self, session: Session, origin: str) -> None:
        self._session = session
        self._origin = origin

    def start(self, root: bytes) -> None:
        """Make the head of a new, empty log."""
        self._session.add(LogHead(origin=self._origin, size=0, assigned=0, root=root))

    def head(self) -> Head:
        row = self._session.exec(select(LogHead).where(LogHead.origin == self._origin)).one()
        return Head(row.size, row.assigned, row.root)

    def pending(self) -> int:
        """How many entries have no index yet."""
        query = select(func.count()).select_from(LogEntry).where(col(LogEntry.log_index).is_(None))
        return int(self._session.exec(query).one())

    def assign(self, limit: int) -> int:
        """Give the oldest entries without an index, at most `limit`, the next ones; how many that were."""
        head = self.head()
        query = select(LogEntry.id).where(col(LogEntry.log_index).is_(None)).order_by(col(LogEntry.id)).limit(limit)
        ids = self._session.exec(query).all()
        if not ids:
            return 0
        self._session.connection().execute(
            update(LogEntry)
            .where(col(LogEntry.id) == bindparam("entry"), col(LogEntry.log_index).is_(None))
            .values(log_index=bindparam("next")),
            [{"entry": entry, "next": head.assigned + offset} for offset, entry in enumerate(ids)],
        )
        moved = self._session.exec(
            update(LogHead)
            .where(col(LogHead.origin) == self._origin, col(LogHead.assigned) == head.assigned)
            .values(assigned=head.assigned + len(ids))
        )
        if not one_row(moved):
            raise CheckpointConflict("Another sequencer assigned indices meanwhile.", "Let it finish.")
        return len(ids)

    def advance(self, old: Head, size: int, root: bytes, note: bytes, signed_at: str) -> None:
        """Publish a head in place of `old`, and its checkpoint. CheckpointConflict if `old` is not the head."""
        moved = self._session.exec(
            update(LogHead)
            .where(col(LogHead.origin) == self._origin, col(LogHead.size) == old.size, col(LogHead.root) == old.root)
            .values(size=size, root=root)
        )
        if not one_row(moved):
            raise CheckpointConflict("Another sequencer published a head meanwhile.", "Let it finish.")
        self._session.add(LogCheckpoint(size=size, note=note, signed_at=signed_at))

    def leaves(self, start: int, end: int) -> Iterator[bytes]:
        """The leaves with indices start to end - 1, in order; a page of them in memory at once."""
        for row in self._pages(select(LogEntry.leaf), start, end):
            yield row[0]

    def entries(self, end: int) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
        """(leaf, payload, salt) of the entries with indices 0 to end - 1, as `leaves`; None where erased."""
        yield from self._pages(select(LogEntry.leaf, LogEntry.payload, LogEntry.salt), 0, end)

    def _pages(self, columns: Any, start: int, end: int) -> Iterator[Any]:
        index = col(LogEntry.log_index)
        connection = self._session.connection()
        for first in range(start, end, PAGE):
            query = columns.where(index >= first, index < min(end, first + PAGE)).order_by(index)
            yield from connection.execute(query)

    def index_of(self, entry: int) -> int | None:
        return self._session.exec(select(LogEntry.log_index).where(LogEntry.id == entry)).one_or_none()

    def checkpoint(self, size: int) -> LogCheckpoint | None:
        return self._session.get(LogCheckpoint, size)

    def latest_checkpoint(self) -> LogCheckpoint | None:
        query = select(LogCheckpoint).order_by(col(LogCheckpoint.size).desc()).limit(1)
        return self._session.exec(query).first()

    def recent_checkpoints(self, limit: int) -> list[LogCheckpoint]:
        """Newest first."""
        query = select(LogCheckpoint).order_by(col(LogCheckpoint.size).desc()).limit(limit)
        return list(self._session.exec(query))

    def cosignatures(self, size: int) -> Mapping[str, str]:
        """witness verifier key -> line."""
        query = select(LogCosignature).where(LogCosignature.size == size)
        return {row.witness: row.line for row in self._session.exec(query)}

    def add_cosignature(self, size: int, witness: str, line: str) -> None:
        """Keep a verified line; a witness's first over a size stays."""
        if self._session.get(LogCosignature, (size, witness)) is None:
            self._session.add(LogCosignature(size=size, witness=witness, line=line))
            self._session.flush()

    def largest_cosigned(self, witnesses: list[str], quorum: int, minimum: int) -> LogCheckpoint | None:
        """The largest checkpoint of at least `minimum` that `quorum` of these witnesses cosigned."""
        enough = (
            select(LogCosignature.size)
            .where(col(LogCosignature.witness).in_(witnesses), col(LogCosignature.size) >= minimum)
            .group_by(col(LogCosignature.size))
            .having(func.count() >= quorum)
            .order_by(col(LogCosignature.size).desc())
            .limit(1)
        )
        size = self._session.exec(enough).first()
        return None if size is None else self.checkpoint(size)

    def auditors(self) -> list[LogWitness]:
        """The auditors who are witnesses now."""
        query = select(LogWitness).where(col(LogWitness.removed_at).is_(None)).order_by(col(LogWitness.name))
        return list(self._session.exec(query))

    def auditor_key_known(self, key: str) -> bool:
        """Whether an auditor has, or had, this verifier key."""
        return self._session.get(LogWitness, key) is not None

    def save_auditor(self, row: LogWitness) -> None:
        self._session.add(row)
        self._session.flush()

    def policy(self) -> LogPolicy | None:
        """The policy in force."""
        return self._session.exec(select(LogPolicy).order_by(col(LogPolicy.id).desc()).limit(1)).first()

    def set_policy(self, entry: int, document: bytes | None) -> None:
        self._session.add(LogPolicy(entry=entry, document=document))
        self._session.flush()
