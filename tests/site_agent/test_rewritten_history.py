"""A coordinator that owns its database and all its keys rewrites history, drops an event, or forks the log for one
hospital: what each party that watches makes of it, through the product's own coordinator, sites and auditor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection as Sql
from sqlalchemy import text

from coordinator.audit.append import append
from coordinator.audit.auditors import join
from coordinator.audit.export import write_export
from coordinator.audit.sequencer import integrate_once, log_key
from coordinator.audit.witnessing import quorum_note
from coordinator.client.audit_bundle import read_archive, verify_bundle
from coordinator.client.audit_monitor import LogAlarm, Watched, compare, take_turn
from coordinator.client.audit_watch import HttpSource
from coordinator.client.audit_witness import AuditWitness, make_witness, take_part
from coordinator.client.connection import Connection, pinned_context
from coordinator.database import reading
from coordinator.database import transaction as at_coordinator
from coordinator.errors import Unavailable
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import AuditEvent, EventType
from protocol.merkle import EMPTY_ROOT
from site_agent.clock import system_clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import open_database, transaction
from site_agent.enrol import enrol
from site_agent.keystore import load_keys
from site_agent.settings import SiteHome, load_settings
from site_agent.witness import repository
from site_agent.witness.cycle import LogMisbehaved, Witness
from tests.coordinator.appliances import Served, served_coordinator
from tests.papers import papers_file

pytestmark = pytest.mark.processes
AT = "2026-11-23T00:00:00Z"
FOREVER = 1 << 40


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A coordinator that integrates when the test says so."""
    with served_coordinator(tmp_path, beside=()) as made:
        yield made


@contextmanager
def site(served: Served, folder: Path, name: str) -> Iterator[Witness]:
    with at_coordinator(served.appliance.engine) as session:
        token = enrolment.invite(session, served.appliance, name).to_text()
    home = SiteHome(folder / name)
    enrol(token, home, system_clock, papers_file())
    settings, keys, engine = load_settings(home), load_keys(home), open_database(home)
    with CoordinatorClient(settings, keys) as client:
        yield Witness(settings, keys, engine, client, system_clock)
    engine.dispose()


def auditor(served: Served, folder: Path) -> AuditWitness:
    made = make_witness(folder / "auditor", "ada", "ml-dsa-44")
    with at_coordinator(served.appliance.engine) as session:
        sites = [row.witness for row in SiteRepository(session).active() if row.witness]
        join(session, served.appliance, "ada", made.vkey.text, site_witnesses=sites)
    return made


def log(served: Served, count: int) -> None:
    with at_coordinator(served.appliance.engine) as session:
        for number in range(count):
            append(session, served.appliance, EventType.STUDY_CONSENTED, actor="site:clinic-a", subject=f"s-{number}")
    integrate_once(served.appliance)


def look(served: Served, witness: AuditWitness) -> int:
    with Connection(served.address, pinned_context(served.ca_path)) as connection:
        pin = log_key(served.appliance)
        return take_part(witness, connection, log=pin, policy=None, clock=lambda: int(time.time())).size


def signed_anew(served: Served, change: Callable[[Sql], object]) -> None:
    """Change the entries, forget what was signed, and sign a whole new tree with the log's own key."""
    with served.appliance.engine.begin() as connection:
        change(connection)
        connection.execute(text("UPDATE log_entry SET log_index = NULL"))
        connection.execute(text("DELETE FROM log_checkpoint"))
        connection.execute(text("DELETE FROM log_cosignature"))
        connection.execute(text("UPDATE log_head SET size = 0, assigned = 0, root = :root"), {"root": EMPTY_ROOT})
    integrate_once(served.appliance)


def event(subject: str) -> bytes:
    return AuditEvent(event=EventType.STUDY_CONSENTED, at=AT, actor="site:clinic-b", subject=subject).leaf()


def last(connection: Sql, back: int = 0) -> dict[str, Any]:
    rows = connection.execute(text("SELECT id, leaf FROM log_entry ORDER BY id DESC")).mappings().all()
    return dict(rows[back])


def rewrite(connection: Sql) -> None:
    connection.execute(
        text("UPDATE log_entry SET leaf = :leaf WHERE id = :id"), {**last(connection, 2), "leaf": event("x")}
    )


def drop(connection: Sql) -> None:
    connection.execute(text("DELETE FROM log_entry WHERE id = :id"), last(connection, 2))


def drop_and_fill(connection: Sql) -> None:
    drop(connection)
    for number in range(3):
        connection.execute(text("INSERT INTO log_entry (leaf) VALUES (:leaf)"), {"leaf": event(f"later-{number}")})


def reorder(connection: Sql) -> None:
    one, other = last(connection, 1), last(connection, 3)
    for row, leaf in ((one, other["leaf"]), (other, one["leaf"])):
        connection.execute(text("UPDATE log_entry SET leaf = :leaf WHERE id = :id"), {"id": row["id"], "leaf": leaf})


@pytest.mark.parametrize("change", [rewrite, drop, drop_and_fill, reorder])
def test_no_party_that_saw_the_log_vouches_for_another_history(
    served: Served, tmp_path: Path, change: Callable[[Sql], None]
) -> None:
    with site(served, tmp_path, "clinic-a") as hospital:
        witness = auditor(served, tmp_path)
        log(served, 5)
        assert hospital.turn().cosigned
        size = look(served, witness)
        with reading(served.appliance.engine) as session:
            before = read_archive(b"".join(write_export(session, served.appliance, minimum_size=size).chunks()))
        assert verify_bundle(before).verified
        signed_anew(served, change)
        with pytest.raises(LogMisbehaved):
            hospital.turn()
        with transaction(hospital.engine) as session:
            [alarm] = repository.alarms(session)
        assert alarm.held_note
        assert alarm.served_note, "two notes that the log signed: the evidence"
        with pytest.raises(LogAlarm):
            look(served, witness)
        with reading(served.appliance.engine) as session:
            assert quorum_note(session, served.appliance, 1) is None
            with pytest.raises(Unavailable):
                write_export(session, served.appliance)


def test_a_log_that_is_forked_for_one_hospital_gets_no_quorum_and_two_notes_prove_it(
    served: Served, tmp_path: Path
) -> None:
    with site(served, tmp_path, "clinic-a") as first, site(served, tmp_path, "clinic-b") as second:
        log(served, 5)
        assert first.turn().cosigned
        signed_anew(served, rewrite)
        assert second.turn().cosigned, "who never saw the first history can't know"
        with reading(served.appliance.engine) as session:
            assert quorum_note(session, served.appliance, 1) is None, "two of two must have cosigned one history"
        with pytest.raises(LogMisbehaved):
            first.turn()
        with transaction(first.engine) as session:
            held = repository.held(session, first.log.name)
        assert held is not None
        with Connection(served.address, pinned_context(served.ca_path)) as connection:
            source = HttpSource(connection)
            start = Watched.fresh(log_key(served.appliance), None, now=0)
            mine, _ = take_turn(source, start, now=0, stall_seconds=FOREVER)
            with pytest.raises(LogAlarm) as caught:
                compare(source, mine, held.note)
        assert caught.value.kind == "fork"
        assert caught.value.notes == (mine.note, held.note)
