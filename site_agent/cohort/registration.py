"""Telling the coordinator of the snapshots that lie here: their digests and counts, nothing else."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from protocol.errors import CloisterError
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.cohort.tables import Snapshot
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction


class NotRegistered(CloisterError):
    """The data set is stored here, and the coordinator does not know it yet."""

    def __init__(self, snapshot: str, cause: CloisterError) -> None:
        super().__init__(
            f"The snapshot {snapshot} is stored here, but not registered at the coordinator: {cause.message}",
            f"{cause.remedy} Then run the same command again; the agent tries by itself, too.",
        )
        self.code = cause.code


def register(engine: Engine, client: CoordinatorClient, clock: Clock, snapshot: str) -> None:
    """`register_pending`, for the person who has just added `snapshot`. Raises NotRegistered with the cause."""
    try:
        register_pending(engine, client, clock)
    except CloisterError as cause:
        raise NotRegistered(snapshot, cause) from cause


def register_pending(engine: Engine, client: CoordinatorClient, clock: Clock) -> tuple[str, ...]:
    """Register the snapshots that the coordinator has not accepted yet, oldest first; their digests.

    Raises the client's errors at the first that fails; what was accepted before stays accepted.
    """
    with transaction(engine) as session:
        waiting = session.exec(
            select(Snapshot)
            .where(col(Snapshot.registered_at).is_(None), col(Snapshot.replaced_by).is_(None))
            .order_by(col(Snapshot.created_at))
        ).all()
    if not waiting:
        return ()
    # An idle agent has no use for what reads data sets.
    from site_agent.cohort.snapshot import registration

    for snapshot in waiting:
        client.register_dataset(snapshot.name, registration(snapshot))
        with transaction(engine) as session:
            _mark(session, snapshot.digest, timestamp(clock()))
    return tuple(snapshot.digest for snapshot in waiting)


def _mark(session: Session, digest: str, at: str) -> None:
    row = session.get_one(Snapshot, digest)
    row.registered_at = at
    session.add(row)
