"""The rounds of a study that trains: a step of the model each, and at last the candidate with what was measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sqlmodel import Session

from coordinator.rounds.evaluation import Evidence, candidate_row, evaluate_histogram
from coordinator.rounds.journal import Journal
from coordinator.rounds.kept_models import Passed, after_check, check_row, last_passed, passed_of
from coordinator.rounds.membership import membership_report
from coordinator.rounds.optimiser import (
    ModelPoint,
    candidate_weights,
    divisor,
    next_point,
    to_bytes,
)
from coordinator.rounds.repository import RoundRepository
from coordinator.rounds.runs import Run, first_point, is_last, point_after, scored, selection_of
from coordinator.rounds.states import CHECK, MEMBERSHIP, TRAIN, Attempt, Progress
from coordinator.rounds.work import Taken
from coordinator.studies.states import StudyState
from privacy.entropy import Float64
from protocol.canonical import sha256_hex
from protocol.membership import MembershipReport
from protocol.round import Phase
from protocol.study import StudyPlan


class TrainingWork:
    """The model between two rounds. now: the time as the records have it."""

    def __init__(self, plan: StudyPlan, plan_digest: str, journal: Journal, now: Callable[[], str]) -> None:
        self._plan = plan
        self._plan_digest = plan_digest
        self._journal = journal
        self._now = now
        self._point: ModelPoint | None = None
        self._runs: tuple[Run, ...] = ()
        self._passed: Passed | None = None
        self._checked_rounds = 0

    def resume(self, session: Session) -> None:
        """The model after the last committed round, or the plan's first one."""
        rounds, spec = RoundRepository(session), self._plan.spec
        self._runs = rounds.runs(spec.study)
        self._point = rounds.model(spec.study)
        if self._point is None:
            self._point = first_point(self._plan, self._plan_digest)
            rounds.start_model(spec.study, self._point)
        checks = rounds.checks(spec.study)
        self._checked_rounds = checks[-1].rounds if checks else 0
        self._passed = next((passed for row in reversed(checks) if (passed := passed_of(row)) is not None), None)

    @property
    def entry(self) -> int:
        """The run's entry of the grid, or at last the chosen one's."""
        return self._at.entry

    def body(self, phase: Phase) -> bytes:
        """The weights of the round, a check's too, or the candidate's."""
        return self._at.vector() if phase in (TRAIN, CHECK) else to_bytes(candidate_weights(self._at))

    def take(self, closed: Attempt, total: Float64, after: Progress) -> Taken:
        """The next model, a run's score, the candidate with what the histogram says of it, or what the attack found."""
        if closed.phase == MEMBERSHIP:
            return self._audited(membership_report(self._plan, closed.cohort, total), after)
        if closed.phase == CHECK:
            return self._check(closed, total)
        if closed.phase == TRAIN:
            return self._step(closed, total, after)
        if is_last(self._plan, self._at):
            return self._judge(closed, total, after)
        return self._score(closed, total)

    def give_up(self, detail: str, progress: Progress) -> Taken:
        """The candidate without the audit that the plan has: it says so for ever."""
        return self._audited(MembershipReport(ran=False, reason=detail), progress)

    def _audited(self, report: MembershipReport, after: Progress) -> Taken:
        study = self._plan.spec.study
        model = sha256_hex(to_bytes(candidate_weights(self._at)))

        def keep(session: Session) -> None:
            rounds = RoundRepository(session)
            row = rounds.audit_candidate(study, report, rounds.rounds_digest(study))
            self._journal.audited(session, row, report)

        return Taken(norm=None, before=model, after=model, becomes=StudyState.CANDIDATE, keep=keep)

    @property
    def _at(self) -> ModelPoint:
        assert self._point is not None, "resume comes first"
        return self._point

    def _step(self, closed: Attempt, total: Float64, after: Progress) -> Taken:
        spec = self._plan.spec
        plan = self._plan.of_entry(self._at.entry)
        point = next_point(plan, self._at, total, closed.cohort)

        def keep(session: Session) -> None:
            RoundRepository(session).advance_model(spec.study, point)

        def adopt() -> None:
            self._point = point

        return Taken(
            norm=float(np.linalg.norm(total)) / divisor(plan, closed.cohort),
            before=self._at.digest,
            after=point.digest,
            becomes=StudyState.EVALUATING if after.done(TRAIN) == spec.runs * spec.training.rounds else None,
            keep=keep,
            adopt=adopt,
        )

    def _score(self, closed: Attempt, histogram: Float64) -> Taken:
        study = self._plan.spec.study
        report = evaluate_histogram(self._plan, closed.cohort, histogram)
        run = scored(self._at, report)
        runs = (*self._runs, run)
        point = point_after(self._plan, self._plan_digest, runs)

        def keep(session: Session) -> None:
            rounds = RoundRepository(session)
            rounds.add_run(study, run, report)
            rounds.advance_model(study, point)

        def adopt() -> None:
            self._point, self._runs = point, runs

        return Taken(
            norm=None,
            before=self._at.digest,
            after=sha256_hex(to_bytes(run.weights)),
            becomes=None,
            keep=keep,
            adopt=adopt,
        )

    def _check(self, closed: Attempt, histogram: Float64) -> Taken:
        """Keep the model, or go back to the last one that passed. The number of rounds stays: none is repeated."""
        spec, at = self._plan.spec, self._at
        report = evaluate_histogram(self._plan, closed.cohort, histogram, "check")
        verdict, point = after_check(self._plan, self._plan_digest, at, report, self._passed)
        row = check_row(spec.study, closed.round, at, verdict, undone=at.rounds - self._checked_rounds)

        def keep(session: Session) -> None:
            rounds = RoundRepository(session)
            if verdict.fell:
                rounds.restore_model(spec.study, point)
            rounds.add_check(row)
            self._journal.checked(session, row, verdict, before=at.digest, after=point.digest)

        def adopt() -> None:
            self._point, self._checked_rounds = point, at.rounds
            self._passed = last_passed(verdict, at, self._passed)

        return Taken(norm=None, before=at.digest, after=point.digest, becomes=None, keep=keep, adopt=adopt)

    def _judge(self, closed: Attempt, histogram: Float64, after: Progress) -> Taken:
        study = self._plan.spec.study
        report = evaluate_histogram(self._plan, closed.cohort, histogram)
        weights = candidate_weights(self._at)

        def keep(session: Session) -> None:
            rounds = RoundRepository(session)
            evidence = Evidence(
                plan=self._plan,
                rounds_executed=after.done(TRAIN),
                attempts=after.steps(TRAIN),
                rounds_digest=rounds.rounds_digest(study),
                report=report,
                histogram=histogram,
                earlier=rounds.other_trained_plans(study),
                created_at=self._now(),
                selection=selection_of(self._plan, self._runs),
                rounds_undone=sum(row.undone for row in rounds.checks(study)),
            )
            row = candidate_row(evidence, weights)
            rounds.add_candidate(row)
            self._journal.evaluated(session, row, report, after)

        return Taken(
            norm=None,
            before=self._at.digest,
            after=sha256_hex(to_bytes(weights)),
            becomes=StudyState.CANDIDATE if self._plan.membership is None else None,
            keep=keep,
        )
