"""Rows of evidence. A record is never changed: it is revoked, and another is recorded."""

from __future__ import annotations

from sqlmodel import Field

from coordinator.database import Table


class Evidence(Table, table=True):
    """One record (canonical JSON of protocol.evidence.EvidenceRecord), who recorded it and when; revoked_at: since when
    it does not count."""

    __tablename__ = "evidence"

    digest: str = Field(primary_key=True)
    scope: str = Field(index=True)
    subject: str = Field(index=True)
    kind: str
    record: str
    recorded_by: str
    recorded_at: str
    revoked_at: str | None = None
