"""HTTP for studies: people propose, approve, start, stop and look; sites fetch plans, answer, and poll for work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlmodel import Session

from coordinator.database import reading, transaction
from coordinator.errors import NotFound
from coordinator.evidence.facts import study_papers
from coordinator.identity import ApplianceOf, CallerOf, CurrentSite, may
from coordinator.people.facts import actor_facts
from coordinator.people.states import Permission, sees
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.routes import installable_for
from coordinator.studies import by_passkey, views
from coordinator.studies.consent import answer
from coordinator.studies.control import approve_plan, start, stop
from coordinator.studies.exclude import ask, confirm
from coordinator.studies.policy import proposal_facts
from coordinator.studies.propose import ProposalDenied, Proposed, prepare, propose, state_of
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ACTIVE, StudyState
from coordinator.studies.tables import Study
from policies.evaluation import evaluate
from protocol.identifiers import SiteName
from protocol.study import StudyPlan

router = APIRouter(prefix="/v1", tags=["studies"])
_Proposer = Annotated[Person, Depends(may(Permission.PROPOSE_STUDY))]
_Reader = Annotated[Person, Depends(may(Permission.READ_STUDIES))]
_Approver = Annotated[Person, Depends(may(Permission.APPROVE_PLAN))]
_Starter = Annotated[Person, Depends(may(Permission.RUN_OWN_STUDY, Permission.START_ANY_STUDY))]
_Stopper = Annotated[Person, Depends(may(Permission.RUN_OWN_STUDY, Permission.STOP_ANY_STUDY))]
_SHOWN = frozenset(StudyState) - {StudyState.HELD, StudyState.DENIED}


async def _body(request: Request) -> bytes:
    return await request.body()


_Body = Annotated[bytes, Depends(_body)]


@router.post("/studies", status_code=201)
def post_study(
    person: _Proposer,
    caller: CallerOf,
    appliance: ApplianceOf,
    body: _Body,
    dry_run: Annotated[bool, Query()] = False,
) -> dict[str, Any]:
    """Propose a signed spec; with `dry_run`, only say what the gate would."""
    with reading(appliance.engine) as session:
        policy = active_policy(session, appliance)
        prepared = prepare(session, appliance, policy, person, body)
        papers = study_papers(session, appliance, prepared[0].spec)
    if dry_run:
        plan, digest = prepared
        asking = actor_facts(caller.actor, now=appliance.clock())
        facts = proposal_facts(plan, digest, papers=papers, actor=asking, append_ok=True)
        decision = evaluate("proposal", facts, policy.packs, policy.parameters, now=appliance.clock())
        return _proposed(Proposed(decision, plan, digest, state_of(decision)))
    with transaction(appliance.engine) as session:
        proposed = propose(session, appliance, policy, caller.actor, body, prepared)
    if proposed.state is StudyState.DENIED:
        raise ProposalDenied(proposed.decision)
    return _proposed(proposed)


def _proposed(proposed: Proposed) -> dict[str, Any]:
    plan = proposed.plan
    return {
        "study": plan.spec.study,
        "kind": plan.spec.kind,
        "state": proposed.state.value,
        "plan_digest": proposed.plan_digest,
        "decision": proposed.decision.to_dict(),
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": plan.epsilon,
        "epsilon_worst_site": plan.epsilon_worst_site,
        "epsilon_evaluation_worst_site": plan.epsilon_evaluation_worst_site if isinstance(plan, StudyPlan) else None,
        "membership": views.membership(plan),
        "sites": [{"name": site.name, "patients": site.patients, "held_out": site.held_out} for site in plan.sites],
    }


@router.get("/studies")
def get_studies(person: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    with reading(appliance.engine) as session:
        studies = StudyRepository(session)
        rows = [views.summary(row) for row in studies.all() if seen_by(person, row)]
        rows += [views.denied(row) for row in studies.denied() if sees(person.role, person.site, ())]
    return sorted(rows, key=lambda row: (row["proposed_at"], row["study"]))


@router.get("/studies/{study}")
def get_study(study: str, person: _Reader, appliance: ApplianceOf) -> dict[str, Any]:
    with reading(appliance.engine) as session:
        row = _shown_to(person, session, study)
        return views.status(session, row, patience=appliance.settings.patience)


@router.get("/studies/{study}/plan")
def get_plan(study: str, person: _Reader, appliance: ApplianceOf) -> dict[str, Any]:
    """The signed plan, for whoever must judge it."""
    with reading(appliance.engine) as session:
        return views.for_site(_shown_to(person, session, study))


@router.get("/studies/{study}/rounds")
def get_rounds(study: str, person: _Reader, appliance: ApplianceOf) -> dict[str, Any]:
    with reading(appliance.engine) as session:
        _shown_to(person, session, study)
        return views.round_records(session, study)


@router.get("/studies/{study}/results")
def get_results(study: str, person: _Reader, appliance: ApplianceOf) -> dict[str, Any]:
    """What an exploration found."""
    with reading(appliance.engine) as session:
        _shown_to(person, session, study)
        return views.results(session, study)


@router.post("/studies/{study}/approvals", status_code=201)
def post_approval(study: str, _: _Approver, caller: CallerOf, appliance: ApplianceOf, body: _Body) -> dict[str, Any]:
    """A planned approver's signed decision on a plan that policy holds."""
    with transaction(appliance.engine) as session:
        decision = approve_plan(session, appliance, active_policy(session, appliance), caller.actor, study, body)
        state = StudyRepository(session).get(study).state
    return {"study": study, "state": state, "decision": decision.to_dict() if decision else None}


class AskedDecision(BaseModel):
    """What the person's passkey is to sign."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "reject"]


@router.post("/studies/{study}/passkey-challenge")
def post_passkey_challenge(
    study: str, person: _Approver, appliance: ApplianceOf, asked: AskedDecision
) -> dict[str, Any]:
    """The decision on a held plan that the person's passkey is to sign, and what the browser needs for it."""
    with transaction(appliance.engine) as session:
        return by_passkey.ask(session, appliance, person, study, decision=asked.decision)


@router.post("/studies/{study}/start")
def post_start(study: str, person: _Starter, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        return {"study": study, "state": start(session, appliance, person, study).value}


@router.post("/studies/{study}/stop")
def post_stop(study: str, person: _Stopper, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        return {"study": study, "state": stop(session, appliance, person, study).value}


class Exclusion(BaseModel):
    """Whom to shut out, and why."""

    model_config = ConfigDict(extra="forbid")

    site: SiteName
    reason: str


@router.post("/studies/{study}/exclusions", status_code=201)
def post_exclusion(study: str, person: _Stopper, appliance: ApplianceOf, asked: Exclusion) -> dict[str, Any]:
    """Ask; another person confirms."""
    with transaction(appliance.engine) as session:
        row = ask(session, appliance, person, study, asked.site, reason=asked.reason)
        return {"study": study, "site": asked.site, "asked_at": row.asked_at}


@router.post("/studies/{study}/exclusions/{site}/confirmation")
def post_exclusion_confirmation(study: str, site: SiteName, person: _Stopper, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        left = confirm(session, appliance, person, study, site)
    return {"study": study, "excluded": site, "left": list(left)}


@router.get("/sites/me/studies")
def get_site_studies(site: CurrentSite, appliance: ApplianceOf) -> list[dict[str, Any]]:
    """The plans that name this site, each as the coordinator signed it."""
    with reading(appliance.engine) as session:
        studies = StudyRepository(session)
        rows = [row for row in studies.planned_for(site.name) if StudyState(row.state) in _SHOWN]
        return [{**views.for_site(row), "shut_out": site.name in studies.excluded(row.id)} for row in rows]


@router.get("/sites/me/work")
def get_site_work(site: CurrentSite, appliance: ApplianceOf) -> dict[str, list[str]]:
    """Cheap to poll: the studies this site is to take part in now, and the releases it may install."""
    with reading(appliance.engine) as session:
        studies = StudyRepository(session)
        active = [
            row.id for row in studies.in_states(ACTIVE) if site.name in studies.participants(row.id, (site.name,))
        ]
        return {"active": active, "installable": installable_for(ReleaseRepository(session), site.name)}


@router.post("/studies/{study}/consents", status_code=201)
def post_consent(study: str, site: CurrentSite, appliance: ApplianceOf, body: _Body) -> dict[str, str]:
    """This site's signed answer to the plan."""
    with transaction(appliance.engine) as session:
        return {"study": study, "state": answer(session, appliance, site.name, study, body).value}


def seen_by(person: Person, row: Study) -> bool:
    """Whether the study concerns this person: everybody's, but for the people of sites that it does not name."""
    return sees(person.role, person.site, plan_of(row).names)


def _shown_to(person: Person, session: Session, study: str) -> Study:
    """The study; like one that does not exist for the people of a site that it does not concern."""
    row = StudyRepository(session).get(study)
    if not seen_by(person, row):
        raise NotFound(f"There is no study {study}.", "See `cloister study list`.")
    return row
