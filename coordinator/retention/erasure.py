"""The erasure of one entry's words: two people, two roles, the gate, and a log entry for each step.

The leaf stays, and with it every proof. Two grounds: words that must not stand there at all (a patient's name in a
reason) go at once; words that a person asks to have erased go once they have been kept for as long as the law asks.
"""

from __future__ import annotations

from typing import Literal, get_args

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.audit.tables import LogEntry
from coordinator.errors import Conflict, NotFound
from coordinator.incidents.repository import IncidentRepository
from coordinator.people.tables import Person
from coordinator.policy.decisions import index as note
from coordinator.policy.decisions import record
from coordinator.retention.gate import decide
from coordinator.retention.inventory import us_law
from coordinator.retention.prune import effect_of
from coordinator.retention.repository import RetentionRepository
from coordinator.retention.tables import PayloadErasure
from policies.decided import Decided
from policies.findings import Decision
from policies.packs import Policy
from policies.retention import Holding, RecordClass
from protocol.audit_event import EventType
from protocol.errors import Refused
from protocol.timestamp import timestamp

Ground = Literal["unlawful-content", "subject-request"]
GROUNDS: tuple[str, ...] = get_args(Ground)


class ErasureDenied(Refused):
    """The retention gate keeps the words."""

    code = "erasure-denied"

    def __init__(self, decision: Decision) -> None:
        told = " ".join(f"{found.message} ({found.rule}, {found.citation})" for found in decision.findings)
        super().__init__(told, " ".join(dict.fromkeys(found.remedy for found in decision.findings)))
        self.facts = {"findings": [finding.to_dict() for finding in decision.findings]}


def ask(session: Session, appliance: Appliance, person: Person, index: int, ground: Ground) -> PayloadErasure:
    """Ask that the words of an entry go. Raises NotFound, Conflict where they are gone or were asked about before."""
    _entry_with_words(session, index)
    retention = RetentionRepository(session)
    if retention.erasure(index) is not None:
        raise Conflict(f"The erasure of entry {index} was asked for already.", "Have a second person confirm it.")
    row = PayloadErasure(
        log_index=index,
        ground=ground,
        asked_by=person.name,
        asked_role=person.role,
        asked_at=timestamp(appliance.clock()),
    )
    retention.save_erasure(row)
    _log(session, appliance, EventType.PAYLOAD_ERASURE_ASKED, person, row)
    return row


def require_second(asked_by: str, asked_role: str, person: Person) -> None:
    """Raises Refused for whoever asked, and for anybody in the same role."""
    if person.name == asked_by or person.role == asked_role:
        raise Refused("Who confirms an erasure is another person in another role.", "Ask somebody else to confirm it.")


def confirm(
    session: Session, appliance: Appliance, policy: Policy, person: Person, index: int
) -> tuple[PayloadErasure, Decision]:
    """Erase the words, as a second person in another role. A denial is logged and nothing is erased: the caller raises
    ErasureDenied after the commit.

    Raises NotFound, Conflict where they are gone, Refused for the person who asked.
    """
    retention = RetentionRepository(session)
    row = retention.erasure(index)
    if row is None:
        raise NotFound(
            f"Nobody asked for the erasure of entry {index}.", "Run `cloister audit erase` without --confirm."
        )
    entry = _entry_with_words(session, index)
    require_second(row.asked_by, row.asked_role, person)
    asked_by = [
        {"person": row.asked_by, "role": row.asked_role},
        {"person": person.name, "role": person.role},
    ]
    decided = decide(appliance, policy, _holding(session, appliance, entry, row.ground), purge=True, asked_by=asked_by)
    if not decided.decision.allowed:
        actor = person_label(appliance, person.name)
        record(session, appliance, decided, actor=actor, subject=appliance.settings.name)
        return row, decided.decision
    retention.erase_payloads([index])
    row.confirmed_by, row.confirmed_role = person.name, person.role
    row.erased_at = timestamp(appliance.clock())
    retention.save_erasure(row)
    told = _log(session, appliance, EventType.PAYLOAD_ERASED, person, row, decided)
    note(session, decided, entry=told, subject=appliance.settings.name)
    return row, decided.decision


def _entry_with_words(session: Session, index: int) -> LogEntry:
    entry = RetentionRepository(session).entry(index)
    if entry is None:
        raise NotFound(f"The log has no entry {index}.", "See `cloister audit query`.")
    if entry.payload is None:
        raise Conflict(f"Entry {index} has no words, or they are gone already.", "Nothing has to be done.")
    return entry


def _holding(session: Session, appliance: Appliance, entry: LogEntry, ground: str) -> Holding:
    made, until = effect_of(session, appliance, entry.leaf)
    kind = RecordClass.UNLAWFUL if ground == "unlawful-content" else RecordClass.AUDIT
    held = bool(IncidentRepository(session).open())
    return Holding(kind, "log", 1, 0, made, in_effect_until=until, held=held, us_law=us_law(session))


def _log(
    session: Session,
    appliance: Appliance,
    event: EventType,
    person: Person,
    row: PayloadErasure,
    decided: Decided | None = None,
) -> int:
    return append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=appliance.settings.name,
        digests={} if decided is None else decided.digests,
        numbers={"entry_index": row.log_index},
        labels={"ground": row.ground},
        payload=None if decided is None else decided.payload(),
    )
