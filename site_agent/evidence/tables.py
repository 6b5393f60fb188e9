"""Rows of what the hospital has on record. A record is never changed: it is revoked, and another is imported."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class SiteEvidence(SQLModel, table=True):
    """One record (canonical JSON of protocol.evidence.EvidenceRecord); revoked_at: since when it does not count."""

    __tablename__ = "site_evidence"

    digest: str = Field(primary_key=True)
    scope: str = Field(index=True)
    kind: str
    record: str
    recorded_at: str
    revoked_at: str | None = None


class AttestedSafeguards(SQLModel, table=True):
    """What was attested last (row 1): canonical JSON of protocol.papers.Safeguards, and the day."""

    __tablename__ = "attested_safeguards"

    id: int = Field(default=1, primary_key=True)
    safeguards: str
    attested_on: str


class SentStatement(SQLModel, table=True):
    """The newest statement that the coordinator took (row 1). content: the digest of what it says, its time left out;
    clock_skew: seconds between the coordinator's clock and this site's when it arrived. first_made_at: when the one was
    made with which the site enrolled, under the key that it has had since."""

    __tablename__ = "sent_statement"

    id: int = Field(default=1, primary_key=True)
    content: str
    made_at: str
    clock_skew: float
    first_made_at: str
