"""One suite that both databases pass: versions, transactions, writers that take turns, the verbs, the sequencer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import col, select

from coordinator.appliance import Appliance, open_appliance
from coordinator.audit.append import append
from coordinator.audit.repository import CheckpointConflict, LogRepository
from coordinator.audit.sequencer import integrate_once, tile_store, verify_log
from coordinator.audit.tables import LogCheckpoint, LogEntry
from coordinator.database import DatabaseError, reading, require_current, transaction, upgrade
from coordinator.people import accounts
from coordinator.people.states import TokenRefused
from coordinator.people.tables import Person
from coordinator.schema import metadata
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import EventType
from protocol.checkpoint import TreeHead
from protocol.enrolment import registration_message
from protocol.identifiers import Role
from protocol.merkle import Tree, leaf_hash
from protocol.note import Note
from protocol.signing import SigningKey
from tests.coordinator.appliances import Made, TestSite


def test_migrations_give_exactly_the_tables(made: Made) -> None:
    with made.appliance.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_upgrade_again_changes_nothing_and_a_newer_database_is_refused(made: Made) -> None:
    engine = made.appliance.engine
    upgrade(engine)
    require_current(engine)
    with transaction(engine) as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="newer"):
        upgrade(engine)
    with pytest.raises(DatabaseError, match="another version"):
        open_appliance(made.appliance.home)


def test_an_error_rolls_everything_back(made: Made) -> None:
    before = _entries(made.appliance)

    def invite_and_fail() -> None:
        with transaction(made.appliance.engine) as session:
            enrolment.invite(session, made.appliance, "site-a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        invite_and_fail()
    assert _entries(made.appliance) == before
    with reading(made.appliance.engine) as session:
        assert SiteRepository(session).all() == []


def test_what_is_changed_while_reading_is_thrown_away(made: Made) -> None:
    with transaction(made.appliance.engine) as session:
        enrolment.invite(session, made.appliance, "site-a")
    with reading(made.appliance.engine) as session:
        site = SiteRepository(session).get("site-a")
        assert site is not None
        site.status = "active"
    with reading(made.appliance.engine) as session:
        assert [row.status for row in SiteRepository(session).all()] == ["invited"]


def test_writers_take_turns(made: Made) -> None:
    """Read, think, write from eight threads: none overwrites what another wrote meanwhile."""
    with transaction(made.appliance.engine) as session:
        session.add(Person(name="counter", role="0", status="invited", invited_at="x"))

    def count(_: int) -> None:
        with transaction(made.appliance.engine) as session:
            person = session.get(Person, "counter")
            assert person is not None
            person.role = str(int(person.role) + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    with reading(made.appliance.engine) as session:
        person = session.get(Person, "counter")
        assert person is not None
        assert person.role == "40"


def test_a_persons_token_is_used_once_even_at_once(made: Made) -> None:
    with transaction(made.appliance.engine) as session:
        token = accounts.invite(session, made.appliance, "ada", Role.RESEARCHER)
    barrier = threading.Barrier(4)

    def use(_: int) -> bool:
        key = SigningKey.generate()
        proof = key.sign(registration_message(token.secret, "ada", key.public.text))
        barrier.wait()
        try:
            with transaction(made.appliance.engine) as session:
                accounts.register(
                    session, made.appliance, secret=token.secret, name="ada", key=key.public.text, proof=proof
                )
        except TokenRefused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(use, range(4))) == [False, False, False, True]


def test_sites_enrol_renew_and_are_revoked(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    site = TestSite("site-a", tmp_path_factory.mktemp("site"))
    first = site.enrol_in(made.appliance)
    with transaction(made.appliance.engine) as session:
        renewed, _ = enrolment.renew(session, made.appliance, "site-a", site.csr())
    assert renewed != first.certificate
    with transaction(made.appliance.engine) as session:
        enrolment.revoke(session, made.appliance, "site-a")
    with reading(made.appliance.engine) as session:
        row = SiteRepository(session).get("site-a")
        assert row is not None
        assert row.status == "revoked"


def test_concurrent_appends_and_sequencers_lose_and_duplicate_nothing(made: Made) -> None:
    appliance, appenders, each = made.appliance, 4, 25
    stop = threading.Event()
    wrong: list[Exception] = []

    def sequence() -> None:
        while not stop.is_set():
            try:
                integrate_once(appliance)
            except CheckpointConflict:
                continue
            except Exception as error:  # noqa: BLE001 - the test reports whatever it was
                wrong.append(error)
                return

    def put(appender: int) -> None:
        for number in range(each):
            with transaction(appliance.engine) as session:
                append(
                    session, appliance, EventType.DATASET_REGISTERED, actor=f"site:s{appender}", subject=f"n{number}"
                )

    sequencers = [threading.Thread(target=sequence) for _ in range(2)]
    for thread in sequencers:
        thread.start()
    with ThreadPoolExecutor(appenders) as pool:
        list(pool.map(put, range(appenders)))
    stop.set()
    for thread in sequencers:
        thread.join()
    assert wrong == []
    total = appenders * each + 3  # log.started, packs.activated and person.invited
    assert integrate_once(appliance) == total
    assert verify_log(appliance) == total
    with reading(appliance.engine) as session:
        rows = list(session.exec(select(LogEntry).order_by(col(LogEntry.log_index))))
        notes = [row.note for row in session.exec(select(LogCheckpoint).order_by(col(LogCheckpoint.size)))]
    assert [row.log_index for row in rows] == list(range(total))
    assert len({row.leaf for row in rows}) == total
    tree = Tree(leaf_hash(row.leaf) for row in rows)
    for note in notes:
        head = TreeHead.parse(Note.parse(note).text)
        assert tree.root(head.size) == head.root
    assert tile_store(appliance).frontier(total, tree.root()).root == tree.root()


def _entries(appliance: Appliance) -> int:
    with reading(appliance.engine) as session:
        repository = LogRepository(session, appliance.settings.origin)
        return repository.head().size + repository.pending()
