"""Verify an audit bundle offline: `protocol` alone, no network, no database, nothing trusted but what is pinned.

What holds afterwards: the log's key signed a checkpoint, a quorum of hospitals cosigned it, the entries here are
exactly the leaves under its root, each is a well-formed event, and each payload that is here is the one that was
logged; of those that are not here the report says how many, and of how many the log tells. Without a pin the keys are
the bundle's own word, and the report says so.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from coordinator.client.audit_erasures import NOTHING_LOGGED, TELLING, Erasures
from protocol.audit_line import MAX_LINE, read_line
from protocol.bundle import layout, unpack
from protocol.canonical import parse
from protocol.checkpoint import Checkpoint
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.merkle import RootHasher, leaf_hash
from protocol.note import MAX_NOTE_BYTES, Note, VerifierKey
from protocol.witness_policy import WitnessPolicy

ENTRIES = "entries.jsonl"
AUDIT_FILES = (ENTRIES, "checkpoint", "witness_policy.json", "log.vkey")
MAX_PROBLEMS = 50
MAX_SMALL = MAX_NOTE_BYTES  # bytes, of each file but the entries

_NEWLINE = 0x0A
_EXPORT_AGAIN = "Export the bundle again."


@dataclass
class AuditReport:
    """What was found. `verified` only when there is no problem; `anchor` says what the trust rests on."""

    entries: int = 0
    checkpoint_size: int = 0
    cosignatures: int = 0
    payloads: int = 0
    payloads_erased: int = 0
    erasures_untold: int = 0
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
            "payloads_erased": self.payloads_erased,
            "erasures_untold": self.erasures_untold,
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
        if self.payloads_erased:
            untold = (
                f", of {self.erasures_untold} of which the log tells nothing: ask why" if self.erasures_untold else ""
            )
            lines.append(f"  {'payloads not here':<22}{self.payloads_erased}{untold}")
        lines += [f"  {event:<28}{count:>6}" for event, count in sorted(self.events.items())]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def complain(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True)
class AuditBundle:
    """A bundle's files. `small`: all but the entries; `entries` reads those once more each time, line by line.

    Only the entries grow with the log, so only they are never in memory as a whole.
    """

    small: Mapping[str, bytes]
    entries: Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> AuditBundle:
        """A bundle whose files are in memory. Raises Malformed unless it has exactly the agreed files."""
        if set(files) != set(AUDIT_FILES):
            raise Malformed(f"The bundle must hold exactly {', '.join(AUDIT_FILES)}.", _EXPORT_AGAIN)
        data = files[ENTRIES]
        return cls(_without_entries(files), lambda: _lines(io.BytesIO(data), len(data)))


@contextmanager
def open_bundle(path: Path) -> Iterator[AuditBundle]:
    """The bundle at `path`, for the block: a tar, or a folder that holds exactly its files. Raises Malformed."""
    with ExitStack() as stack:
        if path.is_dir():
            yield _folder(path, stack)
            return
        try:
            file = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            raise Malformed(f"There is no bundle at {path}.", "Name the .tar or folder that was exported.") from None
        places = layout(partial(_read_at, file), file.seek(0, os.SEEK_END), AUDIT_FILES)
        small = {name: _read_small(file, name, *places[name]) for name in AUDIT_FILES if name != ENTRIES}
        yield AuditBundle(small, partial(_lines_at, file, *places[ENTRIES]))


def verify_path(path: Path, *, policy: WitnessPolicy | None = None, log: VerifierKey | None = None) -> AuditReport:
    """`verify_bundle` for what lies at `path`. Raises Malformed only when nothing is there."""
    try:
        with open_bundle(path) as bundle:
            return verify_bundle(bundle, policy=policy, log=log)
    except CloisterError as error:
        if not path.exists():
            raise
        return AuditReport(problems=[error.message])


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
    bundle: AuditBundle | Mapping[str, bytes],
    *,
    policy: WitnessPolicy | None = None,
    log: VerifierKey | None = None,
    entry: Callable[[int, bytes], None] | None = None,
) -> AuditReport:
    """Check everything in one pass over the entries, and report what is wrong; never raises for a bad bundle.

    policy, log: pins from elsewhere (a hospital's enrolment, the coordinator's operator). A quorum of the pinned
    witnesses must have cosigned, and the log's key must be the pinned one. entry: is told each entry's index and leaf
    hash as they come, before anything is known of the whole.
    """
    report = AuditReport()
    try:
        opened = bundle if isinstance(bundle, AuditBundle) else AuditBundle.of(bundle)
        checkpoint, used = _checkpoint(opened.small, report, policy, log)
        _entries(opened.entries(), checkpoint, used, report, entry)
    except CloisterError as error:
        report.complain(error.message)
    return report


def _checkpoint(
    files: Mapping[str, bytes], report: AuditReport, pin: WitnessPolicy | None, log_pin: VerifierKey | None
) -> tuple[Checkpoint, WitnessPolicy]:
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


def _entries(
    lines: Iterator[bytes], checkpoint: Checkpoint, policy: WitnessPolicy, report: AuditReport,
    entry: Callable[[int, bytes], None] | None,
) -> None:  # fmt: skip
    tree, told_policy, events, erasures = RootHasher(), "", report.events, Erasures()
    for number, line in enumerate(lines):
        report.entries = number + 1
        try:
            leaf, event, policy_digest, payload = read_line(line, number)
        except CloisterError as error:
            report.complain(f"Entry {number}: {error.message}")
            if len(report.problems) == MAX_PROBLEMS:
                return
            continue
        hashed = leaf_hash(leaf)
        tree.add(hashed)
        if entry is not None:
            entry(number, hashed)
        events[event] = events.get(event, 0) + 1
        if payload is not None:
            report.payloads += 1
        elif NOTHING_LOGGED not in leaf:
            erasures.lacks(number)
        if event in TELLING:
            erasures.tells(event, leaf)
        if policy_digest:
            told_policy = policy_digest
    report.payloads_erased, report.erasures_untold = erasures.erased, erasures.untold
    if report.entries != checkpoint.size:
        report.complain(f"There are {report.entries} entries; the checkpoint says {checkpoint.size}.")
    elif not report.problems and tree.root != checkpoint.root:
        report.complain("The entries do not give the checkpoint's root.")
    if not report.problems and told_policy != policy.digest:
        report.complain("The witness policy is not the one that the log last put in force.")


def _folder(path: Path, stack: ExitStack) -> AuditBundle:
    found = sorted(entry.name for entry in path.iterdir())
    if found != sorted(AUDIT_FILES) or not all((path / name).is_file() for name in AUDIT_FILES):
        raise Malformed(f"{path} does not hold exactly {', '.join(AUDIT_FILES)}.", _EXPORT_AGAIN)
    files = {name: stack.enter_context((path / name).open("rb")) for name in AUDIT_FILES}
    sizes = {name: file.seek(0, os.SEEK_END) for name, file in files.items()}
    small = {name: _read_small(files[name], name, 0, sizes[name]) for name in AUDIT_FILES if name != ENTRIES}
    return AuditBundle(small, partial(_lines_at, files[ENTRIES], 0, sizes[ENTRIES]))


def _without_entries(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != ENTRIES}


def _read_small(file: BinaryIO, name: str, at: int, size: int) -> bytes:
    if size > MAX_SMALL:
        raise Malformed(f"The bundle's {name} has {size} bytes.", _EXPORT_AGAIN)
    return _read_at(file, at, size)


def _read_at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _lines_at(file: BinaryIO, at: int, size: int) -> Iterator[bytes]:
    file.seek(at)
    yield from _lines(file, size)


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The lines, without their newlines, of the next `size` bytes."""
    left = size
    for line in iter(partial(file.readline, MAX_LINE + 1), b""):
        left -= len(line)
        if left < 0 or line[-1] != _NEWLINE:
            break
        yield line[:-1]
        if not left:
            return
    if size:
        raise Malformed(f"{ENTRIES} does not end in a newline, or a line is too long.", _EXPORT_AGAIN)
