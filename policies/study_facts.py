"""The facts that a study's own documents hold, for whoever judges it: the coordinator and every site alike.

What only one party knows (its ledger, its data, its log) that party adds itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.study import PlannedSite, StudyPlan, StudySpec

ACCOUNTANT = "pld"


def study_facts(spec: StudySpec, *, site: str | None = None) -> dict[str, Any]:
    """`study.*` as far as the spec holds it; `site`: the site that judges, whose waiver counts, if it has one.

    A reference that the spec leaves out is "": it was looked for, and there is none. Dates and a waiver that are left
    out are missing facts, so that a rule which needs them denies.
    """
    governance = spec.governance
    waiver = spec.legal_basis[site].waiver if site in spec.legal_basis else None
    return {
        "id": spec.study,
        "purpose_code": spec.purpose.code,
        "purpose_codes": [spec.purpose.code],
        "legal_basis": _by_site(spec, "gdpr_article6"),
        "art9_condition": _by_site(spec, "gdpr_article9"),
        "member_state_law_ref": _by_site(spec, "member_state_law"),
        "hipaa_path": _by_site(spec, "hipaa_path"),
        "scientific_research_safeguards": governance.research_safeguards,
        "justified_columns": list(spec.justified_columns),
        "notice_ref": governance.notice or "",
        "controllers": list(governance.controllers),
        "joint_arrangement_ref": governance.joint_arrangement or "",
        "retention": {
            "updates_until": governance.updates_until,
            "checkpoints_until": governance.checkpoints_until,
            "model_until": governance.model_until,
        },
        "dpia_ref": governance.dpia or "",
        "waiver": waiver.model_dump() if waiver is not None else None,
    }


def planned_facts(
    spec: StudySpec, sites: Iterable[PlannedSite], *, epsilon: float, epsilon_worst_site: float
) -> dict[str, Any]:
    """`plan.*` but its digest: what the spec asks, who takes part, and the epsilons as the judging party computed
    them itself. The generator, the sampling and the accountant are those of this very program."""
    return {
        "kind": "training",
        "dp": {
            "enabled": True,
            "unit": spec.privacy.unit,
            "mode": spec.privacy.mode,
            "epsilon": epsilon,
            "delta": spec.privacy.delta,
            "epsilon_worst_site": epsilon_worst_site,
            "sampling": "poisson",
            "accountant": ACCOUNTANT,
            "secure_rng": True,
        },
        "secure_aggregation": True,
        "min_sites": spec.minimum_sites,
        "sites": [
            {"name": site.name, "jurisdiction": site.jurisdiction, "patients": site.patients} for site in sites
        ],
        "evaluation": {"mode": spec.evaluation.mode},
    }


def plan_facts(plan: StudyPlan, digest: str, *, epsilon: float, epsilon_worst_site: float) -> dict[str, Any]:
    """`plan.*` of a whole plan, its digest included."""
    facts = planned_facts(plan.spec, plan.sites, epsilon=epsilon, epsilon_worst_site=epsilon_worst_site)
    return {**facts, "digest": digest}


def _by_site(spec: StudySpec, field: str) -> dict[str, str]:
    recorded = {site: getattr(basis, field) for site, basis in spec.legal_basis.items()}
    return {site: str(value) for site, value in recorded.items() if value is not None}
