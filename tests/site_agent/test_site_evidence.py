"""What the hospital has on record: kept once, revoked for good, about this site alone; expiry and revocation show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from protocol.canonical import sha256_hex
from protocol.errors import Malformed, Refused
from protocol.evidence import EvidenceRecord
from protocol.papers import Safeguards
from protocol.signing import SigningKey
from site_agent import cli
from site_agent.database import create_database, open_database, transaction
from site_agent.evidence.facts import papers_facts, records_facts
from site_agent.evidence.files import read_papers
from site_agent.evidence.record import NoSuchEvidence, attest, import_records, revoke
from site_agent.settings import SiteDocument, SiteHome

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RECORD = {"kind": "dpa", "issuer": "Hospital", "issued": "2026-01-01", "file": "sha256:" + "c" * 64}
SAFEGUARDS = Safeguards(
    jurisdiction="EU", country="FR", hipaa_role="none", disk_encryption=True, transit_encryption=True, tls_min="1.3",
    pseudonymised=True, idle_logoff=True, security_official="IT", privacy_official="DPO",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "site")
    home.path.mkdir()
    create_database(home.database).dispose()
    key = SigningKey.generate().public.text
    document = SiteDocument(site="lyon", address="localhost:1", log="log", coordinator=key)
    home.settings.write_text(document.to_toml())
    return home


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cloister-site", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out.out, out.err

    return run


def record(**changes: Any) -> EvidenceRecord:
    fields = {**RECORD, "scope": "site", "subject": "lyon", **changes}
    return EvidenceRecord.model_validate(fields, strict=False)


def test_records_count_until_they_expire_or_are_revoked(home: SiteHome) -> None:
    engine = open_database(home)
    with transaction(engine) as session:
        assert records_facts(session, on=NOW.date()) == [], "somebody looked, and there is none"
        first, second = import_records(session, "lyon", [record(), record(kind="baa", expires="2026-05-02")], now=NOW)
        import_records(session, "lyon", [record()], now=NOW + timedelta(hours=1))  # again: left as it is
        (serving,) = import_records(session, "lyon", [record(kind="pms_plan", scope="deployment")], now=NOW)
    with transaction(engine) as session:
        left = {item["kind"]: item["days_left"] for item in records_facts(session, on=NOW.date())}
        assert (set(left), left["baa"]) == ({"dpa", "baa"}, 2)
        later = {item["kind"]: item["days_left"] for item in records_facts(session, on=date(2026, 5, 3))}
        assert later["baa"] == 0
        assert [r["kind"] for r in records_facts(session, on=NOW.date(), scope="deployment")] == ["pms_plan"]
        revoke(session, first.digest, now=NOW)
        assert [r["kind"] for r in records_facts(session, on=NOW.date())] == ["baa"]
        with pytest.raises(Refused, match="revoked already"):
            revoke(session, first.digest, now=NOW)
        with pytest.raises(NoSuchEvidence):
            revoke(session, "sha256:" + "0" * 64, now=NOW)
        with pytest.raises(Refused, match="This very record was revoked"):
            import_records(session, "lyon", [record()], now=NOW)
    assert second.revoked_at is None
    assert serving.scope == "deployment"


@pytest.mark.parametrize(
    "changes", [{"subject": "milano"}, {"scope": "study", "subject": "heart"}, {"issued": "2026-05-02"}]
)
def test_nothing_is_kept_where_one_record_is_refused(home: SiteHome, changes: dict[str, str]) -> None:
    engine = open_database(home)
    with pytest.raises(Refused), transaction(engine) as session:
        import_records(session, "lyon", [record(kind="baa"), record(**changes)], now=NOW)
    with transaction(engine) as session:
        assert records_facts(session, on=NOW.date()) == []


def test_what_was_attested_is_a_fact_and_what_was_not_is_none(home: SiteHome) -> None:
    with transaction(open_database(home)) as session:
        assert papers_facts(session, "lyon", on=NOW.date()) == {"name": "lyon", "records": []}
        attest(session, SAFEGUARDS, now=NOW - timedelta(days=400))
        attest(session, SAFEGUARDS.model_copy(update={"idle_logoff": False}), now=NOW - timedelta(days=2))
        facts = papers_facts(session, "lyon", on=NOW.date())
    assert (facts["attestation"]["age_days"], facts["attestation"]["idle_logoff"]) == (2, False)
    assert facts["jurisdiction"] == "EU"


def test_the_commands_keep_list_and_revoke(home: SiteHome, run: Any, tmp_path: Path) -> None:
    (tmp_path / "dpa.pdf").write_bytes(b"agreement")
    item = {name: value for name, value in RECORD.items() if name != "file"}
    file = tmp_path / "papers.yaml"
    file.write_text(json.dumps({"records": [{**item, "document": "dpa.pdf"}]}))
    assert run("evidence", "import", file, "--dry-run", "--home", home.path)[0] == 0
    assert json.loads(run("evidence", "list", "--json", "--home", home.path)[1]) == []
    assert run("evidence", "import", file, "--home", home.path)[0] == 0
    (kept,) = json.loads(run("evidence", "list", "--json", "--home", home.path)[1])
    assert (kept["file"], kept["subject"], kept["revoked_at"]) == (sha256_hex(b"agreement"), "lyon", None)
    assert run("evidence", "revoke", kept["digest"], "--home", home.path)[0] == 0
    code, _, err = run("evidence", "import", file, "--home", home.path)
    assert (code, "revoked" in err, "remedy:" in err) == (1, True, True)


def test_a_wrong_papers_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "papers.yaml"
    for text, expected in [
        ("- 1", "other parts"),
        ("{}", "other parts"),
        ("{recs: []}", "other parts"),
        ("{records: []}", "no list"),
        ("{records: [{kind: dpa, issuer: a, issued: 2026-01-01, document: absent.pdf}]}", "Record 1: its document"),
        ("{records: [{kind: letter, issuer: a, issued: 2026-01-01}]}", "Record 1: kind"),
        ("{attestation: {jurisdiction: EU}}", "attestation: country"),
    ]:
        file.write_text(text)
        with pytest.raises(Malformed, match=expected):
            read_papers(file, "lyon")
    with pytest.raises(Malformed, match="can't be read"):
        read_papers(tmp_path / "none.yaml", "lyon")
