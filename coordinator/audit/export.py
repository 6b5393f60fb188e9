"""The audit bundle: everything that someone offline needs to check the log, in one archive.

`entries.jsonl`: one canonical JSON line for each entry, in the log's order: index, leaf (the event), and payload with
its salt where it was not erased. All leaves are there, so their root needs no further proof. `checkpoint`: the log's
note with a quorum of cosignatures. `witness_policy.json`, `log.vkey`: what it is checked against.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.repository import LogRepository
from coordinator.audit.sequencer import LogTampered, log_key
from coordinator.audit.witnessing import policy_in_force, quorum_note
from coordinator.client.audit_bundle import AUDIT_FILES, ENTRIES
from coordinator.errors import Unavailable
from protocol.audit_line import encode_line
from protocol.bundle import header, padding, trailer
from protocol.checkpoint import TreeHead
from protocol.merkle import RootHasher, leaf_hash
from protocol.note import Note

CHUNK = 1 << 20


@dataclass(frozen=True)
class Export:
    """A bundle in a temporary file that is gone when it is closed: its size in bytes, its digest, its checkpoint's."""

    file: BinaryIO
    size: int
    digest: str
    entries: int

    def chunks(self) -> Iterator[bytes]:
        """The archive in pieces; closes the file after the last, or when the reader goes away."""
        with self.file as file:
            file.seek(0)
            while chunk := file.read(CHUNK):
                yield chunk


def write_export(session: Session, appliance: Appliance, *, minimum_size: int = 1) -> Export:
    """Write the bundle under the largest checkpoint that a quorum has cosigned, in memory that does not grow with it.

    Raises Unavailable while no checkpoint of at least `minimum_size` entries has a quorum, LogTampered where the
    entries in the database are not those that were signed.
    """
    policy, note = policy_in_force(session, appliance), quorum_note(session, appliance, minimum_size)
    if policy is None or note is None:
        raise Unavailable(
            "No quorum of sites has cosigned so much of the log yet.",
            "Wait until the sites' agents have cosigned the latest checkpoint, then export again.",
        )
    head = TreeHead.parse(Note.parse(note).text)
    small = {
        "checkpoint": note,
        "witness_policy.json": policy.to_bytes(),
        "log.vkey": log_key(appliance).text.encode() + b"\n",
    }
    with _temporary(appliance) as file:
        file.write(bytes(len(header(ENTRIES, 0))))  # comes when the size is known
        size = _write_entries(LogRepository(session, appliance.settings.origin), head, file)
        file.write(padding(size))
        for name in AUDIT_FILES:
            if name != ENTRIES:
                file.write(header(name, len(small[name])) + small[name] + padding(len(small[name])))
        file.write(trailer(file.tell()))
        length = file.tell()
        file.seek(0)
        file.write(header(ENTRIES, size))
        file.seek(0)
        return Export(file, length, _digest(file), head.size)


def _write_entries(repository: LogRepository, head: TreeHead, file: BinaryIO) -> int:
    """Write a line for each entry; the bytes written. They must lead to the root that was signed."""
    tree, written = RootHasher(), 0
    for index, (leaf, payload, salt) in enumerate(repository.entries(head.size)):
        written += file.write(encode_line(index, leaf, payload, salt))
        tree.add(leaf_hash(leaf))
    if (tree.size, tree.root) != (head.size, head.root):
        raise LogTampered(
            "The log's entries in the database are not those that were signed, so they are not exported.",
            "Stop, keep the evidence, and compare with the sites' mirrors; restore the database from a backup.",
        )
    return written


def _digest(file: BinaryIO) -> str:
    hashed = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hashed.update(chunk)
    return f"sha256:{hashed.hexdigest()}"


@contextmanager
def _temporary(appliance: Appliance) -> Iterator[BinaryIO]:
    """A file without a name on the appliance's own volume; closed here only when the block fails."""
    folder = appliance.settings.log_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the export that is returned owns it
    try:
        yield file
    except BaseException:
        file.close()
        raise
