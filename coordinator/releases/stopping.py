"""How a model is stopped: suspended or revoked by an approver, suspended by whoever breaks the glass, vetoed by a site
before it is sealed. Stopping is quick; nothing here lets a model out."""

from __future__ import annotations

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, site_label
from coordinator.errors import Conflict, Forbidden, NotFound
from coordinator.people.tables import Person
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.review import log, plan_of_release, require_reason
from coordinator.releases.states import ReleaseState, admit_veto, break_glass, move
from coordinator.releases.tables import BrokenGlass, Release, ReleaseVetoRecord
from protocol.audit_event import EventType
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.release import VETO_TYPE, ReleaseVeto
from protocol.review import APPROVING_ROLES
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp


def suspend(session: Session, appliance: Appliance, person: Person, name: str, *, reason: str) -> Release:
    """released -> suspended, by one approver alone: stopping a model must be quick, starting it never is."""
    return _stop(session, appliance, person, name, ReleaseState.SUSPENDED, EventType.RELEASE_SUSPENDED, reason)


def revoke(session: Session, appliance: Appliance, person: Person, name: str, *, reason: str) -> Release:
    """released or suspended -> revoked, for good, by one approver: the study may then have another release."""
    return _stop(session, appliance, person, name, ReleaseState.REVOKED, EventType.RELEASE_REVOKED, reason)


def smash(session: Session, appliance: Appliance, person: Person, name: str, *, reason: str) -> Release:
    """released -> suspended by anybody but an auditor, in an emergency. It is logged twice, and an approver who is
    another person has to look at it afterwards."""
    if person.role == Role.AUDITOR.value:
        raise Forbidden("An auditor reads and changes nothing.", "Tell an approver or the administrator.")
    releases = ReleaseRepository(session)
    release = releases.get(name)
    releases.set_state(release, break_glass(ReleaseState(release.state), ReleaseState.SUSPENDED))
    releases.keep_broken_glass(
        BrokenGlass(
            release=name,
            person=person.name,
            role=person.role,
            reason=require_reason(reason),
            broken_at=timestamp(appliance.clock()),
        )
    )
    words: dict[str, object] = {"reason": reason, "person": person.name}
    log(session, appliance, EventType.GLASS_BROKEN, person, release, role=Role(person.role), payload=words)
    log(session, appliance, EventType.RELEASE_SUSPENDED, person, release, labels={"by": "broken-glass"})
    return release


def review_broken_glass(session: Session, appliance: Appliance, person: Person, name: str, *, reason: str) -> Release:
    """An approver says what came of an emergency. The release stays suspended: it is revoked, or released anew."""
    releases = ReleaseRepository(session)
    release, row = releases.get(name), releases.broken_glass(name)
    if row is None:
        raise NotFound(f"Nobody broke the glass on {name}.", "See `cloister release show`.")
    if row.reviewed_by is not None:
        raise Conflict(f"The emergency on {name} was looked at already.", "See `cloister release show`.")
    if row.person == person.name or Role(person.role) not in APPROVING_ROLES:
        raise Refused("Whoever broke the glass does not judge it.", "An approver, another person, looks at it.")
    row.reviewed_by, row.review, row.reviewed_at = person.name, require_reason(reason), timestamp(appliance.clock())
    releases.keep_broken_glass(row)
    words: dict[str, object] = {"reason": reason, "person": person.name}
    log(session, appliance, EventType.GLASS_REVIEWED, person, release, role=Role(person.role), payload=words)
    return release


def veto(session: Session, appliance: Appliance, site: str, name: str, envelope: bytes) -> Release:
    """A planned site's signed veto ends the release while nothing is sealed. Sent again it changes nothing.

    Raises Refused once it is sealed, NotFound for a site that the plan does not hold, BadSignature, Malformed.
    """
    releases = ReleaseRepository(session)
    release = releases.get(name)
    plan = plan_of_release(release)
    if site not in plan.names:
        raise NotFound(f"There is no release {name}.", "Ask which releases this site took part in.")
    key = VerifyingKey.from_text(plan.site(site).identity)
    signed = Envelope.from_bytes(envelope)
    open_json(signed, VETO_TYPE, {key.key_id: key})
    try:
        given = ReleaseVeto.model_validate_json(signed.payload)
    except ValidationError:
        raise Malformed("The veto is not of the agreed form.", "Update the site's software.") from None
    if (given.release, given.subject_digest, given.site) != (name, release.subject_digest, site):
        raise Refused("The veto is on another release, digest or site.", "Read the release again and veto that one.")
    if releases.veto_of(name, site) is not None:
        return release
    state = ReleaseState(release.state)
    if state is not ReleaseState.REJECTED:  # a second site's veto is kept beside the first
        admit_veto(state)
    releases.add_veto(
        ReleaseVetoRecord(
            release=name, site=site, reason=given.reason, envelope=envelope, vetoed_at=timestamp(appliance.clock())
        )
    )
    append(
        session,
        appliance,
        EventType.RELEASE_VETOED,
        actor=site_label(site),
        subject=f"release:{name}",
        digests={"subject": release.subject_digest},
        labels={"reason": given.reason},
    )
    if state is not ReleaseState.REJECTED:
        releases.set_state(release, move(state, ReleaseState.REJECTED))
    return release


def _stop(
    session: Session,
    appliance: Appliance,
    person: Person,
    name: str,
    wanted: ReleaseState,
    event: EventType,
    reason: str,
) -> Release:
    words: dict[str, object] = {"reason": require_reason(reason), "person": person.name}
    releases = ReleaseRepository(session)
    release = releases.get(name)
    releases.set_state(release, move(ReleaseState(release.state), wanted))
    log(session, appliance, event, person, release, role=Role(person.role), payload=words)
    return release
