"""The signed evidence report: made, validated by pyHanko against the authority, and refused after any change."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives.serialization import Encoding
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign.validation import validate_pdf_signature
from pyhanko.sign.validation.status import SignatureCoverageLevel
from pyhanko_certvalidator import ValidationContext
from typer.testing import CliRunner

from coordinator.audit.append import append
from coordinator.audit.issue_report import issue_report
from coordinator.audit.report import MAX_EVENTS, make_report
from coordinator.audit.sequencer import integrate_once
from coordinator.audit.witnessing import accept_cosignatures, latest_note
from coordinator.client.account import open_account, register, sign_in
from coordinator.client.audit_bundle import AuditBundle, read_archive
from coordinator.client.audit_query import AuditQuery, find
from coordinator.client.audit_report import check_report
from coordinator.client.cli import app
from coordinator.database import reading, transaction
from coordinator.errors import NotFound, Unavailable
from coordinator.people import accounts
from protocol.audit_event import EventType
from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.errors import CloisterError, VerificationFailed
from protocol.identifiers import Role
from protocol.signing import SigningKey
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Made, Served, TestSite, exported, make_coordinator

PASSPHRASE = b"correct horse battery"


@pytest.fixture
def sites(local: Made, tmp_path: Path) -> list[TestSite]:
    enrolled = [TestSite(f"site-{number}", tmp_path) for number in range(3)]
    for site in enrolled:
        site.enrol_in(local.appliance)
    return enrolled


def log_a_study(made: Made, sites: list[TestSite]) -> None:
    """A study, its release and another study, cosigned by two of the three sites."""
    with transaction(made.appliance.engine) as session:
        for event, subject in (
            (EventType.STUDY_PROPOSED, "heart"),
            (EventType.POLICY_DECIDED, "heart"),
            (EventType.RELEASE_SEALED, "release:heart-r1"),
            (EventType.STUDY_PROPOSED, "lung"),
        ):
            append(
                session, made.appliance, event, actor="site:site-0", subject=subject,
                labels={"gate": "proposal", "outcome": "allow"} if event is EventType.POLICY_DECIDED else None,
                digests={"plan": "sha256:" + "ab" * 32}, payload={"name": "Ada", "reason": "words"},
            )  # fmt: skip
    integrate_once(made.appliance)
    for site in sites[:2]:
        with transaction(made.appliance.engine) as session:
            line = site.cosign(latest_note(session, made.appliance), made.clock())
            key = cosigner_key(witness_name(site.name), site.witness).text
            accept_cosignatures(session, made.appliance, key, line)


@pytest.fixture
def pdf(local: Made, sites: list[TestSite]) -> bytes:
    log_a_study(local, sites)
    with reading(local.appliance.engine) as session:
        return issue_report(session, local.appliance, study="heart").pdf


def logged(made: Made) -> int:
    with made.appliance.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM log_entry").scalar_one())


def authority(made: Made) -> bytes:
    return made.appliance.keys.authority.pem.encode()


def validated(made: Made, data: bytes):
    """By pyHanko alone, as anybody would who has the authority's certificate."""
    root = asn1_x509.Certificate.load(made.appliance.keys.authority.certificate.public_bytes(Encoding.DER))
    [signature] = PdfFileReader(io.BytesIO(data)).embedded_signatures
    return validate_pdf_signature(signature, ValidationContext(trust_roots=[root], allow_fetching=False))


def test_pyhanko_and_the_command_accept_it_against_the_authority(local: Made, pdf: bytes, tmp_path: Path) -> None:
    status = validated(local, pdf)
    assert (status.bottom_line, status.trusted, status.coverage) == (True, True, SignatureCoverageLevel.ENTIRE_FILE)
    checked = check_report(pdf, authority(local))
    assert (checked.size, checked.cosigners) == (logged(local), ("site-0/witness", "site-1/witness"))
    assert checked.ca == local.appliance.keys.authority.fingerprint
    files = read_archive(exported(local))
    assert checked.files == {name: files[name] for name in ("checkpoint", "log.vkey", "witness_policy.json")}
    report, ca = tmp_path / "report.pdf", tmp_path / "ca.pem"
    report.write_bytes(pdf)
    ca.write_bytes(authority(local))
    told = CliRunner().invoke(app, ["audit", "check-report", str(report), "--ca", str(ca), "--json"])
    assert json.loads(told.stdout)["checkpoint_size"] == logged(local)


def test_each_report_has_a_key_of_its_own_that_signs_nothing_else(local: Made, pdf: bytes) -> None:
    with reading(local.appliance.engine) as session:
        second = issue_report(session, local.appliance, study=None).pdf
    certificates = [validated(local, data).signing_cert for data in (pdf, second)]
    assert certificates[0].public_key.dump() != certificates[1].public_key.dump()
    for certificate in certificates:
        assert certificate.extended_key_usage_value.native == ["1.3.6.1.5.5.7.3.36", "email_protection"]
        assert certificate.ca is False
    assert not list(local.appliance.home.rglob("*report*"))


@pytest.mark.skipif(
    shutil.which("pdfsig") is None or shutil.which("certutil") is None,
    reason="Poppler's pdfsig and NSS's certutil are not installed: pyHanko alone looks",
)
def test_a_pdf_reader_that_trusts_the_authority_accepts_it(local: Made, pdf: bytes, tmp_path: Path) -> None:
    report, ca, trust = tmp_path / "report.pdf", tmp_path / "ca.pem", f"sql:{tmp_path}"
    ca.write_bytes(authority(local))
    for command in (["-N", "--empty-password"], ["-A", "-n", "ca", "-t", "CT,C,C", "-i", str(ca)]):
        subprocess.run(["certutil", *command, "-d", trust], check=True, capture_output=True)
    place = pdf.index(b"endstream") - 20
    for data, said in (
        (pdf, ("Signature is Valid", "Certificate is Trusted", "Total document signed")),
        (pdf[:place] + bytes([pdf[place] ^ 1]) + pdf[place + 1 :], ("Digest Mismatch",)),
    ):
        report.write_bytes(data)
        told = subprocess.run(["pdfsig", "-nssdir", trust, str(report)], capture_output=True, text=True).stdout
        assert all(words in told for words in said), told


def test_no_byte_of_it_can_change(local: Made, pdf: bytes) -> None:
    chance, ca = random.Random(7), authority(local)
    start = pdf.index(b"/Contents <")
    end = pdf.index(b">", start)
    head = [start + 11 + 2 * octet + digit for octet in range(60) for digit in (0, 1)]  # of the CMS signature
    places = (
        head + [chance.randrange(len(pdf)) for _ in range(150)] + [chance.randrange(start, end) for _ in range(100)]
    )
    for place in places:
        changed = bytearray(pdf)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(CloisterError):
            check_report(bytes(changed), ca)
    for other in (pdf + b"\n", pdf[:-1], b"", b"%PDF-1.7", pdf[:start] + pdf[end:]):
        with pytest.raises(CloisterError):
            check_report(other, ca)


def test_no_letter_of_the_signers_name_can_change_its_case(local: Made, pdf: bytes) -> None:
    """The name that says which certificate signed is outside the signature, and compared without regard to case."""
    name = b"Cloister CA".hex().upper().encode()
    ca = authority(local)
    places = [found.start() for found in re.finditer(re.escape(name), pdf)]
    assert places
    for place in places:
        changed = bytearray(pdf)
        changed[place] ^= 2  # "C" becomes "c": 43 becomes 63
        with pytest.raises(CloisterError):
            check_report(bytes(changed), ca)


def test_pyhanko_alone_finds_a_changed_text(local: Made, pdf: bytes) -> None:
    place = pdf.index(b"endstream") - 20
    changed = pdf[:place] + bytes([pdf[place] ^ 1]) + pdf[place + 1 :]
    assert not validated(local, changed).bottom_line


def test_an_update_after_the_signature_is_refused(local: Made, pdf: bytes) -> None:
    writer, out = IncrementalPdfFileWriter(io.BytesIO(pdf)), io.BytesIO()
    writer.root["/Lang"] = writer.root.get("/Lang", writer.root["/Type"])
    writer.update_root()
    writer.write(out)
    assert len(out.getvalue()) > len(pdf)
    with pytest.raises(VerificationFailed, match="whole file"):
        check_report(out.getvalue(), authority(local))


def test_another_authority_or_policy_does_not_vouch_for_it(local: Made, pdf: bytes, tmp_path: Path) -> None:
    other = make_coordinator(tmp_path / "other")
    with pytest.raises(VerificationFailed, match="authority"):
        check_report(pdf, authority(other))
    with pytest.raises(CloisterError, match="PEM"):
        check_report(pdf, b"no certificate")
    policy = WitnessPolicy.from_bytes(read_archive(exported(local))["witness_policy.json"])
    assert check_report(pdf, authority(local), policy=policy).size == logged(local)
    strangers = WitnessPolicy(policy.log, (cosigner_key("else/w", SigningKey.generate()),), 1)
    with pytest.raises(VerificationFailed, match="cosigned"):
        check_report(pdf, authority(local), policy=strangers)
    other.appliance.engine.dispose()


def test_what_it_says_is_what_the_log_holds(local: Made, sites: list[TestSite], pdf: bytes) -> None:
    del pdf
    bundle = AuditBundle.of(read_archive(exported(local)))
    report = make_report(bundle, study="heart", made_at="2026-11-23T00:00:00Z", ca="sha256:x")
    found = find(bundle, AuditQuery.of(study="heart"))[1]
    assert [item.index for item in report.listed] == [item.index for item in found]
    assert dict(report.counts) == {"study.proposed": 1, "policy.decided": 1, "release.sealed": 1}
    assert report.decisions == (("proposal", "allow", 1),)
    assert [item.subject for item in report.releases] == ["release:heart-r1"]
    cosigned = {witness.name: witness.cosigned_at is not None for witness in report.witnesses}
    assert cosigned == {"site-0/witness": True, "site-1/witness": True, "site-2/witness": False}
    assert report.quorum == 2
    assert "Ada" not in repr(report.listed)
    assert "words" not in repr(report.listed)
    whole = make_report(bundle, study=None, made_at="2026-11-23T00:00:00Z", ca="sha256:x")
    assert sum(count for _, count in whole.counts) == whole.entries == logged(local)
    assert whole.not_listed == 0 < MAX_EVENTS


def test_without_a_quorum_or_a_study_there_is_none(local: Made, sites: list[TestSite]) -> None:
    with reading(local.appliance.engine) as session, pytest.raises(Unavailable):
        issue_report(session, local.appliance, study=None)
    log_a_study(local, sites)
    with reading(local.appliance.engine) as session, pytest.raises(NotFound):
        issue_report(session, local.appliance, study="hear")


def test_it_is_valid_for_as_long_as_the_authority(local: Made, pdf: bytes) -> None:
    certificate = validated(local, pdf).signing_cert
    assert certificate.not_valid_after - local.clock() > timedelta(days=6 * 366)


@pytest.mark.processes
def test_an_auditor_asks_for_it_and_the_log_tells(served: Served, tmp_path: Path) -> None:
    site = TestSite("site-a", tmp_path)
    site.enrol_in(served.appliance)
    for name, role in (("ada", Role.AUDITOR), ("ben", Role.RESEARCHER)):
        with transaction(served.appliance.engine) as session:
            token = accounts.invite(session, served.appliance, name, role)
        register(token.to_text(), tmp_path / name, PASSPHRASE)
        account = open_account(tmp_path / name)
        sign_in(account, account.unlock(PASSPHRASE))
    deadline, out = time.monotonic() + 10, tmp_path / "report.pdf"
    asked = ["audit", "report", str(out), "--wait", "0", "--home", str(tmp_path / "ada")]
    while (made := CliRunner().invoke(app, asked)).exit_code:
        assert not out.exists()
        assert time.monotonic() < deadline, made.output
        with reading(served.appliance.engine) as session:
            line = site.cosign(latest_note(session, served.appliance), served.clock())
        with served.client(context=site.context(served.ca_path)) as client:
            client.post("/v1/log/cosignatures", content=line)
    assert "cosigned" in made.output
    assert check_report(out.read_bytes(), authority(served)).cosigners == ("site-a/witness",)
    assert "exists already" in str(CliRunner().invoke(app, asked).exception)
    refused = CliRunner().invoke(app, ["audit", "report", str(tmp_path / "x.pdf"), "--home", str(tmp_path / "ben")])
    assert getattr(refused.exception, "code", None) == "forbidden"
    with served.appliance.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT leaf FROM log_entry ORDER BY id DESC LIMIT 3").scalars().all()
    assert any(b'"form":"pdf"' in bytes(row) for row in rows)
