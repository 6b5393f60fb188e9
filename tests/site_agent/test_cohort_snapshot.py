"""Snapshots: content hashes, the held-out quarter, storage that is whole or absent, registration."""

from __future__ import annotations

import json
import stat
from array import array
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.delimited import DatasetRefused
from protocol.dictionary import parse_dictionary
from protocol.table import Table
from site_agent.clock import system_clock
from site_agent.cohort import snapshot as room
from site_agent.cohort.add import Prepared, keep, prepare
from site_agent.cohort.assignment import hash_patient, hold_out
from site_agent.cohort.quality import at_least_cell
from site_agent.cohort.registration import NotRegistered, register, register_pending
from site_agent.cohort.snapshot import Draft, SnapshotUnusable, draft, known_roles, latest, load, path_of, registration
from site_agent.cohort.tables import Snapshot, SnapshotPatient
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import create_database, transaction
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteHome, SiteSettings
from tests.site_agent.made_up_coordinator import made_up_coordinator, problem

NOW = datetime(2026, 5, 4, tzinfo=UTC)
SCHEMA = DatasetSchema(
    name="test-set",
    features=(Feature(name="a", kind="number", minimum=0, maximum=100, center=50, scale=20),),
    label=LabelRule(name="sick", column="num", operator=">", value=0),
)


@pytest.fixture
def site(tmp_path: Path):
    home = SiteHome(tmp_path / "site")
    home.keys.mkdir(parents=True, mode=0o700)
    keys = SiteKeys.generate(home.keys)
    engine = create_database(home.database)
    yield home, keys, engine
    engine.dispose()


def table(patients: list[bytes], value: float = 0.5) -> Table:
    return Table(
        width=1,
        x=array("d", [value] * len(patients)),
        y=array("b", [index % 2 for index in range(len(patients))]),
        patients=patients,
        rows_read=len(patients),
    )


def people(secret: bytes, count: int, first: int = 0) -> list[bytes]:
    return [hash_patient(secret, f"id\0{number}") for number in range(first, first + count)]


def made(secret: bytes, count: int, *, value: float = 0.5, known: dict[bytes, bool] | None = None) -> Draft:
    return draft("test-set", SCHEMA, table(people(secret, count), value), secret, known or {})


def put(home: SiteHome, engine, snapshot: Draft) -> Snapshot:
    with transaction(engine) as session:
        return room.store(session, home, snapshot, now=NOW)


def test_what_is_stored_is_what_is_loaded(site):
    home, keys, engine = site
    rows = [*people(keys.secret, 50), *people(keys.secret, 20)]
    snapshot = draft("test-set", SCHEMA, table(rows), keys.secret, {})
    put(home, engine, snapshot)
    arrays = load(home, snapshot.digest)
    assert arrays.x.shape == (70, 1)
    assert arrays.x.dtype == arrays.y.dtype == np.float64
    assert arrays.patient.tolist() == [*range(50), *range(20)]
    assert arrays.held_out.shape == (50,)
    assert arrays.schema_digest == SCHEMA.digest
    with transaction(engine) as session:
        found = latest(session, SCHEMA.digest)
        assert latest(session, "sha256:" + "0" * 64) is None
    assert found is not None
    assert (found.digest, found.patients, found.held_out, found.records) == (snapshot.digest, 50, 13, 70)
    assert DatasetSchema.model_validate_json(found.schema_text) == SCHEMA


def test_the_same_content_again_changes_nothing(site):
    home, keys, engine = site
    first = put(home, engine, made(keys.secret, 60))
    with transaction(engine) as session:
        again = made(keys.secret, 60, known=known_roles(session))
    assert again.digest == first.digest
    put(home, engine, again)
    with transaction(engine) as session:
        assert len(session.connection().exec_driver_sql("SELECT 1 FROM snapshot").all()) == 1
    assert len(list(home.snapshots.iterdir())) == 1


def test_the_same_content_has_one_name(site):
    home, keys, engine = site
    put(home, engine, made(keys.secret, 60))
    other = Draft(**{**made(keys.secret, 60).__dict__, "name": "another-name"})
    with pytest.raises(DatasetRefused, match="registered as test-set"):
        put(home, engine, other)


def test_the_digest_is_keyed_and_follows_every_part_of_the_content(site):
    _, keys, _ = site
    base = made(keys.secret, 60)
    assert base.digest == made(keys.secret, 60).digest
    assert base.digest != made(keys.secret, 60, value=0.25).digest
    assert base.digest != made(keys.secret, 61).digest
    assert base.digest != made(b"another site's secret, 32 bytes.", 60).digest
    renamed = SCHEMA.model_copy(update={"name": "other-set"})
    assert base.digest != draft("test-set", renamed, table(people(keys.secret, 60)), keys.secret, {}).digest


def test_no_identifier_is_stored_in_the_clear(site, tmp_path):
    home, keys, engine = site
    snapshot = draft(
        "test-set", SCHEMA, table([hash_patient(keys.secret, f"id\0Smith{n}") for n in range(60)]), keys.secret, {}
    )
    put(home, engine, snapshot)
    engine.dispose()
    stored = b"".join(path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    assert b"Smith" not in stored


@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_count_of_ten_or_fewer_may_not_leave(site, count):
    _, keys, _ = site
    with pytest.raises(DatasetRefused, match="at most 10 patients") as caught:
        made(keys.secret, count)
    assert caught.value.remedy


def test_a_small_site_holds_nobody_out_and_says_only_its_size(site):
    home, keys, engine = site
    assert made(keys.secret, 40).held_out == 0
    row = put(home, engine, made(keys.secret, 40))
    assert registration(row) == {
        "schema_digest": SCHEMA.digest,
        "snapshot": row.digest,
        "patients": 40,
        "held_out": 0,
    }
    assert made(keys.secret, 41).held_out == 11


def test_a_held_out_group_that_shrank_below_the_cell_leaves_as_zero(site):
    _, keys, _ = site
    known = {patient: index < 5 for index, patient in enumerate(people(keys.secret, 30))}
    snapshot = made(keys.secret, 30, known=known)
    assert snapshot.held_out == 5
    row = Snapshot(
        digest="x",
        name="x",
        schema_text="",
        schema_digest="x",
        records=30,
        dropped=0,
        patients=30,
        held_out=5,
        created_at="",
    )
    assert registration(row)["held_out"] == 0


SECRETS = st.binary(min_size=32, max_size=32)


@given(SECRETS, st.integers(11, 300), st.integers(0, 300))
@settings(deadline=None, max_examples=60)
def test_no_patient_ever_changes_sides(secret, first, more):
    before = hold_out(secret, people(secret, first), {})
    after = hold_out(secret, people(secret, first + more), before)
    assert all(after[patient] == side for patient, side in before.items())
    shrunk = hold_out(secret, people(secret, first // 2), after)
    assert all(after[patient] == side for patient, side in shrunk.items())


@given(SECRETS, st.integers(41, 400))
@settings(deadline=None, max_examples=40)
def test_exactly_a_quarter_is_held_out(secret, count):
    assert sum(hold_out(secret, people(secret, count), {}).values()) == -(-count // 4)


@given(SECRETS, st.permutations(range(60)))
@settings(deadline=None, max_examples=40)
def test_the_order_of_patients_plays_no_part(secret, order):
    patients = people(secret, 60)
    assert hold_out(secret, [patients[index] for index in order], {}) == hold_out(secret, patients, {})


def test_who_is_held_out_depends_on_the_secret():
    one, two = b"1" * 32, b"2" * 32
    chosen = [
        {number for number, patient in enumerate(people(s, 200)) if hold_out(s, people(s, 200), {})[patient]}
        for s in (one, two)
    ]
    assert chosen[0] != chosen[1]


def test_roles_that_changed_meanwhile_are_refused_and_leave_nothing(site):
    home, keys, engine = site
    stale = made(keys.secret, 60)
    flipped = {
        patient: not held for patient, held in zip(stale.patient_hashes, stale.arrays.held_out.tolist(), strict=True)
    }
    put(home, engine, made(keys.secret, 60, value=0.1, known=flipped))
    prepared = Prepared(stale, None)  # type: ignore[arg-type]  # `keep` does not look at it
    with pytest.raises(DatasetRefused, match="meanwhile"):
        keep(engine, home, prepared, system_clock)
    assert not path_of(home, stale.digest).exists()
    with transaction(engine) as session:
        sides: dict[bytes, set[bool]] = {}
        for row in session.exec(select(SnapshotPatient)).all():
            sides.setdefault(row.patient_hash, set()).add(row.held_out)
    assert all(len(side) == 1 for side in sides.values())


def test_a_failed_transaction_removes_the_file(site):
    home, keys, engine = site
    snapshot = made(keys.secret, 60)
    refuse = "CREATE TRIGGER t BEFORE INSERT ON snapshot_patient BEGIN SELECT RAISE(FAIL, 'no'); END"
    with transaction(engine) as session:
        session.connection().exec_driver_sql(refuse)
    with pytest.raises(IntegrityError):
        keep(engine, home, Prepared(snapshot, None), system_clock)  # type: ignore[arg-type]
    assert list(home.snapshots.iterdir()) == []
    with transaction(engine) as session:
        assert latest(session, SCHEMA.digest) is None


def test_the_file_is_the_owners_alone(site):
    home, keys, engine = site
    row = put(home, engine, made(keys.secret, 60))
    assert stat.S_IMODE(path_of(home, row.digest).stat().st_mode) == 0o600


def test_a_damaged_or_exchanged_file_is_not_loaded(site):
    home, keys, engine = site
    one, two = put(home, engine, made(keys.secret, 60)), put(home, engine, made(keys.secret, 60, value=0.25, known={}))
    path = path_of(home, one.digest)
    good = path.read_bytes()
    path.write_bytes(good[:-100])
    with pytest.raises(SnapshotUnusable, match="damaged"):
        load(home, one.digest)
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(SnapshotUnusable, match="damaged"):
        load(home, one.digest)
    path.write_bytes(path_of(home, two.digest).read_bytes())
    with pytest.raises(SnapshotUnusable, match="other content"):
        load(home, one.digest)
    path.unlink()
    with pytest.raises(SnapshotUnusable, match="not on this site's disk"):
        load(home, one.digest)


def test_a_pickle_in_the_archive_is_not_opened(site, tmp_path):
    home, keys, engine = site
    row = put(home, engine, made(keys.secret, 60))
    hostile = np.array([{"a": 1}], dtype=object)
    np.savez(path_of(home, row.digest), x=hostile, y=hostile, patient=hostile, held_out=hostile, allow_pickle=True)
    with pytest.raises(SnapshotUnusable):
        load(home, row.digest)


DICTIONARY = parse_dictionary(
    b"""
dictionary: 1
name: test-set
file: {patient_id: pid}
columns:
  - {name: pid, role: patient_id}
  - {name: a, role: feature, type: number, minimum: 0, maximum: 100, center: 50, scale: 20, impute: 50, on_bad: drop}
  - {name: num, role: label, type: integer, minimum: 0, maximum: 4}
label: {name: sick, operator: ">", value: 0}
"""
)


@pytest.fixture
def coordinated(tmp_path: Path, site):
    """A site that is enrolled at a made-up coordinator, as far as these tests need it."""
    home, keys, _ = site
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        from site_agent.certificates import request_certificate

        keys.certificate_path.write_bytes(
            coordinator.certify(request_certificate("clinic-a", keys.identity), "clinic-a")
        )
        keys.ca_path.write_bytes(coordinator.ca_pem)
        pinned = SiteSettings(home, "clinic-a", coordinator.address, "x", "y", 1.0)
        with CoordinatorClient(pinned, keys) as client:
            yield coordinator, client


def csv_of(folder: Path, count: int, first: int = 0) -> Path:
    rows = "".join(f"p{number},{number % 90},{number % 2}\n" for number in range(first, first + count))
    path = folder / "table.csv"
    path.write_text("pid,a,num\n" + rows + "bad,999,0\n" + "gap,,1\n")
    return path


@pytest.mark.processes
def test_nothing_but_digests_and_counts_leaves(site, coordinated, tmp_path):
    home, keys, engine = site
    coordinator, client = coordinated
    prepared = prepare(engine, keys.secret, csv_of(tmp_path, 80), DICTIONARY, None)
    assert dict(enumerate(prepared.quality.dropped)) == {0: ("a", "outside the allowed range", 1)}
    assert prepared.quality.imputed == {"a": "1-10"}
    kept = keep(engine, home, prepared, system_clock)
    register(engine, client, system_clock, kept.digest)
    ((method, path, body),) = coordinator.requests
    assert (method, path) == ("PUT", "/v1/sites/me/datasets/test-set")
    assert json.loads(body) == {
        "schema_digest": DICTIONARY.schema.digest,
        "snapshot": kept.digest,
        "patients": 81,
        "held_out": 21,
    }
    with transaction(engine) as session:
        found = latest(session, DICTIONARY.schema.digest)
    assert found is not None
    assert found.registered_at is not None
    assert register_pending(engine, client, system_clock) == ()


@pytest.mark.processes
def test_an_unregistered_snapshot_is_told_kept_and_registered_later(site, coordinated, tmp_path):
    home, keys, engine = site
    coordinator, client = coordinated
    busy = problem(503, "unavailable", "The coordinator is busy.", "Wait a minute.")
    coordinator.routes["PUT", "/v1/sites/me/datasets/test-set"] = lambda _: busy
    kept = keep(engine, home, prepare(engine, keys.secret, csv_of(tmp_path, 80), DICTIONARY, None), system_clock)
    with pytest.raises(NotRegistered, match=r"stored here, but not registered .* busy") as caught:
        register(engine, client, system_clock, kept.digest)
    assert caught.value.remedy.startswith("Wait a minute. Then")
    coordinator.routes.clear()
    assert register_pending(engine, client, system_clock) == (kept.digest,)


def test_preparing_writes_nothing(site, tmp_path):
    home, keys, engine = site
    before = sorted(home.path.rglob("*"))
    prepare(engine, keys.secret, csv_of(tmp_path, 80), DICTIONARY, "other-name")
    assert sorted(home.path.rglob("*")) == before
    with transaction(engine) as session:
        assert latest(session, DICTIONARY.schema.digest) is None


def test_small_counts_are_not_shown():
    assert [at_least_cell(count) for count in (0, 1, 10, 11)] == [0, "1-10", "1-10", 11]


FEATURES = st.lists(st.floats(0, 100, allow_nan=False) | st.none(), min_size=3, max_size=3)


@given(FEATURES)
@settings(deadline=None)
def test_an_encoded_row_is_bounded(values):
    """|x| <= 3 whatever the row: the clipping bound of the whole mechanism starts here."""
    schema = DatasetSchema(
        name="bounds",
        features=(
            Feature(name="f0", kind="number", minimum=0, maximum=100, center=0, scale=0.01, impute=100),
            Feature(name="f1", kind="number", minimum=0, maximum=100, center=90, scale=50, impute=1),
            Feature(name="f2", kind="number", minimum=0, maximum=100, center=50, scale=1e-9, impute=0),
            Feature(name="c", kind="category", levels=("a", "b", "c"), impute="b"),
        ),
        label=LabelRule(name="y", column="z", operator="==", value=1),
    )
    row = schema.encode({f"f{index}": value for index, value in enumerate(values)})
    assert len(row) == schema.width == 6
    assert np.linalg.norm(row) <= 3.0 + 1e-12
