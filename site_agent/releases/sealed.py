"""An installed release, examined again before it is served: what lies on the disk may not be what was installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from protocol.canonical import sha256_hex
from protocol.consent import PLAN_TYPE
from protocol.envelope import Envelope, open_json
from protocol.errors import CloisterError, VerificationFailed
from protocol.release import BUNDLE_FILES, ReleaseSubject
from protocol.study import StudyPlan
from site_agent.releases.trusted_release import Fetched, TrustRoot, check_approvals, check_files, check_log, trust_keys

_REMEDY = "Install the release again; if that fails too, tell the coordinator and serve an earlier one."


@dataclass(frozen=True)
class Sealed:
    """A release as its serving gate sees it: its documents, every file's name, and what of its seal still holds.

    files: the bytes that were examined, which are the bytes to serve. signed: statement and approvals verify, and
    each model file is the approved one. logged: the sealing of this statement is proved to be in the log.
    """

    subject: ReleaseSubject
    plan: StudyPlan
    plan_digest: str
    names: tuple[str, ...]
    files: Mapping[str, bytes]
    signed: bool
    logged: bool


def examine(names: tuple[str, ...], files: Mapping[str, bytes], root: TrustRoot) -> Sealed:
    """Pure. names: everything that lies beside the files. Raises VerificationFailed where the documents themselves
    can't be read, or the plan is not signed by the pinned coordinator; what else fails is a fact for the gate."""
    try:
        subject = ReleaseSubject.model_validate_json(files["subject.json"])
        envelope = Envelope.from_bytes(files["plan.dsse.json"], limit=16 << 20)
        keys = {root.coordinator.key_id: root.coordinator}
        document, _ = open_json(envelope, PLAN_TYPE, keys, limit=16 << 20)
        plan = StudyPlan.model_validate(document)
    except (CloisterError, ValidationError, KeyError):
        raise VerificationFailed("The installed release is damaged: its documents can't be read.", _REMEDY) from None
    signed, logged = _seal(files, root)
    return Sealed(subject, plan, sha256_hex(envelope.payload), names, files, signed, logged)


def _seal(files: Mapping[str, bytes], root: TrustRoot) -> tuple[bool, bool]:
    """(signed, logged)"""
    try:
        approved = check_approvals(trust_keys(Fetched(files), root), root)
    except CloisterError:
        return False, False
    try:
        sealing = check_log(approved, root)
    except CloisterError:
        return True, False
    try:
        check_files(sealing, root)
    except CloisterError:
        return False, True
    return True, True


def examine_folder(folder: Path, root: TrustRoot) -> Sealed:
    """`examine` of an installed release's folder. Raises VerificationFailed."""
    try:
        names = tuple(sorted(os.listdir(folder)))
        files = {name: (folder / name).read_bytes() for name in BUNDLE_FILES if name in names}
    except OSError as error:
        raise VerificationFailed(f"The installed release can't be read ({error.strerror}).", _REMEDY) from None
    return examine(names, files, root)
