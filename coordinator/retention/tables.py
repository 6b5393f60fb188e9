"""What was pruned of the log's payloads, and the erasures and removals that two people decide on."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer
from sqlmodel import Field

from coordinator.database import Table

_BIG = BigInteger().with_variant(Integer(), "sqlite")


class PayloadPruning(Table, table=True):
    """One pruning: every payload below minimum_index that was out of effect is gone since then."""

    __tablename__ = "payload_pruning"

    minimum_index: int = Field(sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    erased: int
    pruned_at: str


class PayloadErasure(Table, table=True):
    """The erasure of one entry's payload: asked for by one person, confirmed by another in another role."""

    __tablename__ = "payload_erasure"

    log_index: int = Field(sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    ground: str
    asked_by: str
    asked_role: str
    asked_at: str
    confirmed_by: str | None = None
    confirmed_role: str | None = None
    erased_at: str | None = None


class DossierRemoval(Table, table=True):
    """The removal of a release's documents: asked for by one person, confirmed by another in another role. It stays, so
    that the release's name is not given again."""

    __tablename__ = "dossier_removal"

    release: str = Field(primary_key=True)
    study: str = Field(index=True)
    subject_digest: str
    asked_by: str
    asked_role: str
    asked_at: str
    confirmed_by: str | None = None
    confirmed_role: str | None = None
    removed_at: str | None = None
