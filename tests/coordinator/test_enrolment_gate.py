"""The enrolment gate over TLS: what a site attests and has on record decides, and the token stays good until it does.

Played here: a site that forges, borrows and replays statements, an insider at the coordinator who revokes."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.evidence.record import revoke
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import FILE, Governance, Subprocessor, save_governance
from coordinator.people.tables import Person
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from coordinator.sites.statements import site_papers
from protocol.attestation import STATEMENT_TYPE, make_statement
from protocol.enrolment import GateAnswer, StatementReceipt, Token
from protocol.envelope import seal
from protocol.signing import SigningKey
from tests.coordinator.appliances import Served, TestSite, served_coordinator
from tests.papers import SITE_KINDS, safeguards, site_record, site_records, statement_of

pytestmark = pytest.mark.processes


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    with served_coordinator(tmp_path) as served:
        yield served


def invite(served: Served, name: str = "lyon") -> Token:
    with transaction(served.appliance.engine) as session:
        return enrolment.invite(session, served.appliance, name)


def ask(served: Served, site: TestSite, token: Token, *, path: str = "/v1/enrol", **papers: Any) -> httpx.Response:
    if "kinds" in papers:
        papers["records"] = site_records(site.name, today=today(), kinds=papers.pop("kinds"))
    request = site.request(token, statement=site.statement(token, **papers))
    with served.client() as client:
        return client.post(path, json=request.model_dump())


def enrolled(served: Served, folder: Path, name: str = "lyon") -> TestSite:
    site, token = TestSite(name, folder), invite(served, name)
    answer = ask(served, site, token)
    assert answer.status_code == 201, answer.text
    site.response = enrolment.EnrolmentResponse.model_validate_json(answer.content)
    return site


def send(served: Served, site: TestSite, data: bytes) -> httpx.Response:
    with served.client(context=site.context(served.ca_path)) as client:
        return client.post("/v1/sites/me/statement", content=data)


def today() -> date:
    return datetime.now(UTC).date()


def later(served: Served, site: TestSite, seconds: int = 2, **changes: Any) -> bytes:
    now = datetime.now(UTC) + timedelta(seconds=seconds)
    return statement_of(site.name, site.key, served.appliance.keys.authority.fingerprint, now=now, **changes)


def events(served: Served) -> list[dict[str, Any]]:
    with reading(served.appliance.engine) as session:
        return [json.loads(row.leaf) for row in session.exec(select(LogEntry).order_by(LogEntry.id))]  # type: ignore[arg-type]


def kinds_on_record(served: Served, site: str = "lyon") -> set[str]:
    with reading(served.appliance.engine) as session:
        return {record["kind"] for record in site_papers(session, served.appliance, site)["site"]["records"]}


def without(*kinds: str) -> tuple[str, ...]:
    return tuple(kind for kind in SITE_KINDS if kind not in kinds)


@pytest.mark.parametrize(
    ("papers", "rule"),
    [
        ({"disk_encryption": False}, "G07"),
        ({"tls_min": "1.2"}, "G07"),
        ({"pseudonymised": False}, "G07"),
        ({"kinds": without("restore_test")}, "G08"),
        ({"kinds": without("security_test")}, "G08"),
        ({"kinds": without("dpa")}, "G16-agreement"),
        ({"jurisdiction": "US", "hipaa_role": "covered-entity", "kinds": without("baa")}, "H02"),
        ({"jurisdiction": "US", "kinds": without("risk_analysis")}, "H16"),
        ({"jurisdiction": "US", "last_material_change": date.today() - timedelta(days=3)}, "H16"),
        ({"jurisdiction": "US", "security_official": None}, "H18"),
        ({"jurisdiction": "US", "privacy_official": None}, "H18"),
        ({"jurisdiction": "US", "kinds": without("training")}, "H20"),
        ({"jurisdiction": "US", "idle_logoff": False}, "H25"),
    ],
)
def test_what_is_missing_is_listed_and_the_token_stays_good(
    served: Served, tmp_path: Path, papers: dict[str, Any], rule: str
) -> None:
    site, token = TestSite("lyon", tmp_path), invite(served)
    dry = GateAnswer.model_validate_json(ask(served, site, token, path="/v1/enrol/check", **dict(papers)).content)
    assert (dry.open, [item.rule for item in dry.owed]) == (False, [rule])
    before = len(events(served))
    refused = ask(served, site, token, **dict(papers))
    assert (refused.status_code, refused.json()["code"]) == (403, "enrolment-denied")
    assert rule in refused.json()["detail"]
    assert refused.json()["remedy"]
    (decided,) = events(served)[before:]
    assert (decided["event"], decided["subject"], decided["labels"]["rule"]) == ("policy.decided", "site:lyon", rule)
    with reading(served.appliance.engine) as session:
        row = SiteRepository(session).get("lyon")
        assert row is not None
        assert (row.status, row.identity, row.serial) == ("invited", None, None)
        assert EvidenceRepository(session).all() == [], "nothing of a site that is not in is kept"
    assert ask(served, site, token).status_code == 201, "the same token, with everything in order"


def test_several_findings_are_listed_at_once(served: Served, tmp_path: Path) -> None:
    site, token = TestSite("boston", tmp_path), invite(served, "boston")
    answer = ask(served, site, token, jurisdiction="US", hipaa_role="covered-entity", records=[], idle_logoff=False)
    assert all(rule in answer.json()["detail"] for rule in ("H02", "H16", "H20", "H25"))


def test_a_dry_run_keeps_nothing_and_needs_the_token(served: Served, tmp_path: Path) -> None:
    site, token = TestSite("lyon", tmp_path), invite(served)
    before = len(events(served))
    assert GateAnswer.model_validate_json(ask(served, site, token, path="/v1/enrol/check").content).open
    unknown = token.model_copy(update={"secret": "A" * 43})
    assert ask(served, site, unknown, path="/v1/enrol/check").json()["code"] == "token-refused"
    assert len(events(served)) == before
    assert ask(served, site, token).status_code == 201


@pytest.mark.parametrize(
    ("changes", "jurisdiction", "rule"),
    [
        ({"country": "IN"}, "EU", "G23"),
        ({"subprocessors": (Subprocessor(name="cloud", notified=False, baa=True),)}, "EU", "G17"),
        ({"subprocessors": (Subprocessor(name="cloud", notified=True, objected=True, baa=True),)}, "EU", "G17"),
        ({"subprocessors": (Subprocessor(name="cloud", notified=True),)}, "US", "H03"),
    ],
)
def test_the_coordinators_own_papers_count_too(
    served: Served, tmp_path: Path, changes: dict[str, Any], jurisdiction: str, rule: str
) -> None:
    said = {"country": "DE", "contact": "it@example.org", "security": "Measures", "backup_tested": today(), **changes}
    save_governance(served.appliance.home, Governance.model_validate(said))
    site, token = TestSite("lyon", tmp_path), invite(served)
    refused = ask(served, site, token, jurisdiction=jurisdiction)
    assert [item["rule"] for item in refused.json()["findings"]] == [rule]
    if rule == "G23":
        clauses = [site_record("lyon", kind, today=today()) for kind in ("scc", "tia")]
        records = site_records("lyon", today=today()) + clauses
        assert ask(served, site, token, records=records).status_code == 201


def test_a_coordinator_that_has_said_nothing_lets_nobody_in(served: Served, tmp_path: Path) -> None:
    (served.appliance.home / FILE).unlink()
    site, token = TestSite("lyon", tmp_path), invite(served)
    refused = ask(served, site, token)
    assert {item["rule"] for item in refused.json()["findings"]} == {"G17", "G23"}
    assert {item["kind"] for item in refused.json()["findings"]} == {"missing-fact"}


def test_a_wrong_clock_is_warned_of_and_one_far_ahead_refused(served: Served, tmp_path: Path) -> None:
    site, token = TestSite("lyon", tmp_path), invite(served)
    slow = datetime.now(UTC) - timedelta(seconds=30)
    dry = GateAnswer.model_validate_json(ask(served, site, token, path="/v1/enrol/check", now=slow).content)
    assert (dry.open, [item.rule for item in dry.warnings]) == (True, ["N07"])
    fast = datetime.now(UTC) + timedelta(hours=1)
    assert ask(served, site, token, now=fast).json()["code"] == "refused"


# A malicious site


def test_a_forged_or_borrowed_statement_enrols_nobody(served: Served, tmp_path: Path) -> None:
    ca = served.appliance.keys.authority.fingerprint
    site, token = TestSite("lyon", tmp_path), invite(served)
    now = datetime.now(UTC)
    for statement in (
        statement_of("lyon", SigningKey.generate(), ca, now=now),  # by another key
        statement_of("milano", site.key, ca, now=now),  # another site's
        statement_of("lyon", site.key, "sha256:" + "0" * 64, now=now),  # for another coordinator
        b"{}",
    ):
        request = site.request(token, statement=statement.decode())
        with served.client() as client:
            assert client.post("/v1/enrol", json=request.model_dump()).status_code in (400, 403)
    assert ask(served, site, token).status_code == 201, "nothing of all that spent the token"


def test_a_statement_is_not_sent_twice_nor_by_another_site(served: Served, tmp_path: Path) -> None:
    lyon, milano = enrolled(served, tmp_path), enrolled(served, tmp_path, "milano")
    good = later(served, lyon)
    assert send(served, lyon, good).status_code == 200
    revoking = later(served, lyon, 4, records=[])
    assert send(served, lyon, revoking).status_code == 200
    assert send(served, lyon, good).json()["code"] == "refused", "an older one does not bring its records back"
    assert send(served, lyon, revoking).json()["code"] == "refused"
    assert send(served, milano, later(served, lyon, 8)).json()["code"] == "bad-signature"
    assert kinds_on_record(served) == set()


def test_a_record_about_another_site_is_not_taken(served: Served, tmp_path: Path) -> None:
    lyon = enrolled(served, tmp_path)
    enrolled(served, tmp_path, "milano")
    with pytest.raises(ValueError, match="not about the site"):
        later(served, lyon, records=[site_record("milano", "dpa", today=today())])
    # A site that builds the bytes itself fares no better.
    now = datetime.now(UTC) + timedelta(seconds=2)
    ca = served.appliance.keys.authority.fingerprint
    made = make_statement("lyon", ca, safeguards().attested(now.date()), [], now=now).model_dump(mode="json")
    made["records"] = [site_record("milano", "datasheet", today=today()).model_dump(mode="json")]
    answer = send(served, lyon, seal(STATEMENT_TYPE, made, lyon.key).to_bytes())
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert "datasheet" not in kinds_on_record(served, "milano")


# What stands, and who takes it away


def test_each_statement_replaces_the_one_before(served: Served, tmp_path: Path) -> None:
    lyon = enrolled(served, tmp_path)
    assert kinds_on_record(served) == set(SITE_KINDS)
    sheet = site_record("lyon", "datasheet", today=today())
    records = [*site_records("lyon", today=today(), kinds=without("dpa")), sheet]
    receipt = StatementReceipt.model_validate_json(send(served, lyon, later(served, lyon, records=records)).content)
    assert receipt.not_counted == ()
    assert kinds_on_record(served) == {*without("dpa"), "datasheet"}
    told = [event for event in events(served) if event["event"] == "site.attested"][-1]
    dpa = site_record("lyon", "dpa", today=today())
    assert (told["groups"]["recorded"], told["groups"]["withdrawn"]) == ([sheet.digest], [dpa.digest])
    again = send(served, lyon, later(served, lyon, 5, records=[dpa]))
    assert again.json()["not_counted"] == [dpa.digest], "what was revoked does not come back"
    assert kinds_on_record(served) == set()


def test_what_an_officer_revoked_stays_revoked_and_what_an_officer_recorded_stays(
    served: Served, tmp_path: Path
) -> None:
    lyon = enrolled(served, tmp_path)
    officer = Person(name="bo", role="compliance_officer", status="active", invited_at="2026-01-01T00:00:00Z")
    dpa, clauses = (site_record("lyon", kind, today=today()) for kind in ("dpa", "scc"))
    with transaction(served.appliance.engine) as session:
        revoke(session, served.appliance, officer, dpa.digest)
        EvidenceRepository(session).add(clauses, by="bo", at="2026-01-01T00:00:00Z")
    assert send(served, lyon, later(served, lyon)).json()["not_counted"] == [dpa.digest]
    assert kinds_on_record(served) == {*without("dpa"), "scc"}


def test_a_site_that_enrols_anew_begins_with_new_papers(served: Served, tmp_path: Path) -> None:
    enrolled(served, tmp_path)
    with transaction(served.appliance.engine) as session:
        enrolment.revoke(session, served.appliance, "lyon")
        papers = site_papers(session, served.appliance, "lyon")["site"]
    assert papers["attestation"]["age_days"] == 0
    with transaction(served.appliance.engine) as session:
        enrolment.invite(session, served.appliance, "lyon")
        papers = site_papers(session, served.appliance, "lyon")["site"]
    assert "attestation" not in papers, "nobody has attested anything under a key that counts"


def test_a_statement_needs_a_site_that_may_still_speak(served: Served, tmp_path: Path) -> None:
    lyon = enrolled(served, tmp_path)
    with transaction(served.appliance.engine) as session:
        enrolment.revoke(session, served.appliance, "lyon")
    assert send(served, lyon, later(served, lyon)).json()["code"] == "site-revoked"
