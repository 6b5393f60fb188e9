"""The only SQL about passkeys."""

from __future__ import annotations

from sqlalchemy import update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.passkeys.tables import PasskeyRecord
from protocol.passkey import Passkey


class PasskeyRepository:
    """Reads and writes in the caller's session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, credential: str) -> PasskeyRecord | None:
        return self._session.get(PasskeyRecord, credential)

    def by_key(self, key: str) -> PasskeyRecord | None:
        return self._session.exec(select(PasskeyRecord).where(PasskeyRecord.key == key)).one_or_none()

    def of(self, person: str) -> list[PasskeyRecord]:
        """The person's passkeys that were not revoked, oldest first."""
        query = select(PasskeyRecord).where(PasskeyRecord.person == person, col(PasskeyRecord.revoked_at).is_(None))
        return list(self._session.exec(query.order_by(col(PasskeyRecord.registered_at), col(PasskeyRecord.credential))))

    def save(self, row: PasskeyRecord) -> None:
        self._session.add(row)
        self._session.flush()

    def count(self, credential: str, *, before: int, after: int) -> bool:
        """Move the counter; False when somebody else moved it first."""
        return one_row(
            self._session.exec(
                update(PasskeyRecord)
                .where(col(PasskeyRecord.credential) == credential, col(PasskeyRecord.uses) == before)
                .values(uses=after)
                .execution_options(synchronize_session=False)
            )
        )


def passkey_of(row: PasskeyRecord) -> Passkey:
    """What plans and verifiers take."""
    return Passkey(credential=row.credential, key=row.key)
