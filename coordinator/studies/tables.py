"""Rows of studies and of the sites' answers. Words that people wrote stand in the signed proposal only."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field

from coordinator.database import Table


class Study(Table, table=True):
    """A proposal and what became of it.

    proposal, plan: signed envelopes, as bytes; no plan where policy denied. decision: the gate's decision (JSON).
    forecast: JSON list of [steps, epsilon], rising, for the spend so far. state: studies.states.StudyState.
    """

    __tablename__ = "study"

    id: str = Field(primary_key=True)
    title: str
    submitter: str = Field(index=True)
    state: str = Field(index=True)
    reason: str | None = None
    detail: str | None = None
    proposal: bytes = Field(sa_type=LargeBinary)
    proposal_digest: str
    plan: bytes | None = Field(default=None, sa_type=LargeBinary)
    plan_digest: str | None = Field(default=None, index=True)
    decision: str
    forecast: str = "[]"
    proposed_at: str = Field(index=True)
    started_at: str | None = None
    ended_at: str | None = None


class DeniedProposal(Table, table=True):
    """A proposal that policy denied: kept, and its name stays free for a corrected one."""

    __tablename__ = "denied_proposal"

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    submitter: str
    proposal: bytes = Field(sa_type=LargeBinary)
    proposal_digest: str
    decision: str
    proposed_at: str = Field(index=True)


class StudyConsent(Table, table=True):
    """A site's latest answer to a study's plan. consent: the signed envelope."""

    __tablename__ = "study_consent"

    study: str = Field(primary_key=True, foreign_key="study.id")
    site: str = Field(primary_key=True)
    decision: str
    reason: str
    plan_digest: str
    consent: bytes = Field(sa_type=LargeBinary)
    at: str


class StudyExclusion(Table, table=True):
    """A site that one person asks to have shut out of a running study, and that is once another has confirmed it. The
    reason stands in the log's erasable payload."""

    __tablename__ = "study_exclusion"

    study: str = Field(primary_key=True, foreign_key="study.id")
    site: str = Field(primary_key=True)
    asked_by: str
    asked_role: str
    asked_at: str
    confirmed_by: str | None = None
    confirmed_role: str | None = None
    confirmed_at: str | None = None


class PlanApprovalRecord(Table, table=True):
    """One person's signed decision on a plan that policy holds."""

    __tablename__ = "plan_approval"

    study: str = Field(primary_key=True, foreign_key="study.id")
    person: str = Field(primary_key=True)
    role: str
    decision: str
    envelope: bytes = Field(sa_type=LargeBinary)
    signed_at: str
