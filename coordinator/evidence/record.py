"""Record evidence, and revoke it. Each is load, decide, save, append."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict
from coordinator.evidence.repository import EvidenceRepository
from coordinator.evidence.tables import Evidence
from coordinator.people.states import Permission, require_permission
from coordinator.people.tables import Person
from coordinator.sites.repository import SiteRepository
from coordinator.studies.repository import StudyRepository
from protocol.audit_event import EventType
from protocol.errors import Refused
from protocol.evidence import EvidenceRecord
from protocol.timestamp import timestamp

CLASSIFYING = ("regulatory_classification", "change_control")


def record(session: Session, appliance: Appliance, person: Person, records: Sequence[EvidenceRecord]) -> list[Evidence]:
    """Store the records; one that is there already is left as it is. All of them, or none.

    Raises Forbidden for a kind that the person's role does not record, Refused for a record dated in the future, about
    a site that is not known, or by the very person who submitted the study; Conflict for one that was revoked.
    """
    evidence, today = EvidenceRepository(session), appliance.clock().date()
    rows = []
    for item in records:
        present = evidence.find(item.digest)
        if present is not None and present.revoked_at is not None:
            raise Conflict("This very record was revoked.", "Record the newer document with its own dates.")
        if present is not None:
            rows.append(present)
            continue
        if item.issued > today:
            raise Refused(f"A {item.kind} is dated in the future.", "Record it once it is issued.")
        _known(session, item, person)
        require_permission(person.role, _permission(item))
        row = evidence.add(item, by=person.name, at=timestamp(appliance.clock()))
        _log(session, appliance, EventType.EVIDENCE_RECORDED, person, row, item)
        rows.append(row)
    return rows


def revoke(session: Session, appliance: Appliance, person: Person, digest: str) -> Evidence:
    """From now on the record does not count. Raises NotFound, Conflict where it is revoked already."""
    row = EvidenceRepository(session).get(digest)
    require_permission(person.role, _permission(EvidenceRecord.model_validate_json(row.record)))
    if row.revoked_at is not None:
        raise Conflict("The record is revoked already.", "Nothing has to be done again.")
    row.revoked_at = timestamp(appliance.clock())
    session.add(row)
    _log(session, appliance, EventType.EVIDENCE_REVOKED, person, row, EvidenceRecord.model_validate_json(row.record))
    return row


def _permission(item: EvidenceRecord) -> Permission:
    """What a kind of record takes: how a model is classified, and whether a change leaves it so, is for regulatory
    affairs; everything else for a compliance officer."""
    return Permission.CLASSIFY if item.kind in CLASSIFYING else Permission.RECORD_EVIDENCE


def _known(session: Session, item: EvidenceRecord, person: Person) -> None:
    if item.scope in ("site", "deployment") and SiteRepository(session).get(item.subject) is None:
        raise Refused(f"There is no site {item.subject}.", "See `cloister sites`.")
    if item.scope == "study":
        studies = StudyRepository(session)
        if studies.exists(item.subject) and studies.get(item.subject).submitter == person.name:
            raise Refused("Who submitted a study does not vouch for its evidence.", "Ask another compliance officer.")


def _log(
    session: Session, appliance: Appliance, event: EventType, person: Person, row: Evidence, item: EvidenceRecord
) -> None:
    append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=item.subject,
        digests={"evidence": row.digest, "file": item.file},
        labels={"kind": item.kind.replace("_", "-"), "scope": item.scope},
    )
