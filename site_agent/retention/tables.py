"""What was purged here, and that the site left."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class SitePurge(SQLModel, table=True):
    """One erasure. record_class, about: what went; decision: the gate's, as JSON."""

    __tablename__ = "site_purge"

    id: int | None = Field(default=None, primary_key=True)
    record_class: str
    about: str
    items: int
    decision: str
    purged_at: str


class Departure(SQLModel, table=True):
    """The site has left (row 1). retained: artefacts that are still here, each kind of which was said to be infeasible
    to destroy. delivered: the coordinator knows."""

    __tablename__ = "departure"

    id: int = Field(default=1, primary_key=True)
    retained: int
    decision_digest: str
    left_at: str
    delivered: bool = False
