"""What the site has answered to the plans it was shown."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class StudyGrant(SQLModel, table=True):
    """The answer to one plan. A changed plan has another digest, hence no answer yet.

    state: consent.states.Answer. plan, consent: the signed envelopes, as bytes. decision: the site's own decision as
    JSON; evidence: what was attached to lift a hold, by rule, as JSON (both stay at the site). delivered: whether the
    coordinator has acknowledged the consent.
    """

    __tablename__ = "study_grant"

    plan_digest: str = Field(primary_key=True)
    study: str = Field(index=True)
    spec_digest: str
    snapshot: str
    state: str
    plan: bytes = Field(sa_type=LargeBinary)
    consent: bytes = Field(sa_type=LargeBinary)
    decision: str
    evidence: str
    decided_at: str = Field(index=True)
    delivered: bool = False
