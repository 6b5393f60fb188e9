"""HTTP for sites, and what people may see of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.identity import ApplianceOf, CurrentSite, may
from coordinator.people.states import Permission, sees
from coordinator.people.tables import Person
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import Site, SiteDataset
from protocol.enrolment import DatasetRegistration, EnrolmentRequest, EnrolmentResponse
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
        return enrolment.enrol(session, appliance, body)


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
