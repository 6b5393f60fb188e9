"""The only SQL about the log at a site. Every function runs in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col, select

from protocol.checkpoint import TreeHead
from protocol.errors import CloisterError, VerificationFailed
from protocol.merkle import HASH_BYTES, Frontier
from protocol.witness_policy import WitnessPolicy
from site_agent.database import DatabaseUnusable
from site_agent.witness.tables import AcceptedWitnessPolicy, CosignedCheckpoint, LogAlarm, LogHead


class HeadMoved(VerificationFailed):
    """Another process of this site moved the head meanwhile."""

    code = "head-moved"


class NoSuchAlarm(CloisterError):
    """There is no such alarm to acknowledge."""

    code = "no-such-alarm"


@dataclass(frozen=True)
class Held:
    """What the site holds of the log: the verified head, its frontier, its note, the policy its entries name last."""

    head: TreeHead
    frontier: Frontier
    note: bytes
    policy_digest: str | None


def held(session: Session, origin: str) -> Held | None:
    """The persisted head, or None before the first."""
    row = session.get(LogHead, 1)
    if row is None:
        return None
    peaks = tuple(row.peaks[at : at + HASH_BYTES] for at in range(0, len(row.peaks), HASH_BYTES))
    return Held(TreeHead(origin, row.size, row.root), Frontier(row.size, peaks), row.note, row.policy_digest)


def size(session: Session) -> int:
    """How many entries the site has verified."""
    row = session.get(LogHead, 1)
    return 0 if row is None else row.size


def advance(session: Session, before: Held | None, after: Held, *, at: str) -> None:
    """Move the head from `before` to `after`, and reserve `after` as the only root that is ever cosigned at its size.

    Raises HeadMoved unless the head is still `before`, and VerificationFailed if that size has another root already.
    """
    values: dict[str, Any] = {
        "size": after.head.size,
        "root": after.head.root,
        "note": after.note,
        "peaks": b"".join(after.frontier.peaks),
        "policy_digest": after.policy_digest,
        "seen_at": at,
    }
    if before is None:
        if session.get(LogHead, 1) is not None:
            raise _moved()
        session.add(LogHead(id=1, **values))
    else:
        condition = (col(LogHead.id) == 1, col(LogHead.size) == before.head.size, col(LogHead.root) == before.head.root)
        if session.connection().execute(update(LogHead).where(*condition).values(**values)).rowcount != 1:
            raise _moved()
    reserve(session, after.head, at=at)


def reserve(session: Session, head: TreeHead, *, at: str) -> CosignedCheckpoint:
    """The record that this head is the one to cosign at its size. Raises VerificationFailed for a second root."""
    row = session.get(CosignedCheckpoint, head.size)
    if row is None:
        row = CosignedCheckpoint(size=head.size, root=head.root, at=at)
        session.add(row)
    elif row.root != head.root:
        raise VerificationFailed(
            f"This site has cosigned another root at size {head.size}: it never signs two.",
            "Keep both checkpoints as evidence and ask the federation's auditor.",
        )
    return row


def keep_cosignature(session: Session, size: int, line: bytes, *, delivered: bool) -> None:
    """Note the cosignature made at this size, and whether the coordinator has it."""
    row = session.get_one(CosignedCheckpoint, size)
    row.cosignature, row.delivered = line, delivered
    session.add(row)


def cosigned(session: Session, size: int) -> CosignedCheckpoint | None:
    """What was reserved or cosigned at this size."""
    return session.get(CosignedCheckpoint, size)


def policy_in_force(session: Session) -> WitnessPolicy:
    """The witness policy accepted last. Raises DatabaseUnusable without one: enrolment wrote the first."""
    row = session.exec(select(AcceptedWitnessPolicy).order_by(col(AcceptedWitnessPolicy.id).desc())).first()
    if row is None:
        raise DatabaseUnusable("The site's database holds no witness policy.", "Restore it from a backup.")
    return WitnessPolicy.from_bytes(row.policy_json.encode())


def accept_policy(session: Session, policy: WitnessPolicy, *, at: str) -> None:
    """Put a policy in force."""
    session.add(AcceptedWitnessPolicy(policy_json=policy.to_bytes().decode(), digest=policy.digest, accepted_at=at))


def raise_alarm(
    session: Session, code: str, detail: str, *, held_note: bytes | None, served_note: bytes, at: str
) -> None:
    """Record evidence against the log, once."""
    same = select(LogAlarm).where(LogAlarm.code == code, LogAlarm.served_note == served_note)
    if session.exec(same).first() is None:
        session.add(LogAlarm(code=code, detail=detail, held_note=held_note, served_note=served_note, raised_at=at))


def alarms(session: Session) -> tuple[LogAlarm, ...]:
    """Every alarm there ever was, oldest first."""
    return tuple(session.exec(select(LogAlarm).order_by(col(LogAlarm.id))).all())


def standing_alarms(session: Session) -> tuple[LogAlarm, ...]:
    """The alarms that nobody has acknowledged, oldest first."""
    return tuple(alarm for alarm in alarms(session) if alarm.acknowledged_at is None)


def acknowledge(session: Session, number: int, reason: str, *, at: str) -> LogAlarm:
    """Note that IT looked into an alarm. The evidence stays, and the same evidence is no new alarm; any other is.

    Raises NoSuchAlarm for an alarm that never was, or was acknowledged before.
    """
    row = session.get(LogAlarm, number)
    if row is None or row.acknowledged_at is not None:
        raise NoSuchAlarm(f"No alarm {number} stands here.", "See cloister-site log check.")
    row.acknowledged_at, row.reason = at, reason
    session.add(row)
    return row


def _moved() -> HeadMoved:
    return HeadMoved("Another process of this site has moved the log's head.", "Try again.")
