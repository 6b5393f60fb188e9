"""The packs by which this coordinator decides, those that ship with Cloister at the organisation's defaults, and what
it knows when the proposal gate is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from policies.packs import Policy, builtin_policy
from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan


@cache
def active_policy() -> Policy:
    """Compiled once per process."""
    return builtin_policy()


def pack_digests(policy: Policy) -> dict[str, str]:
    """Pack id -> digest over the pack's own bytes; what the plan names and sites compare with theirs."""
    return {pack.id: pack.digest for pack in policy.packs}


def proposal_facts(
    plan: AnyPlan,
    plan_digest: str,
    *,
    papers: Mapping[str, Any],
    approvals: Sequence[dict[str, str]] = (),
    append_ok: bool,
) -> dict[str, Any]:
    """Facts of the proposal gate. papers: what is on record (coordinator.evidence.facts). approvals: those over this
    plan whose signatures were verified.

    None stands for "nobody looked" and denies; an empty string or list says that somebody looked and there is none.

    append_ok: whether the audit log took the entry that precedes this decision. The submitter's signature was
    verified under their own registered key, which is what makes them one authenticated person.
    """
    return {
        **with_papers(document_facts(plan, plan_digest), papers),
        "approvals": list(approvals),
        "actor": {"id": plan.submitter, "authenticated": True, "shared_account": False},
        "audit": {"append_ok": append_ok},
    }


def with_papers(documents: Mapping[str, Any], papers: Mapping[str, Any]) -> dict[str, Any]:
    """What the study's own documents say, with what is on record about it beside it."""
    return {**documents, "coordinator": papers["coordinator"], "study": {**documents["study"], **papers["study"]}}
