"""The site's own reports of incidents."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class ReportedIncident(SQLModel, table=True):
    """One report, signed. It freezes the site's part from the moment it is stored, delivered or not, until the log says
    that it was closed and somebody here agreed (`ended_at`)."""

    __tablename__ = "reported_incident"

    incident: str = Field(primary_key=True)
    kind: str
    scope: str
    about: str
    aware_at: str
    report: bytes = Field(sa_type=LargeBinary)
    reported_at: str
    delivered: bool = False
    ended_at: str | None = None
