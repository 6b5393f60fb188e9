"""What organisations have on record: the coordinator's governance, a study's impact assessment, a site's papers."""

from __future__ import annotations

import json
import tempfile
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import transaction
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import Governance, save_governance
from protocol.attestation import make_statement, seal_statement
from protocol.canonical import digest, sha256_hex
from protocol.enrolment import StatementReceipt
from protocol.evidence import DPIA_SECTIONS, Assessment, EvidenceRecord
from protocol.papers import Safeguards
from protocol.proposal import Proposal
from protocol.signing import SigningKey
from protocol.timestamp import timestamp
from site_agent.evidence.record import attest, import_records
from site_agent.evidence.statement import keep_receipt, statement_now


def give_governance(appliance: Appliance) -> None:
    """The coordinator is in Germany and engages nobody."""
    today = appliance.clock().date()
    save_governance(
        appliance.home,
        Governance(
            country="DE",
            contact="privacy@example.org",
            security="Measures of 2026",
            backup_tested=today - timedelta(days=40),
        ),
    )


def assessment_of(appliance: Appliance, proposal: Proposal, **changes: object) -> EvidenceRecord:
    """An approved assessment of this very spec."""
    told = {"spec": digest(proposal.model_dump(mode="json")), "sections": DPIA_SECTIONS, "residual_risk": "low"}
    return EvidenceRecord(
        kind="dpia",
        scope="study",
        subject=proposal.study,
        issuer="University hospital",
        issued=appliance.clock().date() - timedelta(days=10),
        file=sha256_hex(proposal.study.encode()),
        assessment=Assessment.model_validate({**told, "officer": "dora", **changes}),
    )


def give_assessment(session: Session, appliance: Appliance, spec: Proposal) -> None:
    """Put the assessment on record, once."""
    evidence, record = EvidenceRepository(session), assessment_of(appliance, spec)
    if evidence.find(record.digest) is None:
        evidence.add(record, by="carl", at=timestamp(appliance.clock()))


def give_papers(appliance: Appliance, spec: Proposal) -> None:
    """Governance and assessment."""
    give_governance(appliance)
    with transaction(appliance.engine) as session:
        give_assessment(session, appliance, spec)


_FOLDER = tempfile.TemporaryDirectory()
SAFEGUARDS: dict[str, Any] = {
    "jurisdiction": "EU",
    "country": "FR",
    "hipaa_role": "none",
    "disk_encryption": True,
    "transit_encryption": True,
    "tls_min": "1.3",
    "pseudonymised": True,
    "idle_logoff": True,
    "security_official": "Head of information security",
    "privacy_official": "Data protection officer",
}
SITE_KINDS = ("dpa", "baa", "risk_analysis", "restore_test", "security_test", "training")
"""What the enrolment gate asks of a site under any law."""


def safeguards(**changes: Any) -> Safeguards:
    """A hospital that has them all."""
    return Safeguards(**{**SAFEGUARDS, **changes})


def site_record(site: str, kind: str, *, today: date, days_old: int = 20, **changes: Any) -> EvidenceRecord:
    """One document about a site, valid for a year."""
    issued = today - timedelta(days=days_old)
    fields = {"scope": "site", "issuer": "University hospital", "file": sha256_hex(kind.encode())}
    dates = {"issued": issued, "expires": issued + timedelta(days=365)}
    return EvidenceRecord.model_validate({"kind": kind, "subject": site, **fields, **dates, **changes})


def site_records(site: str, *, today: date, kinds: tuple[str, ...] = SITE_KINDS) -> list[EvidenceRecord]:
    """Everything that the gates ask of a site."""
    return [site_record(site, kind, today=today) for kind in kinds]


def statement_of(
    site: str, key: SigningKey, ca: str, *, now: datetime, records: list[EvidenceRecord] | None = None, **changes: Any
) -> bytes:
    """A site's signed statement for the coordinator with this CA."""
    attestation = safeguards(**changes).attested(now.date())
    told = site_records(site, today=now.date()) if records is None else records
    return seal_statement(make_statement(site, ca, attestation, told, now=now), key)


def give_site_papers(session: Session, site: str, *, now: datetime, **changes: Any) -> None:
    """Put them on record at the site itself, as enrolment leaves them."""
    attest(session, safeguards(**changes), now=now)
    import_records(session, site, site_records(site, today=now.date()), now=now)
    made = statement_now(session, site, "sha256:" + "0" * 64, now=now)
    keep_receipt(session, made, StatementReceipt(made_at=made.made_at, clock_skew=0.2))


def papers_file(*, kinds: tuple[str, ...] = SITE_KINDS, **changes: Any) -> Path:
    """The same as a file for `cloister-site enrol --papers`, in a folder of its own that this process removes."""
    today = date.today()
    records = [site_record("any-site", kind, today=today).model_dump(mode="json", exclude_none=True) for kind in kinds]
    for record in records:
        del record["scope"], record["subject"]
    file = Path(tempfile.mkdtemp(dir=_FOLDER.name)) / "papers.yaml"
    file.write_text(json.dumps({"attestation": {**SAFEGUARDS, **changes}, "records": records}))
    return file
