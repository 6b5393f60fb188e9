"""Rows of reviews. No patient and no count stands in them."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field

from coordinator.database import Table


class ModelReview(Table, table=True):
    """One site's notice about one study. causes, grounds: joined by "+" (protocol.withdrawal). notice: as signed."""

    __tablename__ = "model_review"

    id: str = Field(primary_key=True)
    study: str = Field(foreign_key="study.id", index=True)
    site: str
    causes: str
    state: str = Field(index=True)
    notice: bytes = Field(sa_type=LargeBinary)
    opened_at: str
    grounds: str | None = None
    closed_by: str | None = None
    closed_at: str | None = None
