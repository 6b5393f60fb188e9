"""Proposals, held plans, consents, start and stop, as verbs over a real database and its log."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.people.facts import Actor
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.sites.repository import SiteRepository
from coordinator.studies import views
from coordinator.studies.consent import answer
from coordinator.studies.control import approve_plan, start, stop
from coordinator.studies.plan import PlanRefused
from coordinator.studies.propose import prepare, read_proposal
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import ConsentConflict, StudyConflict, StudyState
from policies.findings import Kind
from protocol.canonical import canonical
from protocol.consent import CONSENT_TYPE, PLAN_APPROVAL_TYPE, PROPOSAL_TYPE
from protocol.envelope import Envelope, seal
from protocol.errors import BadSignature, Malformed, Refused
from protocol.signing import SigningKey
from protocol.study import StudySpec
from protocol.timestamp import timestamp
from tests.simulator.federation import NAMES, Federation, build_federation, study_spec

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def whole_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def federation(whole_federation: Federation) -> Federation:
    whole_federation.reset()
    return whole_federation


def fresh(**changes: object) -> StudySpec:
    return study_spec(f"proposed-{next(_numbers)}", **changes)


def person(federation: Federation, name: str) -> Person:
    with reading(federation.appliance.engine) as session:
        found = PersonRepository(session).get(name)
    assert found is not None
    return found


def test_an_allowed_proposal_is_planned_signed_and_logged(federation: Federation) -> None:
    spec = fresh()
    proposed = federation.propose(spec)
    assert proposed.state is StudyState.CONSENTING
    assert {checked.rule for checked in proposed.decision.checked} >= {"G01", "G14", "N01", "N04"}
    row = federation.row(spec.study)
    coordinator = federation.appliance.keys.coordinator.public
    envelope = Envelope.from_bytes(row.plan or b"")
    assert [key for key, _ in envelope.signatures] == [coordinator.key_id]
    assert federation.plan(spec.study).spec == spec
    events = federation.events(spec.study)
    assert [event.event for event in events] == ["study.proposed", "policy.decided"]
    assert {"pack_gdpr", "pack_nist", "decision"} <= set(events[1].digests)


def test_a_denial_names_rule_citation_fact_and_remedy_and_the_name_stays_free(federation: Federation) -> None:
    good = fresh()
    document = json.loads(good.model_dump_json())
    document["legal_basis"]["berlin"]["gdpr_article6"] = None
    denied = federation.propose(StudySpec.model_validate(document))
    assert denied.state is StudyState.DENIED
    finding = next(finding for finding in denied.decision.findings if finding.rule == "G01")
    assert finding.citation.startswith("GDPR Art. 6(1)")
    assert "berlin" in finding.message
    assert finding.remedy
    assert "study.legal_basis" in {fact.path for fact in finding.facts}
    assert federation.events(good.study)[-1].event == "study.denied"
    assert "G01" in federation.events(good.study)[-1].groups["rules"]
    with pytest.raises(NotFound):
        federation.row(good.study)
    assert federation.propose(good).state is StudyState.CONSENTING
    with reading(federation.appliance.engine) as session:
        rows = [views.denied(row) for row in StudyRepository(session).denied()]
    assert (good.study, "denied") in {(row["study"], row["state"]) for row in rows}


def test_a_missing_fact_denies(federation: Federation) -> None:
    spec = fresh(governance={"notice": "n", "dpia": "d", "controllers": ["one"], "research_safeguards": True})
    denied = federation.propose(spec)
    assert denied.state is StudyState.DENIED
    missing = next(finding for finding in denied.decision.findings if finding.rule == "G06")
    assert missing.kind is Kind.MISSING_FACT


def test_a_name_is_taken_once(federation: Federation) -> None:
    spec = fresh()
    federation.propose(spec)
    with pytest.raises(Conflict, match="already"):
        federation.propose(spec)


def test_only_the_proposer_s_own_signature_over_a_whole_spec_counts(federation: Federation) -> None:
    spec, rosa = fresh(), federation.researcher
    document = spec.model_dump(mode="json")
    with pytest.raises(BadSignature):
        read_proposal(seal(PROPOSAL_TYPE, document, SigningKey.generate()).to_bytes(), rosa)
    with pytest.raises(BadSignature):
        read_proposal(seal(CONSENT_TYPE, document, federation.researcher_key).to_bytes(), rosa)
    bad = {**document, "privacy": {"epsilon": 0, "delta": 1e-4}}
    bad["training"] = {**document["training"], "sampling_rate": 1.5}
    signed = seal(PROPOSAL_TYPE, bad, federation.researcher_key).to_bytes()
    with pytest.raises(Malformed, match=r"privacy\.epsilon.*training\.sampling_rate"):
        read_proposal(signed, rosa)
    with pytest.raises(Malformed):
        read_proposal(b"{", rosa)
    tampered = seal(PROPOSAL_TYPE, document, federation.researcher_key)
    changed = replace(tampered, payload=canonical({**document, "title": "Another"}))
    with pytest.raises(BadSignature):
        read_proposal(changed.to_bytes(), rosa)


def test_a_dry_preparation_stores_nothing(federation: Federation) -> None:
    spec = fresh()
    data = seal(PROPOSAL_TYPE, spec.model_dump(mode="json"), federation.researcher_key).to_bytes()
    with reading(federation.appliance.engine) as session:
        plan, digest = prepare(
            session, federation.appliance, active_policy(session, federation.appliance), federation.researcher, data
        )
    assert plan.spec == spec
    assert digest.startswith("sha256:")
    assert federation.events(spec.study) == []


def test_a_site_that_left_cannot_be_planned(federation: Federation) -> None:
    with transaction(federation.appliance.engine) as session:
        sites = SiteRepository(session)
        site = sites.get("dresden")
        assert site is not None
        site.status = "revoked"
        sites.save(site)
    try:
        with pytest.raises(PlanRefused, match="Not enrolled here: dresden"):
            federation.propose(fresh())
    finally:
        with transaction(federation.appliance.engine) as session:
            sites = SiteRepository(session)
            site = sites.get("dresden")
            assert site is not None
            site.status = "active"
            sites.save(site)


# Held plans


def approval(federation: Federation, held: str, name: str, **changes: object) -> bytes:
    document = {
        "study": held,
        "plan_digest": federation.row(held).plan_digest,
        "person": name,
        "role": person(federation, name).role,
        "decision": "approve",
        "signed_at": timestamp(federation.clock.now()),
        **changes,
    }
    return seal(PLAN_APPROVAL_TYPE, document, federation.approver_keys[name]).to_bytes()


def approve(federation: Federation, study: str, name: str, data: bytes) -> None:
    with transaction(federation.appliance.engine) as session:
        actor = Actor(person(federation, name), AuthLevel.KEY)
        approve_plan(session, federation.appliance, active_policy(session, federation.appliance), actor, study, data)


@pytest.fixture
def held(federation: Federation) -> str:
    spec = fresh(privacy={"epsilon": 3.0, "delta": 1e-4, "retries": 3})
    proposed = federation.propose(spec)
    assert proposed.state is StudyState.HELD
    assert proposed.decision.approvals_needed == ("compliance_officer",)
    return spec.study


def test_a_larger_epsilon_waits_for_a_compliance_officer(federation: Federation, held: str) -> None:
    with pytest.raises(ConsentConflict, match="held"):
        federation.consent(held, "aachen")
    approve(federation, held, "carl", approval(federation, held, "carl"))
    assert federation.state(held) is StudyState.CONSENTING
    assert [event.event for event in federation.events(held)][-2:] == ["study.approved", "policy.decided"]
    assert federation.consent(held, "aachen") is StudyState.CONSENTING


def test_another_role_s_approval_does_not_lift_it(federation: Federation, held: str) -> None:
    approve(federation, held, "lena", approval(federation, held, "lena"))
    assert federation.state(held) is StudyState.HELD


def test_a_rejection_stops_it(federation: Federation, held: str) -> None:
    approve(federation, held, "carl", approval(federation, held, "carl", decision="reject"))
    assert federation.state(held) is StudyState.STOPPED
    assert federation.row(held).reason == "plan-rejected"


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("carl", {"plan_digest": "sha256:" + "0" * 64}, StudyConflict),
        ("carl", {"study": "another-study"}, StudyConflict),
        ("carl", {"person": "lena"}, Refused),
        ("carl", {"role": "clinical_lead"}, Refused),
        ("carl", {"decision": "perhaps"}, Malformed),
        ("rosa", {}, Refused),
    ],
)
def test_an_approval_that_does_not_fit_changes_nothing(
    federation: Federation, held: str, name: str, changes: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        approve(federation, held, name, approval(federation, held, name, **changes))
    assert federation.state(held) is StudyState.HELD


def test_one_person_approves_once(federation: Federation, held: str) -> None:
    approve(federation, held, "lena", approval(federation, held, "lena"))
    with pytest.raises(Conflict, match="already"):
        approve(federation, held, "lena", approval(federation, held, "lena"))


# Consents


@pytest.fixture
def asked(federation: Federation) -> str:
    spec = fresh()
    federation.propose(spec)
    return spec.study


def test_the_study_is_ready_once_everybody_has_answered(federation: Federation, asked: str) -> None:
    for name in NAMES[:3]:
        assert federation.consent(asked, name) is StudyState.CONSENTING
    assert federation.consent(asked, NAMES[3], "refuse") is StudyState.READY
    logged = [event for event in federation.events(asked) if event.event in ("study.consented", "study.refused")]
    assert [(event.actor, event.labels["decision"]) for event in logged] == [
        ("site:aachen", "grant"), ("site:berlin", "grant"), ("site:cologne", "grant"), ("site:dresden", "refuse"),
    ]  # fmt: skip


def test_the_same_answer_twice_is_logged_once(federation: Federation, asked: str) -> None:
    federation.consent(asked, "aachen")
    federation.consent(asked, "aachen")
    assert sum(event.event == "study.consented" for event in federation.events(asked)) == 1


def test_a_consent_to_another_plan_is_a_conflict_with_its_remedy(federation: Federation, asked: str) -> None:
    with pytest.raises(ConsentConflict, match="is for plan sha256:0000") as refused:
        federation.consent(asked, "aachen", plan_digest="sha256:" + "0" * 64)
    assert "review" in refused.value.remedy
    with pytest.raises(ConsentConflict, match="another snapshot"):
        federation.consent(asked, "aachen", snapshot="sha256:" + "0" * 64)


def test_nobody_answers_for_another_site(federation: Federation, asked: str) -> None:
    with pytest.raises(Refused, match="another site's"):
        federation.consent(asked, "aachen", site="berlin")
    aachen = federation.sites["aachen"]
    document = {"study": asked, "site": "berlin", "decision": "grant"}
    forged = seal(CONSENT_TYPE, document, aachen.keys.identity).to_bytes()
    with transaction(federation.appliance.engine) as session, pytest.raises(BadSignature):
        answer(session, federation.appliance, "berlin", asked, forged)
    with transaction(federation.appliance.engine) as session, pytest.raises(Refused, match="not in this study's plan"):
        answer(session, federation.appliance, "essen", asked, forged)


def test_too_many_refusals_stop_the_study(federation: Federation, asked: str) -> None:
    federation.consent(asked, "aachen", "refuse")
    assert federation.consent(asked, "berlin", "refuse") is StudyState.STOPPED
    assert federation.row(asked).reason == "too-few-consents"
    assert federation.events(asked)[-1].event == "study.stopped"


# Start and stop


def begin(federation: Federation, study: str, name: str) -> None:
    with transaction(federation.appliance.engine) as session:
        start(session, federation.appliance, person(federation, name), study)


def test_only_a_ready_study_starts_and_only_by_its_submitter(federation: Federation, asked: str) -> None:
    federation.consent(asked, "aachen")
    with pytest.raises(StudyConflict, match="berlin, cologne, dresden"):
        begin(federation, asked, "rosa")
    for name in NAMES[1:]:
        federation.consent(asked, name)
    with pytest.raises(Refused):
        begin(federation, asked, "carl")
    begin(federation, asked, "rosa")
    assert federation.state(asked) is StudyState.KEYS
    with pytest.raises(StudyConflict, match="already started"):
        begin(federation, asked, "rosa")


@pytest.mark.parametrize(("name", "allowed"), [("rosa", True), ("carl", True), ("lena", False)])
def test_who_may_stop(federation: Federation, asked: str, name: str, allowed: bool) -> None:
    def end() -> None:
        with transaction(federation.appliance.engine) as session:
            stop(session, federation.appliance, person(federation, name), asked)

    if not allowed:
        with pytest.raises(Refused):
            end()
        return
    end()
    assert federation.row(asked).reason == "stopped-by-person"
    with pytest.raises(StudyConflict, match="stopped already"):
        end()


def test_status_says_who_answered_what_and_how_far_it_is(federation: Federation, asked: str) -> None:
    for name in NAMES:
        federation.consent(asked, name)
    begin(federation, asked, "rosa")
    federation.driver(asked).run()
    with reading(federation.appliance.engine) as session:
        shown = views.status(session, StudyRepository(session).get(asked), patience=60)
        rounds = views.round_records(session, asked)
    assert shown["state"] == "candidate"
    assert {site["name"]: (site["answer"], site["joined"]) for site in shown["sites"]} == dict.fromkeys(
        NAMES, ("grant", True)
    )
    assert shown["rounds"]["committed"] == shown["rounds"]["planned"] == 3
    assert shown["rounds"]["latest"]["norm"] > 0
    assert 0 < shown["privacy"]["epsilon_spent"] <= shown["epsilon"]
    assert len(rounds["rounds"]) == 4
    assert shown["candidate"]["rounds_digest"] == rounds["rounds_digest"]
    json.dumps(shown, allow_nan=False)
