"""The only SQL about rounds. A second driver of one study loses at the statement: an attempt exists once, and an
open one is closed once."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from coordinator.database import one_row
from coordinator.errors import Conflict, NotFound
from coordinator.rounds.optimiser import ModelPoint, from_bytes, to_bytes
from coordinator.rounds.runs import Run, score_of
from coordinator.rounds.states import Attempt, AttemptStatus, Progress, replay
from coordinator.rounds.tables import (
    Candidate,
    ExplorationRecord,
    KeySetup,
    ModelCheck,
    ModelState,
    NoisedSum,
    RoundAttempt,
    StudyRound,
    TunedRun,
)
from coordinator.studies.repository import StudyRepository, plan_of
from privacy.entropy import Float64
from protocol.canonical import digest
from protocol.evaluation import EvaluationReport, read_report
from protocol.membership import MembershipReport
from protocol.round import Phase, phase_named
from protocol.study_kind import AnyPlan


class AnotherDriver(Conflict):
    """Another driver works on this study: this one must end."""

    code = "another-driver"


@dataclass(frozen=True)
class RecordedAttempt:
    """An attempt with the signed request that was, or is to be, sent."""

    attempt: Attempt
    request: bytes
    model_digest: str
    issued_at: str


class RoundRepository:
    """Rounds within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def key_setup(self, study: str) -> KeySetup | None:
        """The key set-up, once begun."""
        return self._session.get(KeySetup, study)

    def begin_keys(self, study: str, cohort: tuple[str, ...]) -> None:
        """Fix the cohort of the key set-up, once. AnotherDriver where it is fixed already."""
        self._session.add(KeySetup(study=study, cohort=json.dumps(cohort)))
        self._flush(study)

    def joined(self, study: str, sites: tuple[str, ...]) -> None:
        """Record who has advertised keys."""
        row = self._session.get(KeySetup, study)
        if row is not None:
            row.joined = json.dumps(sites)
            self._session.add(row)

    def establish_keys(self, study: str, transcript: str, at: str) -> None:
        """Close the key set-up. AnotherDriver where it is closed already."""
        statement = (
            update(KeySetup)
            .where(col(KeySetup.study) == study, col(KeySetup.established_at).is_(None))
            .values(transcript=transcript, established_at=at)
        )
        if not one_row(self._session.connection().execute(statement)):
            raise _another(study)

    def attempts(self, study: str) -> list[RecordedAttempt]:
        """Every attempt in the order made."""
        query = select(RoundAttempt).where(col(RoundAttempt.study) == study).order_by(col(RoundAttempt.sequence))
        return [_recorded(row) for row in self._session.exec(query)]

    def attempts_of(self, study: str, phase: Phase, round_number: int) -> list[RecordedAttempt]:
        """The attempts of one round in the order made."""
        query = select(RoundAttempt).where(
            col(RoundAttempt.study) == study, col(RoundAttempt.phase) == phase, col(RoundAttempt.round) == round_number
        )
        return [_recorded(row) for row in self._session.exec(query.order_by(col(RoundAttempt.attempt)))]

    def progress(self, study: str) -> Progress:
        """What the records say so far."""
        setup = self.key_setup(study)
        established = tuple(json.loads(setup.cohort)) if setup is not None and setup.established_at else ()
        return replay(established, (recorded.attempt for recorded in self.attempts(study)))

    def open_attempt(self, study: str) -> RecordedAttempt | None:
        """The attempt that is neither committed nor abandoned."""
        query = select(RoundAttempt).where(
            col(RoundAttempt.study) == study, col(RoundAttempt.status) == AttemptStatus.OPEN.value
        )
        row = self._session.exec(query).first()
        return _recorded(row) if row is not None else None

    def begin_attempt(self, study: str, recorded: RecordedAttempt) -> None:
        """Record an attempt before it is sent. AnotherDriver where it exists or another is open."""
        if self.open_attempt(study) is not None:
            raise _another(study)
        attempt = recorded.attempt
        latest = self._session.exec(
            select(func.max(RoundAttempt.sequence)).where(col(RoundAttempt.study) == study)
        ).one()
        self._session.add(
            RoundAttempt(
                study=study,
                phase=attempt.phase,
                round=attempt.round,
                attempt=attempt.attempt,
                sequence=(latest or 0) + 1,
                status=AttemptStatus.OPEN.value,
                cohort=json.dumps(attempt.cohort),
                request=recorded.request,
                model_digest=recorded.model_digest,
                issued_at=recorded.issued_at,
            )
        )
        self._flush(study)

    def close_attempt(self, study: str, attempt: Attempt, at: str) -> None:
        """Commit or abandon the open attempt, once. AnotherDriver where it is closed already."""
        statement = (
            update(RoundAttempt)
            .where(
                col(RoundAttempt.study) == study,
                col(RoundAttempt.phase) == attempt.phase,
                col(RoundAttempt.round) == attempt.round,
                col(RoundAttempt.attempt) == attempt.attempt,
                col(RoundAttempt.status) == AttemptStatus.OPEN.value,
            )
            .values(
                status=attempt.status.value,
                contributed=json.dumps(attempt.contributed),
                excluded=json.dumps(dict(attempt.excluded)),
                closed_at=at,
            )
        )
        if not one_row(self._session.connection().execute(statement)):
            raise _another(study)

    def model(self, study: str) -> ModelPoint | None:
        """The model after the last committed round."""
        row = self._session.get(ModelState, study)
        if row is None:
            return None
        point = ModelPoint(
            row.rounds,
            from_bytes(row.weights),
            from_bytes(row.velocity),
            from_bytes(row.average),
            row.averaged,
            None if row.second is None else from_bytes(row.second),
            row.run,
            row.entry,
        )
        if point.digest != row.digest:
            raise Conflict(f"The stored model of study {study} is damaged.", "Restore the database from a backup.")
        return point

    def checks(self, study: str) -> list[ModelCheck]:
        """The checks between rounds, in order."""
        query = select(ModelCheck).where(col(ModelCheck.study) == study).order_by(col(ModelCheck.round))
        return list(self._session.exec(query))

    def add_check(self, row: ModelCheck) -> None:
        """Store one, once."""
        self._session.add(row)
        self._flush(row.study)

    def restore_model(self, study: str, point: ModelPoint) -> None:
        """Put an earlier model in the place of the round's own. AnotherDriver where the stored one is of another
        round: the number of rounds never goes back."""
        self._replace_model(study, point, run=point.run, rounds=point.rounds)

    def start_model(self, study: str, point: ModelPoint) -> None:
        """Store the initial model."""
        self._session.add(_model_row(study, point))
        self._flush(study)

    def advance_model(self, study: str, point: ModelPoint) -> None:
        """Replace the model of the round, or of the run, before. AnotherDriver where the stored one is another."""
        if point.rounds:
            self._replace_model(study, point, run=point.run, rounds=point.rounds - 1)
        else:
            self._replace_model(study, point, run=point.run - 1)

    def _replace_model(self, study: str, point: ModelPoint, *, run: int, rounds: int | None = None) -> None:
        row = _model_row(study, point)
        stored = col(ModelState.study) == study, col(ModelState.run) == run
        statement = (
            update(ModelState)
            .where(*stored, *(() if rounds is None else (col(ModelState.rounds) == rounds,)))
            .values(
                run=row.run,
                entry=row.entry,
                rounds=row.rounds,
                weights=row.weights,
                velocity=row.velocity,
                average=row.average,
                averaged=row.averaged,
                second=row.second,
                digest=row.digest,
            )
        )
        if not one_row(self._session.connection().execute(statement)):
            raise _another(study)

    def add_round(self, row: StudyRound) -> None:
        """Store a committed round."""
        self._session.add(row)
        self._flush(row.study)

    def rounds(self, study: str) -> list[StudyRound]:
        """The committed rounds, training first."""
        query = select(StudyRound).where(col(StudyRound.study) == study)
        return list(self._session.exec(query.order_by(col(StudyRound.phase).desc(), col(StudyRound.round))))

    def latest_round(self, study: str) -> StudyRound | None:
        """The round that was committed last, evaluations, checks and audits apart."""
        trained = col(StudyRound.phase).not_in(("evaluate", "check", "membership"))
        query = select(StudyRound).where(col(StudyRound.study) == study, trained)
        order = col(StudyRound.committed_at).desc(), col(StudyRound.phase), col(StudyRound.round).desc()
        return self._session.exec(query.order_by(*order).limit(1)).first()

    def rounds_digest(self, study: str) -> str:
        """SHA-256 over the canonical list of the committed rounds' records."""
        return digest([round_record(row) for row in self.rounds(study)])

    def other_trained_plans(self, study: str) -> tuple[AnyPlan, ...]:
        """The plans of the other studies in which an attempt was made, explorations among them."""
        query = select(RoundAttempt.study).where(col(RoundAttempt.study) != study).distinct()
        studies = StudyRepository(self._session)
        return tuple(plan_of(studies.get(other)) for other in self._session.exec(query.order_by(RoundAttempt.study)))

    def keep_sum(
        self, study: str, phase: Phase, round_number: int, contributed: tuple[str, ...], total: Float64
    ) -> None:
        """Store an exploration's noised sum, once. AnotherDriver where it is stored already."""
        row = NoisedSum(
            study=study, phase=phase, round=round_number, contributed=json.dumps(contributed), total=to_bytes(total)
        )
        self._session.add(row)
        self._flush(study)

    def sums(self, study: str, phase: Phase) -> list[tuple[tuple[str, ...], Float64]]:
        """(who contributed, the noised sum) of each committed round of an exploration's phase, in order."""
        query = select(NoisedSum).where(col(NoisedSum.study) == study, col(NoisedSum.phase) == phase)
        rows = self._session.exec(query.order_by(col(NoisedSum.round)))
        return [(tuple(json.loads(row.contributed)), from_bytes(row.total)) for row in rows]

    def add_result(self, row: ExplorationRecord) -> None:
        """Store what an exploration found, once."""
        self._session.add(row)
        self._flush(row.study)

    def result(self, study: str) -> ExplorationRecord | None:
        """What the exploration found, once it is completed."""
        return self._session.get(ExplorationRecord, study)

    def add_run(self, study: str, run: Run, report: EvaluationReport) -> None:
        """Store a run that was scored."""
        self._session.add(
            TunedRun(
                study=study,
                run=run.number,
                entry=run.entry,
                weights=to_bytes(run.weights),
                report=json.dumps(report.model_dump(mode="json")),
            )
        )
        self._flush(study)

    def runs(self, study: str) -> tuple[Run, ...]:
        """The runs that were scored, in order."""
        query = select(TunedRun).where(col(TunedRun.study) == study).order_by(col(TunedRun.run))
        return tuple(
            Run(row.run, row.entry, from_bytes(row.weights), score_of(read_report(row.report)))
            for row in self._session.exec(query)
        )

    def add_candidate(self, row: Candidate) -> None:
        """Store the candidate, once."""
        self._session.add(row)
        self._flush(row.study)

    def audit_candidate(self, study: str, report: MembershipReport, rounds_digest: str) -> Candidate:
        """Add what the membership audit came to, once. AnotherDriver where it is there already."""
        row = self._session.get(Candidate, study)
        if row is None or row.membership is not None:
            raise _another(study)
        row.membership, row.rounds_digest = json.dumps(report.model_dump(mode="json")), rounds_digest
        self._session.add(row)
        self._session.flush()
        return row

    def _flush(self, study: str) -> None:
        try:
            self._session.flush()
        except IntegrityError:
            raise _another(study) from None


class CandidateRepository:
    """Candidates within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, study: str) -> Candidate | None:
        """The study's candidate, if there is one."""
        return self._session.get(Candidate, study)

    def of(self, study: str) -> Candidate:
        """The study's candidate, or NotFound."""
        row = self.find(study)
        if row is None:
            raise NotFound(
                f"Study {study} has no candidate yet.", "Wait for its rounds and evaluation: `cloister study status`."
            )
        return row


def round_record(row: StudyRound) -> dict[str, object]:
    """One round's record as JSON: what people are shown and what `rounds_digest` covers."""
    return {
        "phase": row.phase,
        "round": row.round,
        "attempts": row.attempts,
        "invited": json.loads(row.invited),
        "contributed": json.loads(row.contributed),
        "excluded": json.loads(row.excluded),
        "norm": row.norm,
        "model": row.model_digest,
        "epsilon": row.epsilon,
        "seconds": row.seconds,
        "committed_at": row.committed_at,
    }


def _recorded(row: RoundAttempt) -> RecordedAttempt:
    attempt = Attempt(
        phase=phase_named(row.phase),
        round=row.round,
        attempt=row.attempt,
        cohort=tuple(json.loads(row.cohort)),
        status=AttemptStatus(row.status),
        contributed=tuple(json.loads(row.contributed)),
        excluded=json.loads(row.excluded),
    )
    return RecordedAttempt(attempt, row.request, row.model_digest, row.issued_at)


def _model_row(study: str, point: ModelPoint) -> ModelState:
    return ModelState(
        study=study,
        rounds=point.rounds,
        weights=to_bytes(point.weights),
        velocity=to_bytes(point.velocity),
        average=to_bytes(point.average),
        averaged=point.averaged,
        second=None if point.second is None else to_bytes(point.second),
        run=point.run,
        entry=point.entry,
        digest=point.digest,
    )


def _another(study: str) -> AnotherDriver:
    return AnotherDriver(
        f"Another driver works on study {study}.", "Let one coordinator run each study; this driver ends."
    )
