"""What the coordinator has on record about a study or a release, as the facts that policy packs declare."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.review import last_review_days
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import Governance, coordinator_facts, load_governance
from protocol.evidence import EvidenceRecord, assessment_facts, latest, standing
from protocol.proposal import Proposal


def study_papers(session: Session, appliance: Appliance, spec: Proposal) -> dict[str, Any]:
    """`coordinator.*` and the parts of `study.*` that rest on records: evidence, assessment, processing register."""
    governance, today = load_governance(appliance.home), appliance.clock().date()
    records = EvidenceRepository(session).about("study", [spec.study])
    return {
        "coordinator": coordinator_facts(governance, on=today),
        "audit": {"last_human_review_days": last_review_days(session, appliance)},
        "study": {
            "records": standing(records, on=today),
            "dpia": dict(assessment_facts(records, on=today)),
            "ropa_missing": missing_in_register(spec, governance),
        },
    }


def missing_in_register(spec: Proposal, governance: Governance | None) -> list[str]:
    """Mandatory fields of Art. 30(1)(a)-(g) GDPR that are empty, by a closed name each."""
    papers = spec.governance
    filled = {
        "controllers": bool(papers.controllers),
        "contact": governance is not None,
        "purposes": bool(spec.purpose.description),
        "categories": bool(spec.justified_columns),
        "transfers": governance is not None,
        "time-limits": all((papers.updates_until, papers.checkpoints_until, papers.model_until)),
        "security": governance is not None,
    }
    return [name for name, there in filled.items() if not there]


def release_papers(
    session: Session, appliance: Appliance, *, digest: str, contributors: Sequence[str], first: bool
) -> dict[str, Any]:
    """The parts of `release.*` that rest on records. first: no earlier release changes by this one."""
    evidence, today = EvidenceRepository(session), appliance.clock().date()
    records = evidence.about("release", [digest])
    return {
        "records": standing(records, on=today),
        "sites_without_datasheet": _without_datasheet(evidence.about("site", contributors), contributors, today),
        **_classes(records, today),
        "technical_documentation_missing": _undocumented(records, today),
        "change_class": _change(records, today, first=first),
        **_attacks(records, today),
    }


def _without_datasheet(records: Sequence[EvidenceRecord], sites: Sequence[str], today: date) -> list[str]:
    return [
        site
        for site in sites
        if latest([record for record in records if record.subject == site], "datasheet", on=today) is None
    ]


def _classes(records: Sequence[EvidenceRecord], today: date) -> dict[str, str]:
    found = latest(records, "regulatory_classification", on=today)
    classes = found.classification if found is not None else None
    return {
        "mdr_class": classes.mdr_class if classes is not None else "",
        "ai_act_class": classes.ai_act_class if classes is not None else "",
    }


def _undocumented(records: Sequence[EvidenceRecord], today: date) -> list[str]:
    found = latest(records, "technical_documentation", on=today)
    return ["all"] if found is None or found.missing is None else list(found.missing)


def _change(records: Sequence[EvidenceRecord], today: date, *, first: bool) -> str:
    if first:
        return "first"
    found = latest(records, "change_control", on=today)
    return "outside-plan" if found is None or found.change_class is None else found.change_class


def _attacks(records: Sequence[EvidenceRecord], today: date) -> dict[str, Any]:
    """Nothing where no evaluation counts: a claim of anonymity then lacks its facts."""
    found = latest(records, "attack_evaluation", on=today)
    return {} if found is None or found.attacks is None else {"attacks": found.attacks.model_dump()}
