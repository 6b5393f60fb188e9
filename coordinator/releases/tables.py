"""What the coordinator keeps of a release: its files, its documents and the decisions on it."""

from __future__ import annotations

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field

from coordinator.database import Table


class Release(Table, table=True):
    """One release. subject, statement, event: canonical JSON (bytes); proof: the C2SP tlog proof once cosigned.

    state: releases.states.ReleaseState. entry: the log entry of release.sealed. review_until: when the review expires.
    """

    __tablename__ = "release"

    id: str = Field(primary_key=True)
    study: str = Field(index=True)
    state: str
    submitter: str
    subject: bytes = Field(sa_type=LargeBinary)
    subject_digest: str
    plan: bytes = Field(sa_type=LargeBinary)
    decision_digest: str | None = None
    statement: bytes | None = Field(default=None, sa_type=LargeBinary)
    event: bytes | None = Field(default=None, sa_type=LargeBinary)
    entry: int | None = None
    proof: bytes | None = Field(default=None, sa_type=LargeBinary)
    created_at: str
    review_until: str | None = None


class ReleaseFile(Table, table=True):
    """One model file of a release; sealed by the subject's digest, never changed."""

    __tablename__ = "release_file"

    release: str = Field(primary_key=True, foreign_key="release.id")
    name: str = Field(primary_key=True)
    content: bytes = Field(sa_type=LargeBinary)


class ReleaseChallenge(Table, table=True):
    """A nonce that one person may sign once, within a time limit, for one decision on one digest."""

    __tablename__ = "release_challenge"

    nonce: str = Field(primary_key=True)
    release: str = Field(foreign_key="release.id", index=True)
    person: str
    subject_digest: str
    expires_at: str
    used_at: str | None = None


class ReleaseVote(Table, table=True):
    """One decision, with the envelope that the person's own key signed. reason: erasable words."""

    __tablename__ = "release_vote"
    __table_args__ = (UniqueConstraint("release", "person"),)

    id: int | None = Field(default=None, primary_key=True)
    release: str = Field(foreign_key="release.id", index=True)
    person: str
    role: str
    subject_digest: str
    approve: bool
    reason: str | None = None
    envelope: bytes = Field(sa_type=LargeBinary)
    decided_at: str


class ReleaseWaiverRecord(Table, table=True):
    """One rule that an approver answers for, with the envelope that they signed. reason: erasable words."""

    __tablename__ = "release_waiver"

    release: str = Field(primary_key=True, foreign_key="release.id")
    pack: str = Field(primary_key=True)
    rule: str = Field(primary_key=True)
    person: str
    role: str
    reason: str | None = None
    expires_at: str
    envelope: bytes = Field(sa_type=LargeBinary)
    granted_at: str


class ReleaseVetoRecord(Table, table=True):
    """A site's signed veto."""

    __tablename__ = "release_veto"

    release: str = Field(primary_key=True, foreign_key="release.id")
    site: str = Field(primary_key=True)
    reason: str
    envelope: bytes = Field(sa_type=LargeBinary)
    vetoed_at: str


class BrokenGlass(Table, table=True):
    """Somebody suspended a release in an emergency, outside their role; somebody else has to look at it afterwards."""

    __tablename__ = "broken_glass"

    release: str = Field(primary_key=True, foreign_key="release.id")
    person: str
    role: str
    reason: str | None = None
    broken_at: str
    reviewed_by: str | None = None
    review: str | None = None
    reviewed_at: str | None = None


class ReleaseInstallation(Table, table=True):
    """A site said that it verified and installed the release."""

    __tablename__ = "release_installation"

    release: str = Field(primary_key=True, foreign_key="release.id")
    site: str = Field(primary_key=True)
    installed_at: str


class ServingChange(Table, table=True):
    """What a site told of serving the release: one signed protocol.serving.ServingReport. entry: where the log tells
    it, and so the order in which it came."""

    __tablename__ = "serving_change"

    id: str = Field(primary_key=True)
    release: str = Field(foreign_key="release.id", index=True)
    site: str
    change: str
    server: str | None = None
    told_at: str
    entry: int
    envelope: bytes = Field(sa_type=LargeBinary)
