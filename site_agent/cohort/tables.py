"""Snapshots and whose patients are in them. Patients appear as keyed hashes only."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class Snapshot(SQLModel, table=True):
    """One immutable encoding of one data set under one schema.

    digest: HMAC-SHA256 under the site's secret, "sha256:" + hex: it can leave the site, since nobody can confirm a
    guess of the data with it. patients counts all patients, held_out those that never train.
    registered_at: when the coordinator last accepted it, or None. told_patients, told_held_out: the counts that were
    told before, where they must stay so that nobody can count those who left; None: its own.
    replaced_by: the snapshot that leaves patients out who withdrew, "" where too few were left for one; None: in use.
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
    told_patients: int | None = None
    told_held_out: int | None = None
    replaced_by: str | None = None


class SnapshotPatient(SQLModel, table=True):
    """One patient of one snapshot. A patient's `held_out` is the same in every snapshot of the site."""

    __tablename__ = "snapshot_patient"

    snapshot: str = Field(foreign_key="snapshot.digest", primary_key=True)
    patient_hash: bytes = Field(sa_type=LargeBinary, primary_key=True, index=True)
    held_out: bool


class WithdrawnPatient(SQLModel, table=True):
    """A patient who is left out of every snapshot and round from now on, known by the keyed hash. It never leaves."""

    __tablename__ = "withdrawn_patient"

    patient_hash: bytes = Field(sa_type=LargeBinary, primary_key=True)
    ground: str
    batch: str = Field(index=True)
    recorded_at: str


class WithdrawalsAttested(SQLModel, table=True):
    """Up to when everything that patients asked for was entered here, as somebody of the hospital said (row 1)."""

    __tablename__ = "withdrawals_attested"

    id: int = Field(default=1, primary_key=True)
    through: str
    attested_at: str


class SentNotice(SQLModel, table=True):
    """A signed notice about one study in which patients who withdrew had taken part."""

    __tablename__ = "withdrawal_notice"

    review: str = Field(primary_key=True)
    study: str = Field(index=True)
    notice: bytes = Field(sa_type=LargeBinary)
    made_at: str
    delivered: bool = False


class DatasetDeclaration(SQLModel, table=True):
    """What the hospital declared of a snapshot; the newest counts.

    declaration: cohort.declaration.Declaration as JSON. without_consent: patients of the snapshot who were not on the
    list of those who consented; None without a list.
    """

    __tablename__ = "dataset_declaration"

    id: int | None = Field(default=None, primary_key=True)
    snapshot: str = Field(foreign_key="snapshot.digest", index=True)
    declaration: str
    without_consent: int | None = None
    declared_at: str
