"""HTTP for people: register a key, get a challenge, answer it."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints

from coordinator.database import transaction
from coordinator.errors import NotFound
from coordinator.identity import AnyPerson, ApplianceOf
from coordinator.people import accounts
from coordinator.people.challenge import make_challenge
from coordinator.people.repository import PersonRepository
from protocol.errors import Malformed
from protocol.identifiers import Frozen, KeyText, PersonName

router = APIRouter(prefix="/v1/people", tags=["people"])
_Secret = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
_Signature = Annotated[str, Field(max_length=100)]


class Registration(Frozen):
    """`proof`: base64 of the key's signature over `registration_message`."""

    secret: _Secret
    name: PersonName
    key: KeyText
    proof: _Signature


class ChallengeRequest(Frozen):
    name: PersonName


class SignIn(Frozen):
    """`signature`: base64 of the key's signature over `session_message`."""

    name: PersonName
    challenge: Annotated[str, Field(max_length=200)]
    signature: _Signature


@router.post("/register", status_code=201)
def register(body: Registration, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        person = accounts.register(
            session, appliance, secret=body.secret, name=body.name, key=body.key, proof=_bytes(body.proof)
        )
    return {"name": person.name, "role": person.role}


@router.post("/challenge")
def challenge(body: ChallengeRequest, appliance: ApplianceOf) -> dict[str, str]:
    # Anyone may ask for any name: the answer is alike for a name that does not exist, and nothing is stored.
    text = make_challenge(
        appliance.keys.challenge_secret, body.name, now=appliance.clock(), nonce=appliance.entropy(16)
    )
    return {"challenge": text}


@router.post("/session", status_code=201)
def sign_in(body: SignIn, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        token = accounts.sign_in(
            session, appliance, name=body.name, challenge=body.challenge, signature=_bytes(body.signature)
        )
        person = PersonRepository(session).get(body.name)
    if person is None:
        raise NotFound("There is no such person.", "Ask the coordinator's administrator.")
    return {"token": token, "name": person.name, "role": person.role}


@router.delete("/session", status_code=204)
def sign_out(person: AnyPerson, request: Request, appliance: ApplianceOf) -> None:
    del person  # the session is known to be alive
    token = request.headers["authorization"].partition(" ")[2]
    with transaction(appliance.engine) as session:
        PersonRepository(session).end_session(accounts.token_hash(token))


@router.get("/me")
def me(person: AnyPerson) -> dict[str, str | None]:
    return {"name": person.name, "role": person.role, "key": person.key}


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("A signature is not base64.", "Use padded standard base64.") from None
