"""Tells the coordinator what was answered here, now or whenever it can be reached. Light: the agent imports it."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from site_agent.consent.states import Answer, answer_after
from site_agent.consent.tables import StudyGrant
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import transaction
from site_agent.training.budget_store import drop_keys, release_unused

_FINAL = frozenset({400, 403, 404, 409, 422})


def deliver(engine: Engine, client: CoordinatorClient) -> list[str]:
    """Send every answer that the coordinator has not acknowledged; the studies told.

    Raises what the client raises. An answer that the coordinator refuses for good is not sent again, and a grant
    among them no longer stands: the study goes on without this site.
    """
    with transaction(engine) as session:
        waiting = session.exec(
            select(StudyGrant)
            .where(col(StudyGrant.delivered).is_(False), StudyGrant.state != Answer.SUPERSEDED.value)
            .order_by(col(StudyGrant.decided_at))
        ).all()
    told = []
    for row in waiting:
        try:
            client.post_consent(row.study, row.consent)
        except CoordinatorRefused as refusal:
            if refusal.status in _FINAL:
                _settle(engine, row, accepted=False)
            raise
        _settle(engine, row, accepted=True)
        told.append(row.study)
    return told


def end_grant(session: Session, row: StudyGrant) -> None:
    """Give back what was not begun and delete the study's keys, in the caller's transaction."""
    release_unused(session, row.plan_digest)
    drop_keys(session, row.study)


def _settle(engine: Engine, sent: StudyGrant, *, accepted: bool) -> None:
    """Mark an answer as delivered, unless another has taken its place meanwhile."""
    with transaction(engine) as session:
        row = session.get(StudyGrant, sent.plan_digest)
        if row is None or row.consent != sent.consent:
            return
        row.delivered = True
        if not accepted and row.state == Answer.GRANTED:
            row.state = answer_after(Answer.GRANTED, "withdraw").value
            end_grant(session, row)
        session.add(row)
