"""Open an incident, note what became of its duties, close it. Each is load, decide, save, append."""

from __future__ import annotations

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label, site_label
from coordinator.errors import Conflict
from coordinator.incidents.repository import IncidentRepository, facts_of, incident_of, settled_of
from coordinator.incidents.states import (
    Closing,
    IncidentState,
    admit_closing,
    closed_by,
    require_admissible,
    require_words,
    settle,
)
from coordinator.incidents.tables import IncidentRecord
from coordinator.people.states import Permission, require_permission
from coordinator.people.tables import Person
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import Site
from coordinator.studies.repository import StudyRepository, plan_of
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.incident import INCIDENT_REPORT_TYPE, Incident, IncidentReport, Outcome, Settled
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp


def new_incident(appliance: Appliance) -> str:
    """An identifier that nobody can foresee."""
    return f"incident-{appliance.entropy(8).hex()}"


def open_by_person(
    session: Session, appliance: Appliance, person: Person, incident: Incident, *, words: str
) -> IncidentRecord:
    """Freeze a study, a site or everything, from now on. Anybody may but an auditor, who only reads.

    words: what happened, erasable: the log holds their salted hash. Raises Refused for what is not known, Malformed.
    """
    require_permission(person.role, Permission.REPORT_INCIDENT)
    require_words(words)
    _known(session, incident)
    return _open(
        session, appliance, incident, actor=person_label(appliance, person.name), opened_by=person.name,
        words={"description": words, "person": person.name},
    )  # fmt: skip


def open_by_site(session: Session, appliance: Appliance, site: Site, data: bytes) -> IncidentRecord:
    """A site's signed report about itself or a study that it is planned in; the same again changes nothing.

    Raises BadSignature, Malformed, Refused for what is another's.
    """
    happened, incidents = read_report(data, site), IncidentRepository(session)
    present = incidents.find(happened.incident)
    if present is not None:
        if present.report != data:
            raise Conflict("Another incident has this identifier.", "Report it anew.")
        return present
    own = happened.scope == "site" and happened.about == site.name
    if not own and not (happened.scope == "study" and _takes_part(session, happened.about, site.name)):
        raise Refused("A site reports incidents of its own, and of studies that it is in.", "Tell a person there.")
    return _open(
        session, appliance, happened, actor=site_label(site.name), opened_by=site_label(site.name), report=data
    )


def update(
    session: Session, appliance: Appliance, person: Person, incident: str, told: Settled, *, words: str
) -> IncidentRecord:
    """Note what became of the duties to tell the authority and those concerned. What was said of closing it before is
    void: it was said of other facts."""
    require_words(words)
    incidents = IncidentRepository(session)
    row = incidents.get(incident)
    settled = settle(
        settled_of(row), told, state=IncidentState(row.state), aware_at=row.aware_at, now=appliance.clock()
    )
    incidents.settle(row, settled)
    incidents.void_closings(row)
    said = {name: value for name, value in told.model_dump().items() if value is not None}
    append(
        session,
        appliance,
        EventType.INCIDENT_UPDATED,
        actor=person_label(appliance, person.name),
        subject=row.id,
        labels={name: str(value) for name, value in said.items()},
        payload={"reason": words, "person": person.name},
    )
    return row


def close(
    session: Session, appliance: Appliance, person: Person, incident: str, outcome: Outcome, *, words: str
) -> IncidentRecord:
    """Say that it is over. It is closed once two people in two roles have said so of the same facts.

    Raises Refused for the person who opened it, a role that does not close, and duties that are not settled.
    """
    require_words(words)
    incidents = IncidentRepository(session)
    row = incidents.get(incident)
    said, facts, now = incidents.closings(row), facts_of(row), timestamp(appliance.clock())
    closing = Closing(person.name, Role(person.role), outcome, facts)
    reporter = None if row.report is not None else row.opened_by
    admit_closing(closing, said, state=IncidentState(row.state), reporter=reporter, settled=settled_of(row))
    incidents.add_closing(row, closing, at=now)
    over = closed_by([*said, closing], facts=facts)
    append(
        session,
        appliance,
        EventType.INCIDENT_CLOSED if over else EventType.INCIDENT_CLOSING,
        actor=person_label(appliance, person.name),
        subject=row.id,
        digests={"facts": facts},
        labels={**incident_of(row).labels(), "outcome": outcome, "role": closing.role.value},
        payload={"reason": words, "person": person.name},
    )
    if over:
        incidents.close(row, outcome, at=now)
    return row


def _open(
    session: Session,
    appliance: Appliance,
    incident: Incident,
    *,
    actor: str,
    opened_by: str,
    report: bytes | None = None,
    words: dict[str, object] | None = None,
) -> IncidentRecord:
    require_admissible(incident, now=appliance.clock())
    row = IncidentRecord(
        id=incident.incident,
        kind=incident.kind,
        scope=incident.scope,
        about=incident.about,
        state=IncidentState.OPEN.value,
        aware_at=incident.aware_at,
        opened_by=opened_by,
        opened_at=timestamp(appliance.clock()),
        report=report,
    )
    IncidentRepository(session).add(row)
    append(
        session,
        appliance,
        EventType.INCIDENT_OPENED,
        actor=actor,
        subject=row.id,
        digests={} if report is None else {"report": sha256_hex(report)},
        labels=incident.labels(),
        payload=words,
    )
    return row


def _known(session: Session, incident: Incident) -> None:
    if incident.scope == "site" and SiteRepository(session).get(incident.about) is None:
        raise Refused(f"There is no site {incident.about}.", "See `cloister sites`.")
    if incident.scope == "study" and not StudyRepository(session).exists(incident.about):
        raise Refused(f"There is no study {incident.about}.", "See `cloister study list`.")


def _takes_part(session: Session, study: str, site: str) -> bool:
    studies = StudyRepository(session)
    if not studies.exists(study):
        return False
    row = studies.get(study)
    return row.plan is not None and site in plan_of(row).names


def read_report(data: bytes, site: Site) -> Incident:
    """What the site reports, verified under its key. Raises BadSignature, Malformed, Refused."""
    key = VerifyingKey.from_text(site.identity or "")
    envelope = Envelope.from_bytes(data)
    open_json(envelope, INCIDENT_REPORT_TYPE, {key.key_id: key})
    try:
        report = IncidentReport.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The report is not of the agreed form.", "Update the site to the same version.") from None
    if report.site != site.name:
        raise Refused("The report is another site's.", "Send this site's own.")
    return report.happened
