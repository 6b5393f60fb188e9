"""Who must have approved a release: the policy that a study carries, so that sites consent to it and check it again
when they install. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from protocol.identifiers import Frozen, Role

APPROVING_ROLES = frozenset({Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD})
"""Each of these has to approve; nobody in another role can."""
MOST_REVIEWERS = 10


class ReviewPolicy(Frozen):
    """At least `reviewers` people, one in each approving role, from at least `organisations` organisations, within
    `days` days of the release's submission. Two people in two roles are the least that can be asked."""

    reviewers: Annotated[int, Field(ge=2, le=MOST_REVIEWERS)] = 2
    organisations: Annotated[int, Field(ge=1, le=MOST_REVIEWERS)] = 1
    days: Annotated[int, Field(ge=1, le=365)] = 30

    @model_validator(mode="after")
    def _possible(self) -> ReviewPolicy:
        if self.organisations > self.reviewers:
            raise ValueError("review.organisations is larger than review.reviewers")
        return self


@dataclass(frozen=True)
class Reviewer:
    """Somebody who approved, or could. organisation: whom they work for; None: not on record."""

    person: str
    role: Role
    organisation: str | None = None


def shortfall(policy: ReviewPolicy, reviewers: Iterable[Reviewer]) -> str | None:
    """What these people lack to satisfy the policy, in words; None where they do."""
    counted = {reviewer for reviewer in reviewers if reviewer.role in APPROVING_ROLES}
    people = {reviewer.person for reviewer in counted}
    if len(people) != len(counted):
        return "somebody in two roles"
    if missing := sorted(APPROVING_ROLES - {reviewer.role for reviewer in counted}):
        return "nobody in the role " + " or ".join(role.value.replace("_", " ") for role in missing)
    if len(people) < policy.reviewers:
        return f"{len(people)} of {policy.reviewers} people"
    known = {reviewer.organisation for reviewer in counted if reviewer.organisation is not None}
    if policy.organisations > 1 and len(known) < policy.organisations:
        return f"{len(known)} of {policy.organisations} organisations"
    return None
