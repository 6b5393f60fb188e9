"""Reading a papers file and the documents beside it. A document never leaves the hospital: its SHA-256 does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.canonical import sha256_hex
from protocol.errors import Malformed
from protocol.evidence import EvidenceRecord
from protocol.papers import FORM, Safeguards, read_records, read_safeguards
from protocol.strict_yaml import load_yaml

MAX_FILE = 64 << 20
_PARTS = {"attestation", "records"}


@dataclass(frozen=True)
class Papers:
    """What a papers file says. safeguards: None where it has no part `attestation`."""

    safeguards: Safeguards | None
    records: tuple[EvidenceRecord, ...]

    def whole(self) -> WholePapers:
        """The same, with safeguards. Raises Malformed where there are none."""
        if self.safeguards is None:
            raise Malformed("The papers have no part named attestation.", FORM)
        return WholePapers(self.safeguards, self.records)


@dataclass(frozen=True)
class WholePapers:
    """Papers with which a site can enrol: its safeguards are among them."""

    safeguards: Safeguards
    records: tuple[EvidenceRecord, ...]


def read_papers(file: Path, site: str) -> Papers:
    """The papers in a YAML file with the parts `attestation` and `records`, one of which may be left out; a record
    without scope and subject is about `site`. Raises Malformed naming the record and the field, or a document that is
    missing or over 64 MiB."""
    try:
        loaded = load_yaml(file.read_bytes()).value
    except OSError as error:
        raise Malformed(f"{file} can't be read ({error.strerror}).", "Name a YAML file with papers.") from None
    if not isinstance(loaded, dict) or not loaded or not set(loaded) <= _PARTS:
        raise Malformed(f"{file} has other parts than attestation and records.", FORM)
    safeguards = read_safeguards(loaded["attestation"]) if "attestation" in loaded else None
    records = []
    if "records" in loaded:
        records = read_records(
            loaded["records"],
            lambda name, number: _digest_of(file.parent / name, number),
            about={"scope": "site", "subject": site},
        )
    return Papers(safeguards, tuple(records))


def _digest_of(path: Path, number: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Malformed(
            f"Record {number}: its document can't be read ({error.strerror}).", "Put it beside the file."
        ) from None
    if len(content) > MAX_FILE:
        raise Malformed(f"Record {number}: its document is over 64 MiB.", "Give its SHA-256 as `file` instead.")
    return sha256_hex(content)
