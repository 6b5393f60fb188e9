"""What the operator sees of a coordinator without asking the server."""

from __future__ import annotations

from typing import Any

from coordinator.appliance import Appliance
from coordinator.audit.repository import LogRepository
from coordinator.audit.witnessing import policy_in_force, quorum_note
from coordinator.database import reading
from coordinator.incidents.facts import is_overdue
from coordinator.incidents.repository import IncidentRepository
from coordinator.people.repository import PersonRepository
from coordinator.reviews.repository import ReviewRepository
from coordinator.reviews.states import ReviewState
from coordinator.serving_lock import CannotServe, serving_lock
from coordinator.sites.repository import SiteRepository
from protocol.checkpoint import TreeHead
from protocol.note import Note


def describe(appliance: Appliance) -> dict[str, Any]:
    """Address, whether it is served, log sizes, and counts: people and sites by state, incidents, reviews."""
    with reading(appliance.engine) as session:
        log = LogRepository(session, appliance.settings.origin)
        note, policy = quorum_note(session, appliance, 1), policy_in_force(session, appliance)
        people, sites = PersonRepository(session).all(), SiteRepository(session).all()
        incidents = IncidentRepository(session).open()
        return {
            "home": str(appliance.home),
            "address": appliance.settings.address,
            "served": _served(appliance),
            "origin": appliance.settings.origin,
            "ca": appliance.keys.authority.fingerprint,
            "log_size": log.head().size,
            "log_pending": log.pending(),
            "log_cosigned": TreeHead.parse(Note.parse(note).text).size if note else None,
            "witnesses": len(policy.witnesses) if policy else 0,
            "quorum": policy.quorum if policy else None,
            "people": _count([row.status for row in people]),
            "sites": _count([row.status for row in sites]),
            "incidents_open": len(incidents),
            "incidents_overdue": sum(is_overdue(row, now=appliance.clock()) for row in incidents),
            "reviews_open": sum(row.state == ReviewState.OPEN.value for row in ReviewRepository(session).all()),
        }


def _served(appliance: Appliance) -> bool:
    try:
        with serving_lock(appliance.home):
            return False
    except CannotServe:
        return True


def _count(states: list[str]) -> dict[str, int]:
    return {state: states.count(state) for state in sorted(set(states))}
