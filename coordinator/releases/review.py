"""The verbs of a release's review: draft, submit, challenge, decide, settle. Each is load, decide, save, append."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.errors import Conflict
from coordinator.passkeys.register import count_use
from coordinator.people.tables import Person
from coordinator.releases.build import Use, UseMode, model_files, subject_of
from coordinator.releases.checks import faults
from coordinator.releases.repository import ModelPurged, ReleaseRepository, votes_of
from coordinator.releases.states import OPEN, OVER, ReleaseState, Vote, admit, move, outcome, overdue
from coordinator.releases.tables import Release, ReleaseChallenge, ReleaseVote
from coordinator.rounds.repository import CandidateRepository
from coordinator.studies.repository import StudyRepository, training_plan_of
from coordinator.studies.states import StudyState
from protocol.approver_signature import Signed, document_of, read_signed, verify_signed
from protocol.audit_event import EventType
from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import Envelope
from protocol.errors import Malformed, Refused
from protocol.evaluation import read_report
from protocol.identifiers import Role
from protocol.membership import MembershipReport
from protocol.passkey import PasskeySignature
from protocol.plan import PlannedApprover
from protocol.release import APPROVAL_TYPE, Approval, EpsilonStatement, ReleaseSubject
from protocol.study import StudyPlan
from protocol.timestamp import timestamp

CHALLENGE_MINUTES = 15
MAX_REASON = 2000


def draft(
    session: Session,
    appliance: Appliance,
    person: Person,
    *,
    study: str,
    intended_use: str,
    use_mode: UseMode,
    claim_anonymous: bool = False,
) -> Release:
    """A release of the study's candidate. Only the study's submitter drafts it. claim_anonymous: the submitter's claim,
    which the release gate lets pass on evidence and an officer's approval alone. Raises Refused, NotFound, Conflict."""
    releases = ReleaseRepository(session)
    row = StudyRepository(session).get(study)
    if row.submitter != person.name:
        raise Refused("Only the study's own submitter drafts its release.", "Ask the researcher who proposed it.")
    if row.plan is None:
        raise Conflict(f"Study {study} has no plan.", "See `cloister study status`.")
    plan = training_plan_of(row)
    candidate = CandidateRepository(session).of(study)
    earlier = releases.of_study(study)
    if any(ReleaseState(other.state) not in OVER for other in earlier):
        raise Conflict(f"Study {study} already has a release.", "See `cloister release list`.")
    if plan.membership is not None and candidate.membership is None:
        raise Conflict(f"The membership audit of study {study} is under way.", "Wait for it: `cloister study status`.")
    require_candidate(session, study)
    if not candidate.weights:
        raise ModelPurged(
            f"The candidate of study {study} was erased: the study's last day for checkpoints has passed.",
            "Train again in a new study.",
        )
    epsilon = EpsilonStatement.model_validate_json(candidate.epsilon)
    evaluation = read_report(candidate.evaluation)
    membership = None if candidate.membership is None else MembershipReport.model_validate_json(candidate.membership)
    told = (epsilon, evaluation, membership)
    use = Use(intended_use=intended_use, use_mode=use_mode, claim_anonymous=claim_anonymous)
    files = model_files(plan, candidate.weights, *told, **use)
    name = f"{study}-r{len(earlier) + releases.removed_of(study) + 1}"
    plan_digest = sha256_hex(Envelope.from_bytes(row.plan).payload)
    subject = subject_of(name, plan, plan_digest, files, *told, **use)
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
    log(session, appliance, EventType.RELEASE_DRAFTED, person, release)
    return release


def submit(session: Session, appliance: Appliance, person: Person, name: str) -> Release:
    """draft -> in_review, by its submitter."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    if release.submitter != person.name:
        raise Refused("Only the submitter puts a release into review.", "Ask the researcher who drafted it.")
    require_candidate(session, release.study)
    releases.set_state(release, move(ReleaseState(release.state), ReleaseState.CHECKING))
    until = appliance.clock() + timedelta(days=plan_of_release(release).spec.review.days)
    release.review_until = timestamp(until)
    session.add(release)
    session.flush()
    log(session, appliance, EventType.RELEASE_SUBMITTED, person, release)
    found = faults(
        subject_of_release(release),
        release.subject_digest,
        releases.files(name),
        plan_of_release(release),
        CandidateRepository(session).of(release.study),
    )
    if found:
        fail(session, appliance, release, found)
    else:
        releases.set_state(release, move(ReleaseState.CHECKING, ReleaseState.IN_REVIEW))
    return release


def require_candidate(session: Session, study: str) -> None:
    """Raises Conflict once the study has lost its candidate: a hospital that withdraws takes what it gave with it."""
    row = StudyRepository(session).get(study)
    if StudyState(row.state) is not StudyState.CANDIDATE:
        why = f"{row.state} ({row.reason})" if row.reason else row.state
        raise Conflict(
            f"Study {study} is {why}: its candidate is not for release.", "See `cloister study status`; study anew."
        )


def settle(session: Session, appliance: Appliance, name: str) -> None:
    """What time and the disk decide, before anybody acts on an open release: overdue -> expired; a stored file that is
    no longer the one to be signed -> failed."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    state = ReleaseState(release.state)
    if overdue(state, release.review_until, now=appliance.clock()):
        releases.set_state(release, move(state, ReleaseState.EXPIRED))
        log_coordinator(session, appliance, EventType.RELEASE_EXPIRED, release)
    elif state in OPEN and (found := faults(subject_of_release(release), release.subject_digest, releases.files(name))):
        fail(session, appliance, release, found)


def fail(session: Session, appliance: Appliance, release: Release, found: tuple[str, ...]) -> None:
    """The release is not what it says: nothing can be signed or sealed any more."""
    ReleaseRepository(session).set_state(release, move(ReleaseState(release.state), ReleaseState.FAILED))
    log_coordinator(session, appliance, EventType.RELEASE_FAILED, release, groups={"faults": found})


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
    return {
        "challenge": nonce,
        "expires_at": expires,
        "subject": parse(release.subject),
        "subject_digest": release.subject_digest,
        "packs": subject_of_release(release).packs,
    }


def decide(
    session: Session, appliance: Appliance, person: Person, name: str, *, envelope: bytes, reason: str
) -> Release:
    """Record one signed decision. The signature must verify under the key that the consented plan fixed.

    Raises Refused, BadSignature or Malformed. `reason` is erasable: the log holds its salted hash.
    """
    releases = ReleaseRepository(session)
    release = releases.get(name)
    plan = plan_of_release(release)
    approval, signed = read_approval(appliance, plan, envelope)
    if approval.person != person.name or approval.release != name:
        raise Refused("The decision is signed for another person or release.", "Sign your own decision on this one.")
    if approval.role.value != person.role:
        raise Refused("The decision is signed in a role that you no longer have.", "Ask somebody who has it.")
    if not 1 <= len(reason) <= MAX_REASON or sha256_hex(reason.encode()) != approval.reason_hash:
        raise Malformed("The reason is missing, too long or not the one that was signed.", "Give --reason in words.")
    if approval.decision == "approve":
        require_candidate(session, release.study)
    now = timestamp(appliance.clock())
    if isinstance(signed, PasskeySignature):
        count_use(session, appliance, person.name, signed)
    if approval.packs != subject_of_release(release).packs:
        raise Refused("The decision names other policy packs than the release.", "Run the command again.")
    organisation = next(entry.organisation for entry in plan.approvers if entry.person == person.name)
    vote = Vote(person.name, approval.role, approval.subject_digest, approval.decision == "approve", organisation)
    cast = votes_of(releases.votes(name), plan.approvers)
    admit(
        vote,
        cast,
        state=ReleaseState(release.state),
        submitter=release.submitter,
        digest=release.subject_digest,
        policy=plan.spec.review,
    )
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
    log(session, appliance, event, person, release, role=approval.role, payload=words)
    state = outcome([*cast, vote], digest=release.subject_digest, submitter=release.submitter, policy=plan.spec.review)
    if state is not ReleaseState(release.state):
        releases.set_state(release, move(ReleaseState(release.state), state))
    return release


def read_approval(appliance: Appliance, plan: StudyPlan, data: bytes) -> tuple[Approval, Signed]:
    """The approval in an envelope or a passkey's signature, verified under the plan's roster.

    Raises BadSignature, Refused or Malformed.
    """
    signed = read_signed(data)
    try:
        claimed = Approval.model_validate_json(document_of(signed))
    except ValidationError:
        raise Malformed("The decision has fields that are missing or wrong.", "Update the command line tool.") from None
    verify_signed(signed, APPROVAL_TYPE, planned(plan, claimed.person, claimed.role), appliance.settings.address)
    return claimed, signed


def planned(plan: StudyPlan, person: str, role: Role) -> PlannedApprover:
    """What the plan's roster fixes for this person in this role. Raises Refused."""
    approver = next((entry for entry in plan.approvers if entry.person == person), None)
    if approver is None or approver.role is not role:
        raise Refused(
            f"The plan that the sites granted does not name {person} as {role.value}.",
            "People who approve must be registered in their role before the study is proposed.",
        )
    return approver


def plan_of_release(release: Release) -> StudyPlan:
    """The plan in the release's own signed envelope."""
    return StudyPlan.model_validate_json(Envelope.from_bytes(release.plan).payload)


def subject_of_release(release: Release) -> ReleaseSubject:
    """The document that is approved."""
    return ReleaseSubject.model_validate_json(release.subject)


def require_reason(reason: str) -> str:
    """The words. Raises Malformed where there are none, or too many."""
    if not 1 <= len(reason) <= MAX_REASON:
        raise Malformed("The reason is missing or too long.", "Give --reason in words.")
    return reason


def log(
    session: Session,
    appliance: Appliance,
    event: EventType,
    person: Person,
    release: Release,
    *,
    role: Role | None = None,
    labels: Mapping[str, str] | None = None,
    payload: dict[str, object] | None = None,
) -> None:
    """One event on a release, by a person."""
    append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=f"release:{release.id}",
        digests={"subject": release.subject_digest},
        labels={**(labels or {}), **({} if role is None else {"role": role.value})},
        payload=payload,
    )


def log_coordinator(
    session: Session,
    appliance: Appliance,
    event: EventType,
    release: Release,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """One event on a release that nobody in person brought about."""
    append(
        session,
        appliance,
        event,
        actor=COORDINATOR,
        subject=f"release:{release.id}",
        digests={"subject": release.subject_digest},
        groups=groups,
    )
