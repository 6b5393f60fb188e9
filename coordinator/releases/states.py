"""The states of a release and who may move it: pure decisions.

draft -> in_review -> approved | rejected -> sealing -> released -> suspended. Two people in two roles approve, neither
of them the submitter; one rejection ends it; an approval counts for one digest only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.release import APPROVING_ROLES, REQUIRED_APPROVALS


class ReleaseState(StrEnum):
    """Where a release stands."""

    DRAFT = "draft"
    IN_REVIEW = "in_review"
    APPROVED = "approved"
    REJECTED = "rejected"
    SEALING = "sealing"
    RELEASED = "released"
    SUSPENDED = "suspended"


_MOVES: dict[ReleaseState, frozenset[ReleaseState]] = {
    ReleaseState.DRAFT: frozenset({ReleaseState.IN_REVIEW}),
    ReleaseState.IN_REVIEW: frozenset({ReleaseState.APPROVED, ReleaseState.REJECTED}),
    ReleaseState.APPROVED: frozenset({ReleaseState.SEALING, ReleaseState.REJECTED}),
    ReleaseState.REJECTED: frozenset(),
    ReleaseState.SEALING: frozenset({ReleaseState.RELEASED}),
    ReleaseState.RELEASED: frozenset({ReleaseState.SUSPENDED}),
    ReleaseState.SUSPENDED: frozenset(),
}


@dataclass(frozen=True)
class Vote:
    """One verified decision: by whom, in which role, over which digest."""

    person: str
    role: Role
    subject_digest: str
    approve: bool


def move(current: ReleaseState, wanted: ReleaseState) -> ReleaseState:
    """`wanted` if the table allows it, else Refused naming both states."""
    if wanted not in _MOVES[current]:
        raise Refused(
            f"A release that is {current.value.replace('_', ' ')} cannot become {wanted.value.replace('_', ' ')}.",
            "See `cloister release show` for its state and what comes next.",
        )
    return wanted


def admit(vote: Vote, cast: Sequence[Vote], *, state: ReleaseState, submitter: str, digest: str) -> None:
    """Raises Refused unless this vote may be cast now."""
    if state is not ReleaseState.IN_REVIEW:
        raise Refused(
            f"The release is {state.value.replace('_', ' ')}: nothing is to be approved now.",
            "A release is approved while it is in review.",
        )
    if vote.subject_digest != digest:
        raise Refused(
            "The signature is over another digest than this release's.",
            "Read the release again with `cloister release show` and sign what it shows now.",
        )
    if vote.role not in APPROVING_ROLES:
        raise Refused(
            f"The role {vote.role.value} does not approve releases.",
            "A compliance officer and a clinical lead approve.",
        )
    if vote.person == submitter:
        raise Refused("The submitter cannot approve their own release.", "Ask two other people to review it.")
    if any(earlier.person == vote.person for earlier in cast):
        raise Refused("This person has already decided on this release.", "A second, other person has to decide.")
    if any(earlier.role == vote.role for earlier in cast):
        raise Refused(
            f"Somebody in the role {vote.role.value} has already decided.",
            "The second decision comes from the other role.",
        )


def outcome(cast: Sequence[Vote], *, digest: str, submitter: str) -> ReleaseState:
    """The state that the votes amount to: two approvals by two people in two roles, or one rejection."""
    valid = [vote for vote in cast if vote.subject_digest == digest and vote.person != submitter]
    if any(not vote.approve for vote in valid):
        return ReleaseState.REJECTED
    approving = [vote for vote in valid if vote.approve and vote.role in APPROVING_ROLES]
    people = {vote.person for vote in approving}
    roles = {vote.role for vote in approving}
    if len(people) >= REQUIRED_APPROVALS and len(roles) >= REQUIRED_APPROVALS:
        return ReleaseState.APPROVED
    return ReleaseState.IN_REVIEW
