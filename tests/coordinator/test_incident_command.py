"""`cloister incident …` against a served coordinator: a freeze by one person, its clocks, and its end by two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.client import account, incident
from coordinator.client.connection import Connection, CoordinatorRefused, pinned_context
from protocol.errors import Malformed
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson, TestSite

pytestmark = pytest.mark.processes
Run = Callable[..., Any]


@pytest.fixture
def run(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(person, *arguments)`: the JSON that the command printed. Raises what the command raises."""
    roles = {
        "rosa": Role.RESEARCHER,
        "carl": Role.COMPLIANCE_OFFICER,
        "lena": Role.CLINICAL_LEAD,
        "otto": Role.AUDITOR,
    }
    tokens = {}
    for name, role in roles.items():
        person = TestPerson(name)
        person.join(served, role)
        tokens[name] = person.sign_in(served)
    TestSite("aachen", tmp_path / "aachen").enrol_in(served.appliance)

    def as_person(name: str, *arguments: str) -> Any:
        connection = Connection(served.address, pinned_context(served.ca_path), tokens[name])
        monkeypatch.setattr(account, "open_account", lambda _home: SimpleNamespace(connect=lambda: connection))
        done = CliRunner().invoke(incident.app, [*arguments, "--json"])
        if done.exception is not None:
            raise done.exception
        return json.loads(done.output)

    return as_person


def test_one_opens_and_two_close(run: Run) -> None:
    opened = run("rosa", "open", "data-breach", "--site", "aachen", "--description", "An export was lost")
    name = opened["incident"]
    assert (opened["state"], opened["scope"], opened["about"], opened["overdue"]) == ("open", "site", "aachen", False)
    assert "An export" not in json.dumps(opened)
    with pytest.raises(CoordinatorRefused, match="told, or need not be"):
        run("carl", "close", name, "--outcome", "resolved", "--reason", "Found")
    with pytest.raises(CoordinatorRefused, match="compliance_officer"):
        run("lena", "update", name, "--authority", "not-required", "--reason", "Assessed")
    run("carl", "update", name, "--authority", "not-required", "--individuals", "not-required", "--reason", "Assessed")
    assert run("carl", "close", name, "--outcome", "resolved", "--reason", "Found")["state"] == "open"
    assert run("lena", "list")[0]["closing"] == ["carl"]
    assert run("lena", "close", name, "--outcome", "resolved", "--reason", "Found")["state"] == "closed"
    assert run("rosa", "list") == []
    assert [row["outcome"] for row in run("rosa", "list", "--all")] == ["resolved"]


def test_a_clock_that_ran_out_is_told(run: Run, served: Served) -> None:
    run("carl", "open", "security", "--everything", "--description", "Odd log-ins")
    assert run("otto", "list")[0]["overdue"] is False
    # The clock of law, not of sessions: looked at from the record's own times.
    row = run("otto", "list")[0]
    assert row["authority_due"] > row["aware_at"]
    old = run("carl", "open", "security", "--everything", "--description", "x", "--aware-at", "2026-01-01T00:00:00Z")
    assert old["overdue"] is True


@pytest.mark.parametrize(
    ("who", "arguments", "why"),
    [
        ("rosa", ["open", "flood", "--everything", "--description", "x"], "no kind"),
        ("rosa", ["open", "security", "--description", "x"], "one thing"),
        ("rosa", ["open", "security", "--site", "aachen", "--everything", "--description", "x"], "one thing"),
        ("rosa", ["open", "security", "--site", "nowhere", "--description", "x"], "no site nowhere"),
        ("rosa", ["open", "security", "--study", "nothing", "--description", "x"], "no study nothing"),
        ("rosa", ["open", "security", "--everything", "--description", " "], "words"),
        ("rosa", ["open", "basis-invalidated", "--everything", "--description", "x"], "does not fit"),
        ("rosa", ["open", "security", "--everything", "--description", "x", "--aware-at", "now"], "not valid"),
        ("otto", ["open", "security", "--everything", "--description", "x"], "not for auditors"),
        ("carl", ["close", "incident-0000000000000000", "--outcome", "resolved", "--reason", "x"], "There is no"),
        ("carl", ["update", "incident-0000000000000000", "--reason", "x"], "There is no"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_frozen(run: Run, who: str, arguments: list[str], why: str) -> None:
    with pytest.raises((CoordinatorRefused, Malformed), match=why):
        run(who, *arguments)
    assert run("carl", "list") == []
