"""What a hospital declares of a snapshot, and what the consent gate makes of it and of the scan."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from policies.findings import Outcome
from protocol.errors import CloisterError, Malformed
from protocol.evidence import EvidenceRecord
from protocol.proposal import LegalBasis, Waiver
from site_agent.cli import app
from site_agent.cohort.assignment import hash_patient
from site_agent.cohort.declaration import Declaration, consenting, declare, declared, read_declaration
from site_agent.consent.governance import Governance, load_governance, save_governance
from site_agent.consent.plans import SignedPlan
from site_agent.consent.review import Review
from site_agent.database import transaction
from site_agent.evidence.record import import_records
from tests.site_agent.federation_of_sites import NOW, Federation, Hospital, federation

WHOLE = {
    "deid_claim": "none",
    "recode": {"derived": False, "mapping": "site"},
    "part2": False,
}
ELEMENTS = [*(f"core-{n}" for n in range(1, 7)), *(f"statement-{n}" for n in range(1, 4)), "copy-given"]
WAIVER = Waiver(board="IRB", date="2026-01-01", criteria="met", phi="two columns", procedure="full", signature="chair")


@pytest.fixture
def world(tmp_path: Path) -> Federation:
    return federation(tmp_path)


def under_hipaa(world: Federation, path: str, **basis: Any) -> tuple[Hospital, SignedPlan]:
    """bergen is a covered entity that takes part on this path."""
    site = world.hospitals["bergen"]
    home = site.settings.home
    said = {**load_governance(home).model_dump(), "jurisdiction": "US", "hipaa_role": "covered-entity"}
    save_governance(home, Governance.model_validate(said))
    ground = LegalBasis(jurisdiction="US", hipaa_path=path, waiver=WAIVER, **basis)  # type: ignore[arg-type]
    world.spec = world.spec.model_copy(update={"legal_basis": {**world.spec.legal_basis, "bergen": ground}})
    sites = [
        item.model_copy(update={"jurisdiction": "US" if item.name == "bergen" else "EU"}) for item in world.plan().sites
    ]
    return site, world.sign(world.plan(sites=sites))


def on_consent(world: Federation, *forms: str) -> tuple[Hospital, SignedPlan]:
    """bergen's ground is its patients' consent."""
    ground = LegalBasis(jurisdiction="EU", gdpr_article6="a", gdpr_article9="a", consent_forms=forms)
    world.spec = world.spec.model_copy(update={"legal_basis": {**world.spec.legal_basis, "bergen": ground}})
    return world.hospitals["bergen"], world.sign(world.plan())


def say(site: Hospital, consents: frozenset[bytes] | None = None, **changes: Any) -> None:
    with transaction(site.engine) as session:
        declare(session, site.snapshot, Declaration.model_validate({**WHOLE, **changes}), consents, now=NOW)


def record(site: Hospital, kind: str, **changes: Any) -> None:
    fields = {"kind": kind, "scope": "site", "subject": site.name, "issuer": "Board", "issued": NOW.date()}
    content = EvidenceRecord.model_validate({**fields, "file": "sha256:" + "0" * 64, **changes})
    with transaction(site.engine) as session:
        import_records(session, site.name, [content], now=NOW)


def against(found: Review) -> set[str]:
    """What keeps the gate shut, of the rules about the data set."""
    rules = ("G10", "H05-claim", "H06", "H11", "H12", "H13", "H14", "H30")
    return {finding.rule for finding in found.decision.findings if finding.rule in rules}


def test_until_somebody_has_declared_the_gate_stays_shut(world: Federation) -> None:
    site, signed = under_hipaa(world, "waiver")
    assert against(site.review(signed)) == {"H11", "H12", "H13", "H30"}
    say(site)
    found = site.review(signed)
    assert (against(found), found.decision.outcome) == (set(), Outcome.ALLOW)
    site.grant(signed)


@pytest.mark.parametrize(
    ("path", "changes", "rules"),
    [
        ("waiver", {"recode": {"derived": True, "mapping": "site"}}, {"H13"}),
        ("waiver", {"recode": {"derived": False, "mapping": "elsewhere"}}, {"H13"}),
        ("waiver", {"part2": True}, {"H30"}),
        ("waiver", {"deid_claim": "expert-determination"}, {"H12"}),
        ("waiver", {"deid_claim": "safe-harbor", "actual_knowledge": False}, {"H11"}),  # ages of 90 and over are there
        ("de-identified", {}, {"H05-claim"}),
        ("authorization", {}, {"H06"}),
        ("authorization", {"authorization": ELEMENTS[:-1]}, {"H06"}),
        ("authorization", {"authorization": ELEMENTS}, set()),
        ("limited-data-set", {}, {"H14"}),
    ],
)
def test_what_is_declared_decides(world: Federation, path: str, changes: dict[str, Any], rules: set[str]) -> None:
    site, signed = under_hipaa(world, path)
    say(site, **changes)
    assert against(site.review(signed)) == rules


def test_part_2_records_need_the_study_s_own_ground(world: Federation) -> None:
    site, signed = under_hipaa(world, "waiver", part2_basis="42 CFR 2.52(a)")
    say(site, part2=True)
    assert against(site.review(signed)) == set()


def test_an_agreement_and_an_expert_count_while_they_are_current(world: Federation) -> None:
    site, signed = under_hipaa(world, "limited-data-set")
    say(site, deid_claim="expert-determination")
    assert against(site.review(signed)) == {"H12", "H14"}
    expires = NOW.date() + timedelta(days=1)
    record(site, "dua", expires=expires)
    record(site, "expert_determination", expires=expires)
    assert against(site.review(signed)) == set()
    site.now = NOW + timedelta(days=2)
    assert against(site.review(signed)) == {"H12", "H14"}


def test_a_safe_harbor_that_the_data_does_not_bear_out_is_refused_whatever_is_declared(world: Federation) -> None:
    """An insider claims it over ages of 90 and over: the scan reads the snapshot."""
    site, signed = under_hipaa(world, "de-identified")
    say(site, deid_claim="safe-harbor", actual_knowledge=False)
    found = site.review(signed)
    assert against(found) == {"H11"}
    finding = next(item for item in found.decision.findings if item.rule == "H11")
    assert "found or not scanned: C;" in finding.message
    assert not found.grantable({"H11": "we are sure"})


def test_consent_counts_patients_of_the_snapshot_against_the_list(world: Federation) -> None:
    site, signed = on_consent(world, "2025-1")
    consent = {"form": "2025-1", "patients": "consents.txt"}
    assert against(site.review(signed)) == {"G10"}
    with transaction(site.engine) as session:
        from sqlmodel import select

        from site_agent.cohort.tables import SnapshotPatient

        hashes = frozenset(bytes(row) for row in session.exec(select(SnapshotPatient.patient_hash)))
    assert len(hashes) == 80
    say(site, hashes - {min(hashes)}, consent=consent)  # one patient never signed
    assert against(site.review(signed)) == {"G10"}
    say(site, hashes, consent=consent)
    assert against(site.review(signed)) == set()
    say(site, hashes, consent={**consent, "form": "2019-3"})  # a form that does not cover this study
    assert against(site.review(signed)) == {"G10"}
    say(site, None)
    assert against(site.review(signed)) == {"G10"}


def test_a_declaration_is_about_one_snapshot(world: Federation) -> None:
    site = world.hospitals["bergen"]
    say(site)
    with transaction(site.engine) as session:
        assert declared(session, site.snapshot) is not None
        assert declared(session, "sha256:" + "1" * 64) is None


@pytest.mark.parametrize(
    "text",
    [
        "deid_claim: maybe\nrecode: {derived: false, mapping: site}\npart2: false\n",
        "deid_claim: none\nrecode: {derived: false}\npart2: false\n",
        "deid_claim: none\n",
        "deid_claim: none\nrecode: {derived: false, mapping: site}\npart2: false\nrows_without: 0\n",
        "deid_claim: none\nrecode: {derived: false, mapping: site}\npart2: false\nauthorization: [core-7]\n",
        "- a\n",
    ],
)
def test_a_declaration_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "declaration.yaml"
    file.write_text(text)
    with pytest.raises(Malformed):
        read_declaration(file)


def test_a_list_of_consents_is_hashed_as_the_data_set_is(tmp_path: Path) -> None:
    file = tmp_path / "consents.txt"
    file.write_bytes("\ufeffP-1\r\n\r\n P-2 \n".encode())
    assert consenting(file, b"k" * 32) == {hash_patient(b"k" * 32, name) for name in ("P-1", "P-2")}
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Malformed):
        consenting(file, b"k" * 32)
    with pytest.raises(CloisterError):
        consenting(tmp_path / "absent.txt", b"k" * 32)


def test_the_commands_declare_and_scan_without_showing_a_patient(world: Federation, tmp_path: Path) -> None:
    site = world.hospitals["bergen"]
    home = ["--home", str(site.settings.home.path)]
    file = tmp_path / "declaration.yaml"
    file.write_text(json.dumps({**WHOLE, "consent": {"form": "2025-1", "patients": "consents.txt"}}))
    (tmp_path / "consents.txt").write_text("P-1\nP-2\n")
    site.engine.dispose()
    dry = CliRunner().invoke(app, ["datasets", "declare", "hearts", str(file), "--dry-run", "--json", *home])
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.stdout) == {"snapshot": site.snapshot, "declared": False, "patients_without_consent": 80}
    with transaction(site.engine) as session:
        assert declared(session, site.snapshot) is None
    site.engine.dispose()
    done = CliRunner().invoke(app, ["datasets", "declare", "hearts", str(file), *home])
    assert done.exit_code == 0, done.output
    assert "P-1" not in done.output
    told = CliRunner().invoke(app, ["datasets", "scan", "hearts", "--json", *home])
    found = json.loads(told.stdout)
    assert [(item["column"], item["class"], item["by"]) for item in found["columns"]] == [("age", "C", "values")]
    assert not found["ages_pooled"]
    words = CliRunner().invoke(app, ["datasets", "scan", "hearts", *home])
    assert "age: C, dates finer than a year, and ages of 90 and over, by its values" in words.stdout
