"""The verbs of people: draft, submit, challenge, decide, suspend. Each is load, decide, save, append."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict
from coordinator.people.tables import Person
from coordinator.releases.build import UseMode, model_files, subject_of
from coordinator.releases.repository import ReleaseRepository, vote_of
from coordinator.releases.states import ReleaseState, Vote, admit, move, outcome
from coordinator.releases.tables import Release, ReleaseChallenge, ReleaseVote
from coordinator.rounds.repository import CandidateRepository
from coordinator.studies.repository import StudyRepository, training_plan_of
from protocol.audit_event import EventType
from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import BadSignature, Malformed, Refused
from protocol.evaluation import read_report
from protocol.identifiers import Role
from protocol.membership import MembershipReport
from protocol.release import APPROVAL_TYPE, Approval, EpsilonStatement, ReleaseSubject
from protocol.signing import VerifyingKey
from protocol.study import StudyPlan
from protocol.timestamp import timestamp

CHALLENGE_MINUTES = 15
MAX_REASON = 2000


def draft(
    session: Session, appliance: Appliance, person: Person, *, study: str, intended_use: str, use_mode: UseMode
) -> Release:
    """A release of the study's candidate. Only the study's submitter drafts it. Raises Refused, NotFound, Conflict."""
    releases = ReleaseRepository(session)
    row = StudyRepository(session).get(study)
    if row.submitter != person.name:
        raise Refused("Only the study's own submitter drafts its release.", "Ask the researcher who proposed it.")
    if row.plan is None:
        raise Conflict(f"Study {study} has no plan.", "See `cloister study status`.")
    plan = training_plan_of(row)
    candidate = CandidateRepository(session).of(study)
    earlier = releases.of_study(study)
    if any(ReleaseState(other.state) is not ReleaseState.REJECTED for other in earlier):
        raise Conflict(f"Study {study} already has a release.", "See `cloister release list`.")
    if plan.membership is not None and candidate.membership is None:
        raise Conflict(f"The membership audit of study {study} is under way.", "Wait for it: `cloister study status`.")
    epsilon = EpsilonStatement.model_validate_json(candidate.epsilon)
    evaluation = read_report(candidate.evaluation)
    membership = None if candidate.membership is None else MembershipReport.model_validate_json(candidate.membership)
    told = (epsilon, evaluation, membership)
    files = model_files(plan, candidate.weights, *told, intended_use=intended_use, use_mode=use_mode)
    name = f"{study}-r{len(earlier) + 1}"
    plan_digest = sha256_hex(Envelope.from_bytes(row.plan).payload)
    subject = subject_of(name, plan, plan_digest, files, *told, intended_use=intended_use, use_mode=use_mode)
    release = Release(
        id=name,
        study=study,
        state=ReleaseState.DRAFT.value,
        submitter=person.name,
        subject=canonical(subject.model_dump(mode="json")),
        subject_digest=subject.digest,
        plan=row.plan,
        created_at=timestamp(appliance.clock()),
    )
    releases.add(release, files)
    _log(session, appliance, EventType.RELEASE_DRAFTED, person, release)
    return release


def submit(session: Session, appliance: Appliance, person: Person, name: str) -> Release:
    """draft -> in_review, by its submitter."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    if release.submitter != person.name:
        raise Refused("Only the submitter puts a release into review.", "Ask the researcher who drafted it.")
    releases.set_state(release, move(ReleaseState(release.state), ReleaseState.IN_REVIEW))
    _log(session, appliance, EventType.RELEASE_SUBMITTED, person, release)
    return release


def challenge(session: Session, appliance: Appliance, person: Person, name: str) -> dict[str, Any]:
    """A nonce for this person's decision on the release's present digest; good once, for 15 minutes."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    nonce = sha256_hex(appliance.entropy(32))
    expires = timestamp(appliance.clock() + timedelta(minutes=CHALLENGE_MINUTES))
    releases.add_challenge(
        ReleaseChallenge(
            nonce=nonce,
            release=name,
            person=person.name,
            subject_digest=release.subject_digest,
            expires_at=expires,
        )
    )
    plan = plan_of_release(release)
    return {
        "challenge": nonce,
        "expires_at": expires,
        "subject": parse(release.subject),
        "subject_digest": release.subject_digest,
        "packs": plan.packs,
    }


def decide(
    session: Session, appliance: Appliance, person: Person, name: str, *, envelope: bytes, reason: str
) -> Release:
    """Record one signed decision. The signature must verify under the key that the consented plan fixed.

    Raises Refused, BadSignature or Malformed. `reason` is erasable: the log holds its salted hash.
    """
    releases = ReleaseRepository(session)
    release = releases.get(name)
    approval = read_approval(plan_of_release(release), Envelope.from_bytes(envelope))
    if approval.person != person.name or approval.release != name:
        raise Refused("The decision is signed for another person or release.", "Sign your own decision on this one.")
    if not 1 <= len(reason) <= MAX_REASON or sha256_hex(reason.encode()) != approval.reason_hash:
        raise Malformed("The reason is missing, too long or not the one that was signed.", "Give --reason in words.")
    now = timestamp(appliance.clock())
    vote = Vote(person.name, approval.role, approval.subject_digest, approval.decision == "approve")
    cast = [vote_of(row) for row in releases.votes(name)]
    admit(vote, cast, state=ReleaseState(release.state), submitter=release.submitter, digest=release.subject_digest)
    releases.use_challenge(
        approval.challenge, release=name, person=person.name, subject_digest=release.subject_digest, now=now
    )
    releases.add_vote(
        ReleaseVote(
            release=name,
            person=person.name,
            role=approval.role.value,
            subject_digest=approval.subject_digest,
            approve=vote.approve,
            reason=reason,
            envelope=envelope,
            decided_at=now,
        )
    )
    event = EventType.RELEASE_APPROVED if vote.approve else EventType.RELEASE_REJECTED
    words: dict[str, object] = {"reason": reason, "person": person.name}
    _log(session, appliance, event, person, release, role=approval.role, payload=words)
    state = outcome([*cast, vote], digest=release.subject_digest, submitter=release.submitter)
    if state is not ReleaseState(release.state):
        releases.set_state(release, move(ReleaseState(release.state), state))
    return release


def suspend(session: Session, appliance: Appliance, person: Person, name: str, *, reason: str) -> Release:
    """released -> suspended, by one approver alone: stopping a model must be quick, starting it never is."""
    if not 1 <= len(reason) <= MAX_REASON:
        raise Malformed("The reason is missing or too long.", "Give --reason in words.")
    releases = ReleaseRepository(session)
    release = releases.get(name)
    releases.set_state(release, move(ReleaseState(release.state), ReleaseState.SUSPENDED))
    words: dict[str, object] = {"reason": reason, "person": person.name}
    _log(session, appliance, EventType.RELEASE_SUSPENDED, person, release, payload=words)
    return release


def read_approval(plan: StudyPlan, envelope: Envelope) -> Approval:
    """The approval in an envelope, verified under the plan's roster. Raises BadSignature, Refused or Malformed."""
    try:
        claimed = Approval.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The decision has fields that are missing or wrong.", "Update the command line tool.") from None
    approver = next((entry for entry in plan.approvers if entry.person == claimed.person), None)
    if approver is None or approver.role is not claimed.role:
        raise Refused(
            f"The plan that the sites granted does not name {claimed.person} as {claimed.role.value}.",
            "People who approve must be registered in their role before the study is proposed.",
        )
    key = VerifyingKey.from_text(approver.key)
    _, verified = open_json(envelope, APPROVAL_TYPE, {key.key_id: key})
    if len(envelope.signatures) != len(verified):
        raise BadSignature("The decision carries a signature by an unknown key.", "Sign it with your own key alone.")
    return claimed


def plan_of_release(release: Release) -> StudyPlan:
    """The plan in the release's own signed envelope."""
    return StudyPlan.model_validate_json(Envelope.from_bytes(release.plan).payload)


def subject_of_release(release: Release) -> ReleaseSubject:
    """The document that is approved."""
    return ReleaseSubject.model_validate_json(release.subject)


def _log(
    session: Session,
    appliance: Appliance,
    event: EventType,
    person: Person,
    release: Release,
    *,
    role: Role | None = None,
    payload: dict[str, object] | None = None,
) -> None:
    append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=f"release:{release.id}",
        digests={"subject": release.subject_digest},
        labels={} if role is None else {"role": role.value},
        payload=payload,
    )
