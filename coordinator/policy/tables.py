"""Rows of policy sets, the documents that they name, who decided on them, and what was decided by them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary
from sqlmodel import Field

from coordinator.database import Table

_BIG = BigInteger().with_variant(Integer(), "sqlite")


class PolicySetRow(Table, table=True):
    """A set. policy: the digest of what decides in it. envelope: its signed
    document. activation: the coordinator's signed statement that it came into force. state: policy.states.SetState.
    proposer_key: under which the envelope was signed."""

    __tablename__ = "policy_set"

    digest: str = Field(primary_key=True)
    policy: str = Field(index=True)
    number: int = Field(index=True)
    state: str = Field(index=True)
    proposer: str | None = None
    proposer_key: str
    envelope: bytes = Field(sa_type=LargeBinary)
    proposed_at: str
    activation: bytes | None = Field(default=None, sa_type=LargeBinary)
    activated_at: str | None = None


class PolicyDocument(Table, table=True):
    """A document's bytes under their digest."""

    __tablename__ = "policy_document"

    digest: str = Field(primary_key=True)
    content: bytes = Field(sa_type=LargeBinary)


class PolicyVoteRow(Table, table=True):
    """One person's signed decision on a set. The reason stands in the log's erasable payload."""

    __tablename__ = "policy_vote"

    set_digest: str = Field(primary_key=True, foreign_key="policy_set.digest")
    person: str = Field(primary_key=True)
    role: str
    key: str
    registered_at: str
    activate: bool
    envelope: bytes = Field(sa_type=LargeBinary)
    decided_at: str


class PolicyDecision(Table, table=True):
    """Where the log tells of a gate's decision. Its facts are the entry's payload, and erased with it."""

    __tablename__ = "policy_decision"

    entry: int = Field(sa_column=Column(_BIG, ForeignKey("log_entry.id"), primary_key=True, autoincrement=False))
    gate: str = Field(index=True)
    subject: str = Field(index=True)
    policy: str
    outcome: str
    at: str
