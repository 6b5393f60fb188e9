"""What the site remembers of the transparency log: its head, what it cosigned, the policies and the alarms."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class LogHead(SQLModel, table=True):
    """The one latest checkpoint that was verified and persisted (row 1).

    peaks: the frontier's 32-byte hashes, joined. policy_digest: of the last witness policy that an entry names.
    """

    __tablename__ = "log_head"

    id: int = Field(default=1, primary_key=True)
    size: int
    root: bytes = Field(sa_type=LargeBinary)
    note: bytes = Field(sa_type=LargeBinary)
    peaks: bytes = Field(sa_type=LargeBinary)
    policy_digest: str | None = None
    seen_at: str


class CosignedCheckpoint(SQLModel, table=True):
    """A size that was cosigned and the only root that ever will be for it. `delivered`: the coordinator took it."""

    __tablename__ = "cosigned_checkpoint"

    size: int = Field(primary_key=True)
    root: bytes = Field(sa_type=LargeBinary)
    cosignature: bytes | None = Field(default=None, sa_type=LargeBinary)
    delivered: bool = False
    at: str


class LogAlarm(SQLModel, table=True):
    """Evidence against the log: kept for ever. `code` is closed; the two notes speak for themselves.

    acknowledged_at, reason: when, and by which closed code, IT said that it looked into it; until then it stands.
    """

    __tablename__ = "log_alarm"

    id: int | None = Field(default=None, primary_key=True)
    code: str
    detail: str
    held_note: bytes | None = Field(default=None, sa_type=LargeBinary)
    served_note: bytes = Field(sa_type=LargeBinary)
    raised_at: str
    acknowledged_at: str | None = None
    reason: str | None = None


class AcceptedWitnessPolicy(SQLModel, table=True):
    """Every witness policy that the site has accepted; the last one is in force."""

    __tablename__ = "accepted_witness_policy"

    id: int | None = Field(default=None, primary_key=True)
    policy_json: str
    digest: str
    accepted_at: str
