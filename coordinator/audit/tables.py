"""Rows of the transparency log. The leaf is for ever; payload and salt can be erased."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary
from sqlmodel import Field

from coordinator.database import Table

_BIG = BigInteger().with_variant(Integer(), "sqlite")


class LogEntry(Table, table=True):
    """One event. `log_index` is None until the sequencer has assigned it; ids grow in the order of commits."""

    __tablename__ = "log_entry"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy's form

    id: int | None = Field(default=None, sa_column=Column(_BIG, primary_key=True, autoincrement=True))
    log_index: int | None = Field(default=None, sa_column=Column(_BIG, unique=True, nullable=True))
    leaf: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    payload: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    salt: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class LogHead(Table, table=True):
    """The published head: `size` leaves under `root`; `assigned` indices are given out (>= size)."""

    __tablename__ = "log_head"

    origin: str = Field(primary_key=True)
    size: int = Field(sa_column=Column(_BIG, nullable=False))
    assigned: int = Field(sa_column=Column(_BIG, nullable=False))
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class LogCheckpoint(Table, table=True):
    """A checkpoint as the log signed it, without cosignatures."""

    __tablename__ = "log_checkpoint"

    size: int = Field(sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    note: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    signed_at: str


class LogCosignature(Table, table=True):
    """A verified cosignature line of one witness over one checkpoint; `witness` is its whole verifier key."""

    __tablename__ = "log_cosignature"

    size: int = Field(sa_column=Column(_BIG, primary_key=True, autoincrement=False))
    witness: str = Field(primary_key=True)
    line: str


class LogWitness(Table, table=True):
    """An auditor who cosigns, or did until `removed_at`; `key` is the whole verifier key."""

    __tablename__ = "log_witness"

    key: str = Field(primary_key=True)
    name: str
    joined_at: str
    removed_at: str | None = None


class LogPolicy(Table, table=True):
    """Every witness policy there was; the one with the largest id is in force. None: there is no witness."""

    __tablename__ = "log_policy"

    id: int | None = Field(default=None, sa_column=Column(_BIG, primary_key=True, autoincrement=True))
    entry: int = Field(sa_column=Column(_BIG, nullable=False))
    document: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class LogReview(Table, table=True):
    """A person has reviewed the log up to this size."""

    __tablename__ = "log_review"

    id: int | None = Field(default=None, sa_column=Column(_BIG, primary_key=True, autoincrement=True))
    person: str
    size: int = Field(sa_column=Column(_BIG, nullable=False))
    at: str
