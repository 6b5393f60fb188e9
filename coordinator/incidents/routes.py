"""HTTP for incidents: people and sites open them, officers say what was done, two people close them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from sqlmodel import Session

from coordinator.database import reading, transaction
from coordinator.identity import AnyPerson, ApplianceOf, CurrentSite, current_person, may
from coordinator.incidents.facts import is_overdue
from coordinator.incidents.report import close, new_incident, open_by_person, open_by_site, update
from coordinator.incidents.repository import IncidentRepository
from coordinator.incidents.states import IncidentState
from coordinator.incidents.tables import IncidentRecord
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from protocol.errors import Malformed
from protocol.identifiers import Frozen, Role, Timestamp
from protocol.incident import EVERYTHING, About, Incident, IncidentKind, IncidentScope, Outcome, Settled, due
from protocol.timestamp import timestamp

router = APIRouter(prefix="/v1", tags=["incidents"])
_Reporter = Annotated[Person, Depends(may(Permission.REPORT_INCIDENT))]
_Officer = Annotated[Person, Depends(current_person(Role.COMPLIANCE_OFFICER))]


class Opened(Frozen):
    """What a person tells. aware_at: left out, now."""

    kind: IncidentKind
    scope: IncidentScope
    about: About
    aware_at: Timestamp | None = None
    description: str


class Update(Frozen):
    """What became of the duties, and where that is written down."""

    settled: Settled
    reason: str


class Close(Frozen):
    outcome: Outcome
    reason: str


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post("/incidents", status_code=201)
def post_incident(body: Opened, person: _Reporter, appliance: ApplianceOf) -> dict[str, Any]:
    incident = _incident(body, new_incident(appliance), now=timestamp(appliance.clock()))
    with transaction(appliance.engine) as session:
        row = open_by_person(session, appliance, person, incident, words=body.description)
        return _shown(session, row, now=appliance.clock())


@router.post("/sites/me/incidents", status_code=201)
def post_report(site: CurrentSite, appliance: ApplianceOf, body: Annotated[bytes, Depends(_body)]) -> dict[str, str]:
    """This site's signed report; it may be sent again."""
    with transaction(appliance.engine) as session:
        row = open_by_site(session, appliance, site, body)
    return {"incident": row.id, "state": row.state}


@router.get("/incidents")
def get_incidents(person: AnyPerson, appliance: ApplianceOf) -> list[dict[str, Any]]:
    del person
    with reading(appliance.engine) as session:
        return [_shown(session, row, now=appliance.clock()) for row in IncidentRepository(session).all()]


@router.post("/incidents/{incident}/updates", status_code=201)
def post_update(incident: str, body: Update, person: _Officer, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = update(session, appliance, person, incident, body.settled, words=body.reason)
        return _shown(session, row, now=appliance.clock())


@router.post("/incidents/{incident}/closings", status_code=201)
def post_closing(incident: str, body: Close, person: AnyPerson, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = close(session, appliance, person, incident, body.outcome, words=body.reason)
        return _shown(session, row, now=appliance.clock())


def _incident(body: Opened, name: str, *, now: str) -> Incident:
    try:
        return Incident(
            incident=name, kind=body.kind, scope=body.scope, about=body.about, aware_at=body.aware_at or now
        )
    except ValidationError:
        raise Malformed(
            "What it is about does not fit.",
            f"The federation is named {EVERYTHING}, and a legal basis is found invalid at a site.",
        ) from None


def _shown(session: Session, row: IncidentRecord, *, now: datetime) -> dict[str, Any]:
    authority, individuals = due(row.aware_at)
    return {
        "incident": row.id,
        "kind": row.kind,
        "scope": row.scope,
        "about": row.about,
        "state": row.state,
        "aware_at": row.aware_at,
        "opened_by": row.opened_by,
        "opened_at": row.opened_at,
        "authority": row.authority,
        "authority_due": timestamp(authority),
        "individuals": row.individuals,
        "individuals_due": timestamp(individuals),
        "overdue": row.state == IncidentState.OPEN.value and is_overdue(row, now=now),
        "closing": [closing.person for closing in IncidentRepository(session).closings(row)],
        "outcome": row.outcome,
        "closed_at": row.closed_at,
    }
