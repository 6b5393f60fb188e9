"""What the coordinator knows when a gate is asked, as the facts that policy packs declare. Pure.

None stands for "nobody looked" and denies; an empty string or list says that somebody looked and there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.studies.plan import ACCOUNTANT, SAMPLING
from protocol.study import LegalBasis, StudyPlan, StudySpec


def proposal_facts(
    plan: StudyPlan,
    plan_digest: str,
    *,
    approvals: Sequence[dict[str, str]] = (),
    append_ok: bool,
) -> dict[str, Any]:
    """Facts of the proposal gate. approvals: those over this plan whose signatures were verified.

    append_ok: whether the audit log took the entry that precedes this decision. The submitter's signature was
    verified under their own registered key, which is what makes them one authenticated person.
    """
    return {
        "study": study_facts(plan.spec, plan.submitter),
        "plan": plan_facts(plan, plan_digest),
        "approvals": list(approvals),
        "actor": {"id": plan.submitter, "authenticated": True, "shared_account": False},
        "audit": {"append_ok": append_ok},
    }


def study_facts(spec: StudySpec, submitter: str) -> dict[str, Any]:
    """`study.*`: what the spec records. A site without an entry has recorded nothing."""
    basis = spec.legal_basis
    governance = spec.governance
    return {
        "id": spec.study,
        "submitter": submitter,
        "purpose_code": spec.purpose.code,
        "purpose_codes": [spec.purpose.code],
        "legal_basis": _by_site(basis, "gdpr_article6"),
        "art9_condition": _by_site(basis, "gdpr_article9"),
        "member_state_law_ref": _by_site(basis, "member_state_law"),
        "hipaa_path": _by_site(basis, "hipaa_path"),
        "scientific_research_safeguards": governance.research_safeguards,
        "justified_columns": list(spec.justified_columns),
        "notice_ref": governance.notice or "",
        "controllers": list(governance.controllers),
        "joint_arrangement_ref": governance.joint_arrangement or "",
        "dpia_ref": governance.dpia or "",
        "retention": {
            "updates_until": governance.updates_until,
            "checkpoints_until": governance.checkpoints_until,
            "model_until": governance.model_until,
        },
    }


def plan_facts(plan: StudyPlan, plan_digest: str) -> dict[str, Any]:
    """`plan.*`."""
    spec = plan.spec
    return {
        "digest": plan_digest,
        "kind": "training",
        "dp": {
            "enabled": True,
            "unit": spec.privacy.unit,
            "mode": spec.privacy.mode,
            "epsilon": plan.epsilon,
            "delta": spec.privacy.delta,
            "epsilon_worst_site": plan.epsilon_worst_site,
            "sampling": SAMPLING,
            "accountant": ACCOUNTANT,
            "secure_rng": True,
        },
        "secure_aggregation": spec.privacy.mode == "distributed",
        "min_sites": spec.minimum_sites,
        "sites": [
            {"name": site.name, "jurisdiction": site.jurisdiction, "patients": site.patients} for site in plan.sites
        ],
        "evaluation": {"mode": spec.evaluation.mode},
    }


def _by_site(basis: dict[str, LegalBasis], field: str) -> dict[str, str]:
    values = {site: getattr(entry, field) for site, entry in basis.items()}
    return {site: value for site, value in values.items() if value is not None}
