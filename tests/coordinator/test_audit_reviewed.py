"""Somebody reads the log: on record, in the log itself, and counted from by the round gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import select

from coordinator.audit.review import last_review_days
from coordinator.audit.tables import LogReview
from coordinator.database import reading
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson, served_coordinator

pytestmark = pytest.mark.processes


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    with served_coordinator(tmp_path) as served:
        yield served


def days(served: Served) -> int | None:
    with reading(served.appliance.engine) as session:
        return last_review_days(session, served.appliance)


def test_days_count_from_the_last_review_or_from_the_beginning(served: Served) -> None:
    officer = TestPerson("dora")
    officer.join(served, Role.COMPLIANCE_OFFICER)
    served.clock.move(days=100)
    assert days(served) == 100
    with served.client(token=officer.sign_in(served)) as client:
        answer = client.post("/v1/audit/reviews", json={})
    assert answer.status_code == 201, answer.text
    assert days(served) == 0
    served.clock.move(days=7)
    assert days(served) == 7
    with reading(served.appliance.engine) as session:
        (row,) = session.exec(select(LogReview)).all()
    assert (row.person, row.size) == ("dora", answer.json()["size"])


def test_who_may_not_read_the_log_cannot_say_so(served: Served) -> None:
    researcher = TestPerson("rosa")
    researcher.join(served, Role.RESEARCHER)
    with served.client(token=researcher.sign_in(served)) as client:
        assert client.post("/v1/audit/reviews", json={}).status_code == 403
    with served.client() as client:
        assert client.post("/v1/audit/reviews", json={}).status_code == 401
