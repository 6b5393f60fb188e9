"""Who may become a witness beside the hospitals: pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.errors import Conflict
from protocol.errors import Refused

ENOUGH_SITES = 4  # from here on one may fail: n = 3f + 1


def decide_joining(sites: int, auditors: Sequence[str], *, key_known: bool) -> None:
    """Whether an auditor may become a witness now. auditors: who are already; key_known: the key was one's before.

    Raises Refused from four sites on, Conflict for a second auditor or a key that was used before.
    """
    if sites >= ENOUGH_SITES:
        raise Refused(
            f"{sites} hospitals witness the log: an auditor is a witness below {ENOUGH_SITES}.",
            "Let the auditor follow the log with `cloister audit monitor`.",
        )
    if auditors:
        raise Conflict(
            f"{auditors[0]} is a witness already, and a quorum must never stand on auditors alone.",
            f"Run `cloister-coordinator witness remove {auditors[0]}` first.",
        )
    if key_known:
        raise Conflict("This key has been an auditor's before.", "Make a new one: `cloister audit witness init`.")
