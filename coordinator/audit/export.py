"""The audit bundle: everything that someone offline needs to check the log, in one archive or folder.

`entries.jsonl`: one canonical JSON line for each entry: index, leaf (the event), proof (audit path, base64), and
payload with its salt where it was not erased. `checkpoint`: the log's note with a quorum of cosignatures.
`witness_policy.json`, `log.vkey`: what it is checked against.
"""

from __future__ import annotations

import base64

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.repository import LogRepository
from coordinator.audit.sequencer import log_key, tile_store
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import policy_in_force, quorum_note
from coordinator.client.audit_bundle import AUDIT_FILES
from coordinator.errors import Unavailable
from protocol.bundle import pack
from protocol.canonical import canonical, parse
from protocol.checkpoint import TreeHead
from protocol.merkle import HashReader, inclusion_proof
from protocol.note import Note
from protocol.tiles import MAX_ENTRY_BYTES


def bundle_files(session: Session, appliance: Appliance, *, minimum_size: int = 1) -> dict[str, bytes]:
    """The bundle's files by name, under the largest checkpoint that a quorum has cosigned.

    Raises Unavailable while no checkpoint of at least `minimum_size` entries has a quorum.
    """
    policy, note = policy_in_force(session, appliance), quorum_note(session, appliance, minimum_size)
    if policy is None or note is None:
        raise Unavailable(
            "No quorum of sites has cosigned so much of the log yet.",
            "Wait until the sites' agents have cosigned the latest checkpoint, then export again.",
        )
    size = TreeHead.parse(Note.parse(note).text).size
    reader = tile_store(appliance).reader(size)
    entries = LogRepository(session, appliance.settings.origin).entries(size)
    return {
        "entries.jsonl": b"".join(_line(entry, index, size, reader) for index, entry in enumerate(entries)),
        "checkpoint": note,
        "witness_policy.json": policy.to_bytes(),
        "log.vkey": log_key(appliance).text.encode() + b"\n",
    }


def bundle_archive(session: Session, appliance: Appliance, *, minimum_size: int = 1) -> bytes:
    """The bundle as one tar, byte for byte determined by its files."""
    return pack(bundle_files(session, appliance, minimum_size=minimum_size), AUDIT_FILES)


def _line(entry: LogEntry, index: int, size: int, reader: HashReader) -> bytes:
    proof = [base64.b64encode(digest).decode() for digest in inclusion_proof(index, size, reader)]
    document: dict[str, object] = {
        "index": index,
        "leaf": parse(entry.leaf, limit=MAX_ENTRY_BYTES),
        "proof": proof,
    }
    if entry.payload is not None and entry.salt is not None:
        document |= {"payload": parse(entry.payload), "salt": base64.b64encode(entry.salt).decode()}
    return canonical(document) + b"\n"
