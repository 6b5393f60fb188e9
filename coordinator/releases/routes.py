"""HTTP for releases: people draft, review and seal; sites fetch and say what they installed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import Field, StringConstraints

from coordinator.appliance import Appliance
from coordinator.audit.append import append, site_label
from coordinator.database import reading, transaction
from coordinator.errors import NotFound
from coordinator.identity import ApplianceOf, CallerOf, CurrentSite, may
from coordinator.people.states import Permission, sees
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.releases import by_passkey, review, seal, serving, stopping, waivers
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.states import ReleaseState
from coordinator.releases.tables import Release, ReleaseInstallation
from protocol.audit_event import EventType
from protocol.canonical import parse
from protocol.errors import Malformed
from protocol.identifiers import Digest, Frozen, Label, StudyId
from protocol.timestamp import timestamp

router = APIRouter(prefix="/v1/releases", tags=["releases"])
site_router = APIRouter(prefix="/v1/sites/me/releases", tags=["releases"])
Researcher = Annotated[Person, Depends(may(Permission.DRAFT_RELEASE))]
Approver = Annotated[Person, Depends(may(Permission.DECIDE_RELEASE))]
Anybody = Annotated[Person, Depends(may(Permission.BREAK_GLASS))]
Reader = Annotated[Person, Depends(may(Permission.READ_STUDIES))]


class Draft(Frozen):
    """Which study's candidate, what for, and whether its submitter claims that it is anonymous."""

    study: StudyId
    intended_use: Label
    use_mode: Literal["research", "decision-support"]
    claim_anonymous: bool = False


class Asked(Frozen):
    """A decision that a passkey is to sign."""

    decision: Literal["approve", "reject"]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=review.MAX_REASON)]


class AskedWaiver(Frozen):
    """A waiver that a passkey is to sign; it holds for `days`, at most 90."""

    pack: Label
    rule: Label
    days: Annotated[int, Field(ge=1, le=90)]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=review.MAX_REASON)]


class Decision(Frozen):
    """`envelope`: the signed Approval, as a JSON object: DSSE, or a passkey's signature. `reason`: the words whose hash
    it holds."""

    envelope: dict[str, Any]
    reason: Annotated[str, StringConstraints(max_length=review.MAX_REASON)]


class Reason(Frozen):
    """Why a model is stopped, or what came of an emergency."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=review.MAX_REASON)]


class Installation(Frozen):
    """The digest that the site verified, and that of its serving gate's decision."""

    subject_digest: Digest
    decision_digest: Digest


@router.post("", status_code=201)
def draft(body: Draft, person: Researcher, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        release = review.draft(session, appliance, person, **body.model_dump())
        return describe(release, ReleaseRepository(session))


@router.get("")
def list_releases(person: Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    with reading(appliance.engine) as session:
        releases = ReleaseRepository(session)
        return [describe(row, releases) for row in releases.all() if seen_by(person, row)]


@router.get("/{release}")
def show(release: str, person: Reader, caller: CallerOf, appliance: ApplianceOf) -> dict[str, Any]:
    with reading(appliance.engine) as session:
        releases = ReleaseRepository(session)
        row = releases.get(release)
        if not seen_by(person, row):
            raise NotFound(f"There is no release {release}.", "See `cloister release list`.")
        gate = seal.preview(session, appliance, active_policy(session, appliance), caller.actor, release)
        return {
            **describe(row, releases),
            "subject": parse(row.subject),
            "model_card": releases.files(release)["model_card.md"].decode(),
            "gate": gate.to_dict(),
        }


@router.post("/{release}/submit")
def submit(release: str, person: Researcher, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        return describe(review.submit(session, appliance, person, release), ReleaseRepository(session))


@router.post("/{release}/challenge")
def challenge(release: str, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        return review.challenge(session, appliance, person, release)


@router.post("/{release}/passkey-challenge")
def passkey_challenge(release: str, body: Asked, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    """The approval that the person's passkey is to sign, and what the browser needs for it."""
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        return by_passkey.ask(session, appliance, person, release, decision=body.decision, reason=body.reason)


@router.post("/{release}/approvals", status_code=201)
def decide(release: str, body: Decision, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        row = review.decide(session, appliance, person, release, envelope=_bytes(body.envelope), reason=body.reason)
        return describe(row, ReleaseRepository(session))


@router.post("/{release}/waivers/passkey-challenge")
def passkey_waiver(release: str, body: AskedWaiver, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    """The waiver that the person's passkey is to sign, and what the browser needs for it."""
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        policy = active_policy(session, appliance)
        return by_passkey.ask_waiver(session, appliance, policy, person, release, **body.model_dump())


@router.post("/{release}/waivers", status_code=201)
def waive(release: str, body: Decision, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        row = waivers.grant_waiver(
            session,
            appliance,
            active_policy(session, appliance),
            person,
            release,
            envelope=_bytes(body.envelope),
            reason=body.reason,
        )
        return describe(row, ReleaseRepository(session))


@router.post("/{release}/seal")
def seal_release(release: str, _: Researcher, caller: CallerOf, appliance: ApplianceOf) -> dict[str, Any]:
    """Repeat until the answer's state is released: the sites have to cosign in between."""
    _settle(appliance, release)
    with transaction(appliance.engine) as session:
        decision = seal.seal(session, appliance, active_policy(session, appliance), caller.actor, release)
    if decision is not None and not decision.allowed:
        raise seal.ReleaseDenied(decision)
    with transaction(appliance.engine) as session:
        seal.finish(session, appliance, release)
        releases = ReleaseRepository(session)
        return describe(releases.get(release), releases)


@router.post("/{release}/suspend")
def suspend(release: str, body: Reason, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = stopping.suspend(session, appliance, person, release, reason=body.reason)
        return describe(row, ReleaseRepository(session))


@router.post("/{release}/revoke")
def revoke(release: str, body: Reason, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = stopping.revoke(session, appliance, person, release, reason=body.reason)
        return describe(row, ReleaseRepository(session))


@router.post("/{release}/break-glass")
def break_glass(release: str, body: Reason, person: Anybody, appliance: ApplianceOf) -> dict[str, Any]:
    """Suspend in an emergency, whatever one's role: nothing else can be done this way."""
    with transaction(appliance.engine) as session:
        row = stopping.smash(session, appliance, person, release, reason=body.reason)
        return describe(row, ReleaseRepository(session))


@router.post("/{release}/break-glass/review")
def review_break_glass(release: str, body: Reason, person: Approver, appliance: ApplianceOf) -> dict[str, Any]:
    with transaction(appliance.engine) as session:
        row = stopping.review_broken_glass(session, appliance, person, release, reason=body.reason)
        return describe(row, ReleaseRepository(session))


@site_router.get("")
def site_releases(site: CurrentSite, appliance: ApplianceOf) -> list[dict[str, Any]]:
    """The submitted releases of studies whose plan holds this site: what it may veto while nothing is sealed."""
    with reading(appliance.engine) as session:
        releases = ReleaseRepository(session)
        return [
            {
                "release": row.id,
                "state": row.state,
                "subject_digest": row.subject_digest,
                "subject": parse(row.subject),
                "model_card": releases.files(row.id)["model_card.md"].decode(),
                "review_until": row.review_until,
            }
            for row in releases.all()
            if ReleaseState(row.state) is not ReleaseState.DRAFT and site.name in review.plan_of_release(row).names
        ]


@site_router.post("/{release}/veto")
def veto(release: str, body: dict[str, Any], site: CurrentSite, appliance: ApplianceOf) -> dict[str, str]:
    """The site's signed veto (DSSE)."""
    with transaction(appliance.engine) as session:
        row = stopping.veto(session, appliance, site.name, release, _bytes(body))
        return {"release": row.id, "state": row.state}


@site_router.post("/serving", status_code=201)
def tell_serving(body: dict[str, Any], site: CurrentSite, appliance: ApplianceOf) -> dict[str, str]:
    """The site's signed report (DSSE) of what it serves; it may be sent again."""
    with transaction(appliance.engine) as session:
        report = serving.take(session, appliance, site, _bytes(body))
    return {"report": report.report}


@router.get("/{release}/bundle")
def bundle(release: str, site: CurrentSite, appliance: ApplianceOf) -> Response:
    with transaction(appliance.engine) as session:
        row = _for_recipient(ReleaseRepository(session), release, site.name)
        data = seal.bundle(session, release, now=appliance.clock())
        _log_site(session, appliance, EventType.RELEASE_DOWNLOADED, site.name, row)
    return Response(data, media_type="application/x-tar", headers={"Cache-Control": "no-store"})


@router.post("/{release}/installed", status_code=204)
def installed(release: str, body: Installation, site: CurrentSite, appliance: ApplianceOf) -> None:
    with transaction(appliance.engine) as session:
        releases = ReleaseRepository(session)
        row = _for_recipient(releases, release, site.name)
        if body.subject_digest != row.subject_digest or ReleaseState(row.state) is not ReleaseState.RELEASED:
            raise Malformed("The digest is not this release's.", "Fetch the release again and verify it.")
        now = timestamp(appliance.clock())
        if releases.add_installation(ReleaseInstallation(release=release, site=site.name, installed_at=now)):
            _log_site(session, appliance, EventType.RELEASE_INSTALLED, site.name, row, decision=body.decision_digest)


def describe(release: Release, releases: ReleaseRepository) -> dict[str, Any]:
    """A release as people see it, without its files."""
    return {
        "release": release.id,
        "study": release.study,
        "state": release.state,
        "submitter": release.submitter,
        "subject_digest": release.subject_digest,
        "created_at": release.created_at,
        "approvals": [
            {
                "person": vote.person,
                "role": vote.role,
                "decision": "approve" if vote.approve else "reject",
                "subject_digest": vote.subject_digest,
                "at": vote.decided_at,
            }
            for vote in releases.votes(release.id)
        ],
        "waivers": [
            {"pack": row.pack, "rule": row.rule, "person": row.person, "role": row.role, "until": row.expires_at}
            for row in releases.waivers(release.id)
        ],
        "vetoes": [{"site": row.site, "reason": row.reason} for row in releases.vetoes(release.id)],
        "review_until": release.review_until,
        "broken_glass": _emergency(releases, release.id),
        "installed": [row.site for row in releases.installed(release.id)],
        "serving": serving.where_served(releases, release.id),
    }


def _emergency(releases: ReleaseRepository, release: str) -> dict[str, Any] | None:
    row = releases.broken_glass(release)
    if row is None:
        return None
    return {"person": row.person, "role": row.role, "at": row.broken_at, "reviewed_by": row.reviewed_by}


def _settle(appliance: Appliance, release: str) -> None:
    # In a transaction of its own: what expired or failed stays so when the request is then refused.
    with transaction(appliance.engine) as session:
        review.settle(session, appliance, release)


def _bytes(envelope: dict[str, Any]) -> bytes:
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def installable_for(releases: ReleaseRepository, site: str) -> list[str]:
    """The sealed releases that `site` may fetch and has not said it installed."""
    names = []
    for row in releases.all():
        subject = review.subject_of_release(row)
        done = {entry.site for entry in releases.installed(row.id)}
        if ReleaseState(row.state) is ReleaseState.RELEASED and site in subject.recipients and site not in done:
            names.append(row.id)
    return names


def seen_by(person: Person, row: Release) -> bool:
    """Whether a person sees a release: the people of a site, those whose study their site takes part in."""
    return sees(person.role, person.site, review.plan_of_release(row).names)


def _for_recipient(releases: ReleaseRepository, release: str, site: str) -> Release:
    row = releases.get(release)
    if site not in review.subject_of_release(row).recipients:
        # A site that is no recipient learns nothing, not even that the release exists.
        raise NotFound(f"There is no release {release}.", "Ask which releases are for this site.")
    return row


def _log_site(
    session: Any, appliance: Appliance, event: EventType, site: str, release: Release, **digests: str
) -> None:
    append(
        session,
        appliance,
        event,
        actor=site_label(site),
        subject=f"release:{release.id}",
        digests={"subject": release.subject_digest, **digests},
    )
