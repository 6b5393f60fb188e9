"""What the driver leaves behind in the transactions it makes: round records, and entries of the audit log.

Identifiers, digests, closed codes and numbers that were paid for; never a loss, a count or a site's value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append
from coordinator.incidents.facts import frozen_sites
from coordinator.policy.decisions import index, record
from coordinator.rounds.attempts import Outcome, request_of
from coordinator.rounds.checks import Verdict
from coordinator.rounds.repository import RecordedAttempt, RoundRepository
from coordinator.rounds.states import TRAIN, WITHHELD, Attempt, Design, FailureCode, Progress, withholds
from coordinator.rounds.tables import Candidate, ModelCheck, StudyRound
from coordinator.rounds.waiting import StudyWaits
from coordinator.studies.plan import spent
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import StudyState
from policies.decided import Decided
from protocol.audit_event import EventType
from protocol.canonical import digest
from protocol.evaluation import EvaluationReport
from protocol.membership import MembershipReport
from protocol.study_kind import AnyPlan
from protocol.timestamp import moment, timestamp

GATE_SHUT = "gate-shut"
"""The code of a site that its own papers keep out."""


@dataclass(frozen=True)
class Running:
    """What stays the same while a study runs. curve: (steps, epsilon), rising."""

    study: str
    plan: AnyPlan
    plan_digest: str
    granted: tuple[str, ...]
    curve: tuple[tuple[int, float], ...]
    design: Design


@dataclass(frozen=True)
class Committed:
    """A round that is being committed. norm: of the noisy mean; None for an evaluation. seconds: None where the
    driver did not see the round's beginning."""

    attempt: Attempt
    outcome: Outcome
    decided: Decided
    norm: float | None
    model_before: str
    model_after: str
    seconds: float | None


class Journal:
    """One study's records and log entries, each within the caller's transaction."""

    def __init__(self, appliance: Appliance, running: Running) -> None:
        self._appliance = appliance
        self._running = running
        self._shut: set[str] = set()

    def keys_established(self, session: Session, members: tuple[str, ...], transcript: str) -> None:
        """study.keys-established."""
        absent = [site for site in self._running.granted if site not in members]
        self._append(
            session,
            EventType.KEYS_ESTABLISHED,
            digests={"transcript": transcript},
            groups={"cohort": members, "absent": absent},
        )

    def attempted(self, session: Session, recorded: RecordedAttempt, decided: Decided) -> None:
        """round.attempted."""
        attempt, entry = recorded.attempt, request_of(recorded).entry
        self._append(
            session,
            EventType.ROUND_ATTEMPTED,
            digests={"model": recorded.model_digest, **decided.digests},
            numbers={"round": attempt.round, "attempt": attempt.attempt, **({"entry": entry} if entry else {})},
            labels={"phase": attempt.phase},
            groups={"cohort": attempt.cohort},
            decided=decided,
        )

    def committed(self, session: Session, committed: Committed, after: Progress) -> None:
        """The round's record over all its attempts, and round.committed."""
        attempt = committed.attempt
        rounds = RoundRepository(session)
        tried = rounds.attempts_of(self._running.study, attempt.phase, attempt.round)
        invited = tried[0].attempt.cohort
        excluded = {site: code for recorded in tried for site, code in recorded.attempt.excluded.items()}
        shut_out, frozen = StudyRepository(session).excluded(self._running.study), frozen_sites(session)
        excluded |= {
            site: "shut-out" if site in shut_out else "incident" if site in frozen else self._absent(site, after)
            for site in after.established
            if site not in invited
        }
        excluded = {site: code for site, code in excluded.items() if site not in attempt.contributed}
        now = self._appliance.clock()
        # A driver that resumed knows the beginning from the record alone, to the second.
        seconds = (now - moment(tried[0].issued_at)).total_seconds()
        row = StudyRound(
            study=self._running.study,
            phase=attempt.phase,
            round=attempt.round,
            attempts=attempt.attempt,
            invited=json.dumps(invited),
            contributed=json.dumps(attempt.contributed),
            excluded=json.dumps(excluded),
            norm=committed.norm,
            model_digest=committed.model_after,
            epsilon=self._spent(after),
            seconds=max(0.0, seconds if committed.seconds is None else committed.seconds),
            committed_at=timestamp(now),
        )
        rounds.add_round(row)
        self._append(
            session,
            EventType.ROUND_COMMITTED,
            digests={
                "model_before": committed.model_before,
                "model": row.model_digest,
                "contributions": committed.outcome.digest,
                "engines": digest(committed.outcome.engines),
                **committed.decided.digests,
            },
            numbers={
                "round": row.round,
                "attempt": row.attempts,
                "epsilon": row.epsilon,
                **({} if row.norm is None else {"norm": row.norm}),
            },
            labels={"phase": row.phase},
            groups={"invited": invited, "contributed": attempt.contributed, "excluded": _with_codes(excluded)},
            decided=committed.decided,
        )

    def evaluated(self, session: Session, row: Candidate, report: EvaluationReport, after: Progress) -> None:
        """candidate.evaluated."""
        self._append(
            session,
            EventType.CANDIDATE_EVALUATED,
            digests={
                "model": row.weights_digest,
                "rounds": row.rounds_digest,
                "evaluation": digest(report.model_dump(mode="json")),
            },
            numbers={
                "epsilon": self._running.plan.epsilon,
                "rounds": after.done(TRAIN),
                "attempts": after.steps(TRAIN),
            },
            labels={"evaluation_mode": report.mode, "measure": report.kind},
        )

    def checked(self, session: Session, row: ModelCheck, verdict: Verdict, *, before: str, after: str) -> None:
        """model.checked: kept, or rolled back to the model of the last check that passed."""
        score = {} if row.value is None else {"score": row.value, "against": verdict.against}
        self._append(
            session,
            EventType.MODEL_CHECKED,
            digests={"model_before": before, "model": after},
            numbers={"check": row.round, "rounds": row.rounds, "undone": row.undone, **score},
            labels={"decision": "rolled-back" if row.fell else "kept", "reason": "score-fell" if row.fell else "none"},
        )

    def audited(self, session: Session, row: Candidate, report: MembershipReport) -> None:
        """candidate.audited: what the membership audit came to, or that it did not run."""
        self._append(
            session,
            EventType.CANDIDATE_AUDITED,
            digests={
                "model": row.weights_digest,
                "rounds": row.rounds_digest,
                "membership": digest(report.model_dump(mode="json")),
            },
            labels={"membership": "ran" if report.ran else "did-not-run"},
        )

    def judged(self, session: Session, decisions: Mapping[str, Decided]) -> None:
        """policy.decided about a site, where its gate shut or opened since the last time."""
        for site, decided in decisions.items():
            if decided.decision.allowed == (site not in self._shut):
                continue
            self._shut ^= {site}
            digests, labels = {"plan": self._running.plan_digest}, {"site": site}
            subject = self._running.study
            record(
                session, self._appliance, decided, actor=COORDINATOR, subject=subject, digests=digests, labels=labels
            )

    def denied(self, session: Session, decided: Decided) -> None:
        """policy.decided, for a gate that stayed shut."""
        digests = {"plan": self._running.plan_digest}
        subject = self._running.study
        record(session, self._appliance, decided, actor=COORDINATOR, subject=subject, digests=digests)

    def waits(self, session: Session, wait: StudyWaits) -> None:
        """study.waiting: why, and whom it waits for."""
        self._append(
            session,
            EventType.STUDY_WAITING,
            labels={"reason": wait.reason.value},
            groups={"absent": wait.sites} if wait.sites else {},
        )

    def resumed(self, session: Session, reason: str) -> None:
        """study.resumed: what it waited for is there."""
        self._append(session, EventType.STUDY_RESUMED, labels={"reason": reason})

    def failed(self, session: Session, code: FailureCode, progress: Progress, excluded: Mapping[str, str]) -> None:
        """study.stopped, with what was spent until then."""
        self._append(
            session,
            EventType.STUDY_STOPPED,
            numbers={
                "epsilon": self._spent(progress),
                "rounds": sum(progress.done(phase) for phase in self._running.design.on_training),
                "attempts": sum(progress.steps(phase) for phase in self._running.design.on_training),
            },
            labels={"state": StudyState.FAILED.value, "reason": code.value},
            groups={"excluded": _with_codes(excluded)},
        )

    def explored(self, session: Session, result_digest: str, after: Progress) -> None:
        """exploration.completed: the digest of what the researcher reads; no number of it."""
        phases = self._running.design.on_training
        self._append(
            session,
            EventType.EXPLORATION_COMPLETED,
            digests={"result": result_digest},
            numbers={
                "epsilon": self._running.plan.epsilon,
                "rounds": sum(after.done(phase) for phase in phases),
                "attempts": sum(after.steps(phase) for phase in phases),
            },
        )

    def _spent(self, progress: Progress) -> float:
        """Epsilon of all steps so far that the patients who train pay for: each attempt is all its noisy steps."""
        plan, phases = self._running.plan, self._running.design.on_training
        return spent(self._running.curve, sum(progress.steps(phase) * plan.steps_of(phase) for phase in phases))

    def _append(
        self,
        session: Session,
        event: EventType,
        *,
        digests: Mapping[str, str] | None = None,
        numbers: Mapping[str, float | int] | None = None,
        labels: Mapping[str, str] | None = None,
        groups: Mapping[str, tuple[str, ...] | list[str]] | None = None,
        decided: Decided | None = None,
    ) -> None:
        """decided: the decision that let this happen; its facts are the entry's payload."""
        number = append(
            session,
            self._appliance,
            event,
            actor=COORDINATOR,
            subject=self._running.study,
            digests={"plan": self._running.plan_digest, **(digests or {})},
            numbers=numbers,
            labels=labels,
            groups=groups,
            payload=None if decided is None else decided.payload(),
        )
        if decided is not None:
            index(session, decided, entry=number, subject=self._running.study)

    def _absent(self, site: str, progress: Progress) -> str:
        """Why a site was not invited; one that withheld what it announced too often is named for it."""
        if site in self._shut:
            return GATE_SHUT
        return WITHHELD if withholds(progress, site) else "not-invited"


def _with_codes(excluded: Mapping[str, str]) -> list[str]:
    return [f"{site}:{code}" for site, code in sorted(excluded.items())]
