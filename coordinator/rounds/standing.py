"""Where a study stands while its driver is at work: may it go on, does it wait, how does it end. Each change is one
transaction with its log entry."""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import reading, transaction
from coordinator.rounds import waiting
from coordinator.rounds.freeze import require_thawed
from coordinator.rounds.journal import Journal, Running
from coordinator.rounds.states import FailureCode, Progress
from coordinator.rounds.waiting import StudyWaits
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import ACTIVE, StudyState
from policies.decided import Decided
from policies.findings import reasons
from protocol.errors import CloisterError
from protocol.timestamp import timestamp


class StudyEnded(CloisterError):
    """The study was stopped while the driver was at work."""

    code = "study-ended"


class Standing:
    """One study's, for its driver."""

    def __init__(self, appliance: Appliance, running: Running, journal: Journal) -> None:
        self._appliance = appliance
        self._running = running
        self._journal = journal

    def require_active(self, session: Session) -> None:
        """Raises StudyEnded, StudyFrozen where the driver must not go on."""
        state = self._state(session)
        if state not in ACTIVE:
            raise StudyEnded(f"Study {self._running.study} is {state.value}.", "The driver ends.")
        require_thawed(session, self._running.study)

    def now(self) -> StudyState:
        """The state on record."""
        with reading(self._appliance.engine) as session:
            return self._state(session)

    @property
    def waits(self) -> bool:
        """Whether it waits, by the record."""
        with reading(self._appliance.engine) as session:
            return self._running.study in waiting.waiting(session)

    def become(
        self,
        session: Session,
        state: StudyState,
        *,
        reason: str | None = None,
        detail: str | None = None,
        ended: bool = False,
    ) -> None:
        """Change the state."""
        studies = StudyRepository(session)
        row = studies.get(self._running.study)
        at = timestamp(self._appliance.clock()) if ended else None
        studies.set_state(row, state, reason=reason, detail=detail, ended_at=at)

    def suspend(self, wait: StudyWaits, progress: Progress, judged: dict[str, Decided]) -> StudyState:
        """Let the study wait, or end it where it has for as long as was declared; the state it is in then. The log is
        told when a wait begins and when its cause changes."""
        study, now = self._running.study, self._appliance.clock()
        with transaction(self._appliance.engine) as session:
            state = self._state(session)
            if state not in ACTIVE:
                return state
            if waiting.begin(session, study, wait, now):
                if wait.denied is not None:
                    self._journal.denied(session, wait.denied)
                self._journal.judged(session, judged)
                self._journal.waits(session, wait)
            if wait.code_after is None or not waiting.overdue(session, study, self._appliance.settings.patience, now):
                return state
            self._fail(session, wait.code_after, wait.message, progress, wait.excluded)
        return StudyState.FAILED

    def resume(self, session: Session) -> None:
        """It goes on: the log is told where it waited."""
        reason = waiting.end(session, self._running.study)
        if reason is not None:
            self._journal.resumed(session, reason)

    def deny(self, decided: Decided, progress: Progress) -> StudyState:
        """Fail for a gate that no waiting opens."""
        with transaction(self._appliance.engine) as session:
            self._journal.denied(session, decided)
        first = reasons(decided.decision)[0]
        return self.fail(FailureCode.POLICY_DENIED, f"{first.rule} ({first.citation}): {first.message}", progress)

    def fail(
        self, code: FailureCode, detail: str, progress: Progress, excluded: dict[str, str] | None = None
    ) -> StudyState:
        """End it as failed."""
        with transaction(self._appliance.engine) as session:
            self.require_active(session)
            self._fail(session, code, detail, progress, excluded or {})
        return StudyState.FAILED

    def _fail(
        self, session: Session, code: FailureCode, detail: str, progress: Progress, excluded: dict[str, str]
    ) -> None:
        waiting.end(session, self._running.study)
        self.become(session, StudyState.FAILED, reason=code.value, detail=detail, ended=True)
        self._journal.failed(session, code, progress, excluded)

    def _state(self, session: Session) -> StudyState:
        return StudyState(StudyRepository(session).get(self._running.study).state)
