"""Register a passkey, revoke it, and let it sign: user verification is required each time."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlmodel import Session
from webauthn import generate_authentication_options, generate_registration_options, verify_registration_response
from webauthn.helpers import options_to_json_dict
from webauthn.helpers.structs import (
    AttestationConveyancePreference,
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict, NotFound
from coordinator.identity import Caller
from coordinator.passkeys.repository import PasskeyRepository, passkey_of
from coordinator.passkeys.tables import PasskeyRecord
from coordinator.people.challenge import ChallengeRefused, challenge_hash, check_challenge, make_challenge
from coordinator.people.repository import PersonRepository
from coordinator.people.states import require_fresh
from protocol.approver_signature import ALGORITHMS, verify_passkey
from protocol.audit_event import EventType
from protocol.errors import BadSignature, Refused
from protocol.passkey import PasskeySignature, challenge_of, decode, encode, origin_of, relying_party
from protocol.timestamp import timestamp

MOST_PASSKEYS = 5


def registration_options(session: Session, appliance: Appliance, caller: Caller) -> dict[str, Any]:
    """What the browser's `create` needs, as JSON. Raises Forbidden in an old session, Refused without a host name."""
    require_fresh(caller.started_at, caller.level, now=appliance.clock())
    host = relying_party(appliance.settings.address)
    held = PasskeyRepository(session).of(caller.person.name)
    if len(held) >= MOST_PASSKEYS:
        raise Refused(f"You have {MOST_PASSKEYS} passkeys already.", "Revoke one first.")
    # Two minutes, bound to the person and to this purpose: no name of a person holds a slash.
    challenge = make_challenge(
        appliance.keys.challenge_secret, _purpose(caller), now=appliance.clock(), nonce=appliance.entropy(16)
    )
    label = person_label(appliance, caller.person.name)
    options = generate_registration_options(
        rp_id=host,
        rp_name="Cloister",
        user_name=caller.person.name,
        user_id=hashlib.sha256(label.encode()).digest(),
        challenge=challenge.encode("ascii"),
        attestation=AttestationConveyancePreference.NONE,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.PREFERRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=decode(row.credential)) for row in held],
        supported_pub_key_algs=list(ALGORITHMS),
    )
    return {"challenge": challenge, "options": options_to_json_dict(options)}


def register(
    session: Session, appliance: Appliance, caller: Caller, *, challenge: str, credential: dict[str, Any]
) -> PasskeyRecord:
    """Keep a new passkey: made at this coordinator's origin, by a verified person, for this very question.

    Raises BadSignature, ChallengeRefused, Conflict for one that is somebody's already.
    """
    now = appliance.clock()
    require_fresh(caller.started_at, caller.level, now=now)
    expires = check_challenge(appliance.keys.challenge_secret, _purpose(caller), challenge, now=now)
    try:
        made = verify_registration_response(
            credential=credential,
            expected_challenge=challenge.encode("ascii"),
            expected_rp_id=relying_party(appliance.settings.address),
            expected_origin=origin_of(appliance.settings.address),
            require_user_verification=True,
            supported_pub_key_algs=list(ALGORITHMS),
        )
    except Exception as error:  # the library's parsers raise errors of many kinds; none may pass
        raise BadSignature(
            "The passkey was not made as it must be: here, now, and with the person verified.",
            "Use an authenticator that asks for a fingerprint, a face or a PIN, and try again.",
        ) from error
    if not PersonRepository(session).spend_challenge(challenge_hash(challenge), timestamp(expires), timestamp(now)):
        raise ChallengeRefused
    passkeys = PasskeyRepository(session)
    row = PasskeyRecord(
        credential=encode(made.credential_id),
        person=caller.person.name,
        key=encode(made.credential_public_key),
        uses=made.sign_count,
        registered_at=timestamp(now),
    )
    if passkeys.get(row.credential) is not None or passkeys.by_key(row.key) is not None:
        raise Conflict("This passkey is registered already.", "Each person, and each account, has an own one.")
    passkeys.save(row)
    _log(session, appliance, EventType.PASSKEY_REGISTERED, row)
    return row


def revoke(session: Session, appliance: Appliance, caller: Caller, credential: str) -> None:
    """The passkey signs nothing here any more. Raises NotFound for one that is not the caller's."""
    require_fresh(caller.started_at, caller.level, now=appliance.clock())
    passkeys = PasskeyRepository(session)
    row = passkeys.get(credential)
    if row is None or row.person != caller.person.name or row.revoked_at is not None:
        raise NotFound("You have no such passkey.", "See which you have on the page of passkeys.")
    row.revoked_at = timestamp(appliance.clock())
    passkeys.save(row)
    _log(session, appliance, EventType.PASSKEY_REVOKED, row)


def signing_options(
    session: Session, appliance: Appliance, person: str, allowed: tuple[str, ...], *, payload_type: str, document: bytes
) -> dict[str, Any]:
    """What the browser's `get` needs to sign this document by one of `allowed`, as far as it stands. Raises Refused."""
    usable = [row for row in PasskeyRepository(session).of(person) if row.credential in allowed]
    if not usable:
        raise Refused(
            "The plan fixes no passkey of yours that still stands.",
            "Sign with your key (`cloister release approve`, `cloister study approve`); a passkey counts in plans made "
            "after its registration.",
        )
    options = generate_authentication_options(
        rp_id=relying_party(appliance.settings.address),
        challenge=challenge_of(payload_type, document),
        allow_credentials=[PublicKeyCredentialDescriptor(id=decode(row.credential)) for row in usable],
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return {"payload_type": payload_type, "payload": encode(document), "options": options_to_json_dict(options)}


def count_use(session: Session, appliance: Appliance, person: str, signed: PasskeySignature) -> None:
    """Hold a new signature to what is on record of its passkey, and move the counter.

    Raises BadSignature for one that was revoked or is another person's, and for a counter that did not grow.
    """
    passkeys = PasskeyRepository(session)
    row = passkeys.get(signed.credential)
    if row is None or row.person != person or row.revoked_at is not None:
        raise BadSignature("The passkey was revoked, or is another person's.", "Use a passkey of your own.")
    uses = verify_passkey(signed, passkey_of(row), appliance.settings.address, count=row.uses)
    if not passkeys.count(row.credential, before=row.uses, after=uses):
        raise Conflict("The passkey signed something else meanwhile.", "Sign again.")


def _purpose(caller: Caller) -> str:
    return f"{caller.person.name}/passkey"


def _log(session: Session, appliance: Appliance, event: EventType, row: PasskeyRecord) -> None:
    label = person_label(appliance, row.person)
    append(session, appliance, event, actor=label, subject=label, digests={"key": passkey_of(row).key_id})
