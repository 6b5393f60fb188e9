"""Append an event in the transaction of the business it tells of: either both are there or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.tables import LogEntry
from protocol.audit_event import SALT_BYTES, AuditEvent, EventType, payload_hash, pseudonym
from protocol.canonical import canonical
from protocol.errors import Malformed
from protocol.tiles import MAX_ENTRY_BYTES
from protocol.timestamp import timestamp

COORDINATOR = "coordinator"
LOCAL_ADMINISTRATOR = "local-administrator"


def append(
    session: Session,
    appliance: Appliance,
    event: EventType,
    *,
    actor: str,
    subject: str,
    digests: Mapping[str, str] | None = None,
    numbers: Mapping[str, float | int] | None = None,
    labels: Mapping[str, str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    payload: Mapping[str, object] | None = None,
) -> int:
    """Append one event and return its entry's id (not its index, which the sequencer assigns).

    `actor` and `subject` are labels: a site is `site_label(name)`, a person `person_label(appliance, name)`.
    `payload` (names, reasons) can be erased later; the leaf holds its salted hash. Raises Malformed for a field that
    is not of the closed forms: nothing that the log must not hold fits into them.
    """
    body = salt = None
    if payload is not None:
        body, salt = canonical(dict(payload)), appliance.entropy(SALT_BYTES)
    try:
        leaf = AuditEvent(
            event=event,
            at=timestamp(appliance.clock()),
            actor=actor,
            subject=subject,
            digests=dict(digests or {}),
            numbers=dict(numbers or {}),
            labels=dict(labels or {}),
            groups={name: tuple(members) for name, members in (groups or {}).items()},
            payload=None if body is None or salt is None else payload_hash(salt, body),
        ).leaf()
    except ValidationError as error:
        fields = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        raise Malformed(
            f"The audit event {event} has fields that can't be logged: {fields}.",
            "Log identifiers, digests and numbers.",
        ) from None
    if len(leaf) > MAX_ENTRY_BYTES:
        raise Malformed(f"The audit event {event} is longer than {MAX_ENTRY_BYTES} bytes.", "Log a digest of the list.")
    entry = LogEntry(leaf=leaf, payload=body, salt=salt)
    session.add(entry)
    session.flush()
    if entry.id is None:
        raise RuntimeError("the database gave the entry no id")
    return entry.id


def site_label(name: str) -> str:
    """How a site stands in the log."""
    return f"site:{name}"


def person_label(appliance: Appliance, name: str) -> str:
    """How a person stands in the log: a keyed pseudonym."""
    return pseudonym(appliance.keys.pseudonym_secret, "person", name)
