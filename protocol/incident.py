"""Incidents: what a site reports under its key, how one stands in the log, and the clocks that the law sets. Pure.

GDPR Art. 33(1): the authority within 72 hours of becoming aware. 45 CFR 164.404(b), 164.410(b): those concerned within
60 days of the discovery.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from protocol.identifiers import NAME_PATTERN, Frozen, SiteName, Timestamp
from protocol.timestamp import moment

INCIDENT_REPORT_TYPE = "application/vnd.cloister.incident-report+json"
AUTHORITY_WITHIN = timedelta(hours=72)
INDIVIDUALS_WITHIN = timedelta(days=60)
EVERYTHING = "everything"
"""What an incident of the whole federation is about."""

IncidentId = Annotated[str, StringConstraints(pattern=r"^incident-[0-9a-f]{16}$")]
IncidentScope = Literal["study", "site", "federation"]
IncidentKind = Literal["security", "data-breach", "integrity", "basis-invalidated"]
Outcome = Literal["resolved", "false-alarm"]
About = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
SCOPES: tuple[IncidentScope, ...] = get_args(IncidentScope)
KINDS: tuple[IncidentKind, ...] = get_args(IncidentKind)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
BASIS_INVALIDATED: IncidentKind = "basis-invalidated"
"""An authority or a court found a site's legal basis invalid (GDPR Art. 58(2), 17(1)(d); EDPB Opinion 28/2024)."""


class Incident(Frozen):
    """What happened, to what, and since when somebody knew. No words: those stay with whoever wrote them.

    about: a study, a site, or "everything" for the federation. Raises ValueError for a legal basis that is not a
    site's, and for a scope that does not fit.
    """

    incident: IncidentId
    kind: IncidentKind
    scope: IncidentScope
    about: About
    aware_at: Timestamp

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.scope == "federation") != (self.about == EVERYTHING):
            raise ValueError(f"an incident of the federation, and no other, is about {EVERYTHING}")
        if self.kind == BASIS_INVALIDATED and self.scope != "site":
            raise ValueError("a legal basis is found invalid at a site")
        return self

    def labels(self) -> dict[str, str]:
        """As its entry in the log carries it."""
        return {"kind": self.kind, "scope": self.scope, "about": self.about, "aware_at": self.aware_at}


class IncidentReport(Frozen):
    """A site's own report, signed by the site key."""

    site: SiteName
    happened: Incident
    reported_at: Timestamp


class Settled(Frozen):
    """What became of the two duties: a time when it was done, "not-required" once assessed, or None while open."""

    authority: Annotated[Timestamp | Literal["not-required"] | None, Field()] = None
    individuals: Annotated[Timestamp | Literal["not-required"] | None, Field()] = None

    @property
    def complete(self) -> bool:
        """Whether neither is open."""
        return self.authority is not None and self.individuals is not None


def due(aware_at: str) -> tuple[datetime, datetime]:
    """(the authority, those concerned): until when each must have been told."""
    aware = moment(aware_at)
    return aware + AUTHORITY_WITHIN, aware + INDIVIDUALS_WITHIN


def overdue(aware_at: str, settled: Settled, *, now: datetime) -> bool:
    """Whether one of the two was neither done nor found not required in its time."""
    authority, individuals = due(aware_at)
    return (settled.authority is None and now > authority) or (settled.individuals is None and now > individuals)
