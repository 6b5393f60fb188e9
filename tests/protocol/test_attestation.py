"""A site's statement: who made it, for whom, when, and that nothing of another site's is in it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.attestation import (
    AHEAD_SECONDS,
    STATEMENT_TYPE,
    Attestation,
    SiteStatement,
    make_statement,
    open_statement,
    seal_statement,
    site_facts,
)
from protocol.envelope import seal
from protocol.errors import BadSignature, CloisterError, Malformed, Refused
from protocol.evidence import EvidenceRecord
from protocol.papers import Safeguards, read_records, read_safeguards
from protocol.signing import SigningKey
from protocol.timestamp import timestamp

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CA, OTHER_CA = "sha256:" + "a" * 64, "sha256:" + "b" * 64
KEY = SigningKey.from_seed(bytes(range(32)))
TOLD: dict[str, Any] = {
    "jurisdiction": "EU", "country": "FR", "hipaa_role": "none", "disk_encryption": True, "transit_encryption": True,
    "tls_min": "1.3", "pseudonymised": True, "idle_logoff": True, "security_official": "Head of IT security",
    "privacy_official": "A. Person",
}  # fmt: skip


def attestation(**changes: Any) -> Attestation:
    return Safeguards(**{**TOLD, **changes}).attested(NOW.date() - timedelta(days=3))


def record(subject: str = "lyon", kind: str = "dpa", **changes: Any) -> EvidenceRecord:
    fields = {"scope": "site", "issuer": "Hospital", "issued": date(2026, 1, 1), "file": "sha256:" + "c" * 64}
    return EvidenceRecord.model_validate({**fields, "kind": kind, "subject": subject, **changes})


def sealed(made_at: datetime = NOW, key: SigningKey = KEY, **changes: Any) -> bytes:
    statement = make_statement("lyon", CA, attestation(), [record()], now=made_at)
    return seal_statement(statement.model_copy(update=changes), key)


def opened(data: bytes, **changes: Any) -> SiteStatement:
    asked: dict[str, Any] = {"site": "lyon", "coordinator": CA, "key": KEY.public, "after": None, "now": NOW}
    return open_statement(data, **{**asked, **changes})


def test_a_statement_comes_back_as_it_was_made() -> None:
    found = opened(sealed())
    assert found == make_statement("lyon", CA, attestation(), [record()], now=NOW)
    assert opened(sealed(), after=timestamp(NOW - timedelta(seconds=1))) == found


@pytest.mark.parametrize(
    ("data", "changes", "error"),
    [
        (sealed(key=SigningKey.generate()), {}, BadSignature),  # forged
        (sealed(), {"key": SigningKey.generate().public}, BadSignature),
        (sealed(), {"site": "milano"}, Refused),  # another site's
        (sealed(), {"coordinator": OTHER_CA}, Refused),  # shown to another coordinator
        (sealed(), {"after": timestamp(NOW)}, Refused),  # replayed
        (sealed(), {"after": timestamp(NOW + timedelta(days=1))}, Refused),
        (sealed(NOW + timedelta(seconds=AHEAD_SECONDS + 1)), {}, Refused),
        (sealed(records=(record("milano"),)), {}, Malformed),  # another site's record
        (sealed(records=(record(scope="study"),)), {}, Malformed),
        (sealed(records=(record(), record())), {}, Malformed),
        (sealed(attestation=attestation().model_copy(update={"attested_on": date(2026, 5, 2)})), {}, Malformed),
        (seal(STATEMENT_TYPE, {"site": "lyon"}, KEY).to_bytes(), {}, Malformed),
        (seal("application/vnd.cloister.consent+json", {"site": "lyon"}, KEY).to_bytes(), {}, BadSignature),
        (b"{}", {}, Malformed),
    ],
)
def test_a_statement_that_does_not_hold_is_refused(
    data: bytes, changes: dict[str, Any], error: type[CloisterError]
) -> None:
    with pytest.raises(error):
        opened(data, **changes)


def test_a_changed_statement_does_not_verify() -> None:
    data = bytearray(sealed())
    for at in range(0, len(data), 97):
        changed = bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises((BadSignature, Malformed)):
            opened(changed)


def test_facts_say_what_was_attested_and_what_stands() -> None:
    facts = site_facts("lyon", attestation(idle_logoff=False), [record(expires=date(2026, 4, 30))], on=NOW.date())
    assert facts["attestation"] == {
        "age_days": 3, "days_since_change": 36500, "disk_encryption": True, "transit_encryption": True,
        "tls_min": "1.3", "pseudonymised": True, "idle_logoff": False, "alternative_documented": False,
    }  # fmt: skip
    assert facts["records"] == [{"kind": "dpa", "subject": "lyon", "age_days": 120, "days_left": 0}]
    assert (facts["jurisdiction"], facts["country"], facts["privacy_official_named"]) == ("EU", "FR", True)
    nothing = site_facts("lyon", None, [], on=NOW.date())
    assert nothing == {"name": "lyon", "records": []}, "what nobody attested is absent, so that gates stay shut"


def test_an_officials_name_stays_at_the_site() -> None:
    told = attestation()
    assert "A. Person" not in str(told.model_dump())
    assert not attestation(privacy_official=None).privacy_official_named


def test_a_papers_file_is_read_strictly() -> None:
    digest = "sha256:" + "d" * 64
    item = {"kind": "dpa", "issuer": "Hospital", "issued": "2026-01-01", "document": "dpa.pdf"}
    about = {"scope": "site", "subject": "lyon"}
    (found,) = read_records([item], lambda name, number: digest, about=about)
    assert (found.subject, found.file) == ("lyon", digest)
    with pytest.raises(Malformed, match="a document and a file"):
        read_records([{**item, "file": digest}], lambda name, number: digest, about=about)
    with pytest.raises(Malformed, match="attestation: tls_min"):
        read_safeguards({**TOLD, "tls_min": "1.1"})
    with pytest.raises(Malformed, match="no part named attestation"):
        read_safeguards([])
    with pytest.raises(ValidationError):
        make_statement("lyon", CA, attestation(), [record("milano")], now=NOW)
