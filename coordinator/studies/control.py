"""Approve a held plan, start a study, stop it."""

from __future__ import annotations

import json

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.evidence.facts import study_papers
from coordinator.passkeys.register import count_use
from coordinator.people.facts import Actor, actor_facts
from coordinator.people.states import Permission, allowed
from coordinator.people.tables import Person
from coordinator.policy.decisions import record
from coordinator.studies.policy import proposal_facts
from coordinator.studies.propose import state_of
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import (
    ENDED,
    Reason,
    StudyConflict,
    StudyState,
    cohort,
    require_startable,
)
from coordinator.studies.tables import PlanApprovalRecord, Study
from policies.decided import decide
from policies.findings import Decision
from policies.packs import Policy
from protocol.approver_signature import Signed, document_of, read_signed, verify_signed
from protocol.audit_event import EventType
from protocol.consent import PLAN_APPROVAL_TYPE, PlanApproval
from protocol.errors import Malformed, Refused
from protocol.passkey import PasskeySignature
from protocol.plan import Plan, PlannedApprover
from protocol.timestamp import timestamp


def approve_plan(
    session: Session, appliance: Appliance, policy: Policy, who: Actor, study: str, data: bytes
) -> Decision | None:
    """Record a planned approver's signed decision on a held plan and decide at the gate again; None on a rejection,
    which stops the study.

    Raises StudyConflict unless the study is held, Refused for somebody who is no planned approver, BadSignature.
    """
    studies, person = StudyRepository(session), who.person
    row = studies.get(study)
    require_held(row)
    plan = plan_of(row)
    approval, signed = _read(appliance, data, plan, person)
    if (approval.study, approval.plan_digest) != (study, row.plan_digest):
        raise StudyConflict(
            f"The approval is for plan {approval.plan_digest}; the plan of study {study} is {row.plan_digest}.",
            "Read the plan again and sign that one.",
        )
    if isinstance(signed, PasskeySignature):
        count_use(session, appliance, person.name, signed)
    studies.add_approval(
        PlanApprovalRecord(
            study=study,
            person=person.name,
            role=approval.role.value,
            decision=approval.decision,
            envelope=data,
            signed_at=approval.signed_at,
        )
    )
    approved = approval.decision == "approve"
    append(
        session,
        appliance,
        EventType.STUDY_APPROVED if approved else EventType.STUDY_REJECTED,
        actor=person_label(appliance, person.name),
        subject=study,
        digests={"plan": approval.plan_digest},
        labels={"role": approval.role.value, "decision": approval.decision},
    )
    if not approved:
        _stop(session, appliance, row, person, Reason.PLAN_REJECTED)
        return None
    facts = proposal_facts(
        plan,
        approval.plan_digest,
        papers=study_papers(session, appliance, plan.spec),
        actor=actor_facts(who, now=appliance.clock()),
        approvals=_verified(studies, study, row),
        append_ok=True,
    )
    decided = decide("proposal", facts, policy, now=appliance.clock(), salt=appliance.entropy(32))
    decision = decided.decision
    record(session, appliance, decided, actor=COORDINATOR, subject=study)
    row.decision = json.dumps(decision.to_dict())
    session.add(row)
    session.flush()
    if state_of(decision) is StudyState.CONSENTING:
        studies.set_state(row, StudyState.CONSENTING)
    return decision


def start(session: Session, appliance: Appliance, person: Person, study: str) -> StudyState:
    """ready -> keys, by the submitter or an administrator. Raises StudyConflict, Refused."""
    studies = StudyRepository(session)
    row = studies.get(study)
    if not may_run(person, row, Permission.START_ANY_STUDY):
        raise Refused("Only the study's submitter or an administrator starts it.", "Ask one of them.")
    plan, answers = plan_of(row), studies.answers(study)
    require_startable(study, StudyState(row.state), plan.names, answers)
    members = cohort(plan.names, answers)
    studies.set_state(row, StudyState.KEYS, started_at=timestamp(appliance.clock()))
    append(
        session,
        appliance,
        EventType.STUDY_STARTED,
        actor=person_label(appliance, person.name),
        subject=study,
        digests={"plan": row.plan_digest or ""},
        numbers={
            "rounds": sum(stage.rounds for stage in plan.stages if not stage.held_out),
            "retries": plan.spec.privacy.retries,
        },
        groups={"cohort": members},
    )
    return StudyState.KEYS


def stop(session: Session, appliance: Appliance, person: Person, study: str) -> StudyState:
    """Stop a study that has not ended, by its submitter, a compliance officer or an administrator."""
    studies = StudyRepository(session)
    row = studies.get(study)
    if not may_run(person, row, Permission.STOP_ANY_STUDY):
        raise Refused(
            "Only the study's submitter, a compliance officer or an administrator stops it.", "Ask one of them."
        )
    if StudyState(row.state) in ENDED:
        raise StudyConflict(f"Study {study} is {row.state} already.", "Nothing is left to stop.")
    _stop(session, appliance, row, person, Reason.STOPPED_BY_PERSON)
    return StudyState.STOPPED


def may_run(person: Person, row: Study, permission: Permission) -> bool:
    """Whether somebody runs this study: as its submitter, or by the permission over everybody's."""
    own = person.name == row.submitter and allowed(person.role, Permission.RUN_OWN_STUDY)
    return own or allowed(person.role, permission)


def _stop(session: Session, appliance: Appliance, row: Study, person: Person, reason: Reason) -> None:
    StudyRepository(session).set_state(
        row, StudyState.STOPPED, reason=reason.value, ended_at=timestamp(appliance.clock())
    )
    append(
        session,
        appliance,
        EventType.STUDY_STOPPED,
        actor=person_label(appliance, person.name),
        subject=row.id,
        digests={"plan": row.plan_digest} if row.plan_digest else {},
        labels={"state": StudyState.STOPPED.value, "reason": reason.value},
    )


def require_held(row: Study) -> None:
    """Raises StudyConflict unless the plan waits for an approval."""
    if StudyState(row.state) is not StudyState.HELD:
        raise StudyConflict(f"Study {row.id} is {row.state}: no approval is owed.", "Look at `cloister study status`.")


def planned_approver(plan: Plan, person: Person) -> PlannedApprover:
    """Somebody's entry in the plan's roster. Raises Refused."""
    planned = next((approver for approver in plan.approvers if approver.person == person.name), None)
    if planned is None:
        raise Refused(f"{person.name} is not an approver of this plan.", "Ask one of the plan's approvers.")
    return planned


def _read(appliance: Appliance, data: bytes, plan: Plan, person: Person) -> tuple[PlanApproval, Signed]:
    planned = planned_approver(plan, person)
    signed = read_signed(data)
    verify_signed(signed, PLAN_APPROVAL_TYPE, planned, appliance.settings.address)
    try:
        approval = PlanApproval.model_validate_json(document_of(signed))
    except ValidationError:
        raise Malformed("The approval is not of the agreed form.", "Sign it with `cloister study approve`.") from None
    if (approval.person, approval.role) != (planned.person, planned.role) or person.role != planned.role.value:
        raise Refused("The approval is signed for another person or role.", "Sign your own decision.")
    return approval, signed


def _verified(studies: StudyRepository, study: str, row: Study) -> list[dict[str, str]]:
    return [
        {
            "person": record.person,
            "role": record.role,
            "subject_digest": row.plan_digest or "",
            "decision": record.decision,
            "meaning": "reviewed-and-approved",
            "signed_at": record.signed_at,
        }
        for record in studies.approvals(study)
        if record.decision == "approve"
    ]
