"""The rounds of an exploration: each leaves one noised sum, and everything else follows from these sums and the plan.

The centres of a clustering are not stored: they are recomputed from the sums, so a driver that starts anew, or anybody
who holds the sums, arrives at the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlmodel import Session

from coordinator.rounds.exploration_result import Kept, centers_after, exploration_result
from coordinator.rounds.journal import Journal
from coordinator.rounds.optimiser import to_bytes
from coordinator.rounds.repository import RoundRepository
from coordinator.rounds.states import Attempt, Progress
from coordinator.rounds.tables import ExplorationRecord
from coordinator.rounds.work import Taken
from coordinator.studies.states import StudyState
from privacy.entropy import Float64
from protocol.canonical import canonical, digest, sha256_hex
from protocol.exploration import ExplorationPlan
from protocol.round import Phase


class ExplorationWork:
    """The sums so far. now: the time as the records have it."""

    def __init__(self, plan: ExplorationPlan, plan_digest: str, journal: Journal, now: Callable[[], str]) -> None:
        self._plan = plan
        self._plan_digest = plan_digest
        self._journal = journal
        self._now = now
        self._kept: dict[Phase, list[Kept]] = {"statistics": [], "cluster": []}

    def resume(self, session: Session) -> None:
        """The sums of all committed rounds."""
        rounds, study = RoundRepository(session), self._plan.spec.study
        for phase, kept in self._kept.items():
            kept[:] = [Kept(*stored) for stored in rounds.sums(study, phase)]

    @property
    def entry(self) -> int:
        """An exploration has no grid."""
        return 0

    def body(self, phase: Phase) -> bytes:
        """Nothing for the statistics; the centres of the step for the clustering."""
        return to_bytes(self._centers(self._kept["cluster"])) if phase == "cluster" else b""

    def take(self, closed: Attempt, total: Float64, after: Progress) -> Taken:
        """Keep the sum; with the last one, say what was found."""
        plan, study, before = self._plan, self._plan.spec.study, sha256_hex(self.body(closed.phase))
        kept = {phase: list(sums) for phase, sums in self._kept.items()}
        kept[closed.phase].append(Kept(closed.contributed, total))
        record = None
        if all(after.done(stage.phase) == stage.rounds for stage in plan.stages):
            result = exploration_result(
                plan, self._plan_digest, kept["statistics"][0], kept["cluster"], completed_at=self._now()
            )
            document = result.model_dump(mode="json")
            record = ExplorationRecord(
                study=study,
                result=canonical(document).decode(),
                result_digest=digest(document),
                completed_at=result.completed_at,
            )
        outcome = to_bytes(self._centers(kept["cluster"])) if closed.phase == "cluster" else to_bytes(total)

        def keep(session: Session) -> None:
            rounds = RoundRepository(session)
            rounds.keep_sum(study, closed.phase, closed.round, closed.contributed, total)
            if record is not None:
                rounds.add_result(record)
                self._journal.explored(session, record.result_digest, after)

        def adopt() -> None:
            self._kept = kept

        return Taken(
            norm=None,
            before=before,
            after=sha256_hex(outcome),
            becomes=None if record is None else StudyState.COMPLETED,
            keep=keep,
            adopt=adopt,
        )

    def _centers(self, sums: Sequence[Kept]) -> Float64:
        return centers_after(self._plan, self._plan_digest, sums)
