"""What stands open by this site's own, verified copy of the log: incidents, reviews of models, invalid legal bases.

The coordinator freezes by its own record; a site goes by the log that it has mirrored, so an incident that was logged
holds here whatever the coordinator says of it. A closing counts only as the log must tell it: said by two actors in two
roles over the same facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import parse
from protocol.errors import Malformed
from protocol.incident import BASIS_INVALIDATED, EVERYTHING, Incident, Settled, overdue

_TELLING = (b'"event":"incident.', b'"event":"review.')


@dataclass
class _Told:
    """An incident as the log has told of it so far."""

    happened: Incident
    settled: Settled = field(default_factory=Settled)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """actor -> (role, facts)"""
    open: bool = True


class Matters:
    """Reads entries in order, each once. `size`: how many it has read."""

    def __init__(self) -> None:
        self.size = 0
        self._incidents: dict[str, _Told] = {}
        self._reviews: dict[str, str] = {}
        self._reviewed: set[str] = set()

    def read(self, entries: Iterable[bytes]) -> None:
        """Take in the entries that follow those read before."""
        for entry in entries:
            self.size += 1
            if any(mark in entry for mark in _TELLING):
                self._take(entry)

    def incidents(self, *, study: str, sites: Collection[str]) -> dict[str, Incident]:
        """The open ones that touch the study, one of the sites, or everything, by identifier."""
        return {
            name: told.happened
            for name, told in self._incidents.items()
            if told.open and touches(told.happened, study=study, sites=sites)
        }

    def open(self) -> dict[str, Incident]:
        """Every open one, by identifier."""
        return {name: told.happened for name, told in self._incidents.items() if told.open}

    def overdue(self, incident: str, *, now: datetime) -> bool:
        """Whether a duty's time has passed with nothing logged of it."""
        told = self._incidents[incident]
        return overdue(told.happened.aware_at, told.settled, now=now)

    def told(self, incident: str) -> bool:
        """Whether the log has told of it at all."""
        return incident in self._incidents

    def closed(self, incident: str) -> bool:
        """Whether the log has told of its end."""
        return incident in self._incidents and not self._incidents[incident].open

    def invalidated(self, sites: Collection[str]) -> list[str]:
        """Which of these sites had their legal basis found invalid, undecided."""
        found = (told.happened for told in self._incidents.values() if told.open)
        return sorted({one.about for one in found if one.kind == BASIS_INVALIDATED and one.about in sites})

    def reviews(self, study: str) -> list[str]:
        """The open reviews of the study's model, by identifier."""
        return sorted(review for review, about in self._reviews.items() if about == study)

    def review_told(self, review: str) -> bool:
        """Whether the log has told of this review."""
        return review in self._reviewed

    def _take(self, entry: bytes) -> None:
        try:
            event = AuditEvent.model_validate(parse(entry))
        except (Malformed, ValidationError):
            return  # no event of ours: nothing follows from it
        match event.event:
            case EventType.INCIDENT_OPENED:
                self._opened(event)
            case EventType.INCIDENT_UPDATED:
                self._updated(event)
            case EventType.INCIDENT_CLOSING | EventType.INCIDENT_CLOSED:
                self._said_over(event)
            case EventType.REVIEW_OPENED if (review := event.labels.get("review")) is not None:
                if review not in self._reviewed:
                    self._reviewed.add(review)
                    self._reviews[review] = event.subject
            case EventType.REVIEW_CLOSED:
                self._reviews.pop(event.labels.get("review", ""), None)

    def _opened(self, event: AuditEvent) -> None:
        try:
            happened = Incident.model_validate({"incident": event.subject, **event.labels})
        except ValidationError:
            return
        self._incidents.setdefault(event.subject, _Told(happened))

    def _updated(self, event: AuditEvent) -> None:
        told = self._incidents.get(event.subject)
        if told is None:
            return
        try:
            added = Settled.model_validate(event.labels)
        except ValidationError:
            return
        before = told.settled
        told.settled = Settled(
            authority=added.authority or before.authority, individuals=added.individuals or before.individuals
        )

    def _said_over(self, event: AuditEvent) -> None:
        told = self._incidents.get(event.subject)
        if told is None:
            return
        told.said[event.actor] = (event.labels.get("role", ""), event.digests.get("facts", ""))
        if event.event is EventType.INCIDENT_CLOSED:
            role, facts = told.said[event.actor]
            told.open = not any(
                actor != event.actor and other != role and same == facts and facts
                for actor, (other, same) in told.said.items()
            )


def touches(happened: Incident, *, study: str, sites: Collection[str]) -> bool:
    """Whether an incident is about the study, one of the sites, or everything."""
    match happened.scope:
        case "study":
            return happened.about == study
        case "site":
            return happened.about in sites
        case "federation":
            return happened.about == EVERYTHING
