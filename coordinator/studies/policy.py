"""What the coordinator knows when the proposal gate is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan


def proposal_facts(
    plan: AnyPlan,
    plan_digest: str,
    *,
    papers: Mapping[str, Any],
    actor: Mapping[str, Any],
    approvals: Sequence[dict[str, str]] = (),
    append_ok: bool,
) -> dict[str, Any]:
    """Facts of the proposal gate. papers: what is on record (coordinator.evidence.facts). approvals: those over this
    plan whose signatures were verified.

    None stands for "nobody looked" and denies; an empty string or list says that somebody looked and there is none.

    actor: who asks (coordinator.people.facts). append_ok: whether the audit log took the entry that precedes this
    decision.
    """
    return {
        **with_papers(document_facts(plan, plan_digest), papers),
        "approvals": list(approvals),
        "actor": dict(actor),
        "audit": {"append_ok": append_ok},
    }


def with_papers(documents: Mapping[str, Any], papers: Mapping[str, Any]) -> dict[str, Any]:
    """What the study's own documents say, with what is on record about it beside it."""
    return {**documents, "coordinator": papers["coordinator"], "study": {**documents["study"], **papers["study"]}}
