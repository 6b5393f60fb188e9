"""Ask an approver's passkey for a decision on a held plan: the document is written here, its hash is the challenge."""

from __future__ import annotations

from typing import Any, Literal

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.passkeys.register import signing_options
from coordinator.people.tables import Person
from coordinator.studies.control import planned_approver, require_held
from coordinator.studies.repository import StudyRepository, plan_of
from protocol.canonical import canonical
from protocol.consent import PLAN_APPROVAL_TYPE, PlanApproval
from protocol.timestamp import timestamp


def ask(
    session: Session, appliance: Appliance, person: Person, study: str, *, decision: Literal["approve", "reject"]
) -> dict[str, Any]:
    """What the browser needs to have this decision signed over the plan's digest.

    Raises StudyConflict unless the study is held, Refused for somebody who is no planned approver or has no passkey in
    the plan that still stands.
    """
    row = StudyRepository(session).get(study)
    require_held(row)
    approver = planned_approver(plan_of(row), person)
    approval = PlanApproval(
        study=study,
        plan_digest=row.plan_digest or "",
        person=person.name,
        role=approver.role,
        decision=decision,
        signed_at=timestamp(appliance.clock()),
    )
    return signing_options(
        session,
        appliance,
        person.name,
        tuple(passkey.credential for passkey in approver.passkeys),
        payload_type=PLAN_APPROVAL_TYPE,
        document=canonical(approval.model_dump(mode="json")),
    )
