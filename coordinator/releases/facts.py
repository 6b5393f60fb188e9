"""What the coordinator knows when the release gate is asked, as the facts that policy packs declare. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.releases.model_card import missing_fields
from coordinator.studies.policy import with_papers
from policies.study_facts import document_facts
from protocol.evaluation import EvaluationReport, Interval, measured
from protocol.membership import MembershipReport
from protocol.release import Approval, ReleaseSubject
from protocol.study import StudyPlan


def release_facts(
    plan: StudyPlan,
    subject: ReleaseSubject,
    approvals: Sequence[Approval],
    *,
    actor: Mapping[str, Any],
    papers: Mapping[str, Any],
    study: Mapping[str, Any],
    incidents: Mapping[str, Any],
    invalidated: int,
    reviews: int,
    card: str,
    append_ok: bool,
    quorum: bool,
    checkpoint_age_seconds: int,
) -> dict[str, Any]:
    """Facts of the release gate. actor: who asks (coordinator.people.facts). papers: what is on record of the release;
    study: likewise of the study. incidents: those that touch the study or a contributor; invalidated: contributors
    whose legal basis was found invalid. reviews: the open ones of this model, after patients withdrew. card: the model
    card. approvals: those whose signatures were verified under the plan's roster."""
    audit = subject.membership
    return {
        **with_papers(document_facts(plan, subject.plan_digest), study),
        "release": {
            "digest": subject.digest,
            "intended_use": subject.intended_use,
            "decision_mode": subject.use_mode,
            # A submitter's claim, never the product's: DP alone is not anonymity.
            "claim_anonymous": subject.claim_anonymous,
            "epsilon": subject.epsilon.epsilon,
            "delta": subject.epsilon.delta,
            "epsilon_worst_site": subject.epsilon.epsilon_worst_site,
            "epsilon_evaluation_worst_site": subject.epsilon.epsilon_evaluation_worst_site,
            "membership_ran": audit is not None and audit.ran,
            "membership_advantage_high": _advantage_high(audit),
            "epsilon_membership_worst_site": subject.epsilon.epsilon_membership_worst_site,
            "submitter": subject.submitter,
            "recipients": list(subject.recipients),
            "evaluation_exact": subject.evaluation.outside_guarantee,
            **_measured(subject.evaluation),
            "files": [entry.name for entry in subject.files],
            "model_card_missing": missing_fields(card),
            # Nothing is sold, and the product never shows a model to be de-identified.
            "remuneration": False,
            "phi_status": "not-shown",
            "contributors_invalidated": invalidated,
            **papers,
        },
        "incident": dict(incidents),
        "withdrawal": {"open": reviews},
        "approvals": [
            {
                "person": approval.person,
                "role": approval.role.value,
                "subject_digest": approval.subject_digest,
                "decision": approval.decision,
                "meaning": approval.meaning,
                "signed_at": approval.signed_at,
            }
            for approval in approvals
        ],
        "actor": dict(actor),
        "audit": {
            "append_ok": append_ok,
            "cosign_quorum": quorum,
            "last_checkpoint_age_seconds": checkpoint_age_seconds,
        },
    }


def _measured(report: EvaluationReport) -> dict[str, Any]:
    """The measure that tells most of a release of its kind. -1 where its interval has no lower end: not knowing how
    well a model does meets no floor."""
    name, found = measured(report)
    told = [one for one in report.subgroups if one.patients is not None]
    return {
        "measure": name,
        "measured_low": _low(found),
        "subgroups": [{"group": one.group, "measured_low": _low(one.value)} for one in told],
        "subgroups_unmeasured": [one.group for one in report.subgroups if one.patients is None],
    }


def _low(found: Interval) -> float:
    return found.low if found.low is not None else -1.0


def _advantage_high(audit: MembershipReport | None) -> float:
    """The upper end of the advantage's interval. 1 where nobody tried or it has none: not knowing meets no cap."""
    high = None if audit is None or audit.advantage is None else audit.advantage.high
    return 1.0 if high is None else high
