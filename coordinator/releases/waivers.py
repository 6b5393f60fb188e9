"""Waivers at the release gate: an approver of the plan's roster answers for one rule, with a reason and an end."""

from __future__ import annotations

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.passkeys.register import count_use
from coordinator.people.tables import Person
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.review import log, plan_of_release, planned, require_reason
from coordinator.releases.states import ReleaseState, admit_waiver
from coordinator.releases.tables import Release, ReleaseWaiverRecord
from policies.packs import Policy
from policies.waivers import require_waivable
from protocol.approver_signature import document_of, read_signed, verify_signed
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.errors import Malformed, Refused
from protocol.passkey import PasskeySignature
from protocol.release import WAIVER_TYPE, ReleaseWaiver
from protocol.timestamp import timestamp


def grant_waiver(
    session: Session, appliance: Appliance, policy: Policy, person: Person, name: str, *, envelope: bytes, reason: str
) -> Release:
    """Record one signed waiver. Raises Refused for a rule that can't be waived, BadSignature, Malformed, Conflict."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    signed = read_signed(envelope)
    try:
        waiver = ReleaseWaiver.model_validate_json(document_of(signed))
    except ValidationError:
        raise Malformed("The waiver has fields that are missing or wrong.", "Update the command line tool.") from None
    approver = planned(plan_of_release(release), waiver.person, waiver.role)
    verify_signed(signed, WAIVER_TYPE, approver, appliance.settings.address)
    if (waiver.person, waiver.release, waiver.subject_digest) != (person.name, name, release.subject_digest):
        raise Refused("The waiver is signed for another person, release or digest.", "Sign your own, on this one.")
    if waiver.role.value != person.role:
        raise Refused("The waiver is signed in a role that you no longer have.", "Ask somebody who has it.")
    if isinstance(signed, PasskeySignature):
        count_use(session, appliance, person.name, signed)
    if sha256_hex(require_reason(reason).encode()) != waiver.reason_hash:
        raise Malformed("The reason is not the one that was signed.", "Give --reason in words.")
    require_waivable(policy.packs, waiver.pack, waiver.rule)
    now = appliance.clock()
    admit_waiver(
        waiver.role,
        waiver.person,
        state=ReleaseState(release.state),
        submitter=release.submitter,
        votes=len(releases.votes(name)),
        expires_at=waiver.expires_at,
        now=now,
    )
    releases.use_challenge(
        waiver.challenge,
        release=name,
        person=person.name,
        subject_digest=release.subject_digest,
        now=timestamp(now),
    )
    releases.add_waiver(
        ReleaseWaiverRecord(
            release=name,
            pack=waiver.pack,
            rule=waiver.rule,
            person=person.name,
            role=waiver.role.value,
            reason=reason,
            expires_at=waiver.expires_at,
            envelope=envelope,
            granted_at=timestamp(now),
        )
    )
    log(
        session,
        appliance,
        EventType.RULE_WAIVED,
        person,
        release,
        role=waiver.role,
        labels={"pack": waiver.pack, "rule": waiver.rule, "until": waiver.expires_at},
        payload={"reason": reason, "person": person.name},
    )
    return release


def standing_waivers(session: Session, appliance: Appliance, release: Release) -> frozenset[tuple[str, str]]:
    """(pack, rule) of the waivers that have not ended."""
    now = timestamp(appliance.clock())
    return frozenset(
        (row.pack, row.rule) for row in ReleaseRepository(session).waivers(release.id) if row.expires_at > now
    )
