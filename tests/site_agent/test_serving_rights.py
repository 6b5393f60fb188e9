"""A model whose patients withdrew, or whose contributor lost its legal basis, at a hospital that serves it: decided by
the hospital's own copy of the log and its own notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.audit_event import AuditEvent, EventType
from site_agent.cohort.tables import SentNotice
from site_agent.database import transaction
from site_agent.witness.mirror import Mirror
from site_agent.witness.tables import LogHead
from tests.site_agent.test_serving_gate import Clinic

AT = "2026-11-23T02:00:00Z"
REVIEW = "review-00000000000000a1"
INCIDENT = "incident-00000000000000b1"


@pytest.fixture
def clinic(tmp_path: Path):
    clinic = Clinic(tmp_path / "site", "research")
    clinic.say()
    assert clinic.broken() == set()
    yield clinic
    clinic.engine.dispose()


def event(kind: EventType, subject: str, actor: str = "site:clinic-b", **fields: Any) -> bytes:
    return AuditEvent(event=kind, at=AT, actor=actor, subject=subject, **fields).leaf()


def opened(study: str = "heart-study", review: str = REVIEW) -> bytes:
    return event(EventType.REVIEW_OPENED, study, labels={"review": review, "causes": "objection"})


def closed(study: str = "heart-study", review: str = REVIEW) -> bytes:
    return event(EventType.REVIEW_CLOSED, study, "person-a", labels={"review": review, "grounds": "art-21-6"})


def invalid(site: str, incident: str = INCIDENT) -> bytes:
    labels = {"kind": "basis-invalidated", "scope": "site", "about": site, "aware_at": AT}
    return event(EventType.INCIDENT_OPENED, incident, "person-a", labels=labels)


def over(actor: str, role: str, kind: EventType) -> bytes:
    facts = {"facts": "sha256:" + "a" * 64}
    return event(kind, INCIDENT, actor, labels={"role": role, "outcome": "resolved"}, digests=facts)


def logged(clinic: Clinic, *entries: bytes) -> None:
    Mirror(clinic.home.mirror).write(0, entries)
    with transaction(clinic.engine) as session:
        session.merge(LogHead(id=1, size=len(entries), root=b"", note=b"", peaks=b"", seen_at=AT))


def noticed(clinic: Clinic, study: str = "heart-study") -> None:
    with transaction(clinic.engine) as session:
        session.add(SentNotice(review=REVIEW, study=study, notice=b"signed", made_at=AT, delivered=True))


def test_a_review_in_the_log_stops_a_running_server_until_it_is_closed(clinic: Clinic) -> None:
    assert clinic.ask().status_code == 200
    logged(clinic, b"first", opened())
    assert clinic.broken() == {"G11-review"}
    answer = clinic.ask()
    assert answer.status_code == 503
    assert "withdrew" in answer.text
    logged(clinic, b"first", opened(), closed())
    assert clinic.ask().status_code == 200


def test_another_study_s_review_and_a_closing_of_another_change_nothing(clinic: Clinic) -> None:
    logged(clinic, opened("lung-study"))
    assert clinic.broken() == set()
    logged(clinic, opened("lung-study"), opened(review="review-00000000000000a2"), closed())
    assert clinic.broken() == {"G11-review"}


def test_a_review_that_the_coordinator_suppresses_holds_where_it_was_asked_for(clinic: Clinic) -> None:
    """It took the notice, and the log does not tell of it."""
    noticed(clinic, "lung-study")
    assert clinic.broken() == set()
    with transaction(clinic.engine) as session:
        row = session.get_one(SentNotice, REVIEW)
        row.study = "heart-study"
        session.add(row)
    assert clinic.broken() == {"G11-review"}
    logged(clinic, closed())  # the end of what never began
    assert clinic.broken() == {"G11-review"}
    logged(clinic, closed(), opened())
    assert clinic.broken() == {"G11-review"}
    logged(clinic, closed(), opened(), closed())
    assert clinic.broken() == set()


def test_a_contributor_that_lost_its_legal_basis_holds_served_copies_until_two_people_decided(clinic: Clinic) -> None:
    told = [invalid("clinic-z", "incident-00000000000000b2")]
    logged(clinic, *told)
    assert clinic.broken() == set()
    told.append(invalid("clinic-c"))
    logged(clinic, *told)
    assert clinic.broken() == {"G25"}
    told.append(over("person-a", "compliance_officer", EventType.INCIDENT_CLOSING))
    logged(clinic, *told)
    assert clinic.broken() == {"G25"}
    told.append(over("person-b", "clinical_lead", EventType.INCIDENT_CLOSED))
    logged(clinic, *told)
    assert clinic.broken() == set()
