"""Who may change the policy that is in force: pure decisions.

proposed -> active -> superseded, or proposed -> rejected | stale. Two people in two roles activate a set, neither of
them its proposer; one rejection ends it; a set whose predecessor is no longer in force can't be activated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.policy_set import ACTIVATING_ROLES, PROPOSING_ROLES, REQUIRED_VOTES


class SetState(StrEnum):
    """Where a set stands. stale: another one came into force while it waited."""

    PROPOSED = "proposed"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    STALE = "stale"


class PolicyRefused(Refused):
    """This person may not decide on this set, or not now."""

    code = "policy-refused"


@dataclass(frozen=True)
class Vote:
    """One verified decision on a set: by whom, in which role, under which key, registered when (RFC 3339)."""

    person: str
    role: Role
    key: str
    registered_at: str
    set_digest: str
    activate: bool


@dataclass(frozen=True)
class Proposal:
    """What is voted on: its digest, its proposer and the proposer's key, when it was proposed, what it replaces."""

    set_digest: str
    proposer: str
    proposer_key: str
    proposed_at: str
    previous: str | None


def admit_proposal(role: Role) -> None:
    """Raises PolicyRefused unless somebody in this role proposes policy."""
    if role not in PROPOSING_ROLES:
        raise PolicyRefused(
            f"The role {role.value} does not propose policy.",
            "Ask a compliance officer, a clinical lead or an administrator.",
        )


def admit(vote: Vote, cast: Sequence[Vote], proposal: Proposal, *, state: SetState, active: str | None) -> None:
    """Raises PolicyRefused unless this vote may be cast now. active: the digest of the set that is in force."""
    if state is not SetState.PROPOSED:
        raise PolicyRefused(
            f"The set is {state.value}: nothing is to be decided about it.", "See `cloister policy list`."
        )
    if vote.set_digest != proposal.set_digest:
        raise PolicyRefused(
            "The signature is over another set than this one.", "Read the set again and sign what it shows now."
        )
    if vote.activate and proposal.previous != active:
        raise PolicyRefused(
            "Another set came into force since this one was proposed.", "Propose it again, over the set in force."
        )
    if vote.role not in ACTIVATING_ROLES:
        raise PolicyRefused(
            f"The role {vote.role.value} does not activate policy.",
            "A compliance officer and a clinical lead activate a set.",
        )
    if vote.person == proposal.proposer or vote.key == proposal.proposer_key:
        raise PolicyRefused("Who proposed a set does not decide on it.", "Ask two other people.")
    if vote.registered_at >= proposal.proposed_at:
        raise PolicyRefused(
            f"{vote.person} registered after the set was proposed.",
            "Nobody is added in order to decide on a set: propose it again, if it is to be decided by new people.",
        )
    if any(earlier.person == vote.person or earlier.key == vote.key for earlier in cast):
        raise PolicyRefused("This person has already decided on this set.", "A second, other person has to decide.")
    if any(earlier.role == vote.role for earlier in cast):
        raise PolicyRefused(
            f"Somebody in the role {vote.role.value} has already decided.",
            "The second decision comes from the other role.",
        )


def outcome(cast: Sequence[Vote], proposal: Proposal) -> SetState:
    """What the votes amount to: two people in two roles and with two keys, neither the proposer's; or one rejection."""
    valid = [
        vote
        for vote in cast
        if vote.set_digest == proposal.set_digest
        and vote.person != proposal.proposer
        and vote.key != proposal.proposer_key
        and vote.registered_at < proposal.proposed_at
        and vote.role in ACTIVATING_ROLES
    ]
    if any(not vote.activate for vote in valid):
        return SetState.REJECTED
    distinct = ({vote.person for vote in valid}, {vote.role for vote in valid}, {vote.key for vote in valid})
    if all(len(members) >= REQUIRED_VOTES for members in distinct):
        return SetState.ACTIVE
    return SetState.PROPOSED
