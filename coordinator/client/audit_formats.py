"""What a query found, in the forms that other systems read.

JSON Lines with inclusion proofs is the master: its first line is the cosigned checkpoint and the witness policy, and
whoever has those needs nothing else to check every line. The others are views: FHIR R4 AuditEvent for a hospital's
repository (NDJSON) and OCSF 1.3 for a SIEM. Neither carries a payload: names and reasons stay in the master.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

from coordinator.client.audit_bundle import AuditBundle, AuditReport
from coordinator.client.audit_query import FoundEvent
from protocol.audit_event import AuditEvent
from protocol.canonical import canonical, parse
from protocol.errors import CloisterError, Malformed
from protocol.merkle import leaf_hash, verify_inclusion
from protocol.note import Note, VerifierKey, strict_base64
from protocol.timestamp import moment
from protocol.witness_policy import WitnessPolicy

OCSF_VERSION = "1.3.0"
_LINE_LIMIT = 4 << 20
_ENTITY_MANAGEMENT, _AUTHENTICATION = 3004, 3002
_CREATE, _READ, _UPDATE, _DELETE, _OTHER = 1, 2, 3, 4, 99
_ACTIVITIES = {
    "started": _CREATE, "invited": _CREATE, "registered": _CREATE, "enrolled": _CREATE, "proposed": _CREATE,
    "drafted": _CREATE, "attempted": _CREATE, "exported": _READ, "downloaded": _READ, "evaluated": _READ,
    "joined": _CREATE, "removed": _DELETE, "removal-asked": _UPDATE,
    "disabled": _DELETE, "revoked": _DELETE, "certificate-renewed": _UPDATE, "activated": _UPDATE, "approved": _UPDATE,
    "rejected": _UPDATE, "consented": _UPDATE, "refused": _UPDATE, "stopped": _UPDATE, "committed": _UPDATE,
    "locked-out": _UPDATE, "credential-changed": _UPDATE, "role-changed": _UPDATE, "certified": _UPDATE,
    "submitted": _UPDATE, "sealed": _UPDATE, "installed": _UPDATE, "suspended": _UPDATE, "denied": _UPDATE,
    "rolled-back": _UPDATE, "resumed": _UPDATE,
    "failed": _UPDATE, "expired": _UPDATE, "vetoed": _UPDATE, "rule-waived": _UPDATE, "glass-broken": _UPDATE,
    "glass-reviewed": _UPDATE, "passkey-registered": _CREATE, "passkey-revoked": _DELETE,
}  # fmt: skip
_FHIR_ACTIONS = {_CREATE: "C", _READ: "R", _UPDATE: "U", _DELETE: "D", _OTHER: "E"}


def to_jsonl(bundle: AuditBundle, found: Iterable[FoundEvent]) -> Iterator[bytes]:
    """The master: a line with checkpoint and witness policy, then one for each entry; each canonical JSON."""
    head = {
        "checkpoint": bundle.small["checkpoint"].decode("utf-8"),
        "witness_policy": parse(bundle.small["witness_policy.json"]),
    }
    yield canonical(head) + b"\n"
    for item in found:
        proof = [base64.b64encode(digest).decode("ascii") for digest in item.proof]
        yield canonical({**item.line, "proof": proof}) + b"\n"


def verify_found(data: bytes, *, policy: WitnessPolicy | None = None, log: VerifierKey | None = None) -> AuditReport:
    """Check a master: a quorum cosigned the checkpoint, and every line is in the log at its index, unchanged.

    That it is all that a query should have found, no file can prove. Never raises for a bad one. policy, log: pins, as
    for `verify_bundle`.
    """
    report = AuditReport(anchor="the file's own witness policy (nothing was pinned)")
    try:
        _verify(data, report, policy, log)
    except CloisterError as error:
        report.complain(error.message)
    return report


def to_fhir(origin: str, found: Iterable[FoundEvent]) -> Iterator[str]:
    """An AuditEvent (https://hl7.org/fhir/R4/auditevent.html) in a line of NDJSON for each entry."""
    for item in found:
        yield json.dumps(fhir_event(origin, item), sort_keys=True, separators=(",", ":"))


def fhir_event(origin: str, item: FoundEvent) -> dict[str, Any]:
    """One AuditEvent: actors and subjects are identifiers of this federation, fields are details of the entity."""
    event = item.event
    details = {"log-index": str(item.index), "leaf-hash": leaf_hash(event.leaf()).hex(), **_fields(event)}
    return {
        "resourceType": "AuditEvent",
        "id": f"entry-{item.index}",
        "type": {"system": "urn:cloister:event", "code": event.event.value},
        "action": _FHIR_ACTIONS[_activity(event)],
        "recorded": event.at,
        "outcome": "0",
        "agent": [{"who": _identifier("actor", event.actor), "requestor": True}],
        "source": {"observer": _identifier("log", origin)},
        "entity": [
            {
                "what": _identifier("subject", event.subject),
                "detail": [{"type": name, "valueString": value} for name, value in details.items()],
            }
        ],
    }


def to_ocsf(origin: str, found: Iterable[FoundEvent]) -> Iterator[str]:
    """An OCSF event in a JSON line for each entry."""
    for item in found:
        yield json.dumps(ocsf_event(origin, item), sort_keys=True, separators=(",", ":"))


def ocsf_event(origin: str, item: FoundEvent) -> dict[str, Any]:
    """A sign-in as Authentication (3002), all else as Entity Management (3004): https://schema.ocsf.io/1.3.0."""
    event = item.event
    signed_in = event.event.value == "person.signed-in"
    kind = _AUTHENTICATION if signed_in else _ENTITY_MANAGEMENT
    activity = 1 if signed_in else _activity(event)
    user = {"uid": event.actor, "type_id": 99, "type": "pseudonym"}
    about: dict[str, Any] = (
        {"user": user, "service": {"name": event.subject}} if signed_in else {
            "actor": {"user": user}, "entity": {"uid": event.subject, "type": event.event.value.partition(".")[0]},
        }
    )  # fmt: skip
    return {
        "category_uid": 3, "class_uid": kind, "activity_id": activity, "type_uid": kind * 100 + activity,
        "severity_id": 1, "status_id": 1, "time": int(moment(event.at).timestamp()) * 1000,
        "metadata": {
            "version": OCSF_VERSION, "product": {"name": "Cloister", "vendor_name": "Cloister"},
            "uid": str(item.index), "log_name": origin, "event_code": event.event.value,
        },
        **about, "unmapped": _fields(event),
    }  # fmt: skip


def _verify(data: bytes, report: AuditReport, pin: WitnessPolicy | None, log_pin: VerifierKey | None) -> None:
    first, *lines = data.split(b"\n")
    head = parse(first, limit=_LINE_LIMIT)
    match head:
        case {"checkpoint": str(text), "witness_policy": dict(document), **rest} if not rest and lines[-1:] == [b""]:
            policy, note = WitnessPolicy.from_document(document), text.encode("utf-8")
        case _:
            raise Malformed("The file does not begin with a checkpoint and a witness policy.", "Query again.")
    if canonical(head) != first:
        raise Malformed("The file's first line is not canonical JSON.", "Query again.")
    if pin is not None:
        pin.accept(note)
        report.anchor = "the pinned witness policy"
    elif log_pin is not None:
        report.anchor = "the pinned log key; the witnesses are those that the file itself tells"
    if log_pin is not None and log_pin != policy.log:
        raise Malformed("The file's log key is not the pinned one.", "Ask for the log that you follow.")
    checkpoint = policy.accept(note)
    report.checkpoint_size, report.cosignatures = checkpoint.size, len(checkpoint.cosigners)
    report.witnesses = dict(checkpoint.cosigners)
    if len(Note.parse(note).signatures) != 1 + len(checkpoint.cosigners):
        raise Malformed("The checkpoint has a signature that nobody can check.", "Query again.")
    before = -1
    for line in lines[:-1]:
        try:
            found, proof = _line(line)
            if found.index <= before:
                raise Malformed("the entries are not in the log's order.", "Query again.")
            verify_inclusion(leaf_hash(found.event.leaf()), found.index, checkpoint.size, proof, checkpoint.root)
        except CloisterError as error:
            report.complain(f"Line {report.entries + 2}: {error.message}")
            return
        before = found.index
        report.entries += 1
        report.payloads += found.payload is not None
        report.events[found.event.event.value] = report.events.get(found.event.event.value, 0) + 1


def _line(line: bytes) -> tuple[FoundEvent, list[bytes]]:
    document = parse(line, limit=_LINE_LIMIT)
    if not isinstance(document, dict) or canonical(document) != line:
        raise Malformed("not a canonical JSON object.", "Query again.")
    proof = document.pop("proof", None)
    if not isinstance(proof, list):
        raise Malformed("there is no proof.", "Query again.")
    return FoundEvent.of(canonical(document)), [strict_base64(str(item), "proof hash") for item in proof]


def _activity(event: AuditEvent) -> int:
    return _ACTIVITIES.get(event.event.value.partition(".")[2], _OTHER)


def _identifier(kind: str, value: str) -> dict[str, Any]:
    return {"identifier": {"system": f"urn:cloister:{kind}", "value": value}}


def _fields(event: AuditEvent) -> dict[str, str]:
    groups = {name: " ".join(members) for name, members in event.groups.items()}
    every = {**event.labels, **event.numbers, **groups, **event.digests}
    return {name: str(value) or "-" for name, value in sorted(every.items())}
