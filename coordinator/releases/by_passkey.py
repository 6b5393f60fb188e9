"""Ask an approver's passkey for a decision: the approval is written here, and its hash is the challenge."""

from __future__ import annotations

from typing import Any, Literal

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.passkeys.register import signing_options
from coordinator.people.tables import Person
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.review import challenge, plan_of_release, planned, require_reason
from protocol.canonical import canonical, sha256_hex
from protocol.identifiers import Role
from protocol.release import APPROVAL_TYPE, Approval
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
