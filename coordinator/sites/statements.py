"""A site's statement of its papers: verified under the site's own key, kept, and its records put in place of those it
named before. The newest one is what the gates go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, site_label
from coordinator.errors import NotFound
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import coordinator_facts, load_governance
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import Site
from coordinator.sites.tables import SiteStatement as Row
from protocol.attestation import SiteStatement, open_statement, site_facts
from protocol.audit_event import EventType
from protocol.canonical import parse, sha256_hex
from protocol.enrolment import StatementReceipt
from protocol.envelope import Envelope
from protocol.evidence import EvidenceRecord
from protocol.signing import VerifyingKey
from protocol.timestamp import moment, timestamp


@dataclass(frozen=True)
class Received:
    """A statement that was verified, and when it came. Nothing is stored yet."""

    data: bytes
    statement: SiteStatement
    identity: str
    received_at: str
    clock_skew: float

    @property
    def digest(self) -> str:
        """SHA-256 of the envelope."""
        return sha256_hex(self.data)


def receive(session: Session, appliance: Appliance, site: str, identity: VerifyingKey, data: bytes) -> Received:
    """The statement in `data`, signed by the site's key for this coordinator, and newer than the last one.

    Raises what `protocol.attestation.open_statement` raises.
    """
    now, before = appliance.clock(), SiteRepository(session).statement(site, identity.text)
    statement = open_statement(
        data,
        site=site,
        coordinator=appliance.keys.authority.fingerprint,
        key=identity,
        after=before.made_at if before is not None else None,
        now=now,
    )
    skew = abs((now - moment(statement.made_at)).total_seconds())
    return Received(data, statement, identity.text, timestamp(now), skew)


def facts_of(session: Session, appliance: Appliance, received: Received, *, key_age_days: int) -> dict[str, Any]:
    """`coordinator.*` and `site.*` as they are once the statement is kept: its records that were not revoked here, and
    those that people at the coordinator recorded about the site."""
    evidence, site = EvidenceRepository(session), received.statement.site
    stated = {row.digest for row in evidence.recorded_by(site_label(site))}
    records = {record.digest: record for record in evidence.about("site", [site]) if record.digest not in stated}
    for record in received.statement.records:
        if not _revoked(evidence, record):
            records[record.digest] = record
    return _facts(appliance, received.statement, list(records.values()), received.clock_skew, key_age_days)


def keep(session: Session, appliance: Appliance, received: Received) -> StatementReceipt:
    """Store the statement in place of the one before it. A record that the site names no longer is revoked; one that
    was revoked here stays so, whatever the site says."""
    statement, sites, evidence = received.statement, SiteRepository(session), EvidenceRepository(session)
    sites.add_statement(
        Row(
            digest=received.digest,
            site=statement.site,
            identity=received.identity,
            made_at=statement.made_at,
            received_at=received.received_at,
            clock_skew=received.clock_skew,
            envelope=received.data,
        )
    )
    named, by = {record.digest for record in statement.records}, site_label(statement.site)
    gone = [row for row in evidence.recorded_by(by) if row.digest not in named]
    for row in gone:
        row.revoked_at = received.received_at
        evidence.save(row)
    not_counted = tuple(record.digest for record in statement.records if _revoked(evidence, record))
    added = [record for record in statement.records if evidence.find(record.digest) is None]
    for record in added:
        evidence.add(record, by=by, at=received.received_at)
    append(
        session, appliance, EventType.SITE_ATTESTED, actor=by, subject=by, digests={"statement": received.digest},
        groups={"recorded": sorted(record.digest for record in added), "withdrawn": sorted(row.digest for row in gone)},
    )  # fmt: skip
    return StatementReceipt(
        made_at=statement.made_at, clock_skew=round(received.clock_skew, 3), not_counted=not_counted
    )


def renew_statement(session: Session, appliance: Appliance, site: Site, data: bytes) -> StatementReceipt:
    """An enrolled site's newer statement. Raises what `receive` raises."""
    if site.identity is None:
        raise NotFound(f"There is no active site named {site.name}.", "Enrol with `cloister-site enrol TOKEN`.")
    received = receive(session, appliance, site.name, VerifyingKey.from_text(site.identity), data)
    return keep(session, appliance, received)


def site_papers(session: Session, appliance: Appliance, name: str) -> dict[str, Any]:
    """`coordinator.*` and `site.*` of an enrolled site, as they stand now. A site without a statement under its present
    key has no attestation, and the gates that ask for one stay shut."""
    sites = SiteRepository(session)
    site = sites.get(name)
    row = sites.statement(name, site.identity) if site is not None and site.identity is not None else None
    records = EvidenceRepository(session).about("site", [name])
    if site is None or row is None or site.enrolled_at is None:
        return _facts(appliance, None, records, None, None, name=name)
    payload = parse(Envelope.from_bytes(row.envelope, limit=len(row.envelope)).payload, limit=len(row.envelope))
    age = (appliance.clock() - moment(site.enrolled_at)).days
    return _facts(appliance, SiteStatement.model_validate(payload), records, row.clock_skew, max(0, age))


def _facts(
    appliance: Appliance,
    statement: SiteStatement | None,
    records: list[EvidenceRecord],
    clock_skew: float | None,
    key_age_days: int | None,
    *,
    name: str = "",
) -> dict[str, Any]:
    today = appliance.clock().date()
    attestation = statement.attestation if statement is not None else None
    site = site_facts(statement.site if statement is not None else name, attestation, records, on=today)
    return {
        "coordinator": coordinator_facts(load_governance(appliance.home), on=today),
        "site": {**site, "clock_skew_seconds": clock_skew, "key_age_days": key_age_days},
    }


def _revoked(evidence: EvidenceRepository, record: EvidenceRecord) -> bool:
    row = evidence.find(record.digest)
    return row is not None and row.revoked_at is not None
