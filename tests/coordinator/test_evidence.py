"""Evidence on record: what is admitted, what it opens, and that its expiry and its revocation shut the gate again."""

from __future__ import annotations

import itertools
import json
from datetime import date, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from coordinator.client.evidence import read_records
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.evidence.facts import missing_in_register, release_papers, study_papers
from coordinator.evidence.record import record, revoke
from coordinator.evidence.repository import EvidenceRepository
from coordinator.governance import FILE, Governance, GovernanceWrong, coordinator_facts, load_governance
from coordinator.people.repository import PersonRepository
from coordinator.people.tables import Person
from coordinator.rounds.gates import RoundGates
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import StudyState
from policies.packs import builtin_policy
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.errors import Malformed, Refused
from protocol.evidence import Classification, EvidenceRecord, assessment_facts, latest, standing
from protocol.study import StudySpec
from tests.papers import assessment_of, give_governance
from tests.simulator.federation import Federation, HealthyLog, build_federation, study_spec

FILE_DIGEST = sha256_hex(b"a document")
_numbers = itertools.count(1)
QUIET = {"open": 0, "overdue": 0}


@pytest.fixture(scope="module")
def whole_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def federation(whole_federation: Federation) -> Federation:
    whole_federation.reset()
    with transaction(whole_federation.appliance.engine) as session:
        for row in EvidenceRepository(session).all():
            session.delete(row)
    return whole_federation


def officer(federation: Federation, name: str = "carl") -> Person:
    with reading(federation.appliance.engine) as session:
        found = PersonRepository(session).get(name)
    assert found is not None
    return found


def agreement(**changes: object) -> EvidenceRecord:
    told = {"kind": "dpa", "scope": "site", "subject": "aachen", "issuer": "Aachen", "issued": "2026-01-05"}
    return EvidenceRecord.model_validate({**told, "file": FILE_DIGEST, **changes})


def put(federation: Federation, *records: EvidenceRecord, by: str = "carl") -> list[str]:
    person = officer(federation, by)
    with transaction(federation.appliance.engine) as session:
        return [row.digest for row in record(session, federation.appliance, person, records)]


def today(federation: Federation) -> date:
    return federation.appliance.clock().date()


def fresh(**changes: object) -> StudySpec:
    return study_spec(f"papers-{next(_numbers)}", **changes)


def a_site(federation: Federation) -> str:
    return next(iter(federation.sites))


def test_a_record_is_kept_logged_by_its_digest_and_recorded_once(federation: Federation) -> None:
    item = agreement(subject=a_site(federation), issuer="A name that belongs in no log")
    assert put(federation, item) == put(federation, item) == [item.digest]
    events = [e for e in federation.events(item.subject) if e.event is EventType.EVIDENCE_RECORDED]
    assert [event.digests for event in events] == [{"evidence": item.digest, "file": FILE_DIGEST}]
    assert "belongs in no log" not in events[0].leaf().decode()


def test_all_of_an_import_or_nothing(federation: Federation) -> None:
    good = agreement(subject=a_site(federation))
    with pytest.raises(Refused, match="no site"):
        put(federation, good, agreement(subject="nowhere"))
    with reading(federation.appliance.engine) as session:
        assert EvidenceRepository(session).find(good.digest) is None


def test_a_document_of_the_future_and_a_revoked_one_are_refused(federation: Federation) -> None:
    with pytest.raises(Refused, match="future"):
        put(federation, agreement(subject=a_site(federation), issued=today(federation) + timedelta(days=1)))
    item = agreement(subject=a_site(federation))
    put(federation, item)
    with transaction(federation.appliance.engine) as session:
        revoke(session, federation.appliance, officer(federation), item.digest)
    with pytest.raises(Conflict, match="revoked"):
        put(federation, item)
    with transaction(federation.appliance.engine) as session, pytest.raises(Conflict):
        revoke(session, federation.appliance, officer(federation), item.digest)
    with transaction(federation.appliance.engine) as session, pytest.raises(NotFound):
        revoke(session, federation.appliance, officer(federation), sha256_hex(b"another"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "promise"},
        {"subject": "sha256:" + "0" * 64},
        {"scope": "release"},
        {"expires": "2026-01-04"},
        {"kind": "dpia"},
        {"change_class": "first"},
        {"file": "a path"},
        {"issuer": ""},
        {"extra": 1},
    ],
)
def test_a_record_of_another_form_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        agreement(**wrong)


def test_the_last_day_counts_and_the_next_does_not() -> None:
    item = agreement(expires="2026-03-31")
    (on_it,) = standing([item], on=date(2026, 3, 31))
    (after,) = standing([item], on=date(2026, 4, 1))
    assert (on_it["days_left"], after["days_left"]) == (1, 0)
    assert latest([item], "dpa", on=date(2026, 3, 31)) is item
    assert latest([item], "dpa", on=date(2026, 4, 1)) is None
    assert standing([item], on=date(2026, 1, 4)) == []


def test_of_two_assessments_the_newer_speaks(federation: Federation) -> None:
    spec = study_spec()
    older, newer = assessment_of(federation.appliance, spec), assessment_of(federation.appliance, spec, officer="emil")
    assert assessment_facts([older, newer], on=today(federation))["officer"] == "emil"
    assert assessment_facts([], on=today(federation)) == {
        "approved": False, "spec_digest": "", "sections": [], "advice_recorded": False, "officer": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"officer": "rosa"}, "G21"),
        ({"residual_risk": "high"}, "G22"),
    ],
)
def test_what_an_assessment_says_decides_at_the_proposal(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], rule: str
) -> None:
    spec = fresh()
    give_governance(federation.appliance)
    put(federation, assessment_of(federation.appliance, spec, **changes))
    monkeypatch.setattr("tests.simulator.federation.give_papers", lambda *_: None)
    proposed = federation.propose(spec)
    assert rule in {finding.rule for finding in proposed.decision.findings}
    assert proposed.state is not StudyState.CONSENTING


def test_without_an_assessment_nothing_opens(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulator.federation.give_papers", lambda *_: None)
    give_governance(federation.appliance)
    proposed = federation.propose(fresh())
    assert {"G21", "G22"} <= {finding.rule for finding in proposed.decision.findings}
    assert proposed.state is StudyState.DENIED


def test_who_submitted_the_study_does_not_vouch_for_it(federation: Federation) -> None:
    spec = federation.ready(fresh())
    with pytest.raises(Refused, match="submitted"):
        put(federation, agreement(scope="study", subject=spec.study, kind="ethics_approval"), by="rosa")


def test_a_revoked_assessment_shuts_the_next_round(federation: Federation) -> None:
    spec = federation.ready(fresh())
    appliance = federation.appliance
    with reading(appliance.engine) as session:
        row = StudyRepository(session).get(spec.study)
        plan = plan_of(row)
        papers = study_papers(session, appliance, plan.spec)
    gates = RoundGates.of(plan, row.plan_digest or "", builtin_policy())
    health = HealthyLog().health()
    assert gates.round(1, health, papers, QUIET, now=appliance.clock()).decision.allowed
    with transaction(appliance.engine) as session:
        revoke(session, appliance, officer(federation), assessment_of(appliance, spec).digest)
    with reading(appliance.engine) as session:
        papers = study_papers(session, appliance, plan.spec)
    shut = gates.round(2, health, papers, QUIET, now=appliance.clock())
    assert not shut.decision.allowed
    assert {finding.rule for finding in shut.decision.findings} == {"G20-content"}


def test_an_assessment_of_another_spec_is_stale(federation: Federation) -> None:
    spec = federation.ready(fresh())
    other = assessment_of(federation.appliance, study_spec(title="Another title"))
    facts = assessment_facts([other], on=today(federation))
    assert facts["approved"]
    assert facts["spec_digest"] != assessment_of(federation.appliance, spec).assessment.spec  # type: ignore[union-attr]


def test_the_register_names_what_it_lacks(federation: Federation) -> None:
    give_governance(federation.appliance)
    said = load_governance(federation.appliance.home)
    assert missing_in_register(study_spec(), said) == []
    assert missing_in_register(study_spec(), None) == ["contact", "transfers", "security"]
    bare = study_spec(governance={}, justified_columns=[])
    assert missing_in_register(bare, said) == ["controllers", "categories", "time-limits"]


def test_a_release_is_classified_by_its_own_records(federation: Federation) -> None:
    digest, site = sha256_hex(b"release"), a_site(federation)
    classes = Classification(mdr_class="IIa", ai_act_class="high")
    item = agreement(kind="regulatory_classification", scope="release", subject=digest, classification=classes)
    put(federation, item, by="rita")
    put(federation, agreement(kind="datasheet", subject=site))
    with reading(federation.appliance.engine) as session:
        told = release_papers(session, federation.appliance, digest=digest, contributors=[site, "another"], first=False)
        other = release_papers(
            session, federation.appliance, digest=sha256_hex(b"changed"), contributors=[], first=True
        )
    assert (told["mdr_class"], told["ai_act_class"], told["change_class"]) == ("IIa", "high", "outside-plan")
    assert told["sites_without_datasheet"] == ["another"]
    assert told["technical_documentation_missing"] == ["all"]
    assert (other["mdr_class"], other["change_class"], other["records"]) == ("", "first", [])


def test_governance_is_read_as_it_was_written(federation: Federation) -> None:
    home = federation.appliance.home
    give_governance(federation.appliance)
    said = load_governance(home)
    assert said is not None
    assert Governance.model_validate(said.model_dump()) == said
    facts = coordinator_facts(said, on=today(federation))
    assert (facts["country"], facts["backup_tested_days"], facts["subprocessors"]) == ("DE", 40, [])
    assert coordinator_facts(None, on=today(federation)) == {}
    path = home / FILE
    text = path.read_text()
    for wrong in ("country = ", text.replace('"DE"', '"Germany"'), text + "\nunknown = 1\n"):
        path.write_text(wrong)
        with pytest.raises(GovernanceWrong):
            load_governance(home)
    path.unlink()
    assert load_governance(home) is None


def test_a_file_of_records_is_read_with_its_documents(tmp_path: Path) -> None:
    (tmp_path / "dpa.pdf").write_bytes(b"signed")
    file = tmp_path / "evidence.yaml"
    good = {"kind": "dpa", "scope": "site", "subject": "aachen", "issuer": "Aachen", "issued": "2026-01-05"}
    file.write_text(json.dumps({"records": [{**good, "document": "dpa.pdf"}]}))
    (found,) = read_records(file)
    assert found.file == sha256_hex(b"signed")
    for wrong, said in (
        ({"records": [{**good, "document": "absent.pdf"}]}, "Record 1: its document"),
        ({"records": [good]}, "Record 1: file"),
        ({"records": []}, "no list"),
        ({"record": [good]}, "no list"),
        ({"records": ["dpa"]}, "Record 1 is no mapping"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(Malformed, match=said):
            read_records(file)
