"""Report an incident of this site, tell the coordinator, end it here. Light: the agent imports it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from protocol.canonical import canonical
from protocol.envelope import seal
from protocol.errors import CloisterError, Malformed
from protocol.incident import INCIDENT_REPORT_TYPE, Incident, IncidentReport
from protocol.signing import SigningKey
from protocol.timestamp import moment, timestamp
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction
from site_agent.incidents.matters import Matters
from site_agent.incidents.tables import ReportedIncident


class StillOpen(CloisterError):
    """The log does not say yet that the incident is over."""

    code = "incident-open"


def report(
    session: Session,
    *,
    site: str,
    key: SigningKey,
    kind: str,
    study: str | None,
    aware_at: str | None,
    now: datetime,
    entropy: Callable[[int], bytes],
) -> ReportedIncident:
    """Store a signed report: from now on this site takes part in nothing that it touches. study: None for the site.

    Raises Malformed for a kind that does not exist, or awareness in the future.
    """
    at = timestamp(now)
    try:
        told = Incident.model_validate(
            {
                "incident": f"incident-{entropy(8).hex()}",
                "kind": kind,
                "scope": "site" if study is None else "study",
                "about": site if study is None else study,
                "aware_at": aware_at or at,
            }
        )
    except ValueError:
        raise Malformed(
            "The incident is not of the agreed form.", "See cloister-site incidents report --help."
        ) from None
    if moment(told.aware_at) > now:
        raise Malformed("Nobody became aware of it in the future.", "Give --aware-at as it was, in UTC.")
    document = IncidentReport(site=site, happened=told, reported_at=at).model_dump(mode="json")
    row = ReportedIncident(
        incident=told.incident,
        kind=told.kind,
        scope=told.scope,
        about=told.about,
        aware_at=told.aware_at,
        report=seal(INCIDENT_REPORT_TYPE, document, key).to_bytes(),
        reported_at=at,
    )
    session.add(row)
    session.flush()
    return row


def happened(row: ReportedIncident) -> Incident:
    """What was reported."""
    fields = {"incident": row.incident, "kind": row.kind, "scope": row.scope, "about": row.about}
    return Incident.model_validate_json(canonical({**fields, "aware_at": row.aware_at}))


def unfinished(session: Session) -> list[ReportedIncident]:
    """The reports that nobody here has ended."""
    return list(session.exec(select(ReportedIncident).where(col(ReportedIncident.ended_at).is_(None))))


def every(session: Session) -> list[ReportedIncident]:
    """All reports, oldest first."""
    return list(session.exec(select(ReportedIncident).order_by(col(ReportedIncident.reported_at))))


def deliver_reports(engine: Engine, client: CoordinatorClient) -> list[str]:
    """Send what the coordinator has not acknowledged; the incidents told. Raises what the client raises: a report that
    the coordinator refuses is tried again, and stands here all the same."""
    with transaction(engine) as session:
        waiting = session.exec(select(ReportedIncident).where(col(ReportedIncident.delivered).is_(False))).all()
    told = []
    for row in waiting:
        client.post_incident(row.report)
        with transaction(engine) as session:
            stored = session.get_one(ReportedIncident, row.incident)
            stored.delivered = True
            session.add(stored)
        told.append(row.incident)
    return told


def end(session: Session, matters: Matters, incident: str, *, now: datetime) -> ReportedIncident:
    """Say here that it is over: the log must have told of it and of its closing by two people. Raises StillOpen,
    Malformed for an incident that this site did not report."""
    row = session.get(ReportedIncident, incident)
    if row is None:
        raise Malformed(f"This site reported no {incident[:40]}.", "See cloister-site incidents list.")
    if not matters.told(incident):
        raise StillOpen(
            f"The log does not tell of {incident}.",
            "Run cloister-site log check; if it still does not, show this to the federation's auditor.",
        )
    if not matters.closed(incident):
        raise StillOpen(f"The log does not tell that two people closed {incident}.", "Wait until they have.")
    row.ended_at = row.ended_at or timestamp(now)
    session.add(row)
    return row
