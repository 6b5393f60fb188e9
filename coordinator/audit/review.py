"""Somebody has read the log: kept, so that a log that nobody looks at is warned of at the round gate."""

from __future__ import annotations

from sqlmodel import Session, col, select

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.audit.repository import LogRepository
from coordinator.audit.tables import LogEntry, LogReview
from coordinator.errors import Conflict
from coordinator.people.tables import Person
from protocol.audit_event import AuditEvent, EventType
from protocol.timestamp import moment, timestamp


def reviewed(session: Session, appliance: Appliance, person: Person) -> LogReview:
    """This person has reviewed the log as far as it is published now. Raises Conflict before there is anything."""
    latest = LogRepository(session, appliance.settings.name).latest_checkpoint()
    if latest is None:
        raise Conflict("The log has no checkpoint yet.", "Wait for the sequencer, and review it then.")
    row = LogReview(person=person.name, size=latest.size, at=timestamp(appliance.clock()))
    session.add(row)
    append(
        session, appliance, EventType.AUDIT_REVIEWED, actor=person_label(appliance, person.name),
        subject=appliance.settings.name, numbers={"size": latest.size},
    )  # fmt: skip
    return row


def last_review_days(session: Session, appliance: Appliance) -> int | None:
    """Whole days since a person last reviewed the log; where nobody has, since the log began; None without a log."""
    latest = session.exec(select(LogReview).order_by(col(LogReview.id).desc()).limit(1)).first()
    if latest is None:
        first = session.exec(select(LogEntry).order_by(col(LogEntry.id)).limit(1)).first()
        if first is None:
            return None
        at = AuditEvent.model_validate_json(first.leaf).at
    else:
        at = latest.at
    return max(0, (appliance.clock() - moment(at)).days)
