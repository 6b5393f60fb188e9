"""Rows about sites."""

from __future__ import annotations

from sqlalchemy import LargeBinary
from sqlmodel import Field

from coordinator.database import Table


class Site(Table, table=True):
    """`status`: invited, active or revoked. `identity`: the site's Ed25519 key as text; `witness`: its cosigner's
    verifier key; `serial`, `not_after`: of its newest certificate; `node_id`: its Flower node, decimal."""

    __tablename__ = "site"

    name: str = Field(primary_key=True)
    status: str
    invited_at: str
    enrolled_at: str | None = None
    identity: str | None = Field(default=None, unique=True)
    witness: str | None = Field(default=None, unique=True)
    serial: str | None = None
    not_after: str | None = None
    node_id: str | None = Field(default=None, unique=True)


class SiteInvitation(Table, table=True):
    """A one-time secret, by its hash."""

    __tablename__ = "site_invitation"

    secret_hash: str = Field(primary_key=True)
    site: str = Field(foreign_key="site.name", index=True)
    expires_at: str
    used_at: str | None = None


class SiteCertificate(Table, table=True):
    """Every certificate that was issued; `revoked_at` makes the denylist."""

    __tablename__ = "site_certificate"

    serial: str = Field(primary_key=True)
    site: str = Field(foreign_key="site.name", index=True)
    identity: str = Field(index=True)
    issued_at: str
    not_after: str
    revoked_at: str | None = None


class SiteDataset(Table, table=True):
    """A registered snapshot: digests and counts, nothing else."""

    __tablename__ = "site_dataset"

    site: str = Field(primary_key=True, foreign_key="site.name")
    name: str = Field(primary_key=True)
    schema_digest: str = Field(index=True)
    snapshot: str
    patients: int
    held_out: int
    registered_at: str


class SiteStatement(Table, table=True):
    """What a site said of itself under its key (protocol.attestation), every time; the newest counts.

    envelope: the DSSE envelope as it came. clock_skew: seconds between the two clocks when it came."""

    __tablename__ = "site_statement"

    digest: str = Field(primary_key=True)
    site: str = Field(foreign_key="site.name", index=True)
    identity: str
    made_at: str
    received_at: str
    clock_skew: float
    envelope: bytes = Field(sa_type=LargeBinary)
