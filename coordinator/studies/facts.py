"""What the coordinator knows when a gate is asked, as the facts that policy packs declare. Pure.

None stands for "nobody looked" and denies; an empty string or list says that somebody looked and there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.study_facts import plan_facts, study_facts
from protocol.study import StudyPlan


def proposal_facts(
    plan: StudyPlan, plan_digest: str, *, approvals: Sequence[dict[str, str]] = (), append_ok: bool
) -> dict[str, Any]:
    """Facts of the proposal gate. approvals: those over this plan whose signatures were verified.

    append_ok: whether the audit log took the entry that precedes this decision. The submitter's signature was
    verified under their own registered key, which is what makes them one authenticated person.
    """
    return {
        **documents(plan, plan_digest),
        "approvals": list(approvals),
        "actor": {"id": plan.submitter, "authenticated": True, "shared_account": False},
        "audit": {"append_ok": append_ok},
    }


def documents(plan: StudyPlan, plan_digest: str) -> dict[str, Any]:
    """`study.*` and `plan.*`."""
    study = {**study_facts(plan.spec), "submitter": plan.submitter}
    planned = plan_facts(plan, plan_digest, epsilon=plan.epsilon, epsilon_worst_site=plan.epsilon_worst_site)
    return {"study": study, "plan": planned}
