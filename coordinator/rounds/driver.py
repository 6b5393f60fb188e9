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

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import reading, transaction
from coordinator.incidents.facts import frozen_sites
from coordinator.rounds import waiting
from coordinator.rounds.attempts import Intake, Outcome, compose, packet_of, request_of
from coordinator.rounds.contributions import WORD_BYTES
from coordinator.rounds.exchange import Exchange
from coordinator.rounds.exploration_work import ExplorationWork
from coordinator.rounds.freeze import StudyFrozen, free_participants
from coordinator.rounds.gates import LogWatch
from coordinator.rounds.journal import GATE_SHUT, Committed, Journal, Running
from coordinator.rounds.key_setup import KeySetupRun, KeysNotEstablished
from coordinator.rounds.optimiser import WIRE
from coordinator.rounds.repository import RecordedAttempt, RoundRepository
from coordinator.rounds.round_gate import PAUSE_SECONDS, RoundGate
from coordinator.rounds.site_gates import SiteGates
from coordinator.rounds.standing import Standing, StudyEnded
from coordinator.rounds.states import (
    Attempt,
    AttemptStatus,
    Await,
    Begin,
    Design,
    EstablishKeys,
    Fail,
    FailureCode,
    Finish,
    GiveUp,
    Progress,
    Resend,
    Suspend,
    next_action,
)
from coordinator.rounds.training_work import TrainingWork
from coordinator.rounds.uploads import Uploads
from coordinator.rounds.waiting import StudyWaits
from coordinator.rounds.work import Audits, Work
from coordinator.studies.repository import StudyRepository, forecast_of, plan_of
from coordinator.studies.states import ENDED, StudyState, cohort
from policies.decided import Decided
from privacy.errors import PrivacyError
from protocol.canonical import sha256_hex
from protocol.exploration import ExplorationPlan
from protocol.round import ROUND_KINDS, Phase
from protocol.timestamp import timestamp

LOOK_SECONDS = 5.0
"""How long a driver looks whether a study that waits can go on: others are driven between two looks."""
REJOIN_SECONDS = 30.0
"""How long a driver that starts anew holds a round for sites that its end cut off: the longest that an agent waits
before it tries again."""
INCIDENT = "incident"
"""Why a site was left out: an open incident freezes it."""


class RoundDriver:
    """One study, one driver. `run` returns when the study has ended or waits; it may be called again after either, and
    after any failure."""

    def __init__(
        self,
        appliance: Appliance,
        study: str,
        exchange: Exchange,
        *,
        watch: LogWatch,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._appliance = appliance
        self._exchange = exchange
        self._monotonic = monotonic
        self._running = self._load(study)
        self._site_gates = SiteGates(appliance, study, self._running.plan, self._running.plan_digest)
        self._site_decisions: dict[str, Decided] = {}
        self._journal = Journal(appliance, self._running)
        self._standing = Standing(appliance, self._running, self._journal)
        self._waits = self._standing.waits
        self._gate = RoundGate(appliance, self._running, self._standing, exchange, watch, monotonic)
        self._progress = Progress()
        self._work: Work = work_of(self._running, self._journal, self._now)
        self._round_began: float | None = None
        self._rejoined_by = monotonic()
        self._uploads = Uploads(appliance)

    def run(self) -> StudyState:
        """Drive the study until it has ended or has to wait; the state it is in then.

        Raises AnotherDriver when a second driver works on it, and whatever the transport raises when it is lost.
        """
        try:
            self._resume()
            while True:
                self._uploads.keep_open_only()
                ended = self._act()
                if ended is not None:
                    return ended
        except StudyEnded:
            return self._standing.now()
        except StudyFrozen as found:
            return self._standing.suspend(waiting.frozen(found.message), self._progress, {})
        except StudyWaits as found:
            return self._standing.suspend(found, self._progress, self._site_decisions)
        finally:
            self._uploads.keep_open_only()

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
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            self._progress = RoundRepository(session).progress(self._running.study)
            self._work.resume(session)
        if self._progress.established and not self._waits:
            self._rejoined_by = self._monotonic() + min(REJOIN_SECONDS, self._appliance.settings.key_deadline)

    def _act(self) -> StudyState | None:
        began = self._monotonic()
        while True:
            here = self._exchange.present()
            action = next_action(
                self._running.design,
                self._participants(),
                self._progress,
                here,
                patient=self._monotonic() < began + self._patience(len(here)),
                rejoining=self._monotonic() < self._rejoined_by,
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
                with transaction(self._appliance.engine) as session:
                    self._go_on(session)
                return self._send(self._recorded())
            case Suspend():
                raise waiting.absent(action.sites, action.detail, self._left_out())
            case Fail():
                return self._fail_without(action)
            case GiveUp():
                return self._give_up(action)
            case Finish():
                raise StudyEnded("The study has its candidate already.", "Nothing is left to do.")

    def _patience(self, here: int) -> float:
        """Seconds to wait at work: of a study that waits already, a look only while too few sites are there."""
        enough = here >= self._running.design.minimum_sites
        return self._appliance.settings.key_deadline if enough or not self._waits else LOOK_SECONDS

    def _go_on(self, session: Session) -> None:
        """What is recorded in this transaction ends a wait."""
        self._require_active(session)
        self._standing.resume(session)
        self._waits = False

    def _participants(self) -> tuple[str, ...]:
        """Who may take part now: read anew, for a person may shut a site out, an incident freeze one, and papers expire
        or be revoked, at any time.

        Raises StudyFrozen where incidents leave fewer than the agreed minimum.
        """
        with reading(self._appliance.engine) as session:
            self._require_active(session)
            free = free_participants(session, self._running.study, self._running.plan)
            if not self._progress.established:
                return free  # keys are no data: a site whose papers are late may still have them
            self._site_decisions = self._site_gates.decide(session, free)
        return tuple(site for site in free if site not in self._left_out())

    def _left_out(self) -> dict[str, Decided]:
        """The sites whose gate is shut."""
        return {site: decided for site, decided in self._site_decisions.items() if not decided.decision.allowed}

    # Keys

    def _establish(self, members: tuple[str, ...]) -> StudyState | None:
        running = self._running
        with transaction(self._appliance.engine) as session:
            self._go_on(session)
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
            return self._standing.fail(FailureCode.KEYS_NOT_ESTABLISHED, error.message, self._progress, error.excluded)
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            RoundRepository(session).establish_keys(running.study, transcript, self._now())
            self._standing.become(session, StudyState.RUNNING)
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
        patience = LOOK_SECONDS if self._waits else self._appliance.settings.key_deadline
        decided = self._gate.decide(begin, patience=patience)
        if not decided.decision.allowed:
            raise waiting.gate_shut(decided)
        recorded = compose(
            begin,
            study=running.study,
            plan_digest=running.plan_digest,
            model_digest=sha256_hex(self._work.body(begin.phase)),
            entry=self._work.entry,
            signer=self._appliance.keys.coordinator,
            now=self._appliance.clock(),
            deadline_seconds=self._deadline(begin.phase, begin.cohort),
        )
        with transaction(self._appliance.engine) as session:
            self._go_on(session)
            RoundRepository(session).begin_attempt(running.study, recorded)
            self._journal.attempted(session, recorded, decided)
            self._journal.judged(session, self._site_decisions)
        self._progress = self._progress.after(recorded.attempt)
        return self._send(recorded)

    def _recorded(self) -> RecordedAttempt:
        with reading(self._appliance.engine) as session:
            self._require_active(session)
            recorded = RoundRepository(session).open_attempt(self._running.study)
        if recorded is None:
            raise StudyEnded("The open attempt was closed by another driver.", "Let one coordinator run each study.")
        return recorded

    def _send(self, recorded: RecordedAttempt) -> StudyState | None:
        attempt = recorded.attempt
        packet = packet_of(recorded, self._work.body(attempt.phase))
        intake = Intake(request_of(recorded), self._running.plan, self._uploads.stored)
        self._exchange.request(
            ROUND_KINDS[attempt.phase],
            dict.fromkeys(attempt.cohort, packet),
            group=f"{attempt.phase}-{attempt.round}-{attempt.attempt}",
            deadline_seconds=self._deadline(attempt.phase, attempt.cohort),
            on_answer=intake.take,
            elsewhere=intake.collect,
        )
        intake.collect()
        outcome = self._without_frozen(intake.outcome())
        if not outcome.complete:
            self._abandon(attempt, outcome)
            return None
        decided = self._gate.in_force().aggregation(outcome.contributed, now=self._appliance.clock())
        if not decided.decision.allowed:
            self._abandon(attempt, outcome)
            return self._standing.deny(decided, self._progress)
        closed = replace(attempt, status=AttemptStatus.COMMITTED, contributed=outcome.contributed)
        return self._commit(closed, outcome, decided, intake)

    def _without_frozen(self, outcome: Outcome) -> Outcome:
        """A site that an incident froze while it computed is no part of a sum: the attempt is abandoned."""
        with reading(self._appliance.engine) as session:
            self._require_active(session)
            frozen = frozen_sites(session) & set(outcome.contributed)
        left = tuple(site for site in outcome.contributed if site not in frozen)
        return replace(outcome, contributed=left, excluded={**outcome.excluded, **dict.fromkeys(frozen, INCIDENT)})

    def _deadline(self, phase: Phase, cohort: tuple[str, ...]) -> float:
        """Seconds for one attempt: to compute, and to carry body and vector there and back on the slowest line."""
        settings = self._appliance.settings
        vector = WORD_BYTES * self._running.plan.secure_sum(phase, cohort).length
        carried = WIRE.itemsize * self._running.plan.body_length(phase) + vector
        return settings.round_deadline + carried // settings.slowest_link

    def _abandon(self, attempt: Attempt, outcome: Outcome) -> None:
        closed = replace(
            attempt, status=AttemptStatus.ABANDONED, contributed=outcome.contributed, excluded=outcome.excluded
        )
        with transaction(self._appliance.engine) as session:
            RoundRepository(session).close_attempt(self._running.study, closed, self._now())
        self._progress = self._progress.after(closed)

    def _commit(self, closed: Attempt, outcome: Outcome, decided: Decided, intake: Intake) -> StudyState | None:
        after = self._progress.after(closed)
        try:
            taken = self._work.take(closed, intake.unmasked(), after)
        except (PrivacyError, ValueError) as error:
            self._abandon(closed, outcome)
            detail = f"the sum was refused ({type(error).__name__})"
            return self._standing.fail(FailureCode.SUM_REFUSED, detail, self._progress)
        ended = taken.becomes in ENDED
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            RoundRepository(session).close_attempt(self._running.study, closed, self._now())
            committed = Committed(closed, outcome, decided, taken.norm, taken.before, taken.after, self._seconds)
            self._journal.committed(session, committed, after)
            taken.keep(session)
            if taken.becomes is not None:
                self._standing.become(session, taken.becomes, ended=ended)
        self._progress = after
        taken.adopt()
        return taken.becomes if ended else None

    # Ends

    def _give_up(self, action: GiveUp) -> StudyState | None:
        """End without the phase that the study can do without."""
        assert isinstance(self._work, Audits)
        taken = self._work.give_up(action.detail, self._progress)
        with transaction(self._appliance.engine) as session:
            self._require_active(session)
            taken.keep(session)
            if taken.becomes is not None:
                self._standing.become(session, taken.becomes, ended=taken.becomes in ENDED)
        taken.adopt()
        return taken.becomes

    def _fail_without(self, action: Fail) -> StudyState:
        """The study cannot go on, unless it is the papers of sites that keep them out: these can be renewed."""
        left_out = self._left_out()
        if action.code is FailureCode.TOO_FEW_SITES and left_out:
            raise waiting.lapsed(left_out, action.detail, GATE_SHUT)
        return self._standing.fail(action.code, action.detail, self._progress)

    def _require_active(self, session: Session) -> None:
        self._standing.require_active(session)

    @property
    def _seconds(self) -> float | None:
        """Since the round's first attempt; None in a driver that resumed in the middle of one."""
        return None if self._round_began is None else self._monotonic() - self._round_began

    def _now(self) -> str:
        return timestamp(self._appliance.clock())


def work_of(running: Running, journal: Journal, now: Callable[[], str]) -> Work:
    """What this kind of study does with its rounds."""
    plan = running.plan
    if isinstance(plan, ExplorationPlan):
        return ExplorationWork(plan, running.plan_digest, journal, now)
    return TrainingWork(plan, running.plan_digest, journal, now)
