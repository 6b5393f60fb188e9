"""The only SQL about people."""

from __future__ import annotations

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.people.tables import (
    FederatedIdentity,
    LocalCredential,
    Person,
    PersonInvitation,
    PersonSession,
    SpentChallenge,
)


class PersonRepository:
    """Reads and writes in the caller's session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str) -> Person | None:
        return self._session.get(Person, name)

    def all(self) -> list[Person]:
        return list(self._session.exec(select(Person).order_by(col(Person.name))))

    def by_key(self, key: str) -> Person | None:
        return self._session.exec(select(Person).where(Person.key == key)).one_or_none()

    def save(self, person: Person) -> None:
        self._session.add(person)
        self._session.flush()

    def invite(self, person: str, secret_hash: str, expires_at: str) -> None:
        """Keep a one-time secret; any earlier one of the person is worth nothing from now on."""
        self._session.exec(delete(PersonInvitation).where(col(PersonInvitation.person) == person))
        self._session.add(PersonInvitation(secret_hash=secret_hash, person=person, expires_at=expires_at))
        self._session.flush()

    def invitation(self, secret_hash: str) -> PersonInvitation | None:
        return self._session.get(PersonInvitation, secret_hash)

    def use_invitation(self, secret_hash: str, now: str) -> bool:
        """Mark it used; False when somebody else was first."""
        return one_row(
            self._session.exec(
                update(PersonInvitation)
                .where(col(PersonInvitation.secret_hash) == secret_hash, col(PersonInvitation.used_at).is_(None))
                .values(used_at=now)
                .execution_options(synchronize_session=False)
            )
        )

    def spend_challenge(self, challenge_hash: str, expires_at: str, now: str) -> bool:
        """Remember an answered challenge; False when it was answered before. Forgets those that have expired."""
        self._session.exec(delete(SpentChallenge).where(col(SpentChallenge.expires_at) < now))
        if self._session.get(SpentChallenge, challenge_hash) is not None:
            return False
        self._session.add(SpentChallenge(challenge_hash=challenge_hash, expires_at=expires_at))
        self._session.flush()
        return True

    def start_session(self, row: PersonSession) -> int:
        """Keep a session; how many earlier ones of the person, in the same medium, end with that."""
        same = (col(PersonSession.person) == row.person, col(PersonSession.medium) == row.medium)
        ended = self._session.exec(delete(PersonSession).where(*same)).rowcount
        self._session.add(row)
        self._session.flush()
        return int(ended)

    def federated(self, issuer: str, subject: str) -> FederatedIdentity | None:
        query = select(FederatedIdentity).where(
            FederatedIdentity.issuer == issuer, FederatedIdentity.subject == subject
        )
        return self._session.exec(query).one_or_none()

    def bind(self, identity: FederatedIdentity) -> None:
        """The person's identity from now on; an earlier one signs nobody in any more."""
        self._session.exec(delete(FederatedIdentity).where(col(FederatedIdentity.person) == identity.person))
        self._session.add(identity)
        self._session.flush()

    def open_invitation(self, person: str) -> PersonInvitation | None:
        """The person's invitation that was not used yet."""
        query = select(PersonInvitation).where(
            PersonInvitation.person == person, col(PersonInvitation.used_at).is_(None)
        )
        return self._session.exec(query).one_or_none()

    def drop_invitations(self, person: str) -> None:
        """No token that was given out for the person counts any more."""
        self._session.exec(delete(PersonInvitation).where(col(PersonInvitation.person) == person))

    def credential(self, person: str) -> LocalCredential | None:
        return self._session.get(LocalCredential, person)

    def save_credential(self, credential: LocalCredential) -> None:
        self._session.add(credential)
        self._session.flush()

    def drop_credentials(self, person: str) -> None:
        """Forget the person's password and their subject at the identity provider."""
        self._session.exec(delete(FederatedIdentity).where(col(FederatedIdentity.person) == person))
        self._session.exec(delete(LocalCredential).where(col(LocalCredential.person) == person))

    def session(self, token_hash: str) -> PersonSession | None:
        return self._session.get(PersonSession, token_hash)

    def touch_session(self, token_hash: str, now: str) -> None:
        self._session.exec(update(PersonSession).where(col(PersonSession.token_hash) == token_hash).values(seen_at=now))

    def end_sessions(self, person: str) -> None:
        self._session.exec(delete(PersonSession).where(col(PersonSession.person) == person))

    def end_session(self, token_hash: str) -> None:
        self._session.exec(delete(PersonSession).where(col(PersonSession.token_hash) == token_hash))

    def end_sessions_before(self, started_at: str) -> None:
        self._session.exec(delete(PersonSession).where(col(PersonSession.started_at) < started_at))
