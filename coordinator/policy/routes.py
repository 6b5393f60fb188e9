"""HTTP for policy: people propose, decide and look; sites fetch the set in force; what was decided can be replayed."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from coordinator.database import reading, transaction
from coordinator.identity import AnyPerson, ApplianceOf, CurrentSite, current_person
from coordinator.people.tables import Person
from coordinator.policy import change
from coordinator.policy.active import set_of
from coordinator.policy.repository import PolicyRepository
from coordinator.policy.tables import PolicyDecision, PolicySetRow
from protocol.activated_policy import bundle
from protocol.canonical import canonical, parse
from protocol.identifiers import Digest, Frozen, Label, Role
from protocol.policy_set import ACTIVATING_ROLES, MAX_DOCUMENTS, PROPOSING_ROLES, DocumentName

router = APIRouter(prefix="/v1/policy", tags=["policy"])
_Proposer = Annotated[Person, Depends(current_person(*sorted(PROPOSING_ROLES)))]
_Decider = Annotated[Person, Depends(current_person(*sorted(ACTIVATING_ROLES)))]
_Reader = Annotated[
    Person,
    Depends(current_person(Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD, Role.ADMINISTRATOR, Role.AUDITOR)),
]
MAX_PAGE = 200


class Proposed(Frozen):
    """A signed set and its documents."""

    envelope: dict[str, Any]
    documents: Annotated[
        dict[DocumentName, Annotated[str, Field(max_length=256 * 1024)]], Field(max_length=MAX_DOCUMENTS)
    ]


class Decided(Frozen):
    """A signed vote and its reason in words."""

    envelope: dict[str, Any]
    reason: str


@router.post("/sets", status_code=201)
def post_set(body: Proposed, person: _Proposer, appliance: ApplianceOf) -> dict[str, Any]:
    documents = {name: text.encode() for name, text in body.documents.items()}
    with transaction(appliance.engine) as session:
        row = change.propose(session, appliance, person, envelope=canonical(body.envelope), documents=documents)
        return describe(row, PolicyRepository(session))


@router.get("/sets")
def get_sets(person: AnyPerson, appliance: ApplianceOf) -> list[dict[str, Any]]:
    del person
    with reading(appliance.engine) as session:
        sets = PolicyRepository(session)
        return [describe(row, sets) for row in sets.all()]


@router.get("/sets/{digest}")
def get_set(digest: Digest, person: AnyPerson, appliance: ApplianceOf) -> dict[str, Any]:
    """A set with its documents, for whoever must read them before deciding."""
    del person
    with reading(appliance.engine) as session:
        sets = PolicyRepository(session)
        row = sets.get(digest)
        texts = {name: data.decode() for name, data in sets.documents(set_of(row).documents).items()}
        return {**describe(row, sets), "envelope": parse(row.envelope), "documents": texts}


@router.get("/active")
def get_active(person: AnyPerson, appliance: ApplianceOf) -> dict[str, Any]:
    """The set in force, with its documents."""
    with reading(appliance.engine) as session:
        row = PolicyRepository(session).active()
        digest = "" if row is None else row.digest
    return get_set(digest, person, appliance)


@router.post("/sets/{digest}/votes", status_code=201)
def post_vote(digest: Digest, body: Decided, person: _Decider, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = change.decide(session, appliance, person, digest, envelope=canonical(body.envelope), reason=body.reason)
        return describe(row, PolicyRepository(session))


@router.get("/decisions")
def get_decisions(
    person: _Reader,
    appliance: ApplianceOf,
    gate: Annotated[Label | None, Query()] = None,
    subject: Annotated[Label | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
) -> list[dict[str, Any]]:
    """What gates decided, newest first, with the facts unless they were erased: for a replay under other packs."""
    del person
    with reading(appliance.engine) as session:
        found = PolicyRepository(session).decisions(gate=gate, subject=subject, before=before, limit=limit)
        return [_decision(row, payload) for row, payload in found]


@router.get("/bundle")
def get_bundle_in_force(site: CurrentSite, appliance: ApplianceOf) -> dict[str, Any]:
    """The set in force, with every signature, for a site to verify."""
    del site
    with reading(appliance.engine) as session:
        row = PolicyRepository(session).active()
        return _bundle(PolicyRepository(session), row) if row is not None else {}


@router.get("/bundles/{policy}")
def get_bundle(policy: Digest, site: CurrentSite, appliance: ApplianceOf) -> dict[str, Any]:
    """The set that decides under this digest, as a plan's packs give it, with every signature, for a site to verify."""
    del site
    with reading(appliance.engine) as session:
        sets = PolicyRepository(session)
        return _bundle(sets, sets.that_decided(policy))


def _bundle(sets: PolicyRepository, row: PolicySetRow) -> dict[str, Any]:
    votes = [vote.envelope for vote in sets.votes(row.digest)]
    return bundle(row.envelope, votes, row.activation or b"{}", sets.documents(set_of(row).documents))


def describe(row: PolicySetRow, sets: PolicyRepository) -> dict[str, Any]:
    """A set as people see it, without its documents."""
    given = set_of(row)
    return {
        "set": row.digest,
        "number": row.number,
        "state": row.state,
        "origin": given.origin,
        "policy": given.policy,
        "previous": given.previous,
        "coordinator": given.coordinator,
        "proposer": row.proposer,
        "proposed_at": row.proposed_at,
        "activated_at": row.activated_at,
        "names": given.documents,
        "votes": [
            {"person": vote.person, "role": vote.role, "activate": vote.activate, "at": vote.decided_at}
            for vote in sets.votes(row.digest)
        ],
    }


def _decision(row: PolicyDecision, payload: bytes | None) -> dict[str, Any]:
    told = None if payload is None else json.loads(payload)
    return {
        "entry": row.entry,
        "gate": row.gate,
        "subject": row.subject,
        "policy": row.policy,
        "outcome": row.outcome,
        "at": row.at,
        "facts": None if told is None else json.loads(told["facts"]),
        "waived": [] if told is None else [[f["pack"], f["rule"]] for f in json.loads(told["decision"])["waived"]],
    }
