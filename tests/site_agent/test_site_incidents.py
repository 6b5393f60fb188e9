"""Incidents at a hospital: what its own copy of the log says holds its rounds, and what it reported itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed
from protocol.incident import INCIDENT_REPORT_TYPE, Incident
from protocol.timestamp import moment
from site_agent.clock import system_clock
from site_agent.consent.plans import SignedPlan
from site_agent.coordinator_client import CoordinatorUnreachable
from site_agent.database import transaction
from site_agent.incidents.facts import LogReader, incident_facts
from site_agent.incidents.matters import Matters
from site_agent.incidents.report import StillOpen, deliver_reports, end, report, unfinished
from site_agent.witness.mirror import Mirror
from site_agent.witness.tables import LogHead
from tests.site_agent.federation_of_sites import Federation, Hospital, refusal_in

Case = tuple[Federation, SignedPlan]
FACTS = sha256_hex(b"facts")
NAME = "incident-00000000000000aa"
AT = "2026-11-20T08:00:00Z"


def event(kind: EventType, subject: str = NAME, actor: str = "person-a", **fields: Any) -> bytes:
    return AuditEvent(event=kind, at=AT, actor=actor, subject=subject, **fields).leaf()


def opened(scope: str = "study", about: str = "hearts-one", kind: str = "security", name: str = NAME) -> bytes:
    labels = {"kind": kind, "scope": scope, "about": about, "aware_at": AT}
    return event(EventType.INCIDENT_OPENED, name, labels=labels)


def said(actor: str, role: str, *, facts: str = FACTS, over: bool = False, name: str = NAME) -> bytes:
    kind = EventType.INCIDENT_CLOSED if over else EventType.INCIDENT_CLOSING
    return event(kind, name, actor, labels={"role": role, "outcome": "resolved"}, digests={"facts": facts})


CLOSED = (said("person-a", "compliance_officer"), said("person-b", "clinical_lead", over=True))


def logged(site: Hospital, *entries: bytes) -> None:
    """The site has mirrored and verified these."""
    Mirror(site.settings.home.mirror).write(0, entries)
    with transaction(site.engine) as session:
        session.merge(LogHead(id=1, size=len(entries), root=b"", note=b"", peaks=b"", seen_at=AT))


def read(*entries: bytes) -> Matters:
    matters = Matters()
    matters.read(entries)
    return matters


def holds(entries: Iterable[bytes], *, study: str = "hearts-one", sites: tuple[str, ...] = ("bergen", "oslo")) -> bool:
    return bool(read(*entries).incidents(study=study, sites=sites))


@pytest.mark.parametrize(
    ("scope", "about", "held"),
    [
        ("study", "hearts-one", True),
        ("study", "hearts-two", False),
        ("site", "bergen", True),
        ("site", "tromso", False),
        ("federation", "everything", True),
    ],
)
def test_an_incident_touches_its_study_a_site_of_the_cohort_or_everything(scope: str, about: str, held: bool) -> None:
    assert holds([b"first", opened(scope, about)]) is held


@pytest.mark.parametrize(
    "closing",
    [
        [said("person-b", "clinical_lead", over=True)],
        [said("person-b", "compliance_officer"), said("person-b", "clinical_lead", over=True)],
        [said("person-a", "clinical_lead"), said("person-b", "clinical_lead", over=True)],
        [said("person-a", "compliance_officer", facts=sha256_hex(b"x")), said("person-b", "clinical_lead", over=True)],
        [said("person-a", "compliance_officer", name="incident-00000000000000bb"), CLOSED[1]],
        [CLOSED[0]],
    ],
)
def test_a_closing_that_the_log_does_not_tell_as_two_people_s_is_none(closing: list[bytes]) -> None:
    assert holds([opened(), *closing])
    assert not holds([opened(), *CLOSED])


def test_what_is_no_event_changes_nothing_and_reading_goes_on_where_it_ended() -> None:
    matters = Matters()
    matters.read([b'{"event":"incident.opened"}', b'"event":"incident.', opened()[:-1]])
    assert not matters.open()
    matters.read([opened()])
    assert (matters.size, list(matters.open())) == (4, [NAME])
    matters.read(CLOSED)
    assert matters.closed(NAME)
    matters.read([opened()])  # told twice: it stays closed
    assert matters.closed(NAME)


def test_the_clocks_are_read_from_the_log() -> None:
    later = moment(AT) + timedelta(days=61)
    settled = event(EventType.INCIDENT_UPDATED, labels={"authority": "2026-11-21T00:00:00Z"})
    both = event(EventType.INCIDENT_UPDATED, labels={"individuals": "not-required"})
    assert read(opened()).overdue(NAME, now=moment(AT) + timedelta(hours=73))
    assert not read(opened(), settled).overdue(NAME, now=moment(AT) + timedelta(hours=73))
    assert read(opened(), settled).overdue(NAME, now=later)
    assert not read(opened(), settled, both).overdue(NAME, now=later)


def test_a_coordinator_that_goes_on_over_a_logged_incident_is_refused_before_any_charge(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    logged(site, b"first", opened("site", sorted(world.hospitals)[1]))
    assert refusal_in(site.participant().answer("train.contribute", world.round_request(signed)), site) == (
        "policy-denied"
    )
    assert site.worker.computed == 0  # type: ignore[attr-defined]
    logged(site, b"first", opened("site", sorted(world.hospitals)[1]), *CLOSED)
    site.participant().answer("train.contribute", world.round_request(signed))
    assert site.worker.computed == 1  # type: ignore[attr-defined]


class Coordinator:
    """Takes reports, or says that it can't."""

    def __init__(self, up: bool = True) -> None:
        self.up, self.taken = up, list[bytes]()

    def post_incident(self, data: bytes) -> None:
        if not self.up:
            raise CoordinatorUnreachable("The coordinator does not answer.", "Wait.")
        self.taken.append(data)


def tell(site: Hospital, **changes: Any) -> str:
    fields: dict[str, Any] = {"kind": "data-breach", "study": None, "aware_at": None, **changes}
    with transaction(site.engine) as session:
        row = report(
            session, site=site.settings.site, key=site.keys.identity, now=system_clock(),
            entropy=lambda size: b"\xcc" * size, **fields,
        )  # fmt: skip
        return row.incident


def test_a_report_holds_here_at_once_and_a_coordinator_that_suppresses_it_cannot_lift_it(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    incident = tell(site)

    def refused() -> None:
        answer = site.participant().answer("train.contribute", world.round_request(signed))
        assert refusal_in(answer, site) == "policy-denied"

    refused()
    down, up = Coordinator(up=False), Coordinator()
    with pytest.raises(CoordinatorUnreachable):
        deliver_reports(site.engine, down)  # type: ignore[arg-type]
    assert deliver_reports(site.engine, up) == [incident]  # type: ignore[arg-type]
    assert deliver_reports(site.engine, up) == []  # type: ignore[arg-type]
    key = site.keys.identity.public
    document, _ = open_json(Envelope.from_bytes(up.taken[0]), INCIDENT_REPORT_TYPE, {key.key_id: key})
    assert (document["site"], document["happened"]["about"]) == ("bergen", "bergen")
    refused()  # taken, and not in the log: it holds
    mine = opened("site", "bergen", "data-breach", incident)
    for entries, why in (((b"first",), "does not tell of"), ((mine,), "two people closed")):
        logged(site, *entries)
        with transaction(site.engine) as session, pytest.raises(StillOpen, match=why):
            end(session, LogReader(site.settings).matters(session), incident, now=system_clock())
        refused()
    logged(
        site, mine, said("person-a", "compliance_officer", name=incident),
        said("person-b", "clinical_lead", over=True, name=incident),
    )  # fmt: skip
    refused()  # closed by others: this hospital has not said so
    with transaction(site.engine) as session:
        end(session, LogReader(site.settings).matters(session), incident, now=system_clock())
        assert unfinished(session) == []
    site.participant().answer("train.contribute", world.round_request(signed))
    assert site.worker.computed == 1  # type: ignore[attr-defined]


def test_one_incident_is_counted_once_and_another_study_s_not_at_all(running: Case) -> None:
    world, _ = running
    site = world.hospitals["bergen"]
    incident = tell(site, study="hearts-one")
    logged(site, opened("study", "hearts-one", "data-breach", incident))
    with transaction(site.engine) as session:
        matters = LogReader(site.settings).matters(session)
        here = [
            incident_facts(session, matters, study=study, sites=("bergen",), now=moment(AT))
            for study in ("hearts-one", "hearts-two")
        ]
    assert here == [{"open": 1, "overdue": 0}, {"open": 0, "overdue": 0}]


@pytest.mark.parametrize(
    "wrong", [{"kind": "fire"}, {"study": "../x"}, {"aware_at": "2099-01-01T00:00:00Z"}, {"aware_at": "now"}]
)
def test_a_report_that_does_not_fit_is_refused_and_kept_nowhere(running: Case, wrong: dict[str, Any]) -> None:
    world, _ = running
    site = world.hospitals["bergen"]
    with pytest.raises(Malformed):
        tell(site, **wrong)
    with transaction(site.engine) as session:
        assert unfinished(session) == []


def test_only_a_site_can_lose_its_legal_basis() -> None:
    matters = read(opened("site", "bergen", "basis-invalidated"), opened("site", "oslo", name=NAME[:-1] + "b"))
    assert matters.invalidated(("bergen", "oslo")) == ["bergen"]
    assert Incident.model_validate(matters.open()[NAME].model_dump()).kind == "basis-invalidated"
