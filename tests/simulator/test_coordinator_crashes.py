"""A coordinator that dies at any step resumes from its records: no second charge, no second answer, same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.rounds.repository import AnotherDriver, RoundRepository
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import StudyState
from tests.simulator import invariants
from tests.simulator.federation import PASS, Federation

Begin = Callable[..., str]


class Crash(BaseException):
    """The process ends here; nothing may catch it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, occurrence: int, *, after: bool) -> list[int]:
    """Die at the nth call of a repository method, before or after it; the list is filled once it happened."""
    original, calls, happened = getattr(owner, method), [0], list[int]()

    def dying(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == occurrence and not happened and not after:
            happened.append(occurrence)
            raise Crash
        result = original(*arguments, **named)
        if calls[0] == occurrence and not happened:
            happened.append(occurrence)
            raise Crash
        return result

    monkeypatch.setattr(owner, method, dying)
    return happened


POINTS = [
    (RoundRepository, "progress", 1),
    (RoundRepository, "model", 1),
    (RoundRepository, "start_model", 1),
    (RoundRepository, "key_setup", 2),
    (RoundRepository, "begin_keys", 1),
    (RoundRepository, "joined", 1),
    (RoundRepository, "establish_keys", 1),
    (RoundRepository, "begin_attempt", 1),
    (RoundRepository, "begin_attempt", 3),
    (RoundRepository, "begin_attempt", 5),
    (RoundRepository, "close_attempt", 1),
    (RoundRepository, "close_attempt", 2),
    (RoundRepository, "close_attempt", 5),
    (RoundRepository, "advance_model", 1),
    (RoundRepository, "advance_model", 3),
    (RoundRepository, "attempts_of", 2),
    (RoundRepository, "add_round", 2),
    (RoundRepository, "add_round", 4),
    (RoundRepository, "rounds_digest", 1),
    (RoundRepository, "other_trained_plans", 1),
    (RoundRepository, "add_candidate", 1),
    (StudyRepository, "set_state", 1),
    (StudyRepository, "set_state", 2),
    (StudyRepository, "set_state", 3),
]


@pytest.mark.parametrize(
    ("owner", "method", "occurrence", "after"),
    [(*point, True) for point in POINTS] + [(*point, False) for point in POINTS[6:22:4]],
)
def test_a_crash_at_any_write_loses_and_charges_nothing(
    federation: Federation,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    occurrence: int,
    after: bool,
) -> None:
    study = begin()
    # One lost answer, so that an abandoned attempt is among what is resumed.
    federation.exchange.faults.append(
        lambda d: None if (d.site.name, d.group) == ("cologne", "train-2-1") and d.answer() else PASS
    )
    happened = crash_at(monkeypatch, owner, method, occurrence, after=after)
    with pytest.raises(Crash):
        federation.driver(study).run()
    assert happened
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all(len(envelopes) == 1 for envelopes in invariants.requests_sent(federation).values())
    assert [record["attempts"] for record in federation.records(study)] == [1, 2, 1, 1]
    for name, site in federation.sites.items():
        charged = federation.charged(study, name)
        assert charged == {False: 3 if name == "cologne" else 4, True: 1}, name
        assert site.worker.noisy_steps == sum(charged.values())


@pytest.mark.parametrize("group", ["keys-advertise", "keys-encapsulate", "keys-establish", "train-1-1", "train-3-1"])
@pytest.mark.parametrize("moment", ["before_request", "after_request"])
def test_a_crash_around_a_request_resends_it_byte_for_byte(
    federation: Federation, begin: Begin, group: str, moment: str
) -> None:
    study, died = begin(), list[str]()

    def die() -> None:
        number = len(federation.exchange.requests) - (moment == "after_request")
        label = ("keys-advertise", "keys-encapsulate", "keys-establish", "train-1-1", "train-2-1", "train-3-1")[number]
        if label == group and not died:
            died.append(group)
            raise Crash

    setattr(federation.exchange, moment, die)
    with pytest.raises(Crash):
        federation.driver(study).run()
    federation.exchange.after_request = federation.exchange.before_request = lambda: None
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert died
    invariants.check(federation, study)
    assert all(len(envelopes) == 1 for envelopes in invariants.requests_sent(federation).values())
    assert all(site.worker.noisy_steps == 4 for site in federation.sites.values())


def test_a_request_that_expired_while_the_coordinator_was_down_is_answered_from_disk(
    federation: Federation, begin: Begin
) -> None:
    study = begin()
    crash_after(federation, "train-2-1")
    with pytest.raises(Crash):
        federation.driver(study).run()
    federation.exchange.after_request = lambda: None
    federation.clock.seconds += 86_400
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert [record["attempts"] for record in federation.records(study)] == [1, 1, 1, 1]


def test_sites_that_find_a_request_expired_are_asked_again(federation: Federation, begin: Begin) -> None:
    study = begin()

    def die() -> None:
        if len(federation.exchange.requests) == 4:  # recorded, not sent
            raise Crash

    federation.exchange.before_request = die
    with pytest.raises(Crash):
        federation.driver(study).run()
    federation.exchange.before_request = lambda: None
    federation.clock.seconds += 86_400
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = federation.records(study)
    assert [record["attempts"] for record in rounds] == [1, 2, 1, 1]
    assert len(rounds[1]["contributed"]) == 4
    assert all(federation.charged(study, site)[False] == 3 for site in federation.sites)


def crash_after(federation: Federation, group: str) -> None:
    def die() -> None:
        if federation.exchange.requests[-1][1] == group:
            raise Crash

    federation.exchange.after_request = die


@pytest.mark.parametrize("point", ["before-charge", "in-charge", "charged", "computed", "in-keep", "kept"])
def test_a_site_that_dies_while_it_answers(federation: Federation, begin: Begin, point: str) -> None:
    study, site, died = begin(), federation.sites["aachen"], list[str]()

    def die(reached: str) -> None:
        if reached == point and len(federation.exchange.requests) == 5 and not died:
            died.append(point)
            raise Crash

    site.reached = die
    site.store._reached = die

    def power_failure(delivery):  # type: ignore[no-untyped-def]
        try:
            return delivery.answer() if delivery.site is site else PASS
        except Crash:
            site.restart()
            return None

    federation.exchange.faults.append(power_failure)
    try:
        assert federation.driver(study).run() is StudyState.CANDIDATE
    finally:
        site.store._reached = lambda _point: None
    assert died
    invariants.check(federation, study)
    assert federation.records(study)[1]["excluded"] == {"aachen": "no-answer"}
    before_the_charge = point in ("before-charge", "in-charge")
    assert federation.charged(study, "aachen")[False] == (2 if before_the_charge else 3)


def test_a_driver_that_was_overtaken_ends_without_a_trace(federation: Federation, begin: Begin) -> None:
    study, nested = begin(), list[StudyState]()
    first = federation.driver(study)

    def overtake() -> None:
        if federation.exchange.requests[-1][1] == "train-2-1" and not nested:
            nested.append(StudyState.KEYS)
            nested.append(federation.driver(study).run())

    federation.exchange.after_request = overtake
    assert first.run() is StudyState.CANDIDATE
    assert nested[-1] is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all(site.worker.noisy_steps == 4 for site in federation.sites.values())


def test_two_drivers_of_one_study_commit_each_round_once(federation: Federation, begin: Begin) -> None:
    study, nested = begin(), list[str]()
    first = federation.driver(study)

    def overtake() -> None:
        label = federation.exchange.requests[-1][1]
        if label == "train-2-1" and not nested:
            nested.append(label)
            with pytest.raises(Crash):
                federation.driver(study).run()
        elif label == "train-3-1":
            raise Crash

    federation.exchange.after_request = overtake
    with pytest.raises(AnotherDriver):
        first.run()
    assert [record["round"] for record in federation.records(study)] == [1, 2]
    federation.exchange.after_request = lambda: None
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all(len(envelopes) == 1 for envelopes in invariants.requests_sent(federation).values())
    assert all(site.worker.noisy_steps == 4 for site in federation.sites.values())


def test_a_driver_of_a_study_that_has_ended_changes_nothing(federation: Federation, begin: Begin) -> None:
    study = begin()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    events = len(federation.events(study))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert len(federation.events(study)) == events
