"""The ledger never under-counts: whatever order, whatever crash, whatever the coordinator asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from privacy.errors import BudgetExceeded
from site_agent.cohort.tables import Snapshot, SnapshotPatient
from site_agent.consent.tables import StudyGrant
from site_agent.database import create_database, transaction
from site_agent.training.budget_store import (
    BudgetStore,
    LedgerConflict,
    evaluated_models,
    ledger,
    release_unused,
    reserve,
    spent,
)
from site_agent.training.states import AttemptKey, AttemptRefused, Budget, Charge
from site_agent.training.tables import CohortCharge, ConsumedAttempt, SecureSumKeys
from tests.tested_engine import mark_tested

AT = "2026-03-01T12:00:00Z"
CAP = Budget(8.0, 1e-3)
MODEL = "sha256:" + "5" * 64


def digest(name: str) -> str:
    return "sha256:" + name.encode().hex().ljust(64, "0")[:64]


def add_snapshot(engine: Engine, name: str, training: range, held_out: range = range(0)) -> str:
    with transaction(engine) as session:
        session.add(
            Snapshot(
                digest=digest(name),
                name="hearts",
                schema_text="{}",
                schema_digest=digest("schema"),
                records=len(training) + len(held_out),
                dropped=0,
                patients=len(training) + len(held_out),
                held_out=len(held_out),
                created_at=AT,
            )
        )
        session.flush()
        for group, apart in ((training, False), (held_out, True)):
            for number in group:
                session.add(
                    SnapshotPatient(snapshot=digest(name), patient_hash=number.to_bytes(32, "big"), held_out=apart)
                )
    return digest(name)


def grant(engine: Engine, study: str, snapshot: str, charges: tuple[Charge, ...], cap: Budget = CAP) -> str:
    plan_digest = digest(f"plan-{study}")
    with transaction(engine) as session:
        reserve(session, study=study, plan_digest=plan_digest, snapshot=snapshot, charges=charges, cap=cap, at=AT)
        session.add(
            StudyGrant(
                plan_digest=plan_digest,
                study=study,
                spec_digest=digest("spec"),
                snapshot=snapshot,
                state="granted",
                plan=b"plan",
                consent=b"consent",
                decision="{}",
                evidence="{}",
                decided_at=AT,
            )
        )
        session.add(SecureSumKeys(study=study, plan_digest=plan_digest, state=b"keys-0"))
    return plan_digest


def train(epsilon: float = 1.0, steps: int = 3) -> Charge:
    return Charge("train", held_out=False, epsilon=epsilon, delta=1e-4, steps=steps)


def consume(store: BudgetStore, plan: str, round_number: int = 1, attempt: int = 1, **other: object) -> bytes | None:
    arguments: dict[str, object] = {"request_digest": digest("request"), "model": MODEL, "expired": False, "at": AT}
    arguments |= other
    phase = arguments.pop("phase", "train")
    key = AttemptKey("study-a", phase, round_number, attempt)  # type: ignore[arg-type]
    position = round_number if phase == "train" else 100 + round_number
    standing = store.granted(plan)
    arguments.setdefault("snapshot", standing.snapshot if standing else "")
    return store.consume(key, position=position, plan_digest=plan, **arguments)  # type: ignore[arg-type]


def charged(engine: Engine, *, held_out: bool = False) -> int:
    with transaction(engine) as session:
        rows = session.exec(select(CohortCharge).where(CohortCharge.held_out == held_out))
        return sum(row.steps_charged for row in rows)


def code_of(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(AttemptRefused) as refused:
        call(*arguments, **named)  # type: ignore[operator]
    return refused.value.code.value


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = create_database(tmp_path / "site.db")
    mark_tested(made)
    return made


@pytest.fixture
def plan(engine: Engine) -> str:
    snapshot = add_snapshot(engine, "first", range(100), range(100, 130))
    held_out = Charge("evaluate", held_out=True, epsilon=1.0, delta=1e-4, steps=2)
    return grant(engine, "study-a", snapshot, (train(), held_out))


def test_an_attempt_is_charged_once_and_resent_from_disk(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    assert consume(store, plan) is None
    assert charged(engine) == 1
    store.keep(AttemptKey("study-a", "train", 1, 1), b"masked", b"keys-1")
    assert consume(store, plan) == b"masked"
    assert consume(store, plan, expired=True) == b"masked"
    assert charged(engine) == 1
    assert store.keys("study-a", plan) == b"keys-1"


def test_another_request_for_a_consumed_attempt_is_refused(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan)
    store.keep(AttemptKey("study-a", "train", 1, 1), b"masked", b"keys-1")
    assert code_of(consume, store, plan, request_digest=digest("other")) == "already-consumed"
    assert charged(engine) == 1


def test_an_attempt_without_stored_bytes_is_never_computed_again(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan)
    assert code_of(consume, store, plan) == "consumed"
    assert charged(engine) == 1


def test_rounds_only_go_forward(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan, 2, 2)
    assert code_of(consume, store, plan, 1, 9) == "round-over"
    assert code_of(consume, store, plan, 2, 1) == "round-over"
    assert charged(engine) == 1
    assert consume(store, plan, 2, 3) is None


def test_an_expired_request_consumes_nothing(engine: Engine, plan: str) -> None:
    assert code_of(consume, BudgetStore(engine), plan, expired=True) == "expired"
    assert charged(engine) == 0


def test_no_more_steps_than_were_paid_for(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    for attempt in (1, 2, 3):
        consume(store, plan, 1, attempt)
    assert code_of(consume, store, plan, 2, 1) == "ledger-exhausted"
    assert charged(engine) == 3


def test_evaluation_is_charged_to_the_held_out_and_ends_training(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan)
    consume(store, plan, phase="evaluate")
    assert (charged(engine), charged(engine, held_out=True)) == (1, 1)
    assert code_of(consume, store, plan, 2, 1) == "phase-over"
    consume(store, plan, 1, 2, phase="evaluate")
    assert code_of(consume, store, plan, 1, 3, phase="evaluate") == "ledger-exhausted"


def test_a_study_evaluates_one_model(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan, model=digest("a model of a round"))
    consume(store, plan, phase="evaluate")
    assert code_of(consume, store, plan, 1, 2, phase="evaluate", model=digest("another")) == "model-changed"
    assert charged(engine, held_out=True) == 1
    consume(store, plan, 1, 2, phase="evaluate")
    with transaction(engine) as session:
        assert evaluated_models(session, plan) == {1: frozenset({MODEL})}
        assert evaluated_models(session, digest("another plan")) == {}


def test_a_plan_that_was_not_granted_or_was_withdrawn_is_refused(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    assert code_of(consume, store, digest("another plan")) == "plan-not-granted"
    with transaction(engine) as session:
        row = session.get(StudyGrant, plan)
        assert row is not None
        row.state = "withdrawn"
        session.add(row)
    assert code_of(consume, store, plan) == "plan-not-granted"
    assert charged(engine) == 0


def test_an_answer_is_kept_once(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    key = AttemptKey("study-a", "train", 1, 1)
    with pytest.raises(LedgerConflict):
        store.keep(key, b"masked", b"keys")
    consume(store, plan)
    store.keep(key, b"masked", b"keys-1")
    with pytest.raises(LedgerConflict):
        store.keep(key, b"masked again", b"keys-2")
    assert consume(store, plan) == b"masked"


def test_answers_of_rounds_that_are_over_are_dropped(engine: Engine, plan: str) -> None:
    store = BudgetStore(engine)
    consume(store, plan)
    store.keep(AttemptKey("study-a", "train", 1, 1), b"first", b"keys-1")
    consume(store, plan, 2, 1)
    store.keep(AttemptKey("study-a", "train", 2, 1), b"second", b"keys-2")
    with transaction(engine) as session:
        assert {row.round: row.packet for row in session.exec(select(ConsumedAttempt))} == {1: None, 2: b"second"}
    assert code_of(consume, store, plan) == "consumed"


def test_admission_is_by_sums_and_names_what_remains(engine: Engine) -> None:
    snapshot = add_snapshot(engine, "first", range(50))
    grant(engine, "study-a", snapshot, (train(5.0),))
    with pytest.raises(BudgetExceeded) as refused:
        grant(engine, "study-b", snapshot, (train(3.5),))
    assert "epsilon 8.5 of 8" in refused.value.message
    assert "at most epsilon 3," in refused.value.remedy
    grant(engine, "study-c", snapshot, (train(3.0),))
    with transaction(engine) as session:
        assert spent(session, snapshot, held_out=False).epsilon == pytest.approx(8.0)
        assert [line.study for line in ledger(session)] == ["study-a", "study-c"]


def test_delta_has_its_own_sum(engine: Engine) -> None:
    snapshot = add_snapshot(engine, "first", range(50))
    with pytest.raises(BudgetExceeded):
        grant(engine, "study-a", snapshot, (train(0.1),), cap=Budget(8.0, 5e-5))


def test_charges_follow_a_patient_into_another_snapshot(engine: Engine) -> None:
    first = add_snapshot(engine, "first", range(50))
    grant(engine, "study-a", first, (train(3.0),))
    shares_one = add_snapshot(engine, "second", range(49, 90))
    shares_none = add_snapshot(engine, "third", range(200, 250))
    with transaction(engine) as session:
        assert spent(session, shares_one, held_out=False).epsilon == pytest.approx(3.0)
        assert spent(session, shares_none, held_out=False).epsilon == 0.0
    grant(engine, "study-b", shares_one, (train(4.0),))
    both = add_snapshot(engine, "fourth", range(0, 250))
    with transaction(engine) as session:
        # Patient 49 took part in both studies; the others in one or none.
        assert spent(session, both, held_out=False).epsilon == pytest.approx(7.0)
    with pytest.raises(BudgetExceeded):
        grant(engine, "study-c", both, (train(1.5),))


def test_held_out_patients_have_their_own_sum(engine: Engine) -> None:
    snapshot = add_snapshot(engine, "first", range(50), range(50, 60))
    held_out = Charge("evaluate", held_out=True, epsilon=1.0, delta=1e-5, steps=1)
    grant(engine, "study-a", snapshot, (train(3.0), held_out))
    with transaction(engine) as session:
        assert spent(session, snapshot, held_out=True) == Budget(1.0, 1e-5)
        assert spent(session, snapshot, held_out=False).epsilon == pytest.approx(3.0)


def test_only_what_was_never_begun_is_given_back(engine: Engine) -> None:
    snapshot = add_snapshot(engine, "first", range(50), range(50, 60))
    charges = (train(3.0), Charge("evaluate", held_out=True, epsilon=1.0, delta=1e-5, steps=1))
    plan = grant(engine, "study-a", snapshot, charges)
    consume(BudgetStore(engine), plan)
    with transaction(engine) as session:
        release_unused(session, plan)
    with transaction(engine) as session:
        assert spent(session, snapshot, held_out=False).epsilon == pytest.approx(3.0)
        assert spent(session, snapshot, held_out=True).epsilon == 0.0
    assert code_of(consume, BudgetStore(engine), plan, phase="evaluate") == "ledger-exhausted"


def test_overwritten_secrets_are_not_left_in_the_files(engine: Engine, plan: str, tmp_path: Path) -> None:
    store = BudgetStore(engine)
    old = b"an old pair secret that must go" * 4
    consume(store, plan)
    store.keep(AttemptKey("study-a", "train", 1, 1), b"masked", old)
    consume(store, plan, 2, 1)
    store.keep(AttemptKey("study-a", "train", 2, 1), b"masked", b"new secrets")
    store.erase_traces()
    files = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert b"new secrets" in files
    assert old[:31] not in files


def test_refusals_are_kept_up_to_a_bound(engine: Engine) -> None:
    store = BudgetStore(engine)
    for number in range(3):
        store.record_refusal(study="study-a", phase="train", round_number=number, attempt=1, code="expired", at=AT)
    assert [record.round for record in store.last_refusals(2)] == [2, 1]


CRASHING = """
import os, sys
from pathlib import Path
from site_agent.database import connect
from site_agent.training.budget_store import BudgetStore
from site_agent.training.states import AttemptKey
database, plan, request, point = sys.argv[1:]
def reached(name):
    if name == point:
        os._exit(9)
store = BudgetStore(connect(Path(database)), reached=reached)
key = AttemptKey("study-a", "train", 1, 1)
told = {"plan_digest": plan, "request_digest": request, "model": "m", "expired": False, "at": "2026"}
told["snapshot"] = store.granted(plan).snapshot
assert store.consume(key, position=1, **told) is None
reached("computed")
store.keep(key, b"masked " + os.urandom(16), b"keys-1")
reached("sent")
os._exit(0)
"""


@pytest.mark.parametrize(
    ("point", "steps", "then"),
    [
        ("before-charge", 0, "computed"),
        ("in-charge", 0, "computed"),
        ("charged", 1, "consumed"),
        ("computed", 1, "consumed"),
        ("in-keep", 1, "consumed"),
        ("kept", 1, "resent"),
        ("sent", 1, "resent"),
    ],
)
def test_a_killed_process_never_under_counts(
    engine: Engine, plan: str, tmp_path: Path, point: str, steps: int, then: str
) -> None:
    engine.dispose()
    arguments = [str(tmp_path / "site.db"), plan, digest("request"), point]
    ended = subprocess.run([sys.executable, "-c", CRASHING, *arguments], check=False, timeout=60)
    assert ended.returncode == 9
    store = BudgetStore(engine)
    assert charged(engine) == steps
    with transaction(engine) as session:
        consumed = session.exec(select(ConsumedAttempt)).all()
        assert len(consumed) == steps  # a step for each attempt that may have been computed
        on_disk = [row.packet for row in consumed]
    if then == "computed":
        assert consume(store, plan) is None
        assert charged(engine) == 1
    elif then == "consumed":
        assert on_disk == [None]
        assert code_of(consume, store, plan) == "consumed"
        assert consume(store, plan, 1, 2) is None
    else:
        assert consume(store, plan) == on_disk[0]
        assert consume(store, plan) == on_disk[0]
        assert charged(engine) == 1
