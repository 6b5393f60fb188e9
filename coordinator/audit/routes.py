"""HTTP for the log: checkpoints, tiles and entry bundles for anyone, cosignatures from sites, the export for people."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from coordinator import problems
from coordinator.audit.append import append, person_label
from coordinator.audit.export import write_export
from coordinator.audit.repository import LogRepository
from coordinator.audit.review import reviewed
from coordinator.audit.sequencer import tile_store
from coordinator.audit.tile_store import LogDamaged
from coordinator.audit.witnessing import (
    keep_cosignatures,
    latest_note,
    policy_in_force,
    quorum_note,
    verify_auditor,
    verify_cosignatures,
)
from coordinator.database import reading, transaction
from coordinator.errors import NotFound
from coordinator.identity import ApplianceOf, CurrentSite, may
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.errors import Malformed
from protocol.identifiers import StudyId
from protocol.tiles import TILE_HEIGHT, Tile

router = APIRouter(prefix="/v1", tags=["log"])
problems.register(LogDamaged, 503)
_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"
_Auditor = Annotated[Person, Depends(may(Permission.READ_LOG))]
_Reviewer = Annotated[Person, Depends(may(Permission.REVIEW_LOG))]


async def _body(request: Request) -> bytes:
    return await request.body()


@router.get("/log/checkpoint")
def checkpoint(appliance: ApplianceOf) -> Response:
    with reading(appliance.engine) as session:
        note = latest_note(session, appliance)
    return Response(note, media_type=_TEXT, headers={"cache-control": "no-store"})


@router.get("/log/witnessed")
def witnessed(appliance: ApplianceOf) -> Response:
    """The largest checkpoint that a quorum of the policy's witnesses cosigned."""
    with reading(appliance.engine) as session:
        note = quorum_note(session, appliance, 1)
    if note is None:
        raise NotFound("No quorum of sites has cosigned a checkpoint yet.", "Wait for the sites' agents.")
    return Response(note, media_type=_TEXT, headers={"cache-control": "no-store"})


@router.get("/log/policy")
def policy(appliance: ApplianceOf) -> Response:
    with reading(appliance.engine) as session:
        found = policy_in_force(session, appliance)
    if found is None:
        raise NotFound("No site is enrolled, so the log has no witness.", "Enrol sites first.")
    return Response(found.to_bytes(), media_type="application/json")


@router.get("/log/tile/{path:path}")
def tile(path: str, appliance: ApplianceOf) -> Response:
    """A tile or entry bundle of the published log, at its C2SP path."""
    try:
        wanted = Tile.parse(f"tile/{path}")
    except Malformed:
        raise _no_tile() from None
    with reading(appliance.engine) as session:
        size = LogRepository(session, appliance.settings.origin).head().size
    row = size >> TILE_HEIGHT * (wanted.level or 0)
    if wanted.index * 256 + wanted.width > row:
        raise _no_tile()
    return Response(
        tile_store(appliance).read(wanted),
        media_type=_BYTES,
        headers={"cache-control": "public, max-age=31536000, immutable"},
    )


@router.post("/log/cosignatures")
def cosignatures(site: CurrentSite, appliance: ApplianceOf, body: Annotated[bytes, Depends(_body)]) -> dict[str, int]:
    witness = site.witness or ""
    with reading(appliance.engine) as session:  # many signatures may have to be tried: not under the write lock
        verified = verify_cosignatures(session, appliance, witness, body)
    with transaction(appliance.engine) as session:
        return {"size": keep_cosignatures(session, appliance, witness, verified)}


@router.post("/log/auditor-cosignatures")
def auditor_cosignature(
    size: Annotated[int, Query(ge=1, le=2**53)], appliance: ApplianceOf, body: Annotated[bytes, Depends(_body)]
) -> dict[str, int]:
    with reading(appliance.engine) as session:
        witness, line = verify_auditor(session, appliance, size, body)
    with transaction(appliance.engine) as session:
        return {"size": keep_cosignatures(session, appliance, witness, [(size, line)])}


@router.post("/audit/reviews", status_code=201)
def post_review(person: _Reviewer, appliance: ApplianceOf) -> dict[str, str | int]:
    """Say that one has reviewed the log as it is published now."""
    with transaction(appliance.engine) as session:
        row = reviewed(session, appliance, person)
        return {"size": row.size, "at": row.at}


@router.get("/audit/export")
def export(
    person: _Auditor, appliance: ApplianceOf, minimum_size: Annotated[int, Query(ge=1, le=2**53)] = 1
) -> Response:
    with reading(appliance.engine) as session:
        made = write_export(session, appliance, minimum_size=minimum_size)
    try:
        with transaction(appliance.engine) as session:
            append(
                session, appliance, EventType.AUDIT_EXPORTED, actor=person_label(appliance, person.name),
                subject=appliance.settings.name, digests={"bundle": made.digest}, numbers={"entries": made.entries},
            )  # fmt: skip
    except BaseException:
        made.file.close()
        raise
    return StreamingResponse(made.chunks(), media_type="application/x-tar", headers={"content-length": str(made.size)})


@router.get("/audit/report")
def report(
    person: _Auditor,
    appliance: ApplianceOf,
    study: StudyId | None = None,
    minimum_size: Annotated[int, Query(ge=1, le=2**53)] = 1,
) -> Response:
    """The evidence report, signed; on a study, or on the whole log."""
    from coordinator.audit.issue_report import issue_report  # ReportLab and pyHanko: not at every start

    with reading(appliance.engine) as session:
        made = issue_report(session, appliance, study=study, minimum_size=minimum_size)
    with transaction(appliance.engine) as session:
        append(
            session, appliance, EventType.AUDIT_EXPORTED, actor=person_label(appliance, person.name),
            subject=study or appliance.settings.name, digests={"report": sha256_hex(made.pdf)},
            numbers={"entries": made.entries}, labels={"form": "pdf"},
        )  # fmt: skip
    return Response(made.pdf, media_type="application/pdf")


def _no_tile() -> NotFound:
    return NotFound("The published log has no such tile.", "Fetch the checkpoint, then tiles within its size.")
