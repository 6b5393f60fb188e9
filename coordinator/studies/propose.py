"""A proposal: verify who signed it, make the plan, decide at the gate, keep both with the decision, log all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.audit.witnessing import policy_in_force
from coordinator.errors import Conflict, Unavailable
from coordinator.evidence.facts import study_papers
from coordinator.passkeys.repository import PasskeyRepository, passkey_of
from coordinator.people.facts import Actor, actor_facts
from coordinator.people.repository import PersonRepository
from coordinator.people.tables import Person
from coordinator.policy.decisions import record
from coordinator.sites.repository import SiteRepository
from coordinator.studies.exploration_plan import build_exploration_plan, exploration_forecast
from coordinator.studies.plan import (
    EnrolledSite,
    Papers,
    PlanRefused,
    RegisteredDataset,
    able_approvers,
    build_plan,
    forecast,
    plan_digest,
    planned_approvers,
    planned_sites,
    schema_digest,
)
from coordinator.studies.policy import proposal_facts
from coordinator.studies.repository import PLAN_LIMIT, StudyRepository
from coordinator.studies.states import StudyState
from coordinator.studies.tables import DeniedProposal, Study
from policies.decided import decide
from policies.findings import APPROVAL, Decision, reasons
from policies.packs import Policy
from privacy.errors import PrivacyError
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.consent import PLAN_TYPE, PROPOSAL_TYPE
from protocol.envelope import Envelope, open_json
from protocol.envelope import seal as sign
from protocol.errors import Malformed, Refused
from protocol.exploration import ExplorationPlan, ExplorationSpec
from protocol.identifiers import Role
from protocol.plan import PlannedApprover
from protocol.proposal import Proposal
from protocol.signing import VerifyingKey
from protocol.study_kind import AnyPlan, AnySpec, spec_from
from protocol.timestamp import timestamp


class ProposalDenied(Refused):
    """Policy denies the study; `facts` holds the findings for the caller."""

    code = "policy-denied"

    def __init__(self, decision: Decision) -> None:
        first = reasons(decision)[0]
        super().__init__(f"{first.rule} ({first.citation}): {first.message}", first.remedy)
        self.facts: dict[str, Any] = {"findings": [finding.to_dict() for finding in decision.findings]}


@dataclass(frozen=True)
class Proposed:
    """What came of a proposal. plan: also where the gate is shut, for a dry run."""

    decision: Decision
    plan: AnyPlan
    plan_digest: str
    state: StudyState


def read_proposal(data: bytes, person: Person) -> tuple[AnySpec, str]:
    """The spec that this person signed, and the digest of the signed bytes.

    Raises Malformed with every field that is wrong, BadSignature.
    """
    if person.key is None:
        raise Refused(f"{person.name} has no registered key.", "Run `cloister login` with a new invitation.")
    key = VerifyingKey.from_text(person.key)
    envelope = Envelope.from_bytes(data, limit=2 * PLAN_LIMIT)
    document, _ = open_json(envelope, PROPOSAL_TYPE, {key.key_id: key}, limit=PLAN_LIMIT)
    try:
        return spec_from(document), sha256_hex(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)[:10]
        )
        raise Malformed(
            f"The study is not valid: {problems}.", "Run `cloister study validate` on the file it was made from."
        ) from None


def prepare(session: Session, appliance: Appliance, policy: Policy, person: Person, data: bytes) -> tuple[AnyPlan, str]:
    """The plan that the proposal would become, and its digest. Nothing is stored.

    Raises Conflict for a name that is taken, PlanRefused, PrivacyError, Unavailable before any site witnesses the log.
    """
    spec, proposal_digest = read_proposal(data, person)
    if StudyRepository(session).exists(spec.study):
        raise Conflict(f"There is a study {spec.study} already.", "Choose another name in the field study.")
    witnesses = policy_in_force(session, appliance)
    if witnesses is None:
        raise Unavailable("No site witnesses the log yet.", "Enrol the sites first.")
    sites = SiteRepository(session)
    enrolled = {
        site.name: EnrolledSite(site.name, site.identity) for site in sites.active() if site.identity is not None
    }
    try:
        papers = Papers(
            proposal_digest=proposal_digest,
            submitter=person.name,
            sites=planned_sites(spec, enrolled, _registered(sites, spec)),
            packs=dict(policy.documents),
            witness_policy=witnesses.to_document(),
            coordinator=appliance.keys.coordinator.public.text,
            created_at=timestamp(appliance.clock()),
        )
        plan = _plan(spec, papers, _approvers(session))
    except PrivacyError as error:
        raise PlanRefused(error.message, error.remedy) from error
    return plan, plan_digest(plan)


def _plan(spec: AnySpec, papers: Papers, people: Sequence[PlannedApprover]) -> AnyPlan:
    if isinstance(spec, ExplorationSpec):
        return build_exploration_plan(spec, papers, able_approvers(people, papers.submitter))
    return build_plan(spec, papers, planned_approvers(people, papers.submitter, spec.review))


def propose(
    session: Session, appliance: Appliance, policy: Policy, who: Actor, data: bytes, prepared: tuple[AnyPlan, str]
) -> Proposed:
    """Decide at the proposal gate and keep the outcome, in the caller's transaction.

    `prepared`: from `prepare`, made before the transaction because calibrating the noise takes a while. A denial is
    stored and returned too: the caller raises ProposalDenied after the commit.
    """
    plan, its_digest = prepared
    spec, person = plan.spec, who.person
    studies = StudyRepository(session)
    if studies.exists(spec.study):
        raise Conflict(f"There is a study {spec.study} already.", "Choose another name in the field study.")
    actor = person_label(appliance, person.name)
    now = timestamp(appliance.clock())
    appended = append(
        session,
        appliance,
        EventType.STUDY_PROPOSED,
        actor=actor,
        subject=spec.study,
        digests={"spec": plan.spec_digest, "proposal": plan.proposal_digest, "plan": its_digest},
        numbers={"epsilon": plan.epsilon, "delta": spec.privacy.delta, "sites": len(plan.sites)},
    )
    papers = study_papers(session, appliance, spec)
    asking = actor_facts(who, now=appliance.clock())
    facts = proposal_facts(plan, its_digest, papers=papers, actor=asking, append_ok=appended > 0)
    decided = decide("proposal", facts, policy, now=appliance.clock(), salt=appliance.entropy(32))
    decision, document = decided.decision, decided.decision.to_dict()
    record(session, appliance, decided, actor=COORDINATOR, subject=spec.study)
    state = state_of(decision)
    if state is StudyState.DENIED:
        append(
            session,
            appliance,
            EventType.STUDY_DENIED,
            actor=COORDINATOR,
            subject=spec.study,
            digests={"decision": decided.digest},
            groups={"rules": sorted({finding.rule for finding in reasons(decision)})},
        )
        studies.add_denied(
            DeniedProposal(
                study=spec.study,
                submitter=person.name,
                proposal=data,
                proposal_digest=plan.proposal_digest,
                decision=json.dumps(document),
                proposed_at=now,
            )
        )
    else:
        studies.add(
            Study(
                id=spec.study,
                title=spec.title,
                submitter=person.name,
                state=state.value,
                proposal=data,
                proposal_digest=plan.proposal_digest,
                plan=sign(PLAN_TYPE, plan.model_dump(mode="json"), appliance.keys.coordinator).to_bytes(),
                plan_digest=its_digest,
                decision=json.dumps(document),
                forecast=json.dumps(_forecast(plan)),
                proposed_at=now,
            )
        )
    return Proposed(decision, plan, its_digest, state)


def _forecast(plan: AnyPlan) -> tuple[tuple[int, float], ...]:
    if isinstance(plan, ExplorationPlan):
        return exploration_forecast(plan.spec, plan.noise_multiplier)
    return forecast(plan.spec, plan.noise_multiplier)


def state_of(decision: Decision) -> StudyState:
    """An open gate lets sites answer; one that waits for nothing but approvals holds; evidence that is owed belongs in
    the spec, so it denies."""
    if decision.allowed:
        return StudyState.CONSENTING
    owed = reasons(decision)
    if owed and all(finding.effect.startswith(APPROVAL) for finding in owed):
        return StudyState.HELD
    return StudyState.DENIED


def _registered(sites: SiteRepository, spec: Proposal) -> list[RegisteredDataset]:
    rows = sorted(sites.datasets(schema_digest(spec.dataset)), key=lambda row: row.registered_at)
    return [RegisteredDataset(row.site, row.schema_digest, row.snapshot, row.patients, row.held_out) for row in rows]


def _approvers(session: Session) -> Sequence[PlannedApprover]:
    held = PasskeyRepository(session)
    return [
        PlannedApprover(
            person=person.name,
            role=Role(person.role),
            key=person.key,
            passkeys=passkeys,
            organisation=person.organisation,
        )
        for person in PersonRepository(session).all()
        if person.status == "active"
        and ((passkeys := tuple(map(passkey_of, held.of(person.name)))) or person.key is not None)
    ]
