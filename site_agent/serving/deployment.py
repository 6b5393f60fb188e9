"""Deployment records: who oversees a model at this clinic, what it is used for, how long its log is kept.

There are no defaults: until somebody has said these things of a study's model, its serving gate stays shut.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints
from sqlmodel import Session, col, select

from protocol.identifiers import Frozen, PersonName, StudyId
from protocol.timestamp import timestamp
from site_agent.serving.tables import Deployment

Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]


class DeploymentRecord(Frozen):
    """What a clinic says of the model of one study.

    use: for the care of patients, or for research alone. oversight: the person who oversees it, None where nobody is
    named. log_retention_days: how long the serving log is kept. coordinator_country: ISO 3166 alpha-2, where the
    coordinator runs as this hospital's own papers have it.
    """

    study: StudyId
    use: Literal["care", "research"]
    oversight: PersonName | None = None
    log_retention_days: Annotated[int, Field(ge=0, le=36_500)]
    coordinator_country: Country


def say(session: Session, record: DeploymentRecord, *, now: datetime) -> None:
    """Put a statement beside those before it; from now on it counts. The same again changes nothing."""
    if said(session, record.study) != record:
        session.add(Deployment(study=record.study, said=record.model_dump_json(), said_at=timestamp(now)))
        session.flush()


def said(session: Session, study: str) -> DeploymentRecord | None:
    """The statement that counts, or None where nothing was said."""
    query = select(Deployment).where(Deployment.study == study).order_by(col(Deployment.id).desc()).limit(1)
    row = session.exec(query).first()
    return None if row is None else DeploymentRecord.model_validate_json(row.said)


def everything_said(session: Session) -> list[Deployment]:
    """Every statement, oldest first."""
    return list(session.exec(select(Deployment).order_by(col(Deployment.id))))
