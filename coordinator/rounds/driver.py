"""The round driver: runs one study from its keys to its candidate, and can be killed at any point.

What is to be sent is recorded first; what came of it is committed in one transaction with the model, the round's
record and the log entry. A driver that starts anew reads the records and goes on: it resends an open attempt byte
for byte, and sites answer from disk without a second charge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.health import LogHealth
from coordinator.database import reading, transaction
from coordinator.rounds.attempts import Intake, Outcome, compose, packet_of, request_of
from coordinator.rounds.evaluation import Evidence, candidate_row, evaluate_histogram
from coordinator.rounds.exchange import Exchange
from coordinator.rounds.gates import LogWatch, RoundGates
from coordinator.rounds.journal import Committed, Journal, Running
from coordinator.rounds.key_setup import KeySetupRun, KeysNotEstablished
from coordinator.rounds.optimiser import (
    ModelPoint,
    candidate_weights,
    divisor,
    initial_point,
    next_point,
    to_bytes,
)
from coordinator.rounds.repository import RecordedAttempt, RoundRepository
from coordinator.rounds.states import (
    TRAIN,
    Attempt,
    AttemptStatus,
    Await,
    Begin,
    Design,
    EstablishKeys,
    Fail,
    FailureCode,
    Finish,
    Progress,
    Resend,
    next_action,
)
from coordinator.studies.repository import StudyRepository, forecast_of, plan_of
from coordinator.studies.states import ACTIVE, StudyState, cohort
from policies.findings import Decision, reasons
from policies.packs import Policy
from privacy.errors import PrivacyError
from protocol.canonical import sha256_hex
from protocol.errors import CloisterError
from protocol.round import ROUND_KINDS
from protocol.timestamp import timestamp

PAUSE_SECONDS = 0.2


class StudyEnded(CloisterError):
    """The study was stopped while the driver was at work."""

    code = "study-ended"


class RoundDriver:
    """One study, one driver. `run` returns when the study has ended; it may be called again after any failure."""

    def __init__(
        self,
        appliance: Appliance,
        study: str,
        exchange: Exchange,
        *,
        policy: Policy,
        watch: LogWatch,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._appliance = appliance
        self._exchange = exchange
        self._watch = watch
        self._monotonic = monotonic
        self._running = self._load(study)
        self._gates = RoundGates.of(self._running.plan, self._running.plan_digest, policy)
        self._journal = Journal(appliance, self._running)
        self._progress = Progress()
        self._point: ModelPoint | None = None
        self._round_began: float | None = None

    def run(self) -> StudyState:
        """Drive the study until it has ended; the state it ended in.

        Raises AnotherDriver when a second driver works on it, and whatever the transport raises when it is lost.
        """
        try:
            self._resume()
            while True:
                ended = self._act()
                if ended is not None:
                    return ended
        except StudyEnded:
            with reading(self._appliance.engine) as session:
                return StudyState(StudyRepository(session).get(self._running.study).state)

    def _load(self, study: str) -> Running:
        with reading(self._appliance.engine) as session:
            studies = StudyRepository(session)
            row = studies.get(study)
            plan = plan_of(row)
            return Running(
                study=study,
                plan=plan,
                plan_digest=row.plan_digest or "",
                granted=cohort(plan.names, studies.answers(study)),
                curve=tuple(forecast_of(row)),
                design=Design.of(plan),
            )

    def _resume(self) -> None:
        running = self._running
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            rounds = RoundRepository(session)
            self._progress = rounds.progress(running.study)
            self._point = rounds.model(running.study)
            if self._point is None:
                spec = running.plan.spec
                self._point = initial_point(spec.model, spec.dataset.shape, running.plan_digest)
                rounds.start_model(running.study, self._point)

    def _act(self) -> StudyState | None:
        waited_until = self._monotonic() + self._appliance.settings.key_deadline
        while True:
            action = next_action(
                self._running.design,
                self._running.granted,
                self._progress,
                self._exchange.present(),
                patient=self._monotonic() < waited_until,
            )
            if not isinstance(action, Await):
                break
            with reading(self._appliance.engine) as session:
                self._require_active(session)
            self._exchange.wait(PAUSE_SECONDS)
        match action:
            case EstablishKeys():
                return self._establish(action.cohort)
            case Begin():
                return self._begin(action)
            case Resend():
                return self._send(self._recorded())
            case Fail():
                return self._fail(action.code, action.detail)
            case Finish():
                raise StudyEnded("The study has its candidate already.", "Nothing is left to do.")

    # Keys

    def _establish(self, members: tuple[str, ...]) -> StudyState | None:
        running = self._running
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            rounds = RoundRepository(session)
            begun = rounds.key_setup(running.study)
            if begun is None:
                rounds.begin_keys(running.study, members)
            else:
                members = tuple(json.loads(begun.cohort))
        setup = KeySetupRun(running.study, running.plan, running.plan_digest, members, self._appliance.keys.coordinator)
        try:
            transcript = setup.run(
                self._exchange,
                deadline_seconds=self._appliance.settings.key_deadline,
                now=self._monotonic,
                joined=self._joined,
            )
        except KeysNotEstablished as error:
            return self._fail(FailureCode.KEYS_NOT_ESTABLISHED, error.message, error.excluded)
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            RoundRepository(session).establish_keys(running.study, transcript, self._now())
            self._become(session, StudyState.RUNNING)
            self._journal.keys_established(session, members, transcript)
        self._progress = replace(self._progress, established=members)
        return None

    def _joined(self, sites: tuple[str, ...]) -> None:
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            RoundRepository(session).joined(self._running.study, sites)

    # Attempts

    def _begin(self, begin: Begin) -> StudyState | None:
        running = self._running
        if begin.attempt == 1:
            self._round_began = self._monotonic()
        decision = self._gates.round(begin.round, self._healthy_log(), now=self._appliance.clock())
        if not decision.allowed:
            return self._deny(decision)
        recorded = compose(
            begin,
            study=running.study,
            plan_digest=running.plan_digest,
            model_digest=sha256_hex(self._model(begin.phase == TRAIN)),
            signer=self._appliance.keys.coordinator,
            now=self._appliance.clock(),
            deadline_seconds=self._appliance.settings.round_deadline,
        )
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            RoundRepository(session).begin_attempt(running.study, recorded)
            self._journal.attempted(session, recorded, decision)
        self._progress = self._progress.after(recorded.attempt)
        return self._send(recorded)

    def _healthy_log(self) -> LogHealth:
        """The log's health; sites that have just come back are given time to cosign before it is judged."""
        end = self._monotonic() + self._appliance.settings.key_deadline
        health = self._watch.health()
        while not health.quorum and self._monotonic() < end:
            self._exchange.wait(PAUSE_SECONDS)
            health = self._watch.health()
        return health

    def _recorded(self) -> RecordedAttempt:
        with reading(self._appliance.engine) as session:
            self._require_active(session)
            recorded = RoundRepository(session).open_attempt(self._running.study)
        if recorded is None:
            raise StudyEnded("The open attempt was closed by another driver.", "Let one coordinator run each study.")
        return recorded

    def _send(self, recorded: RecordedAttempt) -> StudyState | None:
        attempt = recorded.attempt
        packet = packet_of(recorded, self._model(attempt.phase == TRAIN))
        intake = Intake(request_of(recorded), self._running.plan)
        self._exchange.request(
            ROUND_KINDS[attempt.phase],
            dict.fromkeys(attempt.cohort, packet),
            group=f"{attempt.phase}-{attempt.round}-{attempt.attempt}",
            deadline_seconds=self._appliance.settings.round_deadline,
            on_answer=intake.take,
        )
        outcome = intake.outcome()
        if not outcome.complete:
            self._abandon(attempt, outcome)
            return None
        decision = self._gates.aggregation(outcome.contributed, now=self._appliance.clock())
        if not decision.allowed:
            self._abandon(attempt, outcome)
            return self._deny(decision)
        closed = replace(attempt, status=AttemptStatus.COMMITTED, contributed=outcome.contributed)
        if attempt.phase == TRAIN:
            return self._commit_round(closed, outcome, decision, intake)
        return self._commit_evaluation(closed, outcome, decision, intake)

    def _abandon(self, attempt: Attempt, outcome: Outcome) -> None:
        closed = replace(
            attempt, status=AttemptStatus.ABANDONED, contributed=outcome.contributed, excluded=outcome.excluded
        )
        with transaction(self._appliance.engine) as session:
            RoundRepository(session).close_attempt(self._running.study, closed, self._now())
        self._progress = self._progress.after(closed)

    def _commit_round(self, closed: Attempt, outcome: Outcome, decision: Decision, intake: Intake) -> StudyState | None:
        running = self._running
        assert self._point is not None
        try:
            noisy_sum = intake.unmasked()
            point = next_point(running.plan, self._point, noisy_sum, closed.cohort)
        except (PrivacyError, ValueError) as error:
            self._abandon(closed, outcome)
            return self._fail(FailureCode.SUM_REFUSED, f"the sum was refused ({type(error).__name__})")
        after = self._progress.after(closed)
        norm = float(np.linalg.norm(noisy_sum)) / divisor(running.plan, closed.cohort)
        last = after.done(TRAIN) == running.design.rounds(TRAIN)
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            rounds = RoundRepository(session)
            rounds.close_attempt(running.study, closed, self._now())
            rounds.advance_model(running.study, point)
            committed = Committed(closed, outcome, decision, norm, self._point.digest, point.digest, self._seconds)
            self._journal.committed(session, committed, after)
            if last:
                self._become(session, StudyState.EVALUATING)
        self._progress, self._point = after, point
        return None

    def _commit_evaluation(
        self, closed: Attempt, outcome: Outcome, decision: Decision, intake: Intake
    ) -> StudyState | None:
        running = self._running
        assert self._point is not None
        try:
            histogram = intake.unmasked()
            report = evaluate_histogram(running.plan, closed.cohort, histogram)
        except (PrivacyError, ValueError) as error:
            self._abandon(closed, outcome)
            return self._fail(FailureCode.SUM_REFUSED, f"the histogram was refused ({type(error).__name__})")
        after = self._progress.after(closed)
        weights = candidate_weights(self._point)
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            rounds = RoundRepository(session)
            rounds.close_attempt(running.study, closed, self._now())
            model = sha256_hex(to_bytes(weights))
            committed = Committed(closed, outcome, decision, None, self._point.digest, model, self._seconds)
            self._journal.committed(session, committed, after)
            evidence = Evidence(
                plan=running.plan,
                rounds_executed=after.done(TRAIN),
                attempts=after.steps(TRAIN),
                rounds_digest=rounds.rounds_digest(running.study),
                report=report,
                histogram=histogram,
                earlier=rounds.other_trained_plans(running.study),
                created_at=self._now(),
            )
            row = candidate_row(evidence, weights)
            rounds.add_candidate(row)
            self._become(session, StudyState.CANDIDATE, ended=True)
            self._journal.evaluated(session, row, report, after)
        self._progress = after
        return StudyState.CANDIDATE

    # Ends

    def _deny(self, decision: Decision) -> StudyState:
        with transaction(self._appliance.engine) as session:
            self._journal.denied(session, decision)
        first = reasons(decision)[0]
        return self._fail(FailureCode.POLICY_DENIED, f"{first.rule} ({first.citation}): {first.message}")

    def _fail(self, code: FailureCode, detail: str, excluded: dict[str, str] | None = None) -> StudyState:
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            self._become(session, StudyState.FAILED, reason=code.value, detail=detail, ended=True)
            self._journal.failed(session, code, self._progress, excluded or {})
        return StudyState.FAILED

    def _become(
        self,
        session: Session,
        state: StudyState,
        *,
        reason: str | None = None,
        detail: str | None = None,
        ended: bool = False,
    ) -> None:
        studies = StudyRepository(session)
        row = studies.get(self._running.study)
        studies.set_state(row, state, reason=reason, detail=detail, ended_at=self._now() if ended else None)

    def _require_active(self, session: Session) -> None:
        state = StudyState(StudyRepository(session).get(self._running.study).state)
        if state not in ACTIVE:
            raise StudyEnded(f"Study {self._running.study} is {state.value}.", "The driver ends.")

    @property
    def _seconds(self) -> float | None:
        """Since the round's first attempt; None in a driver that resumed in the middle of one."""
        return None if self._round_began is None else self._monotonic() - self._round_began

    def _model(self, training: bool) -> bytes:
        """What sites are sent: the weights of the round, or the candidate's."""
        assert self._point is not None
        return self._point.vector() if training else to_bytes(candidate_weights(self._point))

    def _now(self) -> str:
        return timestamp(self._appliance.clock())
