"""HTTP for contributions in chunks, behind the same mutual TLS as Flower's fleet path."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from coordinator.identity import ApplianceOf, CurrentSite
from coordinator.rounds.uploads import MOST_CHUNKS, Uploads

PREFIX = "/v1/contributions"
router = APIRouter(prefix=PREFIX, tags=["rounds"])


async def _body(request: Request) -> bytes:
    return await request.body()


_Body = Annotated[bytes, Depends(_body)]


@router.post("")
def post_contribution(site: CurrentSite, appliance: ApplianceOf, body: _Body) -> dict[str, Any]:
    """Offer a signed contribution with its manifest; where its chunks go, and which are still to be sent."""
    attempt, missing = Uploads(appliance).offer(site.name, body)
    return {"attempt": attempt, "missing": list(missing)}


@router.put("/{attempt}/{number}", status_code=204)
def put_chunk(
    site: CurrentSite,
    appliance: ApplianceOf,
    attempt: Annotated[str, Path(pattern="^[0-9a-f]{32}$")],
    number: Annotated[int, Path(ge=0, lt=MOST_CHUNKS)],
    body: _Body,
) -> Response:
    """One chunk of what this site has offered."""
    Uploads(appliance).put(site.name, attempt, number, body)
    return Response(status_code=204)
