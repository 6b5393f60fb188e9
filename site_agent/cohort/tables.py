"""Snapshots and whose patients are in them. Patients appear as keyed hashes only."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class Snapshot(SQLModel, table=True):
    """One immutable encoding of one data set under one schema.

    digest: HMAC-SHA256 under the site's secret, "sha256:" + hex: it can leave the site, since nobody can confirm a
    guess of the data with it. patients counts all patients, held_out those that never train.
    registered_at: when the coordinator last accepted it, or None.
    """

    __tablename__ = "snapshot"

    digest: str = Field(primary_key=True)
    name: str = Field(index=True)
    schema_text: str
    schema_digest: str = Field(index=True)
    records: int
    dropped: int
    patients: int
    held_out: int
    created_at: str
    registered_at: str | None = None


class SnapshotPatient(SQLModel, table=True):
    """One patient of one snapshot. A patient's `held_out` is the same in every snapshot of the site."""

    __tablename__ = "snapshot_patient"

    snapshot: str = Field(foreign_key="snapshot.digest", primary_key=True)
    patient_hash: bytes = Field(sa_type=LargeBinary, primary_key=True, index=True)
    held_out: bool
