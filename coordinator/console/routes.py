"""The console's pages. They read; a change is a request of the page's script, or a form, under the CSRF token."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.console.join import form
from coordinator.console.join import router as join_router
from coordinator.console.pages import asset, page, redirect
from coordinator.database import reading, transaction
from coordinator.errors import NotFound, Unauthenticated
from coordinator.identity import (
    ApplianceOf,
    Caller,
    CallerOf,
    clear_session_cookie,
    set_session_cookie,
    signed_in,
)
from coordinator.passkeys.repository import PasskeyRepository, passkey_of
from coordinator.people import local_sign_in
from coordinator.people.identity_provider import load_identity_provider
from coordinator.people.repository import PersonRepository
from coordinator.people.states import Medium
from coordinator.policy.active import active_policy
from coordinator.releases import review, seal
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.routes import describe, seen_by
from coordinator.releases.states import ReleaseState, words
from coordinator.studies import routes as studies_routes
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import StudyState
from coordinator.studies.views import summary
from policies.findings import Kind
from policies.waivers import waivable
from protocol.errors import CloisterError, Refused
from protocol.evaluation import figures
from protocol.identifiers import Role
from protocol.passkey import relying_party
from protocol.plan import PlannedApprover
from protocol.review import APPROVING_ROLES

router = APIRouter(prefix="/console", tags=["console"], include_in_schema=False)
router.include_router(join_router)


@router.get("")
def releases(request: Request, appliance: ApplianceOf) -> Response:
    """Every release, those that wait for a decision first."""
    return _shown(request, _releases, appliance)


@router.get("/releases/{release}")
def one_release(release: str, request: Request, appliance: ApplianceOf) -> Response:
    """A release as approvers judge it, and where they sign."""
    return _shown(request, lambda caller, made: _release(caller, made, release), appliance)


@router.get("/studies")
def studies(request: Request, appliance: ApplianceOf) -> Response:
    """Every study that concerns the person, those that wait for an approval first."""
    return _shown(request, _studies, appliance)


@router.get("/studies/{study}")
def one_study(study: str, request: Request, appliance: ApplianceOf) -> Response:
    """A plan as approvers judge it, and where they sign."""
    return _shown(request, lambda caller, made: _study(caller, made, study), appliance)


@router.get("/passkeys")
def passkeys(request: Request, appliance: ApplianceOf) -> Response:
    """One's own passkeys, with the fingerprints that are compared by telephone."""
    return _shown(request, _passkeys, appliance)


@router.get("/sign-in")
def sign_in_page(appliance: ApplianceOf) -> Response:
    return _sign_in_page(appliance)


@router.post("/sign-in")
async def sign_in(request: Request, appliance: ApplianceOf) -> Response:
    """Password and one-time code, from the form of the page above."""
    fields = await form(request)
    name, password, code = (fields.get(field, "") for field in ("name", "password", "code"))
    try:
        _, token = await run_in_threadpool(local_sign_in.sign_in, appliance, name, password, code, Medium.BROWSER)
    except Refused as error:
        return _sign_in_page(appliance, status=403, trouble=error.message)
    answer = redirect("")
    set_session_cookie(answer, token)
    return answer


@router.post("/sign-out")
def sign_out(caller: CallerOf, appliance: ApplianceOf) -> Response:
    with transaction(appliance.engine) as session:
        PersonRepository(session).end_session(caller.token_hash)
    answer = redirect("/sign-in")
    clear_session_cookie(answer)
    return answer


@router.get("/console.js")
def script() -> Response:
    return asset(_file("console.js"), "text/javascript; charset=utf-8")


@router.get("/console.css")
def style() -> Response:
    return asset(_file("console.css"), "text/css; charset=utf-8")


@cache
def _file(name: str) -> bytes:
    return files("coordinator.console").joinpath("static", name).read_bytes()


def _sign_in_page(appliance: Appliance, *, status: int = 200, trouble: str | None = None) -> Response:
    federated = load_identity_provider(appliance.home) is not None
    return page("sign_in.html", status=status, caller=None, trouble=trouble, federated=federated)


def _shown(request: Request, make: Callable[[Caller, Appliance], Response], appliance: Appliance) -> Response:
    try:
        caller = signed_in(request, None)
    except Unauthenticated:
        return redirect("/sign-in")
    try:
        return make(caller, appliance)
    except NotFound as error:
        return page("trouble.html", status=404, caller=caller, error=error)
    except CloisterError as error:
        return page("trouble.html", status=409, caller=caller, error=error)


def _releases(caller: Caller, appliance: Appliance) -> Response:
    with reading(appliance.engine) as session:
        rows = [
            {"name": row.id, "study": row.study, "state": words(ReleaseState(row.state)), "until": row.review_until}
            for row in ReleaseRepository(session).all()
            if seen_by(caller.person, row)
        ]
    rows.sort(key=lambda row: row["state"] != words(ReleaseState.IN_REVIEW))
    return page("releases.html", caller=caller, releases=rows)


def _release(caller: Caller, appliance: Appliance, name: str) -> Response:
    with reading(appliance.engine) as session:
        releases, policy = ReleaseRepository(session), active_policy(session, appliance)
        row = releases.get(name)
        if not seen_by(caller.person, row):
            raise NotFound(f"There is no release {name}.", "Choose one of the list.")
        subject, plan = review.subject_of_release(row), review.plan_of_release(row)
        gate = seal.preview(session, appliance, policy, caller.actor, name)
        planned = next((entry for entry in plan.approvers if entry.person == caller.person.name), None)
        usable = planned is not None and _has_passkey(session, planned)
        told = describe(row, releases)
        card = releases.files(name)["model_card.md"].decode()
    decided = any(vote["person"] == caller.person.name for vote in told["approvals"])
    may_decide = planned is not None and row.state == ReleaseState.IN_REVIEW.value and not decided
    broken = {(found.pack, found.rule) for found in gate.findings if found.kind is Kind.VIOLATED}
    return page(
        "release.html",
        caller=caller,
        release=told,
        state=words(ReleaseState(row.state)),
        subject=subject,
        figures=[(label, figure.told) for label, figure in figures(subject.evaluation)],
        review=plan.spec.review,
        card=card,
        gate=gate,
        may_decide=may_decide,
        waivable=sorted(broken & waivable(policy.packs)) if may_decide and usable and not told["approvals"] else [],
        approves=Role(caller.person.role) in APPROVING_ROLES,
        usable=usable,
    )


def _has_passkey(session: Session, planned: PlannedApprover) -> bool:
    """Whether one of the passkeys that the plan fixes for the person still stands."""
    standing = {held.credential for held in PasskeyRepository(session).of(planned.person)}
    return any(passkey.credential in standing for passkey in planned.passkeys)


def _studies(caller: Caller, appliance: Appliance) -> Response:
    with reading(appliance.engine) as session:
        rows = [summary(row) for row in StudyRepository(session).all() if studies_routes.seen_by(caller.person, row)]
    rows.sort(key=lambda row: row["state"] != StudyState.HELD.value)
    return page("studies.html", caller=caller, studies=rows)


def _study(caller: Caller, appliance: Appliance, name: str) -> Response:
    with reading(appliance.engine) as session:
        found = StudyRepository(session)
        row = found.get(name)
        if not studies_routes.seen_by(caller.person, row):
            raise NotFound(f"There is no study {name}.", "Choose one of the list.")
        plan, told, approvals = plan_of(row), summary(row), found.approvals(name)
        planned = next((entry for entry in plan.approvers if entry.person == caller.person.name), None)
        usable = planned is not None and _has_passkey(session, planned)
        votes = [vote.model_dump(include={"person", "role", "decision", "signed_at"}) for vote in approvals]
        decision = json.loads(row.decision)
    return page(
        "study.html",
        caller=caller,
        study=told,
        plan=plan,
        whole=json.dumps(plan.model_dump(mode="json"), indent=2, ensure_ascii=False),
        approvals=votes,
        decision=decision,
        may_decide=planned is not None and told["state"] == StudyState.HELD.value,
        usable=usable,
    )


def _passkeys(caller: Caller, appliance: Appliance) -> Response:
    with reading(appliance.engine) as session:
        held: list[dict[str, Any]] = [
            {"credential": row.credential, "fingerprint": passkey_of(row).key_id, "since": row.registered_at}
            for row in PasskeyRepository(session).of(caller.person.name)
        ]
    try:
        host, trouble = relying_party(appliance.settings.address), None
    except Refused as error:
        host, trouble = None, f"{error.message} {error.remedy}"
    return page("passkeys.html", caller=caller, passkeys=held, host=host, trouble=trouble)
