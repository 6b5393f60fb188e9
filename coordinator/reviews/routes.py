"""HTTP for reviews: sites send notices, a compliance officer decides, everybody with an account reads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.identity import AnyPerson, ApplianceOf, CurrentSite, current_person
from coordinator.people.tables import Person
from coordinator.reviews.decide import close_review, open_review
from coordinator.reviews.repository import ReviewRepository
from coordinator.reviews.tables import ModelReview
from protocol.identifiers import Frozen, Role
from protocol.withdrawal import REVIEW_GROUNDS, ReviewGround

router = APIRouter(prefix="/v1", tags=["reviews"])
_Officer = Annotated[Person, Depends(current_person(Role.COMPLIANCE_OFFICER))]


class Closing(Frozen):
    """The grounds, one at least for each cause, and why they hold."""

    grounds: Annotated[tuple[ReviewGround, ...], Field(min_length=1, max_length=len(REVIEW_GROUNDS))]
    reason: str


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post("/sites/me/withdrawals", status_code=201)
def post_notice(site: CurrentSite, appliance: ApplianceOf, body: Annotated[bytes, Depends(_body)]) -> dict[str, str]:
    """This site's signed notice; it may be sent again."""
    with transaction(appliance.engine) as session:
        row = open_review(session, appliance, site, body)
    return {"review": row.id, "state": row.state}


@router.get("/reviews")
def get_reviews(person: AnyPerson, appliance: ApplianceOf) -> list[dict[str, Any]]:
    del person
    with reading(appliance.engine) as session:
        return [_shown(row) for row in ReviewRepository(session).all()]


@router.post("/reviews/{review}/closing", status_code=201)
def post_closing(review: str, body: Closing, person: _Officer, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        return _shown(close_review(session, appliance, person, review, body.grounds, words=body.reason))


def _shown(row: ModelReview) -> dict[str, Any]:
    fields = ("study", "site", "causes", "state", "opened_at", "grounds", "closed_by", "closed_at")
    return {"review": row.id, **{field: getattr(row, field) for field in fields}}
