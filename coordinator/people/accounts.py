"""What is done with accounts: invite, register a key, sign in, disable. Each is one transaction with its event."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append, person_label
from coordinator.errors import Conflict, Forbidden
from coordinator.passkeys.repository import PasskeyRepository, passkey_of
from coordinator.people.challenge import ChallengeRefused, challenge_hash, check_challenge
from coordinator.people.repository import PersonRepository
from coordinator.people.reviews import actor_label, known_person, require_known_site
from coordinator.people.states import (
    LIFETIME,
    AuthLevel,
    Medium,
    TokenRefused,
    decide_disabling,
    decide_invitation,
    decide_sign_in,
    decide_token,
)
from coordinator.people.tables import Person, PersonSession
from coordinator.secrets import new_secret
from protocol.audit_event import EventType
from protocol.enrolment import TOKEN_HOURS, Token, registration_message, secret_hash, session_message
from protocol.identifiers import Role, require_name
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp


def invite(
    session: Session,
    appliance: Appliance,
    name: str,
    role: Role,
    *,
    organisation: str | None = None,
    site: str | None = None,
) -> Token:
    """A one-time token (24 hours) for a new person, for one who has not registered, or for one who was disabled. Who
    invites confirms the role with that. organisation: a name; None leaves what is on record. site: of a data steward
    or of a site's IT."""
    require_name(name, "The person's name")
    people, now = PersonRepository(session), appliance.clock()
    person = people.get(name)
    decide_invitation(person.status if person else None, person.role if person else None, role, name, site=site)
    require_known_site(session, site)
    if person is None:
        person = Person(name=name, role=role.value, status="invited", invited_at=timestamp(now))
    person.status, person.key, person.invited_at, person.site = "invited", None, timestamp(now), site
    person.certified_at, person.certified_by, person.shared = timestamp(now), LOCAL_ADMINISTRATOR, False
    if organisation is not None:
        person.organisation = require_name(organisation, "The organisation")
    people.save(person)
    people.drop_credentials(name)
    _revoke_passkeys(session, appliance, name)
    secret = new_secret(appliance.entropy)
    people.invite(name, secret_hash(secret), timestamp(now + timedelta(hours=TOKEN_HOURS)))
    append(
        session, appliance, EventType.PERSON_INVITED, actor=LOCAL_ADMINISTRATOR,
        subject=person_label(appliance, name), labels={"role": role.value}, payload={"name": name},
    )  # fmt: skip
    return Token(
        kind="person",
        name=name,
        address=appliance.settings.address,
        ca=appliance.keys.authority.fingerprint,
        secret=secret,
    )


def _revoke_passkeys(session: Session, appliance: Appliance, name: str) -> None:
    """What somebody under this name held before signs nothing from now on."""
    passkeys = PasskeyRepository(session)
    for row in passkeys.of(name):
        row.revoked_at = timestamp(appliance.clock())
        passkeys.save(row)
        append(
            session, appliance, EventType.PASSKEY_REVOKED, actor=LOCAL_ADMINISTRATOR,
            subject=person_label(appliance, name), digests={"key": passkey_of(row).key_id},
        )  # fmt: skip


def register(session: Session, appliance: Appliance, *, secret: str, name: str, key: str, proof: bytes) -> Person:
    """Register a person's key against the one-time secret. Raises TokenRefused, BadSignature or Conflict."""
    people, now = PersonRepository(session), appliance.clock()
    hashed = secret_hash(secret)
    person = invited_person(session, appliance, hashed, name)
    VerifyingKey.from_text(key).verify(proof, registration_message(secret, name, key))
    if people.by_key(key) is not None:
        raise Conflict("This key is registered already.", "Make a new key: each person has an own one.")
    if not people.use_invitation(hashed, timestamp(now)):
        raise TokenRefused("The token has been used already.", "Ask the coordinator's administrator for a new one.")
    person.key, person.status, person.registered_at = key, "active", timestamp(now)
    people.save(person)
    append(
        session, appliance, EventType.PERSON_REGISTERED, actor=person_label(appliance, name),
        subject=person_label(appliance, name), labels={"role": person.role, "credential": "key"},
        digests={"key": VerifyingKey.from_text(key).key_id}, payload={"name": name},
    )  # fmt: skip
    return person


def sign_in(session: Session, appliance: Appliance, *, name: str, challenge: str, signature: bytes) -> str:
    """A session token (256 bits) for an answered challenge; only its hash is stored.

    Raises ChallengeRefused, Forbidden or BadSignature.
    """
    people, now = PersonRepository(session), appliance.clock()
    expires = check_challenge(appliance.keys.challenge_secret, name, challenge, now=now)
    person = people.get(name)
    decide_sign_in(person.status if person else None)
    if person is None or person.key is None:
        raise Forbidden("This person has no key here.", "Sign in with your password, or ask for a new invitation.")
    key = VerifyingKey.from_text(person.key)
    key.verify(signature, session_message(appliance.keys.authority.fingerprint, name, challenge))
    if not people.spend_challenge(challenge_hash(challenge), timestamp(expires), timestamp(now)):
        raise ChallengeRefused
    return open_session(session, appliance, person, AuthLevel.KEY, Medium.COMMAND_LINE)


def open_session(session: Session, appliance: Appliance, person: Person, level: AuthLevel, medium: Medium) -> str:
    """A new session's token for somebody who has proved who they are, logged. Raises Forbidden unless active.

    A person has one session in each medium: signing in ends the one before it, also one that somebody else stole.
    """
    decide_sign_in(person.status)
    people, now, token = PersonRepository(session), appliance.clock(), new_secret(appliance.entropy)
    people.end_sessions_before(timestamp(now - LIFETIME))
    started = timestamp(now)
    ended = people.start_session(
        PersonSession(
            token_hash=token_hash(token), person=person.name, started_at=started, seen_at=started, level=level.value,
            medium=medium.value,
        )
    )  # fmt: skip
    append(
        session, appliance, EventType.PERSON_SIGNED_IN, actor=person_label(appliance, person.name),
        subject=person_label(appliance, person.name), labels={"level": level.value, "medium": medium.value},
        numbers={"sessions_ended": ended},
    )  # fmt: skip
    return token


def invited_person(session: Session, appliance: Appliance, hashed: str, name: str) -> Person:
    """Who may use the one-time secret of this hash now; it is not used up. Raises TokenRefused."""
    people = PersonRepository(session)
    invitation, person = people.invitation(hashed), people.get(name)
    decide_token(
        known=invitation is not None and person is not None, holder=invitation.person if invitation else "", name=name,
        used_at=invitation.used_at if invitation else None, expires_at=invitation.expires_at if invitation else "",
        now=appliance.clock(),
    )  # fmt: skip
    if person is None or person.status != "invited":
        # Disabled since, or registered another way: nothing makes that undone but a new invitation.
        raise TokenRefused("The token does not count any more.", "Ask the coordinator's administrator for a new one.")
    return person


def disable(session: Session, appliance: Appliance, name: str, *, by: Person | None = None) -> None:
    """Disable an account at once: its sessions end and its key and password sign nobody in any more.

    by: None for the operator at the machine. Raises NotFound, Refused for oneself.
    """
    people = PersonRepository(session)
    person = known_person(people, name)
    decide_disabling(name, by=by.name if by else None)
    if person.status == "disabled":
        return
    person.status = "disabled"
    people.save(person)
    people.end_sessions(name)
    people.drop_invitations(name)
    append(
        session, appliance, EventType.PERSON_DISABLED, actor=actor_label(appliance, by),
        subject=person_label(appliance, name),
    )  # fmt: skip


def token_hash(token: str) -> str:
    """What is stored of a session token."""
    return hashlib.sha256(b"cloister session\0" + token.encode()).hexdigest()
