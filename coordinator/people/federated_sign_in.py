"""Signing in through the organisation's identity provider: one verified subject is bound to one person when they are
invited. Nobody gets an account by having one at the provider.
"""

from __future__ import annotations

import base64
from typing import Any, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict, NotFound
from coordinator.people.accounts import open_session
from coordinator.people.identity_provider import IdentityProvider, load_identity_provider
from coordinator.people.openid import Attempt, Proved, ProviderRefused
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel, Medium
from coordinator.people.tables import FederatedIdentity, Person
from protocol.audit_event import EventType
from protocol.canonical import canonical, parse
from protocol.errors import Malformed
from protocol.timestamp import moment, timestamp

ATTEMPT_SECONDS = 600
_NONCE = 12


def bind(session: Session, appliance: Appliance, name: str, subject: str) -> None:
    """Bind a subject of the provider to a person who is being invited.

    Raises NotFound where no provider is set, Malformed, Conflict for a subject that is somebody else's: one person has
    one account.
    """
    provider = provider_of(appliance)
    if not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise Malformed("The subject has not 1 to 255 printable characters.", "Copy it from the identity provider.")
    people = PersonRepository(session)
    holder = people.federated(provider.issuer, subject)
    if holder is not None and holder.person != name:
        raise Conflict("This subject belongs to somebody who has an account.", "One person has one account.")
    people.bind(FederatedIdentity(person=name, issuer=provider.issuer, subject=subject))
    append(
        session, appliance, EventType.PERSON_CREDENTIAL_CHANGED, actor="local-administrator",
        subject=person_label(appliance, name), labels={"credential": "federated"},
    )  # fmt: skip


def sign_in(session: Session, appliance: Appliance, proved: Proved) -> tuple[Person, str]:
    """The person whom the subject was bound to, and a browser session's token. Who was invited, up to a day ago, is
    active from now on. Raises ProviderRefused, alike for a subject that is nobody's and for who may not sign in."""
    people, now = PersonRepository(session), appliance.clock()
    identity = people.federated(proved.issuer, proved.subject)
    person = people.get(identity.person) if identity else None
    invitation = people.open_invitation(person.name) if person else None
    invited = person is not None and person.status == "invited" and invitation is not None
    if person is None or not (person.status == "active" or invited):
        raise ProviderRefused("nobody here is bound to you")
    if invited and invitation is not None:
        if now >= moment(invitation.expires_at):
            raise ProviderRefused("nobody here is bound to you")
        people.use_invitation(invitation.secret_hash, timestamp(now))  # its token is worth nothing from now on
        person.status, person.registered_at = "active", timestamp(now)
        people.save(person)
        label = person_label(appliance, person.name)
        append(
            session, appliance, EventType.PERSON_REGISTERED, actor=label, subject=label,
            labels={"role": person.role, "credential": "federated"}, payload={"name": person.name},
        )  # fmt: skip
    level = AuthLevel.FEDERATED_MULTI_FACTOR if proved.multi_factor else AuthLevel.FEDERATED
    return person, open_session(session, appliance, person, level, Medium.BROWSER)


def provider_of(appliance: Appliance) -> IdentityProvider:
    """The provider. Raises NotFound where none is set."""
    provider = load_identity_provider(appliance.home)
    if provider is None:
        raise NotFound("No identity provider is set here.", "Run `cloister-coordinator people provider` to set one.")
    return provider


def new_attempt(appliance: Appliance) -> Attempt:
    """Fresh state, nonce and verifier, 256 bits each."""
    state, nonce, verifier = (_base64url(appliance.entropy(32)) for _ in range(3))
    return Attempt(state, nonce, verifier)


def seal_attempt(appliance: Appliance, attempt: Attempt) -> str:
    """The attempt for the browser's cookie: encrypted, so nothing is stored here; good for ten minutes."""
    expires = int(appliance.clock().timestamp()) + ATTEMPT_SECONDS
    nonce = appliance.entropy(_NONCE)
    plain = canonical([attempt.state, attempt.nonce, attempt.verifier, expires])
    return _base64url(nonce + _cipher(appliance).encrypt(nonce, plain, None))


def open_attempt(appliance: Appliance, sealed: str) -> Attempt:
    """The attempt that this browser began. Raises ProviderRefused for none, another coordinator's or an old one."""
    refused = ProviderRefused("this browser has not begun it, or over ten minutes ago")
    try:
        data = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        fields = parse(_cipher(appliance).decrypt(data[:_NONCE], data[_NONCE:], None))
    except (InvalidTag, ValueError):
        raise refused from None
    # Only this coordinator could have encrypted it, in the form above.
    state, nonce, verifier, expires = cast(list[Any], fields)
    if appliance.clock().timestamp() >= expires:
        raise refused
    return Attempt(state, nonce, verifier)


def _cipher(appliance: Appliance) -> AESGCM:
    info = b"cloister federated sign-in attempts"
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(appliance.keys.challenge_secret)
    return AESGCM(derived)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
