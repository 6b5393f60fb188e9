"""The site's ledger on disk: what each study may take of each patient, and what it has taken.

A charge is on disk (synchronous=FULL) before anything is computed, and the answer is on disk before it is sent. So
after a crash at any point the ledger counts at least what left, and what is sent again is the same bytes.
Charges follow patients: what a snapshot has spent is the largest sum over any of its patients, in whichever snapshot
that patient (by keyed hash) was charged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Engine, text
from sqlmodel import Session, col, delete, or_, select, update
from sqlmodel.sql.expression import SelectOfScalar

from protocol.errors import CloisterError
from protocol.round import Phase, RefusalCode, phase_named
from site_agent.cohort.snapshot import current
from site_agent.cohort.tables import Snapshot
from site_agent.cohort.withdrawal import holds_withdrawn
from site_agent.consent.states import Answer
from site_agent.consent.tables import StudyGrant
from site_agent.database import transaction
from site_agent.training import stored_vectors
from site_agent.training.generation import advance, require_newest, standing
from site_agent.training.self_test import require_passed
from site_agent.training.states import (
    AttemptKey,
    AttemptRefused,
    Budget,
    Charge,
    Place,
    Prior,
    Progress,
    Verdict,
    admit,
    decide_attempt,
)
from site_agent.training.tables import (
    CohortCharge,
    ConsumedAttempt,
    ForgottenCharge,
    KeyStepReply,
    RefusalRecord,
    RoundDecision,
    SecureSumKeys,
    StoredVector,
)
from site_agent.witness.repository import standing_alarms

KEPT_REFUSALS = 1000

# For each patient of the group: what all studies have taken of this patient, in whichever snapshot.
_LARGEST_SPENT = text(
    """
    SELECT COALESCE(MAX(epsilon), 0.0), COALESCE(MAX(delta), 0.0) FROM (
        SELECT SUM(c.epsilon) AS epsilon, SUM(c.delta) AS delta
        FROM snapshot_patient AS mine
        JOIN snapshot_patient AS seen ON seen.patient_hash = mine.patient_hash
        JOIN cohort_charge AS c ON c.snapshot = seen.snapshot AND c.held_out = seen.held_out
        WHERE mine.snapshot = :snapshot AND mine.held_out = :held_out AND c.released = 0 AND c.plan_digest <> :but
        GROUP BY mine.patient_hash
    )
    """
)

SHARED = "+"
"""Between the phases that one charge is for."""


class LedgerConflict(CloisterError):
    """The ledger does not stand where the caller thought: another process, or a repeated call."""

    code = "ledger-conflict"


@dataclass(frozen=True)
class StudySpending:
    """One study's line of the ledger, for people. Patients: "training" or "held-out"."""

    study: str
    snapshot: str
    held_out: bool
    epsilon: float
    delta: float
    steps_charged: int
    steps_allowed: int
    exact: bool
    released: bool


def spent(session: Session, snapshot: str, *, held_out: bool, but: str = "") -> Budget:
    """What the most-used patient of this snapshot's group has been charged over all studies, reserved or spent, with
    what every patient is charged for a ledger that was put back. `but`: the digest of a plan that is left out."""
    values = {"snapshot": snapshot, "held_out": held_out, "but": but}
    row = session.connection().execute(_LARGEST_SPENT, values).one()
    lost = select(ForgottenCharge).where(col(ForgottenCharge.held_out).is_(held_out))
    forgotten = session.exec(lost).all()
    return Budget(
        float(row[0]) + sum(charge.epsilon for charge in forgotten),
        float(row[1]) + sum(charge.delta for charge in forgotten),
    )


def reserve(
    session: Session, *, study: str, plan_digest: str, snapshot: str, charges: tuple[Charge, ...], cap: Budget, at: str
) -> None:
    """Set aside what the plan asks of each group, in the caller's transaction. Raises BudgetExceeded, LedgerBehind, and
    LedgerConflict when the plan is reserved already."""
    require_newest(session)
    taken = select(CohortCharge).where(CohortCharge.plan_digest == plan_digest)
    if session.exec(taken).first() is not None:
        raise LedgerConflict("The ledger has a reservation for this plan.", "Nothing has to be done again.")
    before = {held_out: spent(session, snapshot, held_out=held_out) for held_out in (False, True)}
    for charge in charges:  # a group may be charged by several phases: each on top of the ones before
        before[charge.held_out] = admit(study, before[charge.held_out], charge, cap)
    for charge in charges:
        session.add(
            CohortCharge(
                study=study,
                plan_digest=plan_digest,
                snapshot=snapshot,
                phase=SHARED.join((charge.phase, *charge.also)),
                held_out=charge.held_out,
                epsilon=charge.epsilon,
                delta=charge.delta,
                steps_allowed=charge.steps,
                exact=charge.exact,
                reserved_at=at,
            )
        )
    session.flush()
    advance(session)


def release_unused(session: Session, plan_digest: str) -> None:
    """Give back the reservations of a plan of which no step was charged; the others stay charged in full, and all of
    them where the ledger was put back: it does not know what was charged."""
    if standing(session).behind:
        return
    unused = select(CohortCharge).where(
        CohortCharge.plan_digest == plan_digest, CohortCharge.steps_charged == 0, col(CohortCharge.released).is_(False)
    )
    for charge in session.exec(unused):
        charge.released = True
        session.add(charge)


def ledger(session: Session) -> list[StudySpending]:
    """Every reservation and charge, oldest first."""
    rows = session.exec(select(CohortCharge).order_by(col(CohortCharge.id)))
    return [
        StudySpending(
            study=row.study,
            snapshot=row.snapshot,
            held_out=row.held_out,
            epsilon=row.epsilon,
            delta=row.delta,
            steps_charged=row.steps_charged,
            steps_allowed=row.steps_allowed,
            exact=row.exact,
            released=row.released,
        )
        for row in rows
    ]


class BudgetStore:
    """Consumption of attempts: charge, then compute, then keep, then send.

    `reached` is told each point that is durably behind; tests end the process there.
    """

    def __init__(self, engine: Engine, *, reached: Callable[[str], None] = lambda _point: None) -> None:
        self._engine = engine
        self._reached = reached

    def consume(
        self,
        key: AttemptKey,
        *,
        position: int,
        plan_digest: str,
        request_digest: str,
        model: str,
        expired: bool,
        at: str,
        snapshot: str,
        steps: int = 1,
        decision: RoundDecision | None = None,
    ) -> bytes | None:
        """None: the attempt is consumed and its `steps` noisy steps charged, durably; compute it now, once. bytes: the
        answer that is on disk for this very request. Raises AttemptRefused, and then nothing is charged.

        snapshot: what is to be computed on; refused where patients of it withdrew meanwhile.
        decision: of the site's round gate, stored in the charge's own transaction.
        """
        self._reached("before-charge")
        with transaction(self._engine) as session:
            _refuse_unsound(session)
            require_passed(session)
            grant = session.get(StudyGrant, plan_digest)
            if grant is None or grant.state != Answer.GRANTED or grant.study != key.study:
                raise AttemptRefused(RefusalCode.PLAN_NOT_GRANTED)
            if _in_use(session, grant).digest != snapshot:
                raise AttemptRefused(RefusalCode.WITHDRAWALS_UNAPPLIED)
            row = session.exec(_attempt(key)).first()
            charges = _charges(session, plan_digest, key.phase)
            if not charges or any(charge.released for charge in charges):
                raise AttemptRefused(RefusalCode.LEDGER_EXHAUSTED)
            verdict = decide_attempt(
                key,
                position=position,
                plan_digest=plan_digest,
                request_digest=request_digest,
                model=model,
                expired=expired,
                prior=None if row is None else Prior(row.plan_digest, row.request_digest, row.packet is not None),
                progress=Progress(
                    latest=_latest(session, key.study),
                    evaluated=_asked_about(session, plan_digest, key),
                    steps_left=min(charge.steps_allowed - charge.steps_charged for charge in charges),
                ),
                steps=steps,
            )
            if verdict is Verdict.RESEND:
                assert row is not None
                return row.packet
            session.add(
                ConsumedAttempt(
                    study=key.study,
                    plan_digest=plan_digest,
                    phase=key.phase,
                    round=key.round,
                    attempt=key.attempt,
                    position=position,
                    request_digest=request_digest,
                    model=model,
                    consumed_at=at,
                )
            )
            for charge in charges:
                charge.steps_charged += steps
                session.add(charge)
            if decision is not None:
                session.add(decision)
            session.flush()
            advance(session)
            self._reached("in-charge")
        self._reached("charged")
        return None

    def require_sound(self) -> None:
        """Raises AttemptRefused: LOG_ALARM while an alarm about the log stands, LEDGER_BEHIND where the database
        was put back; the studies' keys are erased then, as their masks may have been used."""
        with transaction(self._engine) as session:
            if not standing(session).behind:
                _refuse_unsound(session)
                return
            session.exec(delete(SecureSumKeys))
            session.exec(delete(KeyStepReply))
        self.erase_traces()
        raise AttemptRefused(RefusalCode.LEDGER_BEHIND)

    def require_tested(self) -> None:
        """Raises AttemptRefused: SELF_TEST_MISSING, SELF_TEST_FAILED, of the engine that runs now."""
        with transaction(self._engine) as session:
            require_passed(session)

    def stored(self, key: AttemptKey, *, plan_digest: str, request_digest: str) -> bytes | None:
        """The answer on disk for this very request, while its plan is granted; None where there is none."""
        with transaction(self._engine) as session:
            grant = session.get(StudyGrant, plan_digest)
            row = session.exec(_attempt(key)).first()
            if row is None or grant is None or grant.state != Answer.GRANTED:
                return None
            return row.packet if (row.plan_digest, row.request_digest) == (plan_digest, request_digest) else None

    def reading(self) -> AbstractContextManager[Session]:
        """A transaction for whoever gathers what a decision about an attempt needs."""
        return transaction(self._engine)

    def snapshot_in_use(self, grant: StudyGrant) -> Snapshot:
        """The snapshot to compute on: the granted one, or that which leaves out who withdrew since. Raises
        AttemptRefused, WITHDRAWALS_UNAPPLIED, while one still holds them, and where too few are left."""
        with transaction(self._engine) as session:
            return _in_use(session, grant)

    def granted(self, plan_digest: str) -> StudyGrant | None:
        """The grant of this plan, while it stands."""
        with transaction(self._engine) as session:
            grant = session.get(StudyGrant, plan_digest)
            return grant if grant is not None and grant.state == Answer.GRANTED else None

    def keep(self, key: AttemptKey, packet: bytes, keys_state: bytes, vector: memoryview | None = None) -> None:
        """Store the answer and the keys' state, together, before it is sent; with the vector that it announces. Raises
        LedgerConflict unless the attempt is consumed and has no answer."""
        with transaction(self._engine) as session:
            row = session.exec(_attempt(key)).first()
            keys = session.get(SecureSumKeys, key.study)
            if row is None or row.packet is not None or keys is None:
                raise LedgerConflict("The attempt is not open for an answer.", "Ask for a new attempt.")
            row.packet = packet
            keys.state = keys_state
            session.add(row)
            session.add(keys)
            _drop_old_packets(session, key)
            session.flush()
            if vector is not None:
                assert row.id is not None
                stored_vectors.write(session, row.id, vector)
            self._reached("in-keep")
        self._reached("kept")

    def vector(self, key: AttemptKey, start: int, stop: int) -> bytes:
        """Bytes start to stop of the vector that an attempt's stored answer announces. Raises VectorMissing."""
        with transaction(self._engine) as session:
            row = session.exec(_attempt(key)).first()
            return stored_vectors.read(session, -1 if row is None or row.id is None else row.id, start, stop)

    def latest_announced(self, study: str) -> bytes | None:
        """The stored answer to the study's latest attempt, where it announces a vector and the plan is granted."""
        newest = select(ConsumedAttempt).where(ConsumedAttempt.study == study).order_by(col(ConsumedAttempt.id).desc())
        with transaction(self._engine) as session:
            row = session.exec(newest.limit(1)).first()
            if row is None or session.get(StudyGrant, row.plan_digest) is None:
                return None
            grant = session.get_one(StudyGrant, row.plan_digest)
            announced = session.exec(select(StoredVector.attempt).where(StoredVector.attempt == row.id)).first()
            return row.packet if announced is not None and grant.state == Answer.GRANTED else None

    def keys(self, study: str, plan_digest: str) -> bytes | None:
        """The state of the study's secure aggregation, if there is one for this plan."""
        with transaction(self._engine) as session:
            row = session.get(SecureSumKeys, study)
            return None if row is None or row.plan_digest != plan_digest else row.state

    def key_reply(self, study: str, step: str) -> tuple[str, bytes] | None:
        """(request digest, answer) of a set-up step that was answered."""
        with transaction(self._engine) as session:
            row = session.get(KeyStepReply, (study, step))
            return None if row is None else (row.request_digest, row.packet)

    def keep_key_step(
        self, study: str, step: str, *, plan_digest: str, request_digest: str, packet: bytes, state: bytes, anew: bool
    ) -> None:
        """Store a set-up step's answer and the keys' new state, together. `anew`: earlier steps are void.

        Raises AttemptRefused KEYS_IN_USE when new keys are asked for after an attempt was consumed under the old,
        PLAN_NOT_GRANTED when the plan is not granted (any more), LEDGER_BEHIND,
        LOG_ALARM.
        """
        with transaction(self._engine) as session:
            grant = session.get(StudyGrant, plan_digest)
            if grant is None or grant.state != Answer.GRANTED:
                raise AttemptRefused(RefusalCode.PLAN_NOT_GRANTED)
            _refuse_unsound(session)
            if anew:
                if session.exec(select(ConsumedAttempt).where(ConsumedAttempt.study == study)).first() is not None:
                    raise AttemptRefused(RefusalCode.KEYS_IN_USE)
                session.exec(delete(KeyStepReply).where(col(KeyStepReply.study) == study))
            session.merge(SecureSumKeys(study=study, plan_digest=plan_digest, state=state))
            session.merge(KeyStepReply(study=study, step=step, request_digest=request_digest, packet=packet))

    def erase_traces(self) -> None:
        """Empty the write-ahead log, so that secrets that were overwritten in the tables are not left in it."""
        with self._engine.connect() as connection:
            # A checkpoint can't run inside a transaction, and this engine begins one for every statement.
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def forget_keys(self, study: str) -> None:
        """The study is over for this site: its pair secrets and set-up answers are erased."""
        with transaction(self._engine) as session:
            drop_keys(session, study)
        self.erase_traces()

    def studies_with_keys(self) -> list[str]:
        """Studies whose pair secrets are on this disk."""
        with transaction(self._engine) as session:
            return list(session.exec(select(SecureSumKeys.study)))

    def record_refusal(
        self,
        *,
        study: str,
        phase: str,
        round_number: int,
        attempt: int,
        code: str,
        at: str,
        decision: RoundDecision | None = None,
    ) -> None:
        """Remember a request that was not answered; the oldest of more than a thousand go. decision: the round gate's,
        where it was what refused; those are kept."""
        with transaction(self._engine) as session:
            if decision is not None:
                session.add(decision)
            record = RefusalRecord(study=study, phase=phase, round=round_number, attempt=attempt, code=code, at=at)
            session.add(record)
            session.flush()
            assert record.id is not None
            session.exec(delete(RefusalRecord).where(col(RefusalRecord.id) <= record.id - KEPT_REFUSALS))

    def last_refusals(self, limit: int = 10) -> list[RefusalRecord]:
        """The newest refusals, newest first."""
        with transaction(self._engine) as session:
            return list(session.exec(select(RefusalRecord).order_by(col(RefusalRecord.id).desc()).limit(limit)))


def _in_use(session: Session, grant: StudyGrant) -> Snapshot:
    row = current(session, grant.snapshot)
    if row is None or holds_withdrawn(session, row.digest):
        raise AttemptRefused(RefusalCode.WITHDRAWALS_UNAPPLIED)
    return row


def _refuse_unsound(session: Session) -> None:
    if standing(session).behind:
        raise AttemptRefused(RefusalCode.LEDGER_BEHIND)
    if standing_alarms(session):
        raise AttemptRefused(RefusalCode.LOG_ALARM)


def evaluated_models(session: Session, plan_digest: str) -> dict[int, frozenset[str]]:
    """Digests of the models that this plan's evaluations were asked about, by their round: one a round."""
    asked = select(ConsumedAttempt.round, ConsumedAttempt.model).where(
        ConsumedAttempt.plan_digest == plan_digest, ConsumedAttempt.phase == "evaluate"
    )
    found: dict[int, frozenset[str]] = {}
    for number, model in session.exec(asked):
        if model is not None:
            found[number] = found.get(number, frozenset()) | {model}
    return found


def _asked_about(session: Session, plan_digest: str, key: AttemptKey) -> str | None:
    """The model that an evaluation's round was asked about before; for another phase, that of the last evaluation."""
    if key.phase == "evaluate":
        return next(iter(evaluated_models(session, plan_digest).get(key.round, ())), None)
    last = (
        select(ConsumedAttempt.model)
        .where(ConsumedAttempt.plan_digest == plan_digest, ConsumedAttempt.phase == "evaluate")
        .order_by(col(ConsumedAttempt.position).desc())
        .limit(1)
    )
    return session.exec(last).first()


def drop_keys(session: Session, study: str) -> None:
    """Delete a study's pair secrets, set-up answers and stored vectors, in the caller's transaction."""
    answered = select(ConsumedAttempt.id).where(ConsumedAttempt.study == study)
    session.exec(delete(StoredVector).where(col(StoredVector.attempt).in_(answered)))
    session.exec(delete(SecureSumKeys).where(col(SecureSumKeys.study) == study))
    session.exec(delete(KeyStepReply).where(col(KeyStepReply.study) == study))


def _attempt(key: AttemptKey) -> SelectOfScalar[ConsumedAttempt]:
    return select(ConsumedAttempt).where(
        ConsumedAttempt.study == key.study,
        ConsumedAttempt.phase == key.phase,
        ConsumedAttempt.round == key.round,
        ConsumedAttempt.attempt == key.attempt,
    )


def _charges(session: Session, plan_digest: str, phase: Phase) -> list[CohortCharge]:
    """The charges that a step of the phase is counted in."""
    charges = session.exec(select(CohortCharge).where(CohortCharge.plan_digest == plan_digest))
    return [charge for charge in charges if phase in charge.phase.split(SHARED)]


def _latest(session: Session, study: str) -> Place | None:
    newest = (
        select(ConsumedAttempt)
        .where(ConsumedAttempt.study == study)
        .order_by(col(ConsumedAttempt.position).desc(), col(ConsumedAttempt.attempt).desc())
        .limit(1)
    )
    row = session.exec(newest).first()
    return None if row is None else Place(row.position, phase_named(row.phase), row.attempt)


def _drop_old_packets(session: Session, key: AttemptKey) -> None:
    """Answers of rounds that are over are never collected again; their rows stay, as consumed."""
    over = or_(ConsumedAttempt.phase != key.phase, ConsumedAttempt.round < key.round)
    gone = select(ConsumedAttempt.id).where(col(ConsumedAttempt.study) == key.study, over)
    session.exec(delete(StoredVector).where(col(StoredVector.attempt).in_(gone)))
    session.exec(update(ConsumedAttempt).where(col(ConsumedAttempt.study) == key.study, over).values(packet=None))
