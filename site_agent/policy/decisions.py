"""Every decision of this hospital's gates, to be taken again under other packs: consent, round, serving, retention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select

from site_agent.policy.tables import SiteDecision
from site_agent.training.tables import RoundDecision

if TYPE_CHECKING:
    from policies.decided import Decided
    from policies.packs import Pack, Policy
    from policies.replay import Past


def keep(session: Session, decided: Decided, *, subject: str) -> None:
    """Put a decision on record in the transaction of what it let happen, or kept from happening."""
    from policies.facts import rfc3339

    decision = decided.decision
    session.add(
        SiteDecision(
            gate=decision.gate,
            subject=subject,
            policy=decided.policy,
            outcome=decision.outcome.value,
            facts=None if decided.facts is None else json.dumps(decided.facts, sort_keys=True),
            at=rfc3339(decision.evaluated_at),
        )
    )
    session.flush()


def past(session: Session, *, gate: str | None = None, about: str | None = None, limit: int = 1000) -> list[Past]:
    """The newest decisions, newest first. Of the round gate's those that say something else than the one before: the
    others have no facts of their own."""
    from policies.replay import Past

    query = select(SiteDecision).order_by(col(SiteDecision.id).desc()).limit(limit)
    for column, wanted in ((SiteDecision.gate, gate), (SiteDecision.subject, about)):
        if wanted is not None:
            query = query.where(column == wanted)
    found = [
        Past(
            row.id or 0, row.gate, row.subject, datetime.fromisoformat(row.at), row.policy, row.outcome,  # type: ignore[arg-type]
            None if row.facts is None else json.loads(row.facts),
        )
        for row in session.exec(query)
    ]  # fmt: skip
    if gate in (None, "round"):
        found += _rounds(session, about, limit)
    return sorted(found, key=lambda one: one.at, reverse=True)[:limit]


def judging(past: Past, policy: Policy) -> Sequence[Pack]:
    """The packs, or the parts of packs, by which this hospital judges the gate."""
    from site_agent.training.round_gate import own_packs

    return own_packs(policy) if past.gate == "round" else policy.packs


def _rounds(session: Session, about: str | None, limit: int) -> list[Past]:
    from policies.replay import Past

    query = select(RoundDecision).where(RoundDecision.document != "").order_by(col(RoundDecision.id).desc())
    if about is not None:
        query = query.where(RoundDecision.study == about)
    found = []
    for row in session.exec(query.limit(limit)):
        document = json.loads(row.document)
        if "unreadable" in document:
            continue  # no rule was asked
        at = datetime.fromisoformat(document["evaluated_at"])
        # What a rule said: a grant that lapsed shuts the gate beside the rules.
        found.append(Past(row.id or 0, "round", row.study, at, row.rules, document["outcome"], document["facts"]))
    return found
