"""HTTP for a person's own passkeys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.identity import ApplianceOf, CallerOf
from coordinator.passkeys import register
from coordinator.passkeys.repository import PasskeyRepository, passkey_of
from coordinator.passkeys.tables import PasskeyRecord
from protocol.identifiers import Frozen
from protocol.passkey import Base64Url

router = APIRouter(prefix="/v1/passkeys", tags=["passkeys"])


class Made(Frozen):
    """challenge: as the options gave it. credential: the browser's RegistrationResponseJSON."""

    challenge: Annotated[str, Field(max_length=200)]
    credential: dict[str, Any]


class Revoked(Frozen):
    credential: Base64Url


@router.get("")
def own(caller: CallerOf, appliance: ApplianceOf) -> list[dict[str, str]]:
    with reading(appliance.engine) as session:
        return [_shown(row) for row in PasskeyRepository(session).of(caller.person.name)]


@router.post("/options")
def options(caller: CallerOf, appliance: ApplianceOf) -> dict[str, Any]:
    with reading(appliance.engine) as session:
        return register.registration_options(session, appliance, caller)


@router.post("", status_code=201)
def add(body: Made, caller: CallerOf, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        row = register.register(session, appliance, caller, challenge=body.challenge, credential=body.credential)
        return _shown(row)


@router.post("/revoke", status_code=204)
def revoke(body: Revoked, caller: CallerOf, appliance: ApplianceOf) -> None:
    with transaction(appliance.engine) as session:
        register.revoke(session, appliance, caller, body.credential)


def _shown(row: PasskeyRecord) -> dict[str, str]:
    return {"credential": row.credential, "fingerprint": passkey_of(row).key_id, "registered_at": row.registered_at}
