"""Rows of incidents. What people wrote of them stands in the log's erasable payloads only."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field

from coordinator.database import Table


class IncidentRecord(Table, table=True):
    """One incident. kind, scope, about, aware_at: protocol.incident.Incident. opened_by: a person or `site:NAME`.

    report: a site's signed report. authority, individuals: protocol.incident.Settled. state: incidents.states.
    """

    __tablename__ = "incident"

    id: str = Field(primary_key=True)
    kind: str
    scope: str = Field(index=True)
    about: str = Field(index=True)
    state: str = Field(index=True)
    aware_at: str
    opened_by: str
    opened_at: str
    report: bytes | None = Field(default=None, sa_type=LargeBinary)
    authority: str | None = None
    individuals: str | None = None
    outcome: str | None = None
    closed_at: str | None = None


class IncidentClosing(Table, table=True):
    """One person's word that an incident is over; it counts for the facts with this digest only."""

    __tablename__ = "incident_closing"

    incident: str = Field(primary_key=True, foreign_key="incident.id")
    person: str = Field(primary_key=True)
    facts: str = Field(primary_key=True)
    role: str
    outcome: str
    said_at: str
