"""HTTP for erasures of single payloads and removals of dossiers: an officer, a clinical lead or an administrator asks,
another confirms."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from coordinator import problems
from coordinator.database import forget_erased, reading, transaction
from coordinator.identity import ApplianceOf, may
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.retention import dossier
from coordinator.retention.erasure import ErasureDenied, Ground, ask, confirm
from coordinator.retention.repository import RetentionRepository
from coordinator.retention.tables import PayloadErasure
from protocol.identifiers import Frozen

router = APIRouter(prefix="/v1/audit/erasures", tags=["retention"])
dossiers = APIRouter(prefix="/v1/dossiers", tags=["retention"])
problems.register(ErasureDenied, 403)
_Keeper = Annotated[Person, Depends(may(Permission.ERASE_WORDS))]
_Reader = Annotated[Person, Depends(may(Permission.READ_LOG))]


class Asked(Frozen):
    """Whose words are to go, and why."""

    index: Annotated[int, Field(ge=0, le=2**53)]
    ground: Ground


@router.post("", status_code=201)
def post_erasure(body: Asked, person: _Keeper, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        return shown(ask(session, appliance, person, body.index, body.ground))


@router.post("/{index}/confirm")
def post_confirmation(index: int, person: _Keeper, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row, decision = confirm(session, appliance, active_policy(session, appliance), person, index)
        document = shown(row)
    if not decision.allowed:
        raise ErasureDenied(decision)
    return {**document, "forgotten": forget_erased(appliance.engine)}


@router.get("")
def get_erasures(person: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    del person
    with reading(appliance.engine) as session:
        return [shown(row) for row in RetentionRepository(session).erasures()]


@dossiers.post("/{release}/removal", status_code=201)
def ask_removal(release: str, person: _Keeper, appliance: ApplianceOf) -> dict[str, Any]:
    """Ask that a release's documents go, once their ten years are over."""
    with transaction(appliance.engine) as session:
        row = dossier.ask(session, appliance, active_policy(session, appliance), person, release)
        return {"release": row.release, "asked_by": row.asked_by, "asked_at": row.asked_at, "removed": False}


@dossiers.post("/{release}/removal/confirm")
def confirm_removal(release: str, person: _Keeper, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        decided = dossier.confirm(session, appliance, active_policy(session, appliance), person, release)
    if not decided.decision.allowed:
        raise ErasureDenied(decided.decision)
    return {"release": release, "removed": True, "forgotten": forget_erased(appliance.engine)}


def shown(row: PayloadErasure) -> dict[str, Any]:
    """An erasure as people see it."""
    return {
        "index": row.log_index,
        "ground": row.ground,
        "asked_by": row.asked_by,
        "asked_role": row.asked_role,
        "asked_at": row.asked_at,
        "confirmed_by": row.confirmed_by,
        "confirmed_role": row.confirmed_role,
        "erased_at": row.erased_at,
    }
