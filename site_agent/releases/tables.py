"""What the site has said of releases."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class OwnVeto(SQLModel, table=True):
    """A release that this site does not want. words: why, for this site alone. envelope: what the coordinator is sent.
    delivered: whether the coordinator has acknowledged it; the release is not installed here either way."""

    __tablename__ = "release_veto"

    release: str = Field(primary_key=True)
    subject_digest: str
    reason: str
    words: str
    envelope: bytes = Field(sa_type=LargeBinary)
    vetoed_at: str
    delivered: bool = False
