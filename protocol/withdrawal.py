"""Patients who take their consent back, object, or ask for erasure: what a site tells of it, and how a review of a
model that they are in may end. No count and no patient stands in any of it: one may be one person. Pure.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints

from protocol.identifiers import Digest, Frozen, SiteName, StudyId, Timestamp

WITHDRAWAL_NOTICE_TYPE = "application/vnd.cloister.withdrawal-notice+json"

Ground = Literal["consent-withdrawn", "objection", "erasure", "authorization-revoked"]
"""GDPR Art. 7(3), 21(1), 17(1); 45 CFR 164.508(b)(5)."""
GROUNDS: tuple[Ground, ...] = get_args(Ground)

ReviewGround = Literal[
    "art-17-3-b", "art-17-3-c", "art-17-3-d", "art-17-3-e", "art-21-6", "reliance", "model-withdrawn", "trained-again"
]
"""Why a model may stay, or that it does not. GDPR Art. 17(3): (b) a legal obligation, (c) public health, (d) research
that erasure would seriously impair, (e) legal claims; Art. 21(6): a task in the public interest; 45 CFR
164.508(b)(5)(i): action taken in reliance on the authorization."""
REVIEW_GROUNDS: tuple[ReviewGround, ...] = get_args(ReviewGround)

ReviewId = Annotated[str, StringConstraints(pattern=r"^review-[0-9a-f]{16}$")]


class WithdrawalNotice(Frozen):
    """Signed by the site key: patients whose contributions are in this study's sums are left out from now on."""

    review: ReviewId
    site: SiteName
    study: StudyId
    plan_digest: Digest
    grounds: Annotated[tuple[Ground, ...], Field(min_length=1, max_length=len(GROUNDS))]
    made_at: Timestamp
