"""Findings that approvers answered for. Only what a pack declares waivable, only a broken rule: a fact that nobody
looked up or a rule that could not be evaluated is never waived. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from policies.findings import Decision, Kind, outcome_of
from policies.packs import Pack
from protocol.errors import Refused


def waivable(packs: Sequence[Pack]) -> frozenset[tuple[str, str]]:
    """(pack, rule) of every rule that its pack lets approvers waive."""
    return frozenset((pack.id, rule.text.id) for pack in packs for rule in pack.rules if rule.text.waivable)


def require_waivable(packs: Sequence[Pack], pack: str, rule: str) -> None:
    """Raises Refused for a rule that does not exist or must hold whatever anybody says."""
    if (pack, rule) not in waivable(packs):
        known = ", ".join(sorted(name for _, name in waivable(packs))) or "none"
        raise Refused(
            f"Rule {rule[:40]} of pack {pack[:40]} can't be waived.",
            f"Meet it. Consent, agreements, audit and approvals are never waived; these rules can be: {known}.",
        )


def waive(decision: Decision, packs: Sequence[Pack], waived: Collection[tuple[str, str]]) -> Decision:
    """The decision with the findings of `waived` (pack, rule) set apart, and what is then left of its outcome."""
    allowed = waivable(packs) & set(waived)
    apart = tuple(
        finding
        for finding in decision.findings
        if finding.kind is Kind.VIOLATED and (finding.pack, finding.rule) in allowed
    )
    left = tuple(finding for finding in decision.findings if finding not in apart)
    return replace(decision, findings=left, waived=(*decision.waived, *apart), outcome=outcome_of(left))
