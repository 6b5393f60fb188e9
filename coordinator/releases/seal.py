"""Sealing: policy at the release gate, the signed statement, its log entry, a quorum of cosignatures, and only then
a bundle that anyone may fetch.

Two transactions, so that a crash between them loses nothing: `seal` stores statement and entry together; `finish`
adds the proof once the hospitals have cosigned. Both may be repeated.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlmodel import Session, select

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.audit.health import log_health
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import proof_for
from coordinator.errors import Unavailable
from coordinator.evidence.facts import release_papers, study_papers
from coordinator.incidents.facts import incident_facts, invalidated
from coordinator.incidents.repository import IncidentRepository
from coordinator.people.facts import Actor, actor_facts
from coordinator.policy.decisions import record
from coordinator.releases.build import bundle_files, statement_of
from coordinator.releases.facts import release_facts
from coordinator.releases.repository import ReleaseRepository, votes_of
from coordinator.releases.review import plan_of_release, read_approval, require_candidate, subject_of_release
from coordinator.releases.states import ReleaseState, move, outcome
from coordinator.releases.tables import Release
from coordinator.releases.waivers import standing_waivers
from coordinator.reviews.repository import ReviewRepository
from coordinator.rounds.repository import CandidateRepository
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import StudyState
from policies.decided import Decided, decide
from policies.findings import Decision
from policies.packs import Policy
from policies.waivers import waive
from protocol.approver_signature import read_signed
from protocol.audit_event import EventType
from protocol.bundle import pack
from protocol.canonical import sha256_hex
from protocol.envelope import seal as sign
from protocol.errors import Refused
from protocol.release import BUNDLE_FILES, STATEMENT_TYPE
from protocol.timestamp import timestamp


class ReleaseDenied(Refused):
    """Policy denies the release; `facts` holds the findings for the caller."""

    code = "policy-denied"

    def __init__(self, decision: Decision) -> None:
        first = decision.findings[0]
        super().__init__(f"{first.rule} ({first.citation}): {first.message}", first.remedy)
        self.facts = {"findings": [finding.to_dict() for finding in decision.findings]}


def preview(session: Session, appliance: Appliance, policy: Policy, who: Actor, name: str) -> Decision:
    """What the release gate would say now. Nothing is stored."""
    return _evaluate(session, appliance, policy, who, ReleaseRepository(session).get(name)).decision


def seal(session: Session, appliance: Appliance, policy: Policy, who: Actor, name: str) -> Decision | None:
    """approved -> sealing: decide at the gate, sign the statement, log it. None when that has been done before.

    A denial is logged in this transaction and returned; the caller raises ReleaseDenied after the commit.
    """
    releases = ReleaseRepository(session)
    release = releases.get(name)
    if ReleaseState(release.state) in (ReleaseState.SEALING, ReleaseState.RELEASED):
        return None
    move(ReleaseState(release.state), ReleaseState.SEALING)
    require_candidate(session, release.study)
    decided = _evaluate(session, appliance, policy, who, release)
    decision = decided.decision
    record(
        session,
        appliance,
        decided,
        actor=person_label(appliance, who.person.name),
        subject=f"release:{name}",
        digests={"subject": release.subject_digest},
    )
    if not decision.allowed:
        return decision
    votes = releases.votes(name)
    plan = plan_of_release(release)
    cast = votes_of(votes, plan.approvers)
    approved = outcome(cast, digest=release.subject_digest, submitter=release.submitter, policy=plan.spec.review)
    if approved is not ReleaseState.APPROVED:
        raise Refused(
            "The people that the study asks for have not approved this release.", "See `cloister release show`."
        )
    subject = subject_of_release(release)
    statement = sign(
        STATEMENT_TYPE,
        statement_of(
            subject,
            releases.whole(name),
            [read_signed(row.envelope) for row in votes],
            waivers=[read_signed(row.envelope) for row in releases.waivers(name)],
            rounds_digest=CandidateRepository(session).of(release.study).rounds_digest,
            decision_digest=decided.digest,
            sealed_at=timestamp(appliance.clock()),
        ),
        appliance.keys.coordinator,
    ).to_bytes()
    entry = append(
        session,
        appliance,
        EventType.RELEASE_SEALED,
        actor=COORDINATOR,
        subject=f"release:{name}",
        digests={"subject": release.subject_digest, "statement": sha256_hex(statement)},
    )
    row = session.exec(select(LogEntry).where(LogEntry.id == entry)).one()
    release.statement, release.event, release.entry = statement, row.leaf, entry
    release.decision_digest = decided.digest
    session.add(release)
    session.flush()
    releases.set_state(release, ReleaseState.SEALING)
    return decision


def finish(session: Session, appliance: Appliance, name: str) -> bool:
    """sealing -> released, once a quorum has cosigned a checkpoint that holds the sealing, no incident about the
    study or a hospital of its plan and no review of its model is open, and no hospital withdrew. False until then."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    if ReleaseState(release.state) is ReleaseState.RELEASED:
        return True
    move(ReleaseState(release.state), ReleaseState.RELEASED)
    if release.entry is None or _is_held(session, release):
        return False
    try:
        release.proof = proof_for(session, appliance, release.entry)
    except Unavailable:
        return False
    session.add(release)
    session.flush()
    releases.set_state(release, ReleaseState.RELEASED)
    return True


def bundle(session: Session, name: str, *, now: datetime) -> bytes:
    """The sealed bundle. Raises Refused before the release is sealed, cosigned and not suspended, and once a waiver
    that it rests on has ended. Raises Conflict once a hospital has withdrawn from the study."""
    releases = ReleaseRepository(session)
    release = releases.get(name)
    statement, event, proof = release.statement, release.event, release.proof
    if ReleaseState(release.state) is not ReleaseState.RELEASED or statement is None or event is None or proof is None:
        raise Refused(
            f"Release {name} is {release.state.replace('_', ' ')}: there is nothing to fetch.",
            "A release can be fetched once it is approved, sealed and cosigned by a quorum of sites.",
        )
    require_candidate(session, release.study)
    if lapsed := [row.rule for row in releases.waivers(name) if row.expires_at <= timestamp(now)]:
        raise Refused(
            f"The waiver of {', '.join(lapsed)}, on which release {name} rests, has ended.",
            "Meet the rule and release again; a site that holds the release asks its own gate.",
        )
    files = bundle_files(
        releases.whole(name),
        subject=release.subject,
        plan=release.plan,
        statement=statement,
        event=event,
        proof=proof,
    )
    return pack(files, BUNDLE_FILES)


def _evaluate(session: Session, appliance: Appliance, policy: Policy, who: Actor, release: Release) -> Decided:
    plan = plan_of_release(release)
    votes = ReleaseRepository(session).votes(release.id)
    health = log_health(session, appliance)
    facts: dict[str, Any] = release_facts(
        plan,
        subject_of_release(release),
        [read_approval(appliance, plan, row.envelope)[0] for row in votes],
        actor=actor_facts(who, now=appliance.clock()),
        papers=release_papers(
            session,
            appliance,
            digest=release.subject_digest,
            contributors=plan.names,
            first=_is_first(session, release),
        ),
        incidents=incident_facts(session, study=release.study, sites=plan.names, now=appliance.clock()),
        invalidated=len(invalidated(session, plan.names)),
        reviews=len(ReviewRepository(session).open_of(release.study)),
        card=ReleaseRepository(session).files(release.id)["model_card.md"].decode(),
        study=study_papers(session, appliance, plan.spec),
        append_ok=True,
        quorum=health.quorum,
        checkpoint_age_seconds=health.age_seconds,
    )
    decided = decide("release", facts, policy, now=appliance.clock(), salt=appliance.entropy(32))
    waived = waive(decided.decision, policy.packs, standing_waivers(session, appliance, release))
    return replace(decided, decision=waived)


def _is_first(session: Session, release: Release) -> bool:
    """Whether no release of the study was fetched before this one."""
    done = (ReleaseState.RELEASED, ReleaseState.SUSPENDED, ReleaseState.REVOKED)
    releases = ReleaseRepository(session)
    earlier = releases.of_study(release.study)
    return not releases.removed_of(release.study) and not any(
        other.id != release.id and ReleaseState(other.state) in done for other in earlier
    )


def _is_held(session: Session, release: Release) -> bool:
    """Whether an incident about the study or a hospital of its plan, a review after patients withdrew, or a hospital's
    own withdrawal came between the sealing and the quorum."""
    study, sites = release.study, plan_of_release(release).names
    return (
        StudyState(StudyRepository(session).get(study).state) is not StudyState.CANDIDATE
        or bool(IncidentRepository(session).open_about(study=study, sites=sites))
        or bool(ReviewRepository(session).open_of(study))
    )
