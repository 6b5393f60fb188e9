"""Signing in with a password and a one-time code: enrol the pair, confirm it with a code, use it.

Hashing takes a while and runs outside the transaction: nobody who guesses passwords holds the database's writers up.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.database import reading, transaction
from coordinator.errors import Conflict
from coordinator.people.accounts import invited_person, open_session
from coordinator.people.one_time_codes import (
    matching_step,
    new_code_secret,
    open_code_secret,
    provisioning_uri,
    seal_code_secret,
)
from coordinator.people.passwords import hash_password, verify_password
from coordinator.people.repository import PersonRepository
from coordinator.people.states import (
    FREE_ATTEMPTS,
    FRESH,
    Attempt,
    AuthLevel,
    CodeRefused,
    LocalAttempt,
    Medium,
    SignInRefused,
    TokenRefused,
    decide_local,
    require_password,
)
from coordinator.people.tables import LocalCredential, Person
from protocol.audit_event import EventType
from protocol.timestamp import moment, timestamp


@dataclass(frozen=True)
class Enrolling:
    """What an authenticator app is given, once."""

    secret: str
    uri: str


def begin(appliance: Appliance, name: str, password: str, *, invitation: str | None = None) -> Enrolling:
    """Keep a new password and a new code secret until a code confirms them; what counted before goes on counting.

    invitation: the one-time secret of somebody who has no account yet; without it the caller has checked the session.
    Raises Malformed for a weak password, TokenRefused.
    """
    require_password(password, name)
    hashed, secret = hash_password(password), new_code_secret(appliance.entropy)
    sealed = seal_code_secret(appliance.keys.challenge_secret, name, secret, appliance.entropy)
    with transaction(appliance.engine) as session:
        people = PersonRepository(session)
        if invitation is not None:
            invited_person(session, appliance, invitation, name)
        row = people.credential(name) or LocalCredential(person=name)
        row.pending_password, row.pending_totp, row.pending_at = hashed, sealed, timestamp(appliance.clock())
        people.save_credential(row)
    return Enrolling(secret, provisioning_uri(secret, name, f"Cloister {appliance.settings.name}"))


def confirm(session: Session, appliance: Appliance, name: str, code: str, *, invitation: str | None = None) -> Person:
    """Let the pending pair count from now on, once a code shows that the app has the secret; sessions elsewhere end.

    Raises CodeRefused, TokenRefused, Conflict where nothing is pending or it was begun over ten minutes ago.
    """
    people, now = PersonRepository(session), appliance.clock()
    person = people.get(name) if invitation is None else invited_person(session, appliance, invitation, name)
    row = people.credential(name)
    if person is None or row is None or row.pending_totp is None or _stale(row, now):
        raise Conflict("No password waits to be confirmed.", "Begin again.")
    step = matching_step(_secret(appliance, name, row.pending_totp), code, now=now)
    if step is None:
        raise CodeRefused
    row.password, row.totp, row.last_step = row.pending_password, row.pending_totp, step
    row.pending_password = row.pending_totp = row.pending_at = None
    row.failures, row.failed_at = 0, None
    people.save_credential(row)
    people.end_sessions(name)
    label = person_label(appliance, name)
    if invitation is None:
        append(
            session, appliance, EventType.PERSON_CREDENTIAL_CHANGED, actor=label, subject=label,
            labels={"credential": "password-and-code"},
        )  # fmt: skip
        return person
    if not people.use_invitation(invitation, timestamp(now)):
        raise TokenRefused("The token has been used already.", "Ask the coordinator's administrator for a new one.")
    person.status, person.registered_at = "active", timestamp(now)
    people.save(person)
    append(
        session, appliance, EventType.PERSON_REGISTERED, actor=label, subject=label,
        labels={"role": person.role, "credential": "password-and-code"}, payload={"name": name},
    )  # fmt: skip
    return person


def sign_in(appliance: Appliance, name: str, password: str, code: str, medium: Medium) -> tuple[Person, str]:
    """The person and a session's token. Raises SignInRefused, alike for every reason, and Unavailable."""
    with reading(appliance.engine) as session:
        found = PersonRepository(session).credential(name)
    stored = found.password if found else None
    right = verify_password(stored, password)
    with transaction(appliance.engine) as session:
        people, now = PersonRepository(session), appliance.clock()
        person, row = people.get(name), people.credential(name)
        if person is not None and row is not None:
            attempt = _attempt(appliance, person, row, code, right=right and row.password == stored, now=now)
            outcome = decide_local(attempt, now=now)
            if outcome is Attempt.ACCEPTED:
                row.failures, row.failed_at, row.last_step = 0, None, attempt.step or 0
                people.save_credential(row)
                return person, open_session(session, appliance, person, AuthLevel.PASSWORD_AND_CODE, medium)
            if outcome is Attempt.WRONG:
                _count_failure(session, appliance, row, now)
    raise SignInRefused  # after the commit: the attempt counts


def _attempt(
    appliance: Appliance, person: Person, row: LocalCredential, code: str, *, right: bool, now: datetime
) -> LocalAttempt:
    enrolled = row.password is not None and row.totp is not None
    step = matching_step(_secret(appliance, row.person, row.totp), code, now=now) if row.totp is not None else None
    return LocalAttempt(
        status=person.status, enrolled=enrolled, password_right=right, step=step, last_step=row.last_step,
        failures=row.failures, failed_at=row.failed_at,
    )  # fmt: skip


def _count_failure(session: Session, appliance: Appliance, row: LocalCredential, now: datetime) -> None:
    row.failures, row.failed_at = row.failures + 1, timestamp(now)
    PersonRepository(session).save_credential(row)
    if row.failures >= FREE_ATTEMPTS:  # each of these comes after a rest: guessing does not flood the log
        append(
            session, appliance, EventType.PERSON_LOCKED_OUT, actor=COORDINATOR,
            subject=person_label(appliance, row.person), numbers={"failures": row.failures},
        )  # fmt: skip


def _secret(appliance: Appliance, name: str, sealed: bytes) -> str:
    return open_code_secret(appliance.keys.challenge_secret, name, sealed)


def _stale(row: LocalCredential, now: datetime) -> bool:
    return row.pending_at is None or now >= moment(row.pending_at) + FRESH
