"""What a clinic says of a model that it serves, what its serving gate decided, and what it tells of both."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class Deployment(SQLModel, table=True):
    """One statement about the model of one study; the newest counts, the others stay as what was said before.

    said: a `serving.deployment.DeploymentRecord` as JSON.
    """

    __tablename__ = "deployment"

    id: int | None = Field(default=None, primary_key=True)
    study: str = Field(index=True)
    said: str
    said_at: str


class ServingDecision(SQLModel, table=True):
    """A decision of the serving gate. moment: install, switch, start, or running (kept only where it changed).

    decision: policies.findings.Decision as JSON; its fact digests are salted and stay at the site.
    """

    __tablename__ = "serving_decision"

    id: int | None = Field(default=None, primary_key=True)
    moment: str
    release: str
    subject_digest: str
    outcome: str
    decision: str
    decided_at: str


class QueuedServingReport(SQLModel, table=True):
    """One `protocol.serving.ServingReport` as JSON, told in the order of `number`. answer: None while the coordinator
    has not answered, "accepted", or the code with which it refused the report for good."""

    __tablename__ = "serving_report"

    number: int | None = Field(default=None, primary_key=True)
    change: str
    server: str | None = Field(default=None, index=True)
    document: str
    answer: str | None = Field(default=None, index=True)
