"""The life of a review, as pure decisions: open -> closed, by a compliance officer, with a ground that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from coordinator.errors import Conflict
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.withdrawal import Ground, ReviewGround

MAX_WORDS = 2000
_ERASURE: frozenset[ReviewGround] = frozenset({"art-17-3-b", "art-17-3-c", "art-17-3-d", "art-17-3-e"})
NOT_SERVED: frozenset[ReviewGround] = frozenset({"model-withdrawn", "trained-again"})
"""Grounds that say that this model is served no more."""
FITS: Mapping[Ground, frozenset[ReviewGround]] = {
    "consent-withdrawn": _ERASURE | NOT_SERVED,
    "erasure": _ERASURE | NOT_SERVED,
    "objection": _ERASURE | NOT_SERVED | {"art-21-6"},
    "authorization-revoked": NOT_SERVED | {"reliance"},
}
"""What answers what: GDPR Art. 17(3) an erasure, for whatever reason it is owed; Art. 21(6) an objection; 45 CFR
164.508(b)(5)(i) a revoked authorization."""


class ReviewState(StrEnum):
    """Where a review stands. While it is open its model is neither released nor served."""

    OPEN = "open"
    CLOSED = "closed"


def decide_closing(
    *,
    state: ReviewState,
    role: Role,
    person: str,
    submitter: str,
    causes: Sequence[Ground],
    grounds: Sequence[ReviewGround],
    words: str,
    served: bool,
) -> None:
    """Whether this person may close a review for these grounds. served: a release of the model is out.

    Raises Conflict for a closed one, Refused for another role, the study's submitter, or a model that is said to be
    withdrawn and is not, Malformed for a cause that no ground answers, a ground that answers none, and missing words.
    """
    if state is not ReviewState.OPEN:
        raise Conflict("The review is closed already.", "Nothing has to be done again.")
    if role is not Role.COMPLIANCE_OFFICER:
        raise Refused(f"The role {role.value} does not decide reviews.", "Ask a compliance officer.")
    if person == submitter:
        raise Refused("Who submitted the study does not decide about its model.", "Ask another compliance officer.")
    if not 1 <= len(words.strip()) <= MAX_WORDS:
        raise Malformed("The reason is missing or too long.", "Give --reason in up to 2000 characters.")
    for cause in causes:
        if not FITS[cause] & set(grounds):
            raise Malformed(
                f"No ground answers that patients' {cause.replace('-', ' ')}.",
                f"Give --ground: one of {', '.join(sorted(FITS[cause]))}.",
            )
    for ground in grounds:
        if not any(ground in FITS[cause] for cause in causes):
            raise Malformed(f"{ground} answers nothing of this review.", "Leave it out.")
    if served and set(grounds) & NOT_SERVED:
        raise Refused(
            "A release of this model is out, so it is not withdrawn.",
            "Suspend it first with `cloister release suspend`.",
        )
