"""What the hospital does with its papers: import, revoke, attest. Each is load, decide, save."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlmodel import Session

from protocol.errors import CloisterError, Refused
from protocol.evidence import EvidenceRecord
from protocol.papers import Safeguards
from protocol.timestamp import timestamp
from site_agent.evidence.repository import SiteEvidenceRepository
from site_agent.evidence.tables import SiteEvidence

HELD_HERE = ("site", "deployment")
"""The scopes of which a site holds evidence: about itself, and about where it serves models."""


class NoSuchEvidence(CloisterError):
    """There is no record with this digest."""

    code = "no-such-evidence"


def import_records(
    session: Session, site: str, records: Sequence[EvidenceRecord], *, now: datetime
) -> list[SiteEvidence]:
    """Store the records; one that is there already is left as it is. All of them, or none.

    Raises Refused for a record about something else than this site, dated in the future, or revoked before.
    """
    evidence, rows = SiteEvidenceRepository(session), []
    for record in records:
        if record.scope not in HELD_HERE or record.subject != site:
            raise Refused(
                f"A {record.kind} is not about this site ({site}).",
                "Records about a study or a release go to the coordinator: `cloister evidence import`.",
            )
        if record.issued > now.date():
            raise Refused(f"A {record.kind} is dated in the future.", "Import it once it is issued.")
        present = evidence.find(record.digest)
        if present is not None and present.revoked_at is not None:
            raise Refused("This very record was revoked.", "Import the newer document with its own dates.")
        rows.append(present or evidence.add(record, at=timestamp(now)))
    return rows


def revoke(session: Session, digest: str, *, now: datetime) -> SiteEvidence:
    """From now on the record does not count. Raises NoSuchEvidence, Refused where it is revoked already."""
    evidence = SiteEvidenceRepository(session)
    row = evidence.find(digest)
    if row is None:
        raise NoSuchEvidence(f"There is no evidence {digest[:19]}.", "See `cloister-site evidence list`.")
    if row.revoked_at is not None:
        raise Refused("The record is revoked already.", "Nothing has to be done again.")
    row.revoked_at = timestamp(now)
    evidence.save(row)
    return row


def attest(session: Session, safeguards: Safeguards, *, now: datetime) -> None:
    """Attest these safeguards today. Raises Refused for a material change that lies ahead."""
    if safeguards.last_material_change is not None and safeguards.last_material_change > now.date():
        raise Refused("The last material change is dated in the future.", "Attest once it has been made.")
    SiteEvidenceRepository(session).attest(safeguards, now.date())


def attest_again(session: Session, *, now: datetime) -> None:
    """Attest today what was attested last. Raises Refused before anything was."""
    safeguards = SiteEvidenceRepository(session).safeguards()
    if safeguards is None:
        raise Refused("Nothing was attested before.", "Name the file that says what is attested.")
    attest(session, safeguards, now=now)
