"""A site whose database went back in time: it answers nothing until somebody has said what became of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from sqlmodel import select

from protocol.training import Training
from site_agent import cli
from site_agent.agent import Agent
from site_agent.consent.grant import withdraw
from site_agent.consent.plans import SignedPlan
from site_agent.consent.tables import StudyGrant
from site_agent.database import MARK, connect, transaction
from site_agent.training.budget_store import BudgetStore, ledger, spent
from site_agent.training.generation import LedgerBehind, acknowledge, standing
from site_agent.training.states import Budget
from tests.site_agent.federation_of_sites import NOW, Federation, Hospital, refusal_in

AT = "2026-03-01T12:00:00Z"
Case = tuple[Federation, SignedPlan]


def back_up(site: Hospital) -> Path:
    """A whole and sound copy of the database, as SQLite makes it."""
    target = site.settings.home.path.parent / f"{site.name}.backup"
    with site.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql(f"VACUUM INTO '{target}'")
        connection.exec_driver_sql("BEGIN")
    return target


def restore(site: Hospital, backup: Path) -> None:
    site.engine.dispose()
    database = site.settings.home.database
    for path in database.parent.glob("site.db*"):
        path.unlink()
    shutil.copy(backup, database)
    site.engine = connect(database)


def mark(site: Hospital) -> Path:
    return site.settings.home.path / MARK


def ask(site: Hospital, request: bytes) -> bytes:
    return site.participant().answer("train.contribute", request)


def test_a_restored_backup_would_answer_an_attempt_twice_and_is_refused(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    request = world.round_request(signed)
    ask(site, request)
    restore(site, backup)
    assert refusal_in(ask(site, request), site) == "ledger-behind"
    assert refusal_in(ask(site, world.round_request(signed, 2)), site) == "ledger-behind"
    advertise = world.key_request(signed, "advertise", [])
    assert refusal_in(site.participant().answer("query.keys", advertise), site) == "ledger-behind"
    assert site.store.studies_with_keys() == []
    with transaction(site.engine) as session:
        assert [line.steps_charged for line in ledger(session)] == [0, 0]


def test_the_keys_go_when_the_agent_starts(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    ask(site, world.round_request(signed))
    restore(site, backup)
    assert site.store.studies_with_keys() == ["hearts-one"]
    agent = Agent(site.settings, site.keys, site.engine, stop=_set(), client=_nobody, link=_nobody, worker=site.worker)
    agent.run()
    assert site.store.studies_with_keys() == []


def _set():  # type: ignore[no-untyped-def]
    import threading

    event = threading.Event()
    event.set()
    return event


def _nobody():  # type: ignore[no-untyped-def]
    raise AssertionError("a stopped agent asks nobody")


def test_a_database_that_is_ahead_of_the_mark_is_sound(running: Case) -> None:
    """A crash between the commit and the mark: nothing has left the site."""
    world, signed = running
    site = world.hospitals["cork"]
    before = mark(site).read_bytes()
    ask(site, world.round_request(signed))
    assert json.loads(mark(site).read_bytes())["generation"] > json.loads(before)["generation"]
    mark(site).write_bytes(before)
    answer = ask(site, world.round_request(signed, 2))
    with pytest.raises(AssertionError):
        refusal_in(answer)


def test_the_mark_is_on_disk_before_anything_is_computed(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    seen: dict[str, int] = {}

    def reached(point: str) -> None:
        seen[point] = json.loads(mark(site).read_bytes())["generation"]

    site.participant(reached=reached).answer("train.contribute", world.round_request(signed))
    assert seen["charged"] == seen["before-charge"] + 1


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json", b'{"generation": -1}', b'{"generation": "9"}'])
def test_a_mark_that_is_missing_or_damaged_is_never_taken_for_a_fresh_site(
    running: Case, content: bytes | None
) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    mark(site).unlink()
    if content is not None:
        mark(site).write_bytes(content)
    assert refusal_in(ask(site, world.round_request(signed)), site) == "ledger-behind"


def test_a_full_disk_lets_nothing_out_unmarked(running: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from site_agent.training import generation

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    world, signed = running
    site = world.hospitals["cork"]
    request = world.round_request(signed)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_durably", full)
        assert refusal_in(ask(site, request), site) == "internal"
    assert site.worker.computed == 0  # type: ignore[attr-defined]
    assert refusal_in(ask(site, request), site) == "consumed"


def test_a_withdrawal_after_a_restore_gives_nothing_back(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    ask(site, world.round_request(signed))
    restore(site, backup)
    for _ in range(3):  # however much is written meanwhile, the database does not catch up by itself
        site.store.record_refusal(study="s", phase="train", round_number=1, attempt=1, code="expired", at=AT)
    withdraw(site.engine, "hearts-one", key=site.keys.identity, site="cork", reason="other", now=NOW)
    with transaction(site.engine) as session:
        assert spent(session, site.snapshot, held_out=False).epsilon > 0.9
        assert standing(session).behind


def test_no_study_is_granted_while_the_ledger_is_behind(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    ask(site, world.round_request(signed))
    restore(site, backup)
    other = world.sign(world.plan(created_at="2026-03-02T12:00:00Z"))
    with pytest.raises(LedgerBehind, match="acknowledge-restore") as refused:
        site.grant(other)
    assert "withdraw" in refused.value.remedy


def test_acknowledging_spends_every_open_reservation_and_opens_the_site_again(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    ask(site, world.round_request(signed))
    restore(site, backup)
    assert acknowledge(site.engine, at=AT, lost=None) == (Budget(0.0, 0.0), ("hearts-one",))
    with transaction(site.engine) as session:
        assert all(line.steps_charged == line.steps_allowed for line in ledger(session))
        assert not standing(session).behind
    assert refusal_in(ask(site, world.round_request(signed, 3)), site) in {"keys-missing", "ledger-exhausted"}
    withdraw(site.engine, "hearts-one", key=site.keys.identity, site="cork", reason="other", now=NOW)
    with transaction(site.engine) as session:
        assert spent(session, site.snapshot, held_out=False).epsilon > 0.9


def test_what_was_reserved_after_the_backup_is_charged_to_every_patient(running: Case) -> None:
    world, _ = running
    site = world.hospitals["cork"]
    backup = back_up(site)
    spec = world.spec.model_copy(
        update={"study": "hearts-two", "training": Training(rounds=4, sampling_rate=0.5, clip=0.5, learning_rate=1.0)}
    )
    world.spec = spec
    second = world.sign(world.plan())
    site.grant(second)
    with transaction(site.engine) as session:
        before = spent(session, site.snapshot, held_out=False)
    restore(site, backup)
    lost, _ = acknowledge(site.engine, at=AT, lost=None)
    assert lost.epsilon > 0.9
    with transaction(site.engine) as session:
        assert session.get(StudyGrant, second.digest) is None
        after = spent(session, site.snapshot, held_out=False)
        assert (after.epsilon, after.delta) == pytest.approx((before.epsilon, before.delta))
        assert spent(session, "sha256:" + "0" * 64, held_out=False).epsilon == pytest.approx(lost.epsilon, rel=1e-3)
    # A second restore of the same backup forgets the acknowledgement too, and is noticed as well.
    restore(site, backup)
    again, _ = acknowledge(site.engine, at=AT, lost=None)
    assert again.epsilon == pytest.approx(lost.epsilon)


def test_without_the_mark_a_person_must_say_what_was_lost(running: Case) -> None:
    world, _ = running
    site = world.hospitals["cork"]
    mark(site).unlink()
    with pytest.raises(LedgerBehind, match="--lost-epsilon"):
        acknowledge(site.engine, at=AT, lost=None)
    assert acknowledge(site.engine, at=AT, lost=Budget(2.0, 1e-4))[0] == Budget(2.0, 1e-4)
    with transaction(site.engine) as session:
        assert spent(session, site.snapshot, held_out=False).epsilon > 2.9
        assert not standing(session).behind


def test_there_is_nothing_to_acknowledge_at_a_sound_site(running: Case) -> None:
    site = running[0].hospitals["cork"]
    with pytest.raises(LedgerBehind, match="not behind"):
        acknowledge(site.engine, at=AT, lost=None)
    with transaction(site.engine) as session:
        assert [line.steps_charged for line in ledger(session)] == [0, 0]


def test_two_processes_never_put_the_mark_back(running: Case) -> None:
    site = running[0].hospitals["cork"]
    from site_agent.training.generation import advance

    newest = json.loads(mark(site).read_bytes())["generation"]
    with transaction(site.engine) as session:
        advance(session)
        mark(site).write_text(mark(site).read_text().replace(f'"generation": {newest}', f'"generation": {newest + 9}'))
    assert json.loads(mark(site).read_bytes())["generation"] == newest + 9


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cloister-site", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out.out, out.err

    return run


def test_the_command_says_what_it_will_do_and_asks(running: Case, run) -> None:  # type: ignore[no-untyped-def]
    world, signed = running
    site = world.hospitals["cork"]
    home = site.settings.home.path
    code, _, err = run("budget", "acknowledge-restore", "--yes", "--home", home)
    assert (code, "not behind" in err) == (1, True)
    backup = back_up(site)
    ask(site, world.round_request(signed))
    restore(site, backup)
    site.engine.dispose()
    code, out, _ = run("budget", "show", "--home", home)
    assert "LEDGER BEHIND" in out
    code, out, _ = run("budget", "acknowledge-restore", "--yes", "--json", "--home", home)
    assert (code, json.loads(out)) == (0, {"lost": {"epsilon": 0.0, "delta": 0.0}, "studies": ["hearts-one"]})
    code, out, _ = run("budget", "show", "--home", home)
    assert "LEDGER BEHIND" not in out
    with transaction(connect(home / "site.db")) as session:
        assert session.exec(select(StudyGrant)).one().state == "granted"
    assert BudgetStore(connect(home / "site.db")).studies_with_keys() == []
