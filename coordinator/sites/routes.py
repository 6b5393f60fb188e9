"""HTTP for sites, and what people may see of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.identity import ApplianceOf, CurrentSite, may
from coordinator.people.states import Permission, sees
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.sites import enrolment
from coordinator.sites.gate import EnrolmentDenied, answer_of, decide_enrolment_gate
from coordinator.sites.repository import SiteRepository
from coordinator.sites.statements import renew_statement
from coordinator.sites.tables import Site, SiteDataset
from protocol.enrolment import (
    DatasetRegistration,
    EnrolmentRequest,
    EnrolmentResponse,
    GateAnswer,
    StatementReceipt,
)
from protocol.identifiers import Digest, Frozen

router = APIRouter(prefix="/v1", tags=["sites"])
_Reader = Annotated[Person, Depends(may(Permission.READ_STUDIES))]


class RenewalRequest(Frozen):
    csr: Annotated[str, Field(max_length=10_000)]


class Departure(Frozen):
    """What a site that leaves still holds, by its own count, and the digest of its own decision to let that be."""

    retained: Annotated[int, Field(ge=0, le=1_000_000)]
    decision_digest: Digest


@router.post("/enrol", status_code=201)
def enrol(body: EnrolmentRequest, appliance: ApplianceOf) -> EnrolmentResponse:
    with transaction(appliance.engine) as session:
        enrolled = enrolment.enrol(session, appliance, active_policy(session, appliance), body)
    if enrolled.response is None:
        raise EnrolmentDenied(enrolled.decision)
    return enrolled.response


@router.post("/enrol/check")
def check_enrolment(body: EnrolmentRequest, appliance: ApplianceOf) -> GateAnswer:
    """What the enrolment gate would say: nothing is stored, and the token stays good."""
    with reading(appliance.engine) as session:
        papers = enrolment.examine(session, appliance, body).papers
        policy = active_policy(session, appliance)
    return answer_of(decide_enrolment_gate(appliance, policy, papers, append_ok=True).decision)


@router.get("/sites/me")
def me(site: CurrentSite, appliance: ApplianceOf) -> dict[str, Any]:
    with reading(appliance.engine) as session:
        datasets = [row for row in SiteRepository(session).datasets() if row.site == site.name]
    return {**_site(site), "datasets": [_dataset(row) for row in datasets]}


@router.post("/sites/me/renew")
def renew(body: RenewalRequest, site: CurrentSite, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        certificate, not_after = enrolment.renew(session, appliance, site.name, body.csr)
    return {"certificate": certificate, "not_after": not_after}


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post("/sites/me/statement")
def post_statement(
    site: CurrentSite, appliance: ApplianceOf, body: Annotated[bytes, Depends(_body)]
) -> StatementReceipt:
    """The site's papers anew, signed with its key."""
    with transaction(appliance.engine) as session:
        return renew_statement(session, appliance, site, body)


@router.put("/sites/me/datasets/{name}", status_code=204)
def put_dataset(name: str, body: DatasetRegistration, site: CurrentSite, appliance: ApplianceOf) -> None:
    with transaction(appliance.engine) as session:
        enrolment.register_dataset(session, appliance, site.name, name, body)


@router.post("/sites/me/departure", status_code=204)
def departure(body: Departure, site: CurrentSite, appliance: ApplianceOf) -> None:
    with transaction(appliance.engine) as session:
        enrolment.leave(session, appliance, site.name, retained=body.retained, decision=body.decision_digest)


@router.get("/sites")
def sites(person: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    with reading(appliance.engine) as session:
        rows = SiteRepository(session).all()
    return [_site(row) for row in rows if sees(person.role, person.site, (row.name,))]


@router.get("/datasets")
def datasets(person: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    with reading(appliance.engine) as session:
        rows = SiteRepository(session).datasets()
    return [{"site": row.site, **_dataset(row)} for row in rows if sees(person.role, person.site, (row.site,))]


def _site(site: Site) -> dict[str, Any]:
    fields = ("name", "status", "invited_at", "enrolled_at", "identity", "witness", "serial", "not_after")
    return {field: getattr(site, field) for field in fields}


def _dataset(row: SiteDataset) -> dict[str, Any]:
    fields = ("name", "schema_digest", "snapshot", "patients", "held_out", "registered_at")
    return {field: getattr(row, field) for field in fields}
