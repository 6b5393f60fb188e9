"""The only SQL about evidence."""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from coordinator.errors import NotFound
from coordinator.evidence.tables import Evidence
from protocol.canonical import canonical
from protocol.evidence import EvidenceRecord, Scope


class EvidenceRepository:
    """Evidence within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, digest: str) -> Evidence | None:
        """The row of a record, revoked or not."""
        return self._session.get(Evidence, digest)

    def get(self, digest: str) -> Evidence:
        """The row, or NotFound."""
        row = self.find(digest)
        if row is None:
            raise NotFound(f"There is no evidence {digest[:19]}.", "See `cloister evidence list`.")
        return row

    def add(self, record: EvidenceRecord, *, by: str, at: str) -> Evidence:
        """Store a record that is not there yet."""
        row = Evidence(
            digest=record.digest,
            scope=record.scope,
            subject=record.subject,
            kind=record.kind,
            record=canonical(record.model_dump(mode="json")).decode(),
            recorded_by=by,
            recorded_at=at,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def all(self) -> list[Evidence]:
        """Every row, oldest first."""
        return list(self._session.exec(select(Evidence).order_by(col(Evidence.recorded_at), col(Evidence.digest))))

    def recorded_by(self, by: str) -> list[Evidence]:
        """The rows that this person or site recorded and that are not revoked, oldest first."""
        query = select(Evidence).where(Evidence.recorded_by == by, col(Evidence.revoked_at).is_(None))
        return list(self._session.exec(query.order_by(col(Evidence.recorded_at), col(Evidence.digest))))

    def save(self, row: Evidence) -> None:
        """Keep what was changed in a row."""
        self._session.add(row)
        self._session.flush()

    def about(self, scope: Scope, subjects: Iterable[str]) -> list[EvidenceRecord]:
        """The records about these subjects that are not revoked, oldest first."""
        query = select(Evidence).where(
            col(Evidence.scope) == scope, col(Evidence.subject).in_(list(subjects)), col(Evidence.revoked_at).is_(None)
        )
        rows = self._session.exec(query.order_by(col(Evidence.recorded_at), col(Evidence.digest)))
        return [EvidenceRecord.model_validate_json(row.record) for row in rows]
