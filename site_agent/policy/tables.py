"""What the hospital's own gates decided, with the facts that they decided on. It never leaves the hospital."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class SiteDecision(SQLModel, table=True):
    """One decision of the consent, serving or retention gate. subject: a study, a release or what was to be erased.
    policy: the digest of all that it was decided by. facts: JSON, normalised; None where they were refused. Decisions
    of the round gate stand in `round_decision`."""

    __tablename__ = "site_decision"

    id: int | None = Field(default=None, primary_key=True)
    gate: str = Field(index=True)
    subject: str = Field(index=True)
    policy: str
    outcome: str
    facts: str | None = None
    at: str
