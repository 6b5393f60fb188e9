"""The site's ledger, the attempts it has answered, and the secrets of running studies. No patient is in here."""

from __future__ import annotations

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel


class CohortCharge(SQLModel, table=True):
    """What one phase of a study may spend, and has begun to spend, of one snapshot's training or held-out patients.

    phase: or several, joined by "+", that share the charge. epsilon, delta: for all `steps_allowed` steps; they count
    in full from the first step on. exact: the declared exception, outside the guarantee, with epsilon 0. released:
    given back before any step was charged.
    """

    __tablename__ = "cohort_charge"
    __table_args__ = (UniqueConstraint("plan_digest", "phase", "held_out"),)

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    plan_digest: str = Field(index=True)
    snapshot: str = Field(index=True)
    phase: str
    held_out: bool
    epsilon: float
    delta: float
    steps_allowed: int
    steps_charged: int = 0
    exact: bool = False
    released: bool = False
    reserved_at: str


class LedgerGeneration(SQLModel, table=True):
    """How often the ledger was changed (row 1); site_agent.training.generation keeps the same count in a file."""

    __tablename__ = "ledger_generation"

    id: int = Field(default=1, primary_key=True)
    generation: int


class ForgottenCharge(SQLModel, table=True):
    """What a database that was put back had forgotten, as acknowledged: charged to every patient of the group."""

    __tablename__ = "forgotten_charge"

    id: int | None = Field(default=None, primary_key=True)
    held_out: bool
    epsilon: float
    delta: float
    acknowledged_at: str


class ConsumedAttempt(SQLModel, table=True):
    """One attempt that was charged. packet: the signed answer; None until it is computed, and for ever after a crash
    in between: fresh noise under a used mask would reveal a difference, so it is never computed again. model: digest of
    the parameters that were asked about. position: the round's place in the plan."""

    __tablename__ = "consumed_attempt"
    __table_args__ = (UniqueConstraint("study", "phase", "round", "attempt"),)

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    plan_digest: str
    phase: str
    round: int
    attempt: int
    position: int
    request_digest: str
    model: str | None = None
    packet: bytes | None = Field(default=None, sa_type=LargeBinary)
    consumed_at: str


class StoredVector(SQLModel, table=True):
    """The masked vector of a consumed attempt whose packet announces it; written and read in pieces, never as a row."""

    __tablename__ = "stored_vector"

    attempt: int = Field(primary_key=True, foreign_key="consumed_attempt.id")
    vector: bytes = Field(sa_type=LargeBinary)


class SecureSumKeys(SQLModel, table=True):
    """The state of the secure aggregation of one study: pair secrets, erased as rounds pass, encrypted under a key that
    is not in the database."""

    __tablename__ = "secure_sum_keys"

    study: str = Field(primary_key=True)
    plan_digest: str
    state: bytes = Field(sa_type=LargeBinary)


class KeyStepReply(SQLModel, table=True):
    """The answer to one set-up step of a study's keys, resent byte for byte to the same request."""

    __tablename__ = "key_step_reply"

    study: str = Field(primary_key=True)
    step: str = Field(primary_key=True)
    request_digest: str
    packet: bytes = Field(sa_type=LargeBinary)


class RoundDecision(SQLModel, table=True):
    """What the site's own round gate decided about one attempt: kept for ever, never sent.

    outcome: policies.findings.Outcome. rules, facts_digest: of the packs and parameters, and (salted) of the facts that
    it was taken by; empty where they could not be read. document: the whole decision with its facts and salt, as JSON;
    empty where it says the same, but for the numbers, as the newest row of the plan that has one.
    """

    __tablename__ = "round_decision"

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    plan_digest: str = Field(index=True)
    phase: str
    round: int
    attempt: int
    outcome: str
    rules: str
    facts_digest: str
    document: str = ""
    at: str


class SelfTestRecord(SQLModel, table=True):
    """What the self-test found of one engine at this site: synthetic figures only. checks: JSON."""

    __tablename__ = "self_test"

    engine: str = Field(primary_key=True)
    version: str
    passed: bool
    checks: str
    at: str


class RefusalRecord(SQLModel, table=True):
    """A request that this site did not answer: closed codes and numbers only."""

    __tablename__ = "refusal_record"

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    phase: str
    round: int
    attempt: int
    code: str
    at: str = Field(index=True)
