"""Every gate's decision goes through here: taken by the policy in force, and logged with what it was taken on."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append
from coordinator.policy.repository import PolicyRepository
from coordinator.policy.tables import PolicyDecision
from policies.decided import Decided
from policies.facts import rfc3339
from policies.findings import reasons
from protocol.audit_event import EventType


def record(
    session: Session,
    appliance: Appliance,
    decided: Decided,
    *,
    actor: str,
    subject: str,
    digests: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> int:
    """policy.decided: the outcome, the first rule that keeps the gate shut, and digests; the facts can be erased."""
    decision = decided.decision
    standing = reasons(decision)
    entry = append(
        session,
        appliance,
        EventType.POLICY_DECIDED,
        actor=actor,
        subject=subject,
        digests={**(digests or {}), **decided.digests},
        labels={
            "gate": decision.gate,
            "outcome": decision.outcome.value,
            **({"rule": standing[0].rule} if standing else {}),
            **(labels or {}),
        },
        payload=decided.payload(),
    )
    index(session, decided, entry=entry, subject=subject)
    return entry


def index(session: Session, decided: Decided, *, entry: int, subject: str) -> None:
    """Note where the log tells of a decision: `entry`'s payload is the decision's own."""
    PolicyRepository(session).save(
        PolicyDecision(
            entry=entry,
            gate=decided.decision.gate,
            subject=subject,
            policy=decided.policy,
            outcome=decided.decision.outcome.value,
            at=rfc3339(decided.decision.evaluated_at),
        )
    )
