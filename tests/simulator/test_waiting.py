"""A study that can't go on for now waits: on record, uncharged, for as long as was declared, and goes on by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator.database import reading
from coordinator.rounds.supervisor import DriverSupervisor
from coordinator.rounds.waiting import shown
from coordinator.studies.states import StudyState
from protocol.audit_event import EventType
from tests.simulator import invariants
from tests.simulator.federation import Federation

Begin = Callable[..., str]


def told(federation: Federation, study: str) -> dict[str, Any] | None:
    with reading(federation.appliance.engine) as session:
        return shown(session, study, federation.appliance.settings.patience)


def waits(federation: Federation, study: str) -> list[str]:
    wanted = {EventType.STUDY_WAITING, EventType.STUDY_RESUMED}
    return [f"{event.event}:{event.labels['reason']}" for event in federation.events(study) if event.event in wanted]


def test_a_study_waits_for_absent_sites_and_goes_on_when_they_are_back(federation: Federation, begin: Begin) -> None:
    study = begin()

    def leave() -> None:
        if federation.exchange.requests[-1][1] == "train-1-1":
            federation.exchange.absent |= {"aachen", "berlin"}

    federation.exchange.after_request = leave
    assert federation.driver(study).run() is StudyState.RUNNING
    sent, before = len(federation.exchange.requests), federation.clock.seconds
    assert federation.driver(study).run() is StudyState.RUNNING
    assert federation.clock.seconds - before < 10, "a look, so that other studies have their turn"
    assert len(federation.exchange.requests) == sent, "nobody is asked, nobody is charged"
    found = told(federation, study)
    assert found is not None
    assert (found["reason"], found["sites"]) == ("sites-absent", ["aachen", "berlin"])
    assert "cloister-site agent" in found["remedy"]
    assert found["until"] is not None
    federation.exchange.absent.clear()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert waits(federation, study) == ["study.waiting:sites-absent", "study.resumed:sites-absent"]
    assert told(federation, study) is None
    assert all(federation.charged(study, site)[False] == 3 for site in federation.sites)
    invariants.check(federation, study)


def test_it_waits_for_the_key_set_up_too_and_fails_when_patience_ends(federation: Federation, begin: Begin) -> None:
    study = begin()
    federation.exchange.absent |= {"aachen", "berlin"}
    assert federation.driver(study).run() is StudyState.KEYS
    federation.clock.seconds += federation.appliance.settings.patience - 60
    assert federation.driver(study).run() is StudyState.KEYS
    federation.clock.seconds += 300
    assert federation.driver(study).run() is StudyState.FAILED
    assert federation.row(study).reason == "too-few-sites"
    assert waits(federation, study) == ["study.waiting:sites-absent"]
    assert told(federation, study) is None
    assert all(site.worker.noisy_steps == 0 for site in federation.sites.values())


def test_others_are_driven_while_one_waits(federation: Federation, begin: Begin, tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = begin()
    federation.exchange.absent |= {"aachen", "berlin"}
    assert federation.driver(first).run() is StudyState.KEYS
    second = begin()
    supervisor = DriverSupervisor(federation.appliance, lambda: None, tmp_path / "secret")
    not_ours = {row.id for row in _active(federation)} - {first, second}
    assert supervisor._next(not_ours) == second
    assert supervisor._next(not_ours | {second}) == first
    supervisor._looked[first] = float("inf")
    assert supervisor._next(not_ours | {second}) is None, "it was looked at a moment ago"


def _active(federation: Federation) -> list[Any]:
    from coordinator.studies.repository import StudyRepository

    with reading(federation.appliance.engine) as session:
        return StudyRepository(session).active()
