"""Verify an audit bundle offline: `protocol` alone, no network, no database, nothing trusted but what is pinned.

What holds afterwards: the log's key signed a checkpoint, a quorum of hospitals cosigned it, the entries here are
exactly the leaves under its root, each is a well-formed event, and each payload that is here is the one that was
logged. Without a pin the keys are the bundle's own word, and the report says so.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from protocol.audit_event import SALT_BYTES, AuditEvent, payload_hash
from protocol.bundle import unpack
from protocol.canonical import canonical, parse
from protocol.checkpoint import Checkpoint
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.merkle import Frontier, leaf_hash, verify_inclusion
from protocol.note import Note, VerifierKey, strict_base64
from protocol.witness_policy import WitnessPolicy

AUDIT_FILES = ("entries.jsonl", "checkpoint", "witness_policy.json", "log.vkey")
POLICY_FIELD = "witness_policy"
MAX_PROBLEMS = 50
_LINE_LIMIT = 4 << 20


@dataclass
class AuditReport:
    """What was found. `verified` only when there is no problem; `anchor` says what the trust rests on."""

    entries: int = 0
    checkpoint_size: int = 0
    cosignatures: int = 0
    payloads: int = 0
    events: dict[str, int] = field(default_factory=dict)
    witnesses: dict[str, int] = field(default_factory=dict)
    anchor: str = "the bundle's own witness policy (nothing was pinned)"
    problems: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        return not self.problems

    def document(self) -> dict[str, object]:
        """The report as JSON."""
        return {
            "entries": self.entries,
            "checkpoint_size": self.checkpoint_size,
            "cosignatures": self.cosignatures,
            "payloads": self.payloads,
            "verified": self.verified,
            "anchor": self.anchor,
            "witnesses": self.witnesses,
            "events": self.events,
            "problems": self.problems,
        }

    def text(self) -> str:
        """The report for a person."""
        lines = [f"{'VERIFIED' if self.verified else 'NOT VERIFIED'}"]
        lines += [
            f"  {'entries':<22}{self.entries}",
            f"  {'checkpoint size':<22}{self.checkpoint_size}",
            f"  {'cosignatures':<22}{self.cosignatures} ({', '.join(sorted(self.witnesses)) or 'none'})",
            f"  {'payloads checked':<22}{self.payloads}",
            f"  {'trust rests on':<22}{self.anchor}",
        ]
        lines += [f"  {event:<28}{count:>6}" for event, count in sorted(self.events.items())]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def complain(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def read_bundle(path: Path) -> dict[str, bytes]:
    """The files of a bundle on disk: a tar, or a folder that holds exactly those files. Raises Malformed."""
    if not path.is_dir():
        try:
            return read_archive(path.read_bytes())
        except FileNotFoundError:
            raise Malformed(f"There is no bundle at {path}.", "Name the .tar or folder that was exported.") from None
    found = sorted(entry.name for entry in path.iterdir())
    if found != sorted(AUDIT_FILES) or not all((path / name).is_file() for name in AUDIT_FILES):
        raise Malformed(f"{path} does not hold exactly {', '.join(AUDIT_FILES)}.", "Export the bundle again.")
    return {name: (path / name).read_bytes() for name in AUDIT_FILES}


def verify_path(path: Path, *, policy: WitnessPolicy | None = None, log: VerifierKey | None = None) -> AuditReport:
    """`verify_bundle` for what lies at `path`. Raises Malformed only when nothing is there."""
    try:
        files = read_bundle(path)
    except CloisterError as error:
        if not path.exists():
            raise
        return AuditReport(problems=[error.message])
    return verify_bundle(files, policy=policy, log=log)


def read_policy(path: Path) -> WitnessPolicy:
    """A witness policy to pin, as JSON or as a C2SP policy file. Raises Malformed."""
    data = path.read_bytes()
    if data.lstrip().startswith(b"{"):
        document = parse(data)
        if not isinstance(document, dict):
            raise Malformed("The witness policy is not a JSON object.", "Give the file from a site's enrolment.")
        return WitnessPolicy.from_document(document)
    return WitnessPolicy.from_text(data.decode("utf-8", "replace"))


def read_archive(data: bytes) -> dict[str, bytes]:
    """The files of a bundle's tar. Raises Malformed for anything but the exact archive."""
    return unpack(data, AUDIT_FILES)


def verify_bundle(
    files: Mapping[str, bytes], *, policy: WitnessPolicy | None = None, log: VerifierKey | None = None
) -> AuditReport:
    """Check everything and report all that is wrong; never raises for a bad bundle.

    policy, log: pins from elsewhere (a hospital's enrolment, the coordinator's operator). A quorum of the pinned
    witnesses must have cosigned, and the log's key must be the pinned one.
    """
    report = AuditReport()
    try:
        checkpoint, used = _checkpoint(files, report, policy, log)
        _entries(files["entries.jsonl"], checkpoint, used, report)
    except CloisterError as error:
        report.complain(error.message)
    return report


def _checkpoint(
    files: Mapping[str, bytes], report: AuditReport, pin: WitnessPolicy | None, log_pin: VerifierKey | None
) -> tuple[Checkpoint, WitnessPolicy]:
    if set(files) != set(AUDIT_FILES):
        raise Malformed(f"The bundle must hold exactly {', '.join(AUDIT_FILES)}.", "Export it again.")
    policy = WitnessPolicy.from_bytes(files["witness_policy.json"])
    if files["log.vkey"] != policy.log.text.encode() + b"\n":
        raise VerificationFailed("log.vkey is not the key in the witness policy.", "Export the bundle again.")
    if pin is not None:
        # Sites join and leave: the log tells the policy in force, and the pinned witnesses vouch for that log.
        pin.accept(files["checkpoint"])
        same = pin.digest == policy.digest
        report.anchor = "the pinned witness policy" + ("" if same else ", from which the log has moved on since")
    elif log_pin is not None:
        report.anchor = "the pinned log key; the witnesses are those that the log itself tells"
    if log_pin is not None and log_pin != policy.log:
        raise VerificationFailed("The bundle's log key is not the pinned one.", "Ask for the log that you follow.")
    checkpoint = policy.accept(files["checkpoint"])
    report.checkpoint_size = checkpoint.size
    report.cosignatures = len(checkpoint.cosigners)
    report.witnesses = dict(checkpoint.cosigners)
    if len(Note.parse(files["checkpoint"]).signatures) != 1 + len(checkpoint.cosigners):
        raise VerificationFailed("The checkpoint has a signature that nobody can check.", "Export the bundle again.")
    return checkpoint, policy


def _entries(data: bytes, checkpoint: Checkpoint, policy: WitnessPolicy, report: AuditReport) -> None:
    frontier, told_policy = Frontier(), ""
    for number, line in enumerate(_lines(data)):
        report.entries = number + 1
        try:
            hashed, event = _entry(line, number, checkpoint, report)
        except CloisterError as error:
            report.complain(f"Entry {number}: {error.message}")
            continue
        frontier, _ = frontier.extend([hashed])
        report.events[event.event.value] = report.events.get(event.event.value, 0) + 1
        told_policy = event.digests.get(POLICY_FIELD, told_policy)
    if report.entries != checkpoint.size:
        report.complain(f"There are {report.entries} entries; the checkpoint says {checkpoint.size}.")
    elif not report.problems and frontier.root != checkpoint.root:
        report.complain("The entries do not give the checkpoint's root.")
    if not report.problems and told_policy != policy.digest:
        report.complain("The witness policy is not the one that the log last put in force.")


def _lines(data: bytes) -> Iterator[bytes]:
    if not data.endswith(b"\n"):
        raise Malformed("entries.jsonl does not end in a newline.", "Export the bundle again.")
    start = 0
    while start < len(data):  # one line at a time: to split it all would hold the export twice more
        end = data.index(b"\n", start)
        yield data[start:end]
        start = end + 1


def _entry(line: bytes, number: int, checkpoint: Checkpoint, report: AuditReport) -> tuple[bytes, AuditEvent]:
    document = parse(line, limit=_LINE_LIMIT)
    if not isinstance(document, dict) or canonical(document) != line:
        raise Malformed("the line is not a canonical JSON object.", "Export the bundle again.")
    if document.keys() - {"index", "leaf", "proof", "payload", "salt"} or document.get("index") != number:
        raise Malformed("the line has other fields, or another index.", "Export the bundle again.")
    try:
        event = AuditEvent.model_validate(document.get("leaf"))
    except ValidationError:
        raise Malformed("the leaf is not an audit event.", "Export the bundle again.") from None
    leaf = event.leaf()
    if leaf != canonical(document["leaf"]):
        raise Malformed("the leaf is not in its one form.", "Export the bundle again.")
    proof = document.get("proof")
    if not isinstance(proof, list) or not all(isinstance(item, str) for item in proof):
        raise Malformed("the proof is not a list of hashes.", "Export the bundle again.")
    hashed = leaf_hash(leaf)
    verify_inclusion(
        hashed, number, checkpoint.size, [strict_base64(str(item), "proof hash") for item in proof], checkpoint.root
    )
    _payload(document, event, report)
    return hashed, event


def _payload(document: Mapping[str, object], event: AuditEvent, report: AuditReport) -> None:
    salt = document.get("salt")
    if ("payload" in document) != isinstance(salt, str):
        raise Malformed("a payload stands without its salt.", "Export the bundle again.")
    if not isinstance(salt, str):
        return  # the event had none, or it was erased, as the law may ask; the leaf's hash stays
    try:
        raw = base64.b64decode(salt, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    body = canonical(document["payload"])
    if len(raw) != SALT_BYTES or base64.b64encode(raw).decode() != salt or payload_hash(raw, body) != event.payload:
        raise VerificationFailed("the payload is not the one that was logged.", "Find out who changed it.")
    report.payloads += 1
