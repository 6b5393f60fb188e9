"""Drafts copy what is on record, mark what a person must say, never say anything else, and tell when they are stale."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from click.testing import Result
from docx import Document
from typer.testing import CliRunner

from coordinator.client.account import open_account, register, sign_in
from coordinator.client.cli import app
from coordinator.client.drafts.assessment import DESIGN, draft_dpia, stale_assessments
from coordinator.client.drafts.documents import read_document, to_csv, to_docx
from coordinator.client.drafts.draft import LATER, MARK, Draft, Entry, known, read_basis, stale_sections
from coordinator.client.drafts.facts import Known, StudyKnown, read_spec
from coordinator.client.drafts.register import draft_register
from coordinator.client.drafts.safeguard_rows import PARTS
from coordinator.client.drafts.safeguards import draft_safeguards
from coordinator.database import transaction
from coordinator.governance import Governance, save_governance
from coordinator.people import accounts
from protocol.canonical import canonical
from protocol.errors import CloisterError, Malformed
from protocol.evaluation import Interval
from protocol.evidence import EvidenceRecord
from protocol.identifiers import Role
from protocol.membership import MembershipReport
from tests.coordinator.appliances import Served, TestSite
from tests.releases import Maker

AT, TODAY = "2026-11-23T00:00:00Z", date(2026, 11, 23)
STUDY = Path(__file__).parents[2] / "packaging" / "demo" / "wisconsin" / "study.yaml"
EXPLORATION = STUDY.with_name("exploration.yaml")
PASSPHRASE = b"correct horse battery"
ORGANISATION = Governance(
    country="DE", contact="privacy@example.org", security="Measures of 2026", backup_tested=date(2026, 11, 1)
)


@pytest.fixture(scope="module")
def study() -> StudyKnown:
    return read_spec(STUDY)


def evidence(kind: str, subject: str, **more: object) -> EvidenceRecord:
    fields = {"kind": kind, "scope": "site", "subject": subject, "issuer": "The board", "issued": date(2026, 1, 2),
              "file": "sha256:" + "a" * 64, **more}  # fmt: skip
    return EvidenceRecord.model_validate(fields)


def assessment(spec: str) -> EvidenceRecord:
    told = {"spec": spec, "sections": ("description", "necessity", "risks", "measures"), "residual_risk": "low",
            "officer": "dana"}  # fmt: skip
    return evidence("dpia", "breast-mass-malignancy", scope="study", assessment=told)


def facts(*studies: StudyKnown, records: tuple[EvidenceRecord, ...] = (), said: Governance | None = None) -> Known:
    return Known(said, records, ("clinic-a", "clinic-b"), None, studies, TODAY)


def entries(draft: Draft) -> list[Entry]:
    return [entry for section in draft.sections for entry in section.entries]


def every_draft(study: StudyKnown, all_facts: Known) -> list[Draft]:
    return [
        draft_dpia(study, all_facts, made_at=AT),
        draft_register("controller", all_facts, made_at=AT),
        draft_register("processor", all_facts, made_at=AT),
        draft_safeguards("clinic-a", all_facts, made_at=AT),
        draft_safeguards("coordinator", all_facts, made_at=AT),
    ]


@pytest.mark.parametrize("path", [STUDY, EXPLORATION])
def test_every_known_word_comes_from_a_document_that_was_read(path: Path) -> None:
    """Of what is copied, every word stands in the spec, the records or governance.toml, or in the product's design."""
    asked = read_spec(path)
    records = (evidence("risk_analysis", "clinic-a"), evidence("baa", "clinic-a"), evidence("dpa", "clinic-b"))
    all_facts = facts(asked, records=records, said=ORGANISATION)
    read = canonical(
        [asked.spec.model_dump(mode="json"), [r.model_dump(mode="json") for r in records],
         ORGANISATION.model_dump(mode="json")]
    ).decode()  # fmt: skip
    frame = {
        "training", "of", "one", "model", "its", "evaluation", "and", "release", "an", "exploration", "noised",
        "statistics", "patients", "no", "Art", "path", "HIPAA", "epsilon", "at", "delta", "zero-out", "adjacency",
        "unit", "patient", "The", "coordinator", "reads", "sums", "least", "sites", "may", "collude", "or", "drop",
        "out", "by", "file", "until", "the", "released", "goes", "to", "outcome", "none", "was", "named",
    }  # fmt: skip
    for draft in every_draft(asked, all_facts):
        for entry in entries(draft):
            if entry.state != "known" or entry.source == DESIGN:
                continue
            for word in re.findall(r"[A-Za-z][A-Za-z0-9_-]+|\d[\d.,-]*\d|\d", entry.text):
                assert word in frame or word in read or word in {"6", "9", "1", "2"}, (entry, word)


def test_what_nobody_has_said_is_a_blank(study: StudyKnown) -> None:
    bare = study.spec.model_copy(
        update={"governance": study.spec.governance.model_copy(update={"notice": None, "model_until": None})}
    )
    empty = replace(study, spec=bare)
    blanks = {entry.item for entry in entries(draft_dpia(empty, facts(empty), made_at=AT)) if entry.state == "fill-in"}
    assert {"Information of patients", "Released model kept until", "Where the coordinator runs", "What remains",
            "Measures of clinic-a on record", "Completed by", "Necessity"} <= blanks  # fmt: skip
    told = {entry.item for entry in entries(draft_dpia(study, facts(study, said=ORGANISATION), made_at=AT))
            if entry.state == "known"}  # fmt: skip
    assert {"Information of patients", "Released model kept until", "Where the coordinator runs"} <= told
    with pytest.raises(ValueError, match="no value"):
        known("Purpose", "  ", "somewhere")


def test_before_the_proposal_the_plan_s_numbers_are_marked_as_not_known_yet(study: StudyKnown) -> None:
    found = {entry.item: entry for entry in entries(draft_dpia(study, facts(study), made_at=AT))}
    for item in ("Noise", "Patients at clinic-a", "Bound if all other sites collude with the coordinator"):
        assert found[item].state == "pending"
        assert found[item].shown.startswith(LATER)


def test_a_proposed_study_s_plan_and_audit_are_copied() -> None:
    plan = Maker().plan()
    status = {"plan": plan.model_dump(mode="json"), "plan_digest": "sha256:" + "1" * 64, "state": "completed"}
    found_by_coin = Interval(value=0.51, low=0.45, high=0.57)
    audited = MembershipReport(
        ran=True, members=80, non_members=40, bins=8, auc=found_by_coin, found_at_1=found_by_coin,
        found_at_10=found_by_coin, advantage=Interval(value=None, reason="too few patients"),
    )  # fmt: skip
    proposed = StudyKnown.of({**status, "candidate": {"membership": audited.model_dump(mode="json")}})
    assert proposed.spec_digest == plan.spec_digest
    found = {entry.item: entry for entry in entries(draft_dpia(proposed, facts(proposed), made_at=AT))}
    site = plan.sites[0]
    assert found[f"Patients at {site.name}"].text.startswith(f"{site.patients}, {site.held_out} of them held out")
    worst = found["Bound if all other sites collude with the coordinator"]
    assert worst.text == f"epsilon {plan.epsilon_worst_site:.4g} for a site's training patients"
    attack = found["Membership attack on the model"]
    assert attack.state == "known"
    assert "attack AUC (0.5: a coin) 0.510 (0.450 to 0.570)" in attack.text
    assert "too few patients" in attack.text
    unaudited = StudyKnown.of({**status, "candidate": None})
    later = {entry.item: entry for entry in entries(draft_dpia(unaudited, facts(unaudited), made_at=AT))}
    assert later["Membership attack on the model"].state == ("pending" if plan.membership is not None else "fill-in")


def test_the_four_parts_that_the_law_asks_for_are_there(study: StudyKnown) -> None:
    citations = [section.citation for section in draft_dpia(study, facts(study), made_at=AT).sections]
    assert [f"Art. 35(7)({letter}) GDPR" for letter in "abcd"] == citations[:4]


def test_an_assessment_of_another_spec_is_told_to_be_stale(study: StudyKnown) -> None:
    current, old = assessment(study.spec_digest), assessment("sha256:" + "0" * 64)
    draft = draft_dpia(study, facts(study, records=(old,)), made_at=AT)
    assert any(notice.startswith("STALE") for notice in draft.notices)
    assert "Assessment on record" not in {entry.item for entry in entries(draft)}
    fresh = draft_dpia(study, facts(study, records=(current,)), made_at=AT)
    assert not any(notice.startswith("STALE") for notice in fresh.notices)
    assert "Assessment on record" in {entry.item for entry in entries(fresh)}
    assert stale_assessments(study, facts(study, records=(old, current))) == (old,)


def test_a_register_has_a_section_for_each_hospital_and_all_that_article_30_asks(study: StudyKnown) -> None:
    controller = draft_register("controller", facts(study), made_at=AT)
    assert [section.title for section in controller.sections] == [
        f"breast-mass-malignancy at clinic-{letter}" for letter in "abcd"
    ]
    for section in controller.sections:
        items = " ".join(entry.item for entry in section.entries)
        assert all(f"({letter})" in items for letter in "abcdfg")
        assert "Transfers" in items
    processor = draft_register("processor", facts(study, said=ORGANISATION), made_at=AT)
    for section in processor.sections:
        items = " ".join(entry.item for entry in section.entries)
        assert all(f"({letter})" in items for letter in "abd")
        assert "Transfers" in items
    assert draft_register("controller", facts(), made_at=AT).notices
    with pytest.raises(Malformed, match="no view"):
        draft_register("auditor", facts(), made_at=AT)


def test_the_matrix_has_every_specification_and_never_says_that_one_is_met(study: StudyKnown) -> None:
    citations = [row.citation for rows in PARTS.values() for row in rows]
    assert len(citations) == len(set(citations))
    assert [len(rows) for rows in PARTS.values()] == [23, 10, 9, 3, 4]
    expired = evidence("risk_analysis", "clinic-a", issued=date(2020, 1, 1), expires=date(2021, 1, 1))
    draft = draft_safeguards("clinic-a", facts(records=(expired, evidence("baa", "clinic-a"))), made_at=AT)
    assert len(draft.sections) == len(citations)
    for section in draft.sections:
        assert [entry.item for entry in section.entries if entry.state == "fill-in"][-1] == "The organisation"
    on_record = {
        section.title.split(" ")[0] for section in draft.sections
        for entry in section.entries if entry.item == "On record" and entry.state == "known"
    }  # fmt: skip
    assert on_record == {"164.308(b)(3)", "164.314(a)(2)(i)"}


def test_word_and_csv_carry_every_entry_and_their_basis(study: StudyKnown, tmp_path: Path) -> None:
    for number, draft in enumerate(every_draft(study, facts(study, said=ORGANISATION))):
        word, sheet = tmp_path / f"{number}.docx", tmp_path / f"{number}.csv"
        word.write_bytes(to_docx(draft))
        sheet.write_bytes(to_csv(draft))
        cells = [[cell.text for cell in row.cells] for table in Document(str(word)).tables for row in table.rows]
        shown = [cells_of[1] for cells_of in cells if cells_of[0] != "Item"]
        assert shown == [entry.shown for entry in entries(draft)]
        assert sum(text.startswith(MARK) for text in shown) == draft.blanks > 0
        marked = [run for table in Document(str(word)).tables for row in table.rows
                  for run in row.cells[1].paragraphs[0].runs if run.font.highlight_color is not None]  # fmt: skip
        assert len(marked) == sum(entry.state != "known" for entry in entries(draft))
        rows = list(csv.reader(io.StringIO(sheet.read_text("utf-8"), newline="")))
        assert sum(row[3] == "fill-in" and row[4].startswith(MARK) for row in rows) == draft.blanks
        for file in (word, sheet):
            assert read_basis(read_document(file)) == draft.basis


def test_hostile_words_of_a_researcher_stay_words(study: StudyKnown, tmp_path: Path) -> None:
    hostile = '=HYPERLINK("http://evil.example","x")\x00\x0b\u202e<w:p/>'
    spec = study.spec.model_copy(update={"title": hostile, "purpose": study.spec.purpose.model_copy(
        update={"description": hostile})})  # fmt: skip
    changed = replace(study, spec=spec)
    draft = draft_register("controller", facts(changed), made_at=AT)
    assert all(not cell.startswith("=") for row in csv.reader(io.StringIO(to_csv(draft).decode())) for cell in row)
    path = tmp_path / "x.docx"
    path.write_bytes(to_docx(draft_dpia(changed, facts(changed), made_at=AT)))
    assert "<w:p/>" in "".join(paragraph.text for paragraph in Document(str(path)).paragraphs)


def test_what_changed_since_is_named_by_its_section(study: StudyKnown) -> None:
    before = draft_dpia(study, facts(study), made_at=AT)
    later = draft_dpia(study, facts(study), made_at="2026-12-01T00:00:00Z")
    assert stale_sections(before.basis, later.basis) == ()
    said = draft_dpia(study, facts(study, said=ORGANISATION), made_at=AT)
    assert stale_sections(before.basis, said.basis) == ("Description of the processing", "Measures")
    cheaper = study.spec.model_copy(update={"privacy": study.spec.privacy.model_copy(update={"epsilon": 2.0})})
    other = draft_dpia(replace(study, spec=cheaper), facts(study), made_at=AT)
    assert stale_sections(before.basis, other.basis) == ("Risks to rights and freedoms",)
    assert before.spec != other.spec


@pytest.mark.parametrize(
    "text", ["", "hello", "cloister-draft: {}", 'cloister-draft: {"kind":"x"}', "cloister-draft: {"]
)
def test_another_document_is_no_draft(text: str) -> None:
    with pytest.raises(CloisterError):
        read_basis(text)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evidence", "draft", *arguments])


@pytest.mark.processes
def test_drafts_by_command_and_when_they_are_stale(served: Served, tmp_path: Path) -> None:
    TestSite("clinic-a", tmp_path).enrol_in(served.appliance)
    with transaction(served.appliance.engine) as session:
        token = accounts.invite(session, served.appliance, "dana", Role.COMPLIANCE_OFFICER)
    home = str(tmp_path / "dana")
    register(token.to_text(), tmp_path / "dana", PASSPHRASE)
    account = open_account(tmp_path / "dana")
    sign_in(account, account.unlock(PASSPHRASE))
    word, matrix, spec = tmp_path / "dpia.docx", tmp_path / "hipaa.csv", tmp_path / "study.yaml"
    spec.write_bytes(STUDY.read_bytes())
    (tmp_path / "dictionary.yaml").write_bytes(STUDY.with_name("dictionary.yaml").read_bytes())
    asked = (str(word), "--spec", str(spec), "--home", home)
    made = command("dpia", *asked)
    assert made.exit_code == 0, made.output
    assert "left to a person" in made.output
    assert "exists already" in str(command("dpia", *asked).exception)
    assert command("hipaa", str(matrix), "--party", "clinic-a", "--home", home).exit_code == 0
    check = ("--spec", str(spec), "--home", home)
    assert command("check", str(word), *check).exit_code == 0
    assert command("check", str(matrix), "--home", home).exit_code == 0
    spec.write_text(spec.read_text().replace("rounds: 60", "rounds: 50"))
    refused = command("check", str(word), *check)
    assert "stale: it is about another spec" in str(refused.exception)
    told = json.loads(command("check", str(word), *check, "--json").stdout)
    assert told["stale"] is True
    assert told["another_spec"] is True
    assert told["blanks"] > 10
    save_governance(served.appliance.home, ORGANISATION)
    operator = tmp_path / "ropa.csv"
    assert command("ropa", str(operator), "--view", "processor", "--home", home).exit_code == 0
    sheet = str(tmp_path / "x.csv")
    for wrong in (("ropa", str(tmp_path / "x.pdf")), ("ropa", sheet, "--view", "x"),
                  ("hipaa", sheet, "--party", "nobody"), ("dpia", sheet)):  # fmt: skip
        assert isinstance(command(*wrong, "--home", home).exception, CloisterError)
    assert not list(tmp_path.glob("x.*"))
