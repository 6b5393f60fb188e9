"""Patients who withdrew: out of the next snapshot and the next round, for good, and counted by nobody else."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from protocol.delimited import DatasetRefused
from protocol.dictionary import parse_dictionary
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed
from protocol.timestamp import timestamp
from protocol.withdrawal import WITHDRAWAL_NOTICE_TYPE, WithdrawalNotice
from site_agent.cohort.add import keep, prepare
from site_agent.cohort.declaration import Declaration, declare, declared
from site_agent.cohort.leaving_out import apply_withdrawals
from site_agent.cohort.snapshot import (
    count_to_tell,
    counts_told,
    current,
    latest,
    load,
    load_with_patients,
    path_of,
    registration,
)
from site_agent.cohort.tables import Snapshot
from site_agent.cohort.withdrawal import (
    LIST,
    WithdrawalsUnreadable,
    adopt,
    attest,
    attested_through,
    facts,
    hashes_of,
    read_identifiers,
    record,
    waiting_notices,
    withdrawn,
)
from site_agent.consent.plans import SignedPlan
from site_agent.database import open_database, transaction
from site_agent.training.budget_store import ledger
from site_agent.training.generation import standing
from tests.site_agent.federation_of_sites import NOW, Federation, Hospital, refusal_in

Case = tuple[Federation, SignedPlan]
DICTIONARY = parse_dictionary(
    b"""
dictionary: 1
name: ward
file: {patient_id: pid, max_rows_per_patient: 2}
columns:
  - {name: pid, role: patient_id}
  - {name: a, role: feature, type: number, minimum: 0, maximum: 100, center: 50, scale: 20}
  - {name: num, role: label, type: integer, minimum: 0, maximum: 4}
label: {name: sick, operator: ">", value: 0}
"""
)


@pytest.fixture
def site(running: Case) -> Hospital:
    return running[0].hospitals["bergen"]


def table(folder: Path, numbers: range, extra: str = "") -> Path:
    path = folder / "ward.csv"
    path.write_text("pid,a,num\n" + "".join(f"p{n},{n % 90},{n % 2}\n" for n in numbers) + extra)
    return path


def add(site: Hospital, path: Path) -> Snapshot:
    prepared = prepare(site.engine, site.keys.secret, path, DICTIONARY, None)
    return keep(site.engine, site.settings.home, prepared, lambda: NOW)


def leave(site: Hospital, patients: list[bytes], *, apply: bool = True, ground: str = "consent-withdrawn"):  # type: ignore[no-untyped-def]
    said = record(
        site.engine, patients, ground=ground, site=site.name, key=site.keys.identity, now=NOW, entropy=os.urandom
    )
    if apply:
        apply_withdrawals(site.engine, site.settings.home, secret=site.keys.secret, now=NOW)
    return said


def named(site: Hospital, *names: str) -> list[bytes]:
    return hashes_of(site.keys.secret, names)


def training_patients(site: Hospital, count: int) -> list[bytes]:
    arrays, patients = load_with_patients(site.settings.home, site.snapshot)
    return [patient for patient, held in zip(patients, arrays.held_out, strict=True) if not held][:count]


def notices(site: Hospital) -> list[WithdrawalNotice]:
    key = site.keys.identity.public
    with transaction(site.engine) as session:
        rows = waiting_notices(session)
    opened = [open_json(Envelope.from_bytes(row.notice), WITHDRAWAL_NOTICE_TYPE, {key.key_id: key})[0] for row in rows]
    return [WithdrawalNotice.model_validate_json(json.dumps(document)) for document in opened]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# The snapshot


def test_they_are_out_of_the_snapshot_and_their_records_are_off_the_disk(site: Hospital, tmp_path: Path) -> None:
    old = add(site, table(tmp_path, range(60), extra="p7,12,1\np8,99,0\n"))
    before, patients = load_with_patients(site.settings.home, old.digest)
    assert leave(site, named(site, "p7", "p9", "never-seen")).new == 3
    assert not path_of(site.settings.home, old.digest).exists()
    with transaction(site.engine) as session:
        new = current(session, old.digest)
        newest = latest(session, DICTIONARY.schema.digest)
    assert new is not None
    assert newest is not None
    assert new.digest == newest.digest != old.digest
    after, left = load_with_patients(site.settings.home, new.digest)
    gone = set(named(site, "p7", "p9"))
    assert left == tuple(patient for patient in patients if patient not in gone)
    assert len(after.y) == len(before.y) - 3
    # Everybody else is as they were: records, outcome and role.
    for number, patient in enumerate(left):
        there = patients.index(patient)
        assert np.array_equal(after.x[after.patient == number], before.x[before.patient == there])
        assert np.array_equal(after.y[after.patient == number], before.y[before.patient == there])
        assert after.held_out[number] == before.held_out[there]


def test_adding_the_data_set_again_does_not_bring_them_back(site: Hospital, tmp_path: Path) -> None:
    path = table(tmp_path, range(60))
    old = add(site, path)
    leave(site, named(site, "p3"))
    with transaction(site.engine) as session:
        replaced = current(session, old.digest)
    assert replaced is not None
    again = add(site, path)
    assert again.digest == replaced.digest
    other = add(site, table(tmp_path, range(61)))  # another content of the same data set
    _, patients = load_with_patients(site.settings.home, other.digest)
    assert not set(named(site, "p3")) & set(patients)
    prepared = prepare(site.engine, site.keys.secret, path, DICTIONARY, None)
    assert (("pid", "the patient withdrew", 1)) in prepared.quality.dropped


def test_who_withdraws_while_a_file_is_read_is_not_stored(site: Hospital, tmp_path: Path) -> None:
    prepared = prepare(site.engine, site.keys.secret, table(tmp_path, range(60)), DICTIONARY, None)
    leave(site, named(site, "p3"))
    with pytest.raises(DatasetRefused, match="withdrew meanwhile"):
        keep(site.engine, site.settings.home, prepared, lambda: NOW)
    assert not path_of(site.settings.home, prepared.snapshot.digest).exists()


def test_no_identifier_is_kept_and_no_hash_is_sent(site: Hospital, tmp_path: Path) -> None:
    world_patient = training_patients(site, 1)
    leave(site, [*named(site, "PATIENT-4711"), *world_patient])
    assert b"PATIENT-4711" not in everything_in(site.settings.home.path)
    with transaction(site.engine) as session:
        for row in waiting_notices(session):
            assert world_patient[0].hex().encode() not in row.notice
            assert world_patient[0] not in row.notice


# What is told


@pytest.mark.parametrize(
    ("before", "left", "told"),
    [(60, 60, 60), (60, 59, 60), (60, 50, 60), (60, 49, 49), (20, 11, 20), (20, 10, 10), (60, 70, 70), (11, 0, 0)],
)
def test_a_count_stays_as_told_until_more_than_the_cell_have_gone(before: int, left: int, told: int) -> None:
    assert count_to_tell(before, left) == told


def test_one_who_withdraws_changes_no_count_that_leaves_also_by_adding_again(site: Hospital, tmp_path: Path) -> None:
    first = add(site, table(tmp_path, range(60)))
    told = registration(first)
    leave(site, named(site, "p1"))
    again = add(site, table(tmp_path, range(60)))
    later = add(site, table(tmp_path, range(1, 60), extra="p1,4,1\np2,8,0\n"))
    for row in (again, later):
        assert row.patients < 60
        assert {**registration(row), "snapshot": ""} == {**told, "snapshot": ""}
    leave(site, named(site, *(f"p{number}" for number in range(20, 45))))
    with transaction(site.engine) as session:
        many = latest(session, DICTIONARY.schema.digest)
    assert many is not None
    assert counts_told(many)[0] < 60


def test_a_plan_made_before_still_holds_for_the_snapshot_in_its_place(running: Case) -> None:
    world, _ = running
    site = world.hospitals["bergen"]
    leave(site, training_patients(site, 2))
    fresh = world.sign(world.plan(created_at=timestamp(NOW + timedelta(minutes=1))))
    review = site.review(fresh)
    assert review.objections == ()
    assert review.decision.allowed


# Rounds


def test_what_was_declared_of_the_data_holds_for_the_snapshot_in_its_place(site: Hospital) -> None:
    said = Declaration.model_validate(
        {"deid_claim": "none", "recode": {"derived": False, "mapping": "site"}, "part2": False}
    )
    with transaction(site.engine) as session:
        declare(session, site.snapshot, said, None, now=NOW)
    leave(site, training_patients(site, 1))
    with transaction(site.engine) as session:
        in_its_place = current(session, site.snapshot)
        assert in_its_place is not None
        assert in_its_place.digest != site.snapshot
        assert declared(session, in_its_place.digest) == (said, said.facts(None))


def test_the_next_round_leaves_them_out_and_the_ledger_goes_on(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    participant = site.participant()
    participant.answer("train.contribute", world.round_request(signed, 1))
    said = leave(site, training_patients(site, 3), ground="objection")
    assert said.studies == ("hearts-one",)
    participant.answer("train.contribute", world.round_request(signed, 2))
    opened = site.worker.state._digest  # type: ignore[attr-defined]
    with transaction(site.engine) as session:
        now = current(session, site.snapshot)
        lines = ledger(session)
    assert now is not None
    assert opened == now.digest != site.snapshot
    assert now.patients == 77
    assert {line.steps_charged for line in lines if not line.held_out} == {2}
    (notice,) = notices(site)
    assert (notice.site, notice.study, notice.grounds) == ("bergen", "hearts-one", ("objection",))
    assert notice.plan_digest == signed.digest
    assert set(notice.model_dump()) == {"review", "site", "study", "plan_digest", "grounds", "made_at"}  # no count


def test_a_study_that_charged_none_of_them_is_not_named(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    before = training_patients(site, 2)
    assert leave(site, before[:1]).studies == ()
    site.participant().answer("train.contribute", world.round_request(signed, 1))
    assert leave(site, before[:1]).studies == ()  # they left before its first step, and are not new
    assert leave(site, before[1:]).studies == ("hearts-one",)


def test_a_round_in_between_is_refused_at_no_charge_and_an_agent_ends_what_was_begun(running: Case) -> None:
    """Killed after the withdrawal was on disk and before the snapshot was made anew."""
    world, signed = running
    site = world.hospitals["bergen"]
    leave(site, training_patients(site, 1), apply=False)
    request = world.round_request(signed, 1)
    assert refusal_in(site.participant().answer("train.contribute", request), site) == "policy-denied"
    with transaction(site.engine) as session:
        assert facts(session) == {}
        assert all(line.steps_charged == 0 for line in ledger(session))
    grant = site.store.granted(signed.digest)
    assert grant is not None
    with pytest.raises(Exception, match="withdrawals-unapplied"):  # whatever the hospital's law
        site.store.snapshot_in_use(grant)
    assert apply_withdrawals(site.engine, site.settings.home, secret=site.keys.secret, now=NOW) == 1
    assert apply_withdrawals(site.engine, site.settings.home, secret=site.keys.secret, now=NOW) == 0
    site.participant().answer("train.contribute", request)
    assert site.worker.computed == 1  # type: ignore[attr-defined]


def test_where_too_few_are_left_the_site_takes_no_part_and_its_file_is_gone(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    leave(site, training_patients(site, 50))
    answer = site.participant().answer("train.contribute", world.round_request(signed, 1))
    assert refusal_in(answer, site) in {"policy-denied", "withdrawals-unapplied"}
    assert site.worker.computed == 0  # type: ignore[attr-defined]
    assert not path_of(site.settings.home, site.snapshot).exists()
    with transaction(site.engine) as session:
        assert current(session, site.snapshot) is None


def test_a_list_that_ends_too_long_ago_shuts_the_round_gate(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    site.now = NOW + timedelta(days=30, seconds=1)
    answer = site.participant().answer("train.contribute", world.round_request(signed, 1))
    assert refusal_in(answer, site) == "policy-denied"
    with transaction(site.engine) as session:
        attest(session, timestamp(NOW + timedelta(days=1)), now=site.now)
    answer = site.participant().answer("train.contribute", world.round_request(signed, 1))
    assert refusal_in(answer, site) == "expired"  # the gate let it through; the request is a month old


# For good


def test_a_database_put_back_takes_them_from_the_file(site: Hospital, tmp_path: Path) -> None:
    path = table(tmp_path, range(60))
    add(site, path)
    site.engine.dispose()
    shutil.copytree(site.settings.home.path, tmp_path / "backup")
    leave(site, named(site, "p5"))
    site.engine.dispose()
    for old in ("site.db", "site.db-wal", "site.db-shm"):
        (site.settings.home.path / old).unlink(missing_ok=True)
        if (tmp_path / "backup" / old).exists():
            shutil.copy(tmp_path / "backup" / old, site.settings.home.path / old)
    shutil.copytree(tmp_path / "backup" / "snapshots", site.settings.home.snapshots, dirs_exist_ok=True)
    engine = open_database(site.settings.home)
    with transaction(engine) as session:
        assert standing(session).behind  # and the ledger says that it was put back
    assert apply_withdrawals(engine, site.settings.home, secret=site.keys.secret, now=NOW) == 1
    with transaction(engine) as session:
        newest = latest(session, DICTIONARY.schema.digest)
        assert withdrawn(session) == set(named(site, "p5"))
    assert newest is not None
    assert newest.patients == 59
    assert len(load(site.settings.home, newest.digest).held_out) == 59
    engine.dispose()


@pytest.mark.parametrize(
    "content", [b"{", b'{"patient": "zz"}\n', b'{"patient": "00", "ground": "erasure"}\n', b"[]\n"]
)
def test_a_damaged_list_lets_nothing_be_added_or_applied(site: Hospital, tmp_path: Path, content: bytes) -> None:
    leave(site, named(site, "p5"))
    (site.settings.home.path / LIST).write_bytes(content)
    with pytest.raises(WithdrawalsUnreadable):
        add(site, table(tmp_path, range(60)))
    with pytest.raises(WithdrawalsUnreadable):
        apply_withdrawals(site.engine, site.settings.home, secret=site.keys.secret, now=NOW)
    with transaction(site.engine) as session, pytest.raises(WithdrawalsUnreadable):
        adopt(session)


def test_the_list_is_its_owners_alone(site: Hospital) -> None:
    leave(site, named(site, "p5"))
    assert (site.settings.home.path / LIST).stat().st_mode & 0o777 == 0o600


# What hospital IT types


def test_it_is_said_up_to_when_and_only_forward(site: Hospital) -> None:
    with transaction(site.engine) as session:
        assert attested_through(session) == timestamp(NOW)
        for wrong in (NOW + timedelta(days=1), NOW - timedelta(days=1)):
            with pytest.raises(Malformed):
                attest(session, timestamp(wrong), now=NOW)
        assert attested_through(session) == timestamp(NOW)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "names nobody"),
        (b"\n \n", "names nobody"),
        (b"p1\np\xff2\n", "line 2: not UTF-8"),
        (b"p1\n" + b"x" * 2000, "line 2: too long"),
        (b"p\x001", "line 1: too long"),
    ],
)
def test_a_wrong_list_is_refused_by_line_and_repeats_nothing(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "withdrawn.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetRefused, match=why) as refused:
        read_identifiers(path)
    assert "p1" not in refused.value.message


def test_identifiers_are_read_as_the_data_sets_have_them(site: Hospital, tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.txt"
    path.write_bytes(b"\xef\xbb\xbfp1 \r\n\n  p2\np1\n")
    assert read_identifiers(path) == ["p1", "p2"]
    added = add(site, table(tmp_path, range(60)))
    leave(site, hashes_of(site.keys.secret, read_identifiers(path)))
    with transaction(site.engine) as session:
        left = current(session, added.digest)
        assert left is not None
        assert left.patients == 58
        assert len(session.exec(select(Snapshot)).all()) == 3


def test_a_ground_that_does_not_exist_is_refused_and_nothing_kept(site: Hospital) -> None:
    with pytest.raises(Malformed, match="no ground"):
        leave(site, named(site, "p1"), ground="dislike")
    with transaction(site.engine) as session:
        assert withdrawn(session) == frozenset()
