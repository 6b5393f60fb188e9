"""HTTP for evidence: a compliance officer or regulatory affairs record and revoke, others read."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.evidence.record import record, revoke
from coordinator.evidence.repository import EvidenceRepository
from coordinator.evidence.tables import Evidence
from coordinator.governance import load_governance
from coordinator.identity import ApplianceOf, may
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from protocol.evidence import EvidenceRecord
from protocol.identifiers import Digest, Frozen

router = APIRouter(prefix="/v1/evidence", tags=["evidence"])
_Recorder = Annotated[Person, Depends(may(Permission.RECORD_EVIDENCE, Permission.CLASSIFY))]
_Reader = Annotated[Person, Depends(may(Permission.READ_EVIDENCE))]
MAX_RECORDS = 500


class Records(Frozen):
    """Up to 500 records, recorded together or not at all."""

    records: Annotated[tuple[EvidenceRecord, ...], Field(min_length=1, max_length=MAX_RECORDS)]


@router.post("", status_code=201)
def post_evidence(body: Records, person: _Recorder, appliance: ApplianceOf) -> list[dict[str, Any]]:
    with transaction(appliance.engine) as session:
        return [_shown(row) for row in record(session, appliance, person, body.records)]


@router.get("")
def get_evidence(person: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    del person
    with reading(appliance.engine) as session:
        return [_shown(row) for row in EvidenceRepository(session).all()]


@router.get("/organisation")
def get_organisation(person: _Reader, appliance: ApplianceOf) -> dict[str, Any] | None:
    """What the organisation that runs the coordinator says of itself; null where nobody has said anything."""
    del person
    said = load_governance(appliance.home)
    return None if said is None else said.model_dump(mode="json")


@router.delete("/{digest}")
def delete_evidence(digest: Digest, person: _Recorder, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        return _shown(revoke(session, appliance, person, digest))


def _shown(row: Evidence) -> dict[str, Any]:
    return {
        "digest": row.digest,
        **json.loads(row.record),
        "recorded_by": row.recorded_by,
        "recorded_at": row.recorded_at,
        "revoked_at": row.revoked_at,
    }
