"""The states of a release and who may move it: pure decisions.

draft -> checking -> in_review -> approved | rejected -> sealing -> released -> suspended | revoked; failed where the
files are not what the candidate gives, expired where review took too long. The study's review policy says who must
approve; none is the submitter; one rejection or one site's veto ends it; an approval counts for one digest only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.release import MOST_WAIVER_DAYS
from protocol.review import APPROVING_ROLES, Reviewer, ReviewPolicy, shortfall
from protocol.timestamp import moment


class ReleaseState(StrEnum):
    """Where a release stands."""

    DRAFT = "draft"
    CHECKING = "checking"
    IN_REVIEW = "in_review"
    APPROVED = "approved"
    REJECTED = "rejected"
    FAILED = "failed"
    EXPIRED = "expired"
    SEALING = "sealing"
    RELEASED = "released"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


_MOVES: dict[ReleaseState, frozenset[ReleaseState]] = {
    ReleaseState.DRAFT: frozenset({ReleaseState.CHECKING}),
    ReleaseState.CHECKING: frozenset({ReleaseState.IN_REVIEW, ReleaseState.FAILED, ReleaseState.REJECTED}),
    ReleaseState.IN_REVIEW: frozenset(
        {ReleaseState.APPROVED, ReleaseState.REJECTED, ReleaseState.EXPIRED, ReleaseState.FAILED}
    ),
    ReleaseState.APPROVED: frozenset(
        {ReleaseState.SEALING, ReleaseState.REJECTED, ReleaseState.EXPIRED, ReleaseState.FAILED}
    ),
    ReleaseState.REJECTED: frozenset(),
    ReleaseState.FAILED: frozenset(),
    ReleaseState.EXPIRED: frozenset(),
    ReleaseState.SEALING: frozenset({ReleaseState.RELEASED, ReleaseState.SUSPENDED, ReleaseState.REVOKED}),
    ReleaseState.RELEASED: frozenset({ReleaseState.SUSPENDED, ReleaseState.REVOKED}),
    ReleaseState.SUSPENDED: frozenset({ReleaseState.REVOKED}),
    ReleaseState.REVOKED: frozenset(),
}
OPEN = frozenset({ReleaseState.CHECKING, ReleaseState.IN_REVIEW, ReleaseState.APPROVED})
"""Submitted, and nothing is sealed yet: a site can veto, and the time for review runs."""
OVER = frozenset({ReleaseState.REJECTED, ReleaseState.FAILED, ReleaseState.EXPIRED, ReleaseState.REVOKED})
"""Nothing comes of it any more: the study may have another release."""
BREAK_GLASS = frozenset({ReleaseState.SUSPENDED})
"""All that breaking the glass can do: it stops a model, and never lets one out."""


@dataclass(frozen=True)
class Vote:
    """One verified decision: by whom, in which role, from which organisation, over which digest."""

    person: str
    role: Role
    subject_digest: str
    approve: bool
    organisation: str | None = None


def words(state: ReleaseState) -> str:
    """The state as people read it."""
    return state.value.replace("_", " ")


def move(current: ReleaseState, wanted: ReleaseState) -> ReleaseState:
    """`wanted` if the table allows it, else Refused naming both states."""
    if wanted not in _MOVES[current]:
        raise Refused(
            f"A release that is {words(current)} cannot become {words(wanted)}.",
            "See `cloister release show` for its state and what comes next.",
        )
    return wanted


def break_glass(current: ReleaseState, wanted: ReleaseState) -> ReleaseState:
    """`wanted` if an emergency may bring it about. Raises Refused for all but suspending."""
    if wanted not in BREAK_GLASS:
        raise Refused(
            f"Breaking the glass cannot make a release {words(wanted)}.",
            "It suspends. A release comes out by review, approvals and sealing, and in no other way.",
        )
    return move(current, wanted)


def overdue(state: ReleaseState, review_until: str | None, *, now: datetime) -> bool:
    """Whether the time for review ran out before the release was sealed."""
    return state in OPEN and review_until is not None and now >= moment(review_until)


def admit(
    vote: Vote, cast: Sequence[Vote], *, state: ReleaseState, submitter: str, digest: str, policy: ReviewPolicy
) -> None:
    """Raises Refused unless this vote may be cast now."""
    if state is not ReleaseState.IN_REVIEW:
        raise Refused(
            f"The release is {words(state)}: nothing is to be approved now.",
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
    # With two people to decide, a second one in a role could only be in the other role's place.
    one_each = (policy.reviewers, policy.organisations) == (len(APPROVING_ROLES), 1)
    if one_each and any(earlier.role == vote.role for earlier in cast):
        raise Refused(
            f"Somebody in the role {vote.role.value} has already decided.",
            "The second decision comes from the other role.",
        )


def outcome(cast: Sequence[Vote], *, digest: str, submitter: str, policy: ReviewPolicy) -> ReleaseState:
    """The state that the votes amount to: as many approvals as the policy asks for, or one rejection."""
    valid = [vote for vote in cast if vote.subject_digest == digest and vote.person != submitter]
    if any(not vote.approve for vote in valid):
        return ReleaseState.REJECTED
    approving = [Reviewer(vote.person, vote.role, vote.organisation) for vote in valid if vote.approve]
    return ReleaseState.IN_REVIEW if shortfall(policy, approving) else ReleaseState.APPROVED


def admit_veto(state: ReleaseState) -> None:
    """Raises Refused unless a site's veto still stops the release."""
    if state not in OPEN:
        raise Refused(
            f"The release is {words(state)}: a veto comes before it is sealed.",
            "This site installs it no more. Ask an approver to suspend it for the others, or break the glass.",
        )


def admit_waiver(
    role: Role, person: str, *, state: ReleaseState, submitter: str, votes: int, expires_at: str, now: datetime
) -> None:
    """Raises Refused unless a rule may be waived now: by an approver who is not the submitter, before anybody has
    decided (what is decided on must not change behind them), for at most 90 days."""
    if role not in APPROVING_ROLES or person == submitter:
        raise Refused("The submitter, or this role, does not waive rules.", "Ask a planned approver of the study.")
    if state not in (ReleaseState.DRAFT, ReleaseState.IN_REVIEW):
        raise Refused(f"The release is {words(state)}: no rule is to be waived now.", "Waive it while it is in review.")
    if votes:
        raise Refused(
            "Somebody has decided on this release already: what they saw must not change.",
            "Have it rejected, draft it again and waive the rule before anybody decides.",
        )
    if not now < moment(expires_at) <= now + timedelta(days=MOST_WAIVER_DAYS):
        raise Refused(
            "The waiver's end is past, or too far away.", f"Choose a date within the next {MOST_WAIVER_DAYS} days."
        )
