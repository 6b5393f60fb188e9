"""Ask an approver's passkey for a decision or a waiver: the document is written here, and its hash is the challenge."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.passkeys.register import signing_options
from coordinator.people.tables import Person
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.review import challenge, plan_of_release, planned, require_reason
from policies.packs import Policy
from policies.waivers import require_waivable
from protocol.canonical import canonical, sha256_hex
from protocol.identifiers import Role
from protocol.release import APPROVAL_TYPE, WAIVER_TYPE, Approval, ReleaseWaiver
from protocol.timestamp import timestamp


def ask(
    session: Session,
    appliance: Appliance,
    person: Person,
    name: str,
    *,
    decision: Literal["approve", "reject"],
    reason: str,
) -> dict[str, Any]:
    """What the browser needs to have this decision, with this reason, signed over the release's present digest. Good
    once, for as long as any challenge. Raises Refused for somebody whom the plan does not name."""
    release = ReleaseRepository(session).get(name)
    approver = planned(plan_of_release(release), person.name, Role(person.role))
    asked = challenge(session, appliance, person, name)
    approval = Approval(
        release=name,
        subject_digest=release.subject_digest,
        person=person.name,
        role=approver.role,
        decision=decision,
        meaning="reviewed-and-approved" if decision == "approve" else "reviewed-and-rejected",
        reason_hash=sha256_hex(require_reason(reason).encode()),
        packs=asked["packs"],
        challenge=asked["challenge"],
        signed_at=timestamp(appliance.clock()),
    )
    return signing_options(
        session,
        appliance,
        person.name,
        tuple(passkey.credential for passkey in approver.passkeys),
        payload_type=APPROVAL_TYPE,
        document=canonical(approval.model_dump(mode="json")),
    )


def ask_waiver(
    session: Session,
    appliance: Appliance,
    policy: Policy,
    person: Person,
    name: str,
    *,
    pack: str,
    rule: str,
    days: int,
    reason: str,
) -> dict[str, Any]:
    """What the browser needs to have a waiver of one rule signed over the release's present digest, good once.

    days: how long it holds, from now. Raises Refused for a rule that can't be waived and for somebody whom the plan
    does not name; whether the release still takes waivers is decided when the signature arrives.
    """
    require_waivable(policy.packs, pack, rule)
    release = ReleaseRepository(session).get(name)
    approver = planned(plan_of_release(release), person.name, Role(person.role))
    now, asked = appliance.clock(), challenge(session, appliance, person, name)
    waiver = ReleaseWaiver(
        release=name,
        subject_digest=release.subject_digest,
        person=person.name,
        role=approver.role,
        pack=pack,
        rule=rule,
        reason_hash=sha256_hex(require_reason(reason).encode()),
        expires_at=timestamp(now + timedelta(days=days)),
        challenge=asked["challenge"],
        signed_at=timestamp(now),
    )
    return signing_options(
        session,
        appliance,
        person.name,
        tuple(passkey.credential for passkey in approver.passkeys),
        payload_type=WAIVER_TYPE,
        document=canonical(waiver.model_dump(mode="json")),
    )
