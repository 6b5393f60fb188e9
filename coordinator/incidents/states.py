"""The life of an incident, as pure decisions: open -> closed, by two people in two roles.

Opening is quick and alone, since it only stops; closing sets data in motion again and never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from coordinator.errors import Conflict
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.incident import Incident, Outcome, Settled
from protocol.timestamp import moment

MAX_WORDS = 2000
CLOSING_ROLES = (Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD, Role.ADMINISTRATOR)
CLOCK_SKEW = timedelta(minutes=5)


class IncidentState(StrEnum):
    """Where an incident stands. It freezes what it is about until it is closed."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True)
class Closing:
    """One person's word that it is over. facts: the digest of what was on record when they said so."""

    person: str
    role: Role
    outcome: Outcome
    facts: str


def require_admissible(incident: Incident, *, now: datetime) -> None:
    """Raises Malformed for awareness in the future (5 minutes of clock skew apart)."""
    if moment(incident.aware_at) > now + CLOCK_SKEW:
        raise Malformed("Nobody became aware of it in the future.", "Give --aware-at as it was, in UTC.")


def require_words(words: str) -> None:
    """Raises Malformed for a description or reason that is missing or over 2000 characters."""
    if not 1 <= len(words.strip()) <= MAX_WORDS:
        raise Malformed("The words that say what happened are missing or too long.", "Give up to 2000 characters.")


def settle(before: Settled, told: Settled, *, state: IncidentState, aware_at: str, now: datetime) -> Settled:
    """What stands after `told`; what it leaves out stays. Raises Conflict for a closed incident, Malformed for nothing
    told, a time before anybody knew or one in the future."""
    if state is not IncidentState.OPEN:
        raise Conflict("The incident is closed.", "Open another one.")
    if told == Settled():
        raise Malformed("Nothing was told.", "Give --authority or --individuals.")
    for value in (told.authority, told.individuals):
        if value in (None, "not-required"):
            continue
        if not moment(aware_at) <= moment(str(value)) <= now + CLOCK_SKEW:
            raise Malformed("That time is before anybody knew, or in the future.", "Give it as it was, in UTC.")
    return Settled(authority=told.authority or before.authority, individuals=told.individuals or before.individuals)


def admit_closing(
    closing: Closing, said: Sequence[Closing], *, state: IncidentState, reporter: str | None, settled: Settled
) -> None:
    """Raises Conflict or Refused unless this person may say now that it is over.

    reporter: the person who opened it; None where a site did. `said`: what others said of the same facts.
    """
    if state is not IncidentState.OPEN:
        raise Conflict("The incident is closed already.", "Nothing has to be done again.")
    if closing.role not in CLOSING_ROLES:
        raise Refused(
            f"The role {closing.role.value} does not close incidents.",
            "A compliance officer closes it, with a clinical lead or an administrator.",
        )
    if closing.person == reporter:
        raise Refused("Whoever opened an incident does not close it.", "Ask two other people.")
    if not settled.complete:
        raise Refused(
            "It is not on record yet that the authority and those concerned were told, or need not be.",
            "Say so with `cloister incident update`, then close it.",
        )
    if any(other.person == closing.person for other in said):
        raise Conflict("This person has said so already.", "A second, other person has to.")
    if any(other.outcome != closing.outcome for other in said):
        raise Refused("The other person said another outcome.", "Agree on one; an update lets both say it anew.")


def closed_by(said: Sequence[Closing], *, facts: str) -> bool:
    """Whether two people in two roles, one of them a compliance officer, said so of these very facts."""
    valid = [closing for closing in said if closing.facts == facts]
    roles = {closing.role for closing in valid}
    return len({closing.person for closing in valid}) >= 2 and len(roles) >= 2 and Role.COMPLIANCE_OFFICER in roles
