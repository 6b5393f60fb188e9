"""Rows about people. One-time secrets and session tokens are stored as hashes only."""

from __future__ import annotations

from sqlalchemy import BigInteger, UniqueConstraint
from sqlmodel import Field

from coordinator.database import Table


class Person(Table, table=True):
    """`status`: invited, active or disabled. `key`: the person's Ed25519 key as text, once registered. `site`: of a
    data steward and of a site's IT. `certified_at`, `certified_by`: when somebody last confirmed that the person needs
    the role, and who (a name, or the operator at the machine); `shared`: whether they found others on the account.
    `organisation`: whom they work for, by the administrator's word."""

    __tablename__ = "person"

    name: str = Field(primary_key=True)
    role: str
    site: str | None = None
    status: str
    key: str | None = Field(default=None, unique=True)
    invited_at: str
    registered_at: str | None = None
    organisation: str | None = None
    certified_at: str | None = None
    certified_by: str | None = None
    shared: bool = False


class PersonInvitation(Table, table=True):
    """A one-time secret, by its hash."""

    __tablename__ = "person_invitation"

    secret_hash: str = Field(primary_key=True)
    person: str = Field(foreign_key="person.name", index=True)
    expires_at: str
    used_at: str | None = None


class PersonSession(Table, table=True):
    """A signed-in session, by its token's hash. `level`: what it was proved by; `medium`: where it lives."""

    __tablename__ = "person_session"

    token_hash: str = Field(primary_key=True)
    person: str = Field(foreign_key="person.name", index=True)
    started_at: str
    seen_at: str
    level: str
    medium: str


class FederatedIdentity(Table, table=True):
    """The one subject of the identity provider that signs a person in."""

    __tablename__ = "federated_identity"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    person: str = Field(primary_key=True, foreign_key="person.name")
    issuer: str
    subject: str


class SpentChallenge(Table, table=True):
    """A sign-in challenge that was answered: it can't be answered again while it would still be valid."""

    __tablename__ = "spent_challenge"

    challenge_hash: str = Field(primary_key=True)
    expires_at: str


class LocalCredential(Table, table=True):
    """How a person signs in with password and code. `password`: an Argon2id hash; `totp`: the shared secret, encrypted;
    `last_step`: the newest time step whose code was accepted. `pending_…`: the next pair, until a code confirms it.
    `failures` counts wrong attempts since the last right one."""

    __tablename__ = "local_credential"

    person: str = Field(primary_key=True, foreign_key="person.name")
    password: str | None = None
    totp: bytes | None = None
    last_step: int = Field(default=-1, sa_type=BigInteger)
    pending_password: str | None = None
    pending_totp: bytes | None = None
    pending_at: str | None = None
    failures: int = 0
    failed_at: str | None = None
