"""The life of an incident and its two clocks, decided purely."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from coordinator.client.incident import left
from coordinator.errors import Conflict
from coordinator.incidents.states import (
    Closing,
    IncidentState,
    admit_closing,
    closed_by,
    require_admissible,
    settle,
)
from protocol.errors import CloisterError, Malformed, Refused
from protocol.identifiers import Role
from protocol.incident import Incident, Settled, due, overdue
from protocol.timestamp import moment, timestamp

AWARE = "2026-11-20T08:00:00Z"
FACTS = "sha256:" + "a" * 64
DONE = Settled(authority="2026-11-20T20:00:00Z", individuals="not-required")
OFFICER, LEAD, ADMINISTRATOR = Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD, Role.ADMINISTRATOR


def said(person: str, role: Role, outcome: str = "resolved", facts: str = FACTS) -> Closing:
    return Closing(person, role, outcome, facts)  # type: ignore[arg-type]


def admit(closing: Closing, *others: Closing, reporter: str | None = "rosa", settled: Settled = DONE) -> None:
    admit_closing(closing, others, state=IncidentState.OPEN, reporter=reporter, settled=settled)


def test_the_clocks_run_for_72_hours_and_60_days() -> None:
    authority, individuals = due(AWARE)
    assert (timestamp(authority), timestamp(individuals)) == ("2026-11-23T08:00:00Z", "2027-01-19T08:00:00Z")
    open_, told = Settled(), Settled(authority="2026-11-21T00:00:00Z")
    assert not overdue(AWARE, open_, now=authority)
    assert overdue(AWARE, open_, now=authority + timedelta(seconds=1))
    assert not overdue(AWARE, told, now=individuals)
    assert overdue(AWARE, told, now=individuals + timedelta(seconds=1))
    assert not overdue(AWARE, DONE, now=individuals + timedelta(days=900))


def test_what_is_left_is_shown_in_hours_then_days_and_what_is_late_in_capitals() -> None:
    now = moment("2026-11-22T08:00:00Z")
    assert left("2026-11-23T08:00:00Z", "open", now=now) == "24 h left"
    assert left("2027-01-19T08:00:00Z", "open", now=now) == "58 d left"
    assert left("2026-11-21T07:30:00Z", "open", now=now) == "OVERDUE by 24 h"
    assert left("2026-11-21T07:30:00Z", "closed", now=now) == "-"


def test_nobody_closes_one_alone_nor_who_opened_it_nor_twice() -> None:
    officer, lead = said("carl", OFFICER), said("lena", LEAD)
    admit(officer)
    assert not closed_by([officer], facts=FACTS)
    assert closed_by([officer, lead], facts=FACTS)
    with pytest.raises(Conflict, match="said so already"):
        admit(officer, officer)
    with pytest.raises(Refused, match="opened"):
        admit(officer, reporter="carl")
    with pytest.raises(Refused, match="role researcher"):
        admit(said("rufus", Role.RESEARCHER))
    with pytest.raises(Refused, match="another outcome"):
        admit(lead, said("carl", OFFICER, "false-alarm"))
    # one person twice, two of one role, two without a compliance officer, two of other facts: none of them is two
    assert not closed_by([officer, said("carl", LEAD)], facts=FACTS)
    assert not closed_by([officer, said("cora", OFFICER)], facts=FACTS)
    assert not closed_by([lead, said("adam", ADMINISTRATOR)], facts=FACTS)
    assert not closed_by([officer, said("lena", LEAD, facts="sha256:" + "b" * 64)], facts=FACTS)


@pytest.mark.parametrize("settled", [Settled(), Settled(authority="not-required"), Settled(individuals="not-required")])
def test_it_is_not_closed_before_both_duties_are_settled(settled: Settled) -> None:
    with pytest.raises(Refused, match="told, or need not be"):
        admit(said("carl", OFFICER), settled=settled)


def test_a_closed_one_is_neither_closed_nor_updated() -> None:
    with pytest.raises(Conflict):
        admit_closing(said("carl", OFFICER), (), state=IncidentState.CLOSED, reporter=None, settled=DONE)
    with pytest.raises(Conflict):
        settle(DONE, DONE, state=IncidentState.CLOSED, aware_at=AWARE, now=moment(AWARE))


def test_what_was_told_adds_up_and_lies_between_awareness_and_now() -> None:
    now = moment("2026-11-22T08:00:00Z")

    def told(**what: str) -> Settled:
        before = Settled(authority="2026-11-21T00:00:00Z")
        return settle(before, Settled(**what), state=IncidentState.OPEN, aware_at=AWARE, now=now)

    assert told(individuals="not-required") == Settled(authority="2026-11-21T00:00:00Z", individuals="not-required")
    for wrong in ({}, {"authority": "2026-11-20T07:59:59Z"}, {"individuals": "2026-11-23T00:00:00Z"}):
        with pytest.raises(Malformed):
            told(**wrong)


def test_awareness_is_not_in_the_future_and_a_basis_is_a_sites() -> None:
    fields = {"incident": "incident-" + "0" * 16, "kind": "security", "scope": "site", "about": "aachen"}
    incident = Incident.model_validate({**fields, "aware_at": AWARE})
    require_admissible(incident, now=moment(AWARE))
    with pytest.raises(CloisterError, match="future"):
        require_admissible(incident, now=moment(AWARE) - timedelta(hours=1))
    for wrong in (
        {"scope": "federation"},
        {"about": "everything", "scope": "study", "kind": "basis-invalidated"},
        {"about": "../etc"},
        {"incident": "incident-1"},
        {"kind": "other"},
    ):
        with pytest.raises(ValidationError):
            Incident.model_validate({**fields, "aware_at": AWARE, **wrong})
