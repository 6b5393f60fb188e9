"""Rows about passkeys: public keys only."""

from __future__ import annotations

from sqlalchemy import BigInteger
from sqlmodel import Field

from coordinator.database import Table


class PasskeyRecord(Table, table=True):
    """credential, key: base64url (protocol.passkey). uses: the authenticator's counter when it last signed here; some
    authenticators keep none, and leave it at 0."""

    __tablename__ = "passkey"

    credential: str = Field(primary_key=True)
    person: str = Field(foreign_key="person.name", index=True)
    key: str = Field(unique=True)
    uses: int = Field(default=0, sa_type=BigInteger)
    registered_at: str
    revoked_at: str | None = None
