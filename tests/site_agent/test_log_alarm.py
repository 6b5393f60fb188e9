"""While an alarm about the log stands, no study gets anything from this site; IT may go on after it looked into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import select

from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.training.tables import CohortCharge
from site_agent.witness import repository
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, refusal_in

AT = "2026-03-01T12:00:00Z"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, SignedPlan]:
    world = federation(tmp_path_factory.mktemp("federation"))
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    return world, signed


def alarm(site: Hospital, served: bytes) -> None:
    with transaction(site.engine) as session:
        repository.raise_alarm(session, "fork", "Two histories.", held_note=b"held", served_note=served, at=AT)


def acknowledge(site: Hospital, number: int) -> None:
    with transaction(site.engine) as session:
        repository.acknowledge(session, number, "auditor-cleared", at=AT)


def charged(site: Hospital) -> int:
    with transaction(site.engine) as session:
        return sum(row.steps_charged for row in session.exec(select(CohortCharge)))


def test_granted_studies_stop_at_an_alarm_and_go_on_when_it_is_acknowledged(
    running: tuple[Federation, SignedPlan],
) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    request = world.round_request(signed)
    first = site.participant().answer("train.contribute", request)
    alarm(site, b"one")
    questions = (
        ("train.contribute", request),  # what is on disk already does not leave either
        ("train.contribute", world.round_request(signed, 2)),
        ("evaluate.histogram", world.round_request(signed, phase="evaluate")),
        ("query.keys", world.key_request(signed, "advertise", [])),
    )
    for kind, packet in questions:
        assert refusal_in(site.participant().answer(kind, packet), site) == "log-alarm"
    assert charged(site) == 1
    assert not site.review(signed).grantable({})
    acknowledge(site, 1)
    assert site.participant().answer("train.contribute", request) == first
    alarm(site, b"one")  # the very evidence that was looked into
    assert site.participant().answer("train.contribute", request) == first
    alarm(site, b"another")
    assert refusal_in(site.participant().answer("train.contribute", request), site) == "log-alarm"
    acknowledge(site, 2)
    with transaction(site.engine) as session:
        kept = [(row.held_note, row.served_note, row.reason) for row in repository.alarms(session)]
    assert kept == [(b"held", b"one", "auditor-cleared"), (b"held", b"another", "auditor-cleared")]


@pytest.mark.parametrize("number", [1, 99])
def test_only_an_alarm_that_stands_is_acknowledged(tmp_path: Path, number: int) -> None:
    site = federation(tmp_path).hospitals["cork"]
    alarm(site, b"one")
    acknowledge(site, 1)
    with pytest.raises(repository.NoSuchAlarm, match=f"No alarm {number} stands"):
        acknowledge(site, number)
