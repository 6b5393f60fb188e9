"""What may happen to a person's account: pure decisions over facts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from coordinator.errors import Conflict, Forbidden
from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.timestamp import moment

IDLE = timedelta(minutes=15)
LIFETIME = timedelta(hours=8)
CHALLENGE_LIFE = timedelta(minutes=2)
SEEN_EVERY = timedelta(seconds=30)  # how coarsely idleness is written down

Status = Literal["invited", "active", "disabled"]


class TokenRefused(Refused):
    """A one-time secret that can't be used: unknown, used, expired or for someone else."""

    code = "token-refused"


def decide_invitation(status: str | None, held: str | None, role: Role, name: str) -> None:
    """Whether a name (with its status and role so far, None if new) may be invited with this role.

    Raises Conflict for someone active, and for another role: one person holds one role.
    """
    if status == "active":
        raise Conflict(
            f"{name} is registered already.",
            f"Run `cloister-coordinator people disable {name}` first to replace the key.",
        )
    if held is not None and held != role.value:
        raise Conflict(
            f"{name} was invited as {held}, and one person holds one role.", "Choose another name for another role."
        )


def decide_token(*, known: bool, holder: str, name: str, used_at: str | None, expires_at: str, now: datetime) -> None:
    """Whether a one-time secret may be used by `name` now. Raises TokenRefused saying why not."""
    remedy = "Ask the coordinator's administrator for a new invitation."
    if not known:
        raise TokenRefused("The token is not one that this coordinator gave out, or a newer one replaced it.", remedy)
    if holder != name:
        raise TokenRefused("The token was given to somebody else.", remedy)
    if used_at is not None:
        raise TokenRefused("The token has been used already.", remedy)
    if now >= moment(expires_at):
        raise TokenRefused("The token has expired.", remedy)


def decide_sign_in(status: str | None) -> None:
    """Whether someone with this status may sign in. Raises Forbidden, alike for the unknown and the disabled."""
    if status != "active":
        raise Forbidden("This person can't sign in here.", "Ask the coordinator's administrator for an invitation.")


def session_alive(started_at: str, seen_at: str, *, now: datetime) -> bool:
    """Whether a session is within 8 hours of its start and 15 minutes of its last use."""
    return now < moment(started_at) + LIFETIME and now < moment(seen_at) + IDLE
