"""Rows of the rounds. Nothing of one site's values is in here: a masked vector is summed and forgotten."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field

from coordinator.database import Table


class KeySetup(Table, table=True):
    """The key set-up of a study: its cohort is fixed before the first request, for sites make keys once per study."""

    __tablename__ = "key_setup"

    study: str = Field(primary_key=True, foreign_key="study.id")
    cohort: str
    joined: str = "[]"
    transcript: str | None = None
    established_at: str | None = None


class RoundAttempt(Table, table=True):
    """One attempt, recorded before it is sent. request: the signed envelope, resent byte for byte; the model that
    goes with it is `model_state`'s, whose digest the request names. Lists are JSON."""

    __tablename__ = "round_attempt"

    study: str = Field(primary_key=True, foreign_key="study.id")
    phase: str = Field(primary_key=True)
    round: int = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    sequence: int = Field(index=True)
    status: str
    cohort: str
    contributed: str = "[]"
    excluded: str = "{}"
    request: bytes = Field(sa_type=LargeBinary)
    model_digest: str
    issued_at: str
    closed_at: str | None = None


class StudyRound(Table, table=True):
    """A committed round: who was invited to its first attempt, who contributed, who was left out and why.

    norm: L2 norm of the noisy mean of gradients; None for an evaluation, whose counts may be exact and belong in no
    log. model_digest: the model that came out. epsilon: spent so far. seconds: from the first attempt to the commit.
    """

    __tablename__ = "study_round"

    study: str = Field(primary_key=True, foreign_key="study.id")
    phase: str = Field(primary_key=True)
    round: int = Field(primary_key=True)
    attempts: int
    invited: str
    contributed: str
    excluded: str
    norm: float | None
    model_digest: str
    epsilon: float
    seconds: float
    committed_at: str


class ModelState(Table, table=True):
    """The model after the last committed round; vectors are float64, little-endian. second: of a server rule.

    rounds: of this run. run, entry: of a tuned study.
    """

    __tablename__ = "model_state"

    study: str = Field(primary_key=True, foreign_key="study.id")
    rounds: int
    weights: bytes = Field(sa_type=LargeBinary)
    velocity: bytes = Field(sa_type=LargeBinary)
    average: bytes = Field(sa_type=LargeBinary)
    averaged: int
    second: bytes | None = Field(default=None, sa_type=LargeBinary)
    run: int = 1
    entry: int = 0
    digest: str


class NoisedSum(Table, table=True):
    """The sum of one committed round of an exploration, noised as the plan has it. total: float64, little-endian. The
    centres of the next round follow from these sums and the plan alone."""

    __tablename__ = "noised_sum"

    study: str = Field(primary_key=True, foreign_key="study.id")
    phase: str = Field(primary_key=True)
    round: int = Field(primary_key=True)
    contributed: str
    total: bytes = Field(sa_type=LargeBinary)


class ExplorationRecord(Table, table=True):
    """What an exploration found: a `protocol.exploration.ExplorationResult` as canonical JSON, and its digest."""

    __tablename__ = "exploration"

    study: str = Field(primary_key=True, foreign_key="study.id")
    result: str
    result_digest: str
    completed_at: str


class TunedRun(Table, table=True):
    """One run of a tuned study, once it is scored. weights: what was scored. report: what its histogram said (JSON)."""

    __tablename__ = "tuned_run"

    study: str = Field(primary_key=True, foreign_key="study.id")
    run: int = Field(primary_key=True)
    entry: int
    weights: bytes = Field(sa_type=LargeBinary)
    report: str


class ModelCheck(Table, table=True):
    """A check between rounds. value, low, high: the headline score with its interval, from the noised histogram. fell:
    whether the model was given up; a model that was kept is stored as ModelState has it. rounds: of training so far;
    undone: those given up here."""

    __tablename__ = "model_check"

    study: str = Field(primary_key=True, foreign_key="study.id")
    round: int = Field(primary_key=True)
    rounds: int
    undone: int
    value: float | None
    low: float | None
    high: float | None
    fell: bool
    weights: bytes | None = Field(default=None, sa_type=LargeBinary)
    velocity: bytes | None = Field(default=None, sa_type=LargeBinary)
    average: bytes | None = Field(default=None, sa_type=LargeBinary)
    second: bytes | None = Field(default=None, sa_type=LargeBinary)
    averaged: int


class Candidate(Table, table=True):
    """What the rounds came to: the weights a release is made of, and the evidence that goes with them (JSON).

    membership: what the audit found, or that it did not run; None where none is planned, or while it is under way.
    """

    __tablename__ = "candidate"

    study: str = Field(primary_key=True, foreign_key="study.id")
    weights: bytes = Field(sa_type=LargeBinary)
    weights_digest: str
    rounds_digest: str
    evaluation: str
    histogram: str
    epsilon: str
    membership: str | None = None
    created_at: str


class StudyWait(Table, table=True):
    """A study that waits: rounds.waiting.WaitReason, for whom (JSON list of sites), since when its patience runs."""

    __tablename__ = "study_wait"

    study: str = Field(primary_key=True, foreign_key="study.id")
    reason: str
    sites: str
    detail: str
    remedy: str
    since: str
