"""Who asks, as the facts that policy packs declare."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from coordinator.people.states import AuthLevel, certified_days
from coordinator.people.tables import Person


@dataclass(frozen=True)
class Actor:
    """A person, and what their present session was proved by."""

    person: Person
    level: AuthLevel


def actor_facts(actor: Actor, *, now: datetime) -> dict[str, Any]:
    """Facts of the person who asks. `recertified_days` is absent, and denies, where their role was never confirmed."""
    person = actor.person
    active = person.status == "active"
    return {
        "id": person.name,
        "authenticated": active,
        "auth_level": actor.level.value,
        "shared_account": person.shared,
        "status": "active" if active else "left",
        "recertified_days": certified_days(person.certified_at, now=now),
    }
