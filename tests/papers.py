"""What an organisation has on record before a study is proposed: its governance, and the study's impact assessment."""

from __future__ import annotations

from datetime import timedelta

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import transaction
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import Governance, save_governance
from protocol.canonical import digest, sha256_hex
from protocol.evidence import DPIA_SECTIONS, Assessment, EvidenceRecord
from protocol.proposal import Proposal
from protocol.timestamp import timestamp


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
