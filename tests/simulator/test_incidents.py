"""An incident freezes a study or a site in the middle of its rounds; two people's word lets it go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlmodel import select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.errors import Conflict
from coordinator.incidents.facts import incident_facts
from coordinator.incidents.report import close, new_incident, open_by_person, open_by_site, update
from coordinator.incidents.repository import IncidentRepository
from coordinator.incidents.tables import IncidentRecord
from coordinator.people.repository import PersonRepository
from coordinator.people.tables import Person
from coordinator.rounds.supervisor import _held_up
from coordinator.sites.repository import SiteRepository
from coordinator.studies.states import StudyState
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.envelope import seal
from protocol.errors import BadSignature, Refused
from protocol.incident import INCIDENT_REPORT_TYPE, Incident, IncidentReport, Settled
from protocol.timestamp import timestamp
from tests.simulator import invariants
from tests.simulator.federation import Federation

Begin = Callable[..., str]
WORDS = "A laptop with an export was stolen on platform four"


def person(federation: Federation, name: str) -> Person:
    with reading(federation.appliance.engine) as session:
        found = PersonRepository(session).get(name)
    assert found is not None
    return found


def told(federation: Federation, scope: str, about: str, kind: str = "security") -> Incident:
    return Incident.model_validate(
        {
            "incident": new_incident(federation.appliance),
            "kind": kind,
            "scope": scope,
            "about": about,
            "aware_at": timestamp(federation.clock.now()),
        }
    )


def happen(federation: Federation, scope: str, about: str, kind: str = "security", by: str = "rosa") -> str:
    with transaction(federation.appliance.engine) as session:
        incident = told(federation, scope, about, kind)
        return open_by_person(session, federation.appliance, person(federation, by), incident, words=WORDS).id


def settled(federation: Federation, incident: str, individuals: str = "not-required") -> None:
    with transaction(federation.appliance.engine) as session:
        duties = Settled(authority=timestamp(federation.clock.now()), individuals=individuals)
        update(session, federation.appliance, person(federation, "carl"), incident, duties, words="Letter of today")


def say_over(federation: Federation, incident: str, by: str) -> str:
    with transaction(federation.appliance.engine) as session:
        who = person(federation, by)
        return close(session, federation.appliance, who, incident, "resolved", words="It was found").state


def over(federation: Federation, incident: str) -> None:
    settled(federation, incident)
    assert say_over(federation, incident, "carl") == "open"
    assert say_over(federation, incident, "lena") == "closed"


def opened(federation: Federation) -> list[IncidentRecord]:
    with reading(federation.appliance.engine) as session:
        return IncidentRepository(session).open()


@pytest.fixture(autouse=True)
def nothing_is_left_frozen(federation: Federation):  # type: ignore[no-untyped-def]
    yield
    for row in opened(federation):
        with transaction(federation.appliance.engine) as session:
            IncidentRepository(session).close(IncidentRepository(session).get(row.id), "resolved", at=row.opened_at)


def once_after(federation: Federation, group: str, action: Callable[[], object]) -> None:
    def once() -> None:
        if federation.exchange.requests[-1][1] == group:
            federation.exchange.after_request = lambda: None
            action()

    federation.exchange.after_request = once


@pytest.mark.parametrize("scope", ["study", "federation"])
def test_a_study_stops_where_it_is_and_goes_on_once_two_people_closed_it(
    federation: Federation, begin: Begin, scope: str
) -> None:
    study, found = begin(), []
    about = study if scope == "study" else "everything"
    once_after(federation, "train-2-1", lambda: found.append(happen(federation, scope, about)))
    assert federation.driver(study).run() is StudyState.RUNNING
    # The sum of the round that was under way was not opened: its attempt stands as it was sent.
    assert [record["round"] for record in federation.records(study)] == [1]
    assert federation.driver(study).run() is StudyState.RUNNING
    assert len(federation.attempts(study)) == 2
    with reading(federation.appliance.engine) as session:
        assert _held_up(session, federation.row(study))
        facts = incident_facts(session, study=study, sites=(), now=federation.clock.now())
    assert facts == {"open": 1, "overdue": 0}
    over(federation, found[0])
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    # Sent again byte for byte, answered from disk: frozen and thawed cost no step.
    assert all(federation.charged(study, site)[False] == 3 for site in federation.sites)


def test_a_frozen_site_is_left_out_and_comes_back(federation: Federation, begin: Begin) -> None:
    study, found = begin(training={**ROUNDS, "rounds": 4}), []
    once_after(federation, "train-1-1", lambda: found.append(happen(federation, "site", "cologne")))

    def thaw() -> None:
        once_after(federation, "train-3-1", lambda: over(federation, found[0]))

    once = federation.exchange.after_request

    def both() -> None:
        once()
        if found:
            thaw()

    federation.exchange.after_request = both
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = [record for record in federation.records(study) if record["phase"] == "train"]
    # What it computed while nobody knew is in no sum: that attempt was abandoned.
    assert federation.attempts(study)[0].attempt.excluded == {"cologne": "incident"}
    assert ["cologne" in record["contributed"] for record in rounds] == [False, False, False, True]
    assert rounds[1]["excluded"] == {"cologne": "incident"}


def test_too_few_sites_freeze_the_study_and_do_not_fail_it(federation: Federation, begin: Begin) -> None:
    study = begin()
    first, second = happen(federation, "site", "cologne"), happen(federation, "site", "berlin")
    assert federation.driver(study).run() is StudyState.KEYS
    with reading(federation.appliance.engine) as session:
        assert _held_up(session, federation.row(study))
    over(federation, first)
    with reading(federation.appliance.engine) as session:
        assert not _held_up(session, federation.row(study))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert all("berlin" not in record["invited"] for record in federation.records(study))
    over(federation, second)


def test_a_site_reports_its_own_and_a_study_it_is_in_under_its_key(federation: Federation, begin: Begin) -> None:
    study = begin()

    def reported(incident: Incident, by: str = "aachen", signer: str = "aachen") -> IncidentRecord:
        report = IncidentReport(site=by, happened=incident, reported_at=timestamp(federation.clock.now()))
        data = seal(
            INCIDENT_REPORT_TYPE, report.model_dump(mode="json"), federation.sites[signer].keys.identity
        ).to_bytes()
        with transaction(federation.appliance.engine) as session:
            site = SiteRepository(session).get(by)
            assert site is not None
            first = open_by_site(session, federation.appliance, site, data)
            assert open_by_site(session, federation.appliance, site, data).id == first.id  # sent again
            return first

    own = reported(told(federation, "site", "aachen"))
    assert (own.opened_by, own.state) == ("site:aachen", "open")
    entry = next(event for event in federation.events(own.id) if event.event is EventType.INCIDENT_OPENED)
    assert entry.actor == "site:aachen"
    assert own.report is not None
    assert entry.digests == {"report": sha256_hex(own.report)}
    assert (entry.labels["scope"], entry.labels["about"]) == ("site", "aachen")
    assert reported(told(federation, "study", study)).about == study
    with pytest.raises(Refused, match="its own"):
        reported(told(federation, "site", "berlin"))
    with pytest.raises(Refused):
        reported(told(federation, "federation", "everything"))
    with pytest.raises(BadSignature):
        reported(told(federation, "site", "aachen"), signer="berlin")


def test_an_insider_cannot_close_one_alone(federation: Federation, begin: Begin) -> None:
    study = begin()
    incident = happen(federation, "study", study, by="carl")
    with pytest.raises(Refused, match="told, or need not be"):
        say_over(federation, incident, "lena")
    settled(federation, incident)
    with pytest.raises(Refused, match="opened"):
        say_over(federation, incident, "carl")
    assert say_over(federation, incident, "lena") == "open"
    with pytest.raises(Conflict, match="already"):
        say_over(federation, incident, "lena")
    with pytest.raises(Refused, match="researcher"):
        say_over(federation, incident, "rosa")
    assert federation.driver(study).run() is StudyState.KEYS
    # An update is another state of facts: what was said of the former no longer counts.
    settled(federation, incident, individuals=timestamp(federation.clock.now()))
    assert say_over(federation, incident, "lena") == "open"


def test_the_log_tells_of_it_without_a_word_or_a_name(federation: Federation, begin: Begin) -> None:
    incident = happen(federation, "study", begin())
    over(federation, incident)
    told_ = [event.event for event in federation.events(incident)]
    assert told_ == [
        EventType.INCIDENT_OPENED,
        EventType.INCIDENT_UPDATED,
        EventType.INCIDENT_CLOSING,
        EventType.INCIDENT_CLOSED,
    ]
    with reading(federation.appliance.engine) as session:
        leaves = b"".join(row.leaf for row in session.exec(select(LogEntry)))
    assert b"laptop" not in leaves
    assert b"carl" not in leaves


ROUNDS = {"sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0}
