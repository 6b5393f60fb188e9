"""The facts that a study's own documents hold, for whoever judges it: the coordinator and every site alike.

What only one party knows (its ledger, its data, its log) that party adds itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.exploration import ExplorationPlan
from protocol.proposal import Proposal
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan

ACCOUNTANT = "pld"
GAUSSIAN_ACCOUNTANT = "gaussian"
"""Of releases that every patient is in: exact, without sampling."""


def study_facts(spec: Proposal, *, site: str | None = None) -> dict[str, Any]:
    """`study.*` as far as the spec holds it; `site`: the site that judges, whose waiver, consent forms and Part 2 basis
    count, if it has any.

    A reference that the spec leaves out is "": it was looked for, and there is none. Dates and a waiver that are left
    out are missing facts, so that a rule which needs them denies.
    """
    governance = spec.governance
    basis = None if site is None else spec.legal_basis.get(site)
    waiver = None if basis is None else basis.waiver
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
        "special_category_bias_job": governance.special_categories_for_bias,
        "consent_forms": None if basis is None else list(basis.consent_forms),
        "part2_basis": None if basis is None else basis.part2_basis or "",
        "waiver": waiver.model_dump() if waiver is not None else None,
    }


@dataclass(frozen=True)
class Epsilons:
    """What a plan costs, as the judging party takes it: of the model, and in the worst case of a site the model's and
    the evaluation's; the last is None where the evaluation is exact, or where there is none. membership_worst_site: of
    the membership audit, None where there is none; checks_worst_site: of the checks between rounds, likewise."""

    training: float
    worst_site: float
    evaluation_worst_site: float | None
    membership_worst_site: float | None = None
    checks_worst_site: float | None = None

    @classmethod
    def stated(cls, plan: AnyPlan) -> Epsilons:
        """As the plan itself says."""
        if not isinstance(plan, StudyPlan):
            return cls(plan.epsilon, plan.epsilon_worst_site, None)
        audited = None if plan.membership is None else plan.membership.epsilon_worst_site
        checked = None if plan.checks is None else plan.checks.epsilon_worst_site
        return cls(plan.epsilon, plan.epsilon_worst_site, plan.epsilon_evaluation_worst_site, audited, checked)


def document_facts(
    plan: AnyPlan, plan_digest: str, *, site: str | None = None, epsilons: Epsilons | None = None
) -> dict[str, Any]:
    """`study.*` and `plan.*`. epsilons: as the judging party computed them; left out, the plan's own.

    The generator, the sampling and the accountant are those of this very program.
    """
    spec, cost = plan.spec, epsilons or Epsilons.stated(plan)
    training = isinstance(plan, StudyPlan)
    planned = {
        "digest": plan_digest,
        "spec_digest": plan.spec_digest,
        "kind": _kind(plan),
        "dp": {
            "enabled": True,
            "unit": spec.privacy.unit,
            "mode": spec.privacy.mode,
            "epsilon": cost.training,
            "delta": spec.privacy.delta,
            "epsilon_worst_site": cost.worst_site,
            "sampling": "poisson" if training else "none",
            "accountant": ACCOUNTANT if training else GAUSSIAN_ACCOUNTANT,
            "secure_rng": True,
        },
        "secure_aggregation": True,
        "min_sites": spec.minimum_sites,
        "sites": [
            {"name": planned.name, "jurisdiction": planned.jurisdiction, "patients": planned.patients}
            for planned in plan.sites
        ],
        "evaluation": {
            "mode": plan.spec.evaluation.mode if isinstance(plan, StudyPlan) else "none",
            "epsilon_worst_site": cost.evaluation_worst_site,
        },
        "checks": {"planned": cost.checks_worst_site is not None, "epsilon_worst_site": cost.checks_worst_site},
        "membership": {
            "planned": cost.membership_worst_site is not None,
            "epsilon_worst_site": cost.membership_worst_site,
        },
    }
    return {"study": {**study_facts(spec, site=site), "submitter": plan.submitter}, "plan": planned}


def _kind(plan: AnyPlan) -> str:
    """What the plan does with the data: an exploration that only counts patients is a matter of feasibility."""
    if isinstance(plan, ExplorationPlan):
        return "feasibility" if plan.spec.counts_only else "exploration"
    return "training"


def _by_site(spec: Proposal, field: str) -> dict[str, str]:
    recorded = {site: getattr(basis, field) for site, basis in spec.legal_basis.items()}
    return {site: str(value) for site, value in recorded.items() if value is not None}
