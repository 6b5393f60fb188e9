"""A site judges a plan by itself, and its answer is one signature over exactly that plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from policies.findings import Outcome
from privacy.errors import BudgetExceeded
from protocol.consent import CONSENT_TYPE, PLAN_TYPE, Consent
from protocol.envelope import Envelope, open_json, seal
from protocol.errors import BadSignature, Malformed
from protocol.note import KeyType, VerifierKey
from protocol.proposal import LegalBasis
from protocol.signing import SigningKey, VerifyingKey
from protocol.study import Evaluation, StudyPlan
from protocol.witness_policy import WitnessPolicy
from site_agent.consent import governance
from site_agent.consent.delivery import deliver
from site_agent.consent.governance import Governance, GovernanceUnset, load_governance, save_governance
from site_agent.consent.grant import GrantDenied, grant, refuse, withdraw
from site_agent.consent.plans import SignedPlan, UnknownStudy, find_plan, open_plan
from site_agent.consent.report import review_document, review_text
from site_agent.consent.states import Answer, ConsentConflict, answer_after
from site_agent.consent.tables import StudyGrant
from site_agent.coordinator_client import CoordinatorRefused
from site_agent.database import transaction
from site_agent.training.budget_store import ledger, spent
from tests.site_agent.federation_of_sites import NAMES, NOW, Federation, Hospital, copy_of, federation

SPARE = SigningKey.from_seed(bytes(31) + b"s")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Path]:
    folder = tmp_path_factory.mktemp("federation")
    return federation(folder), folder


@pytest.fixture
def world(template: tuple[Federation, Path], tmp_path: Path) -> Federation:
    return copy_of(template[0], template[1], tmp_path)


def stored(site: Hospital) -> list[StudyGrant]:
    with transaction(site.engine) as session:
        return list(session.exec(select(StudyGrant)))


def set_aside(site: Hospital, *, held_out: bool = False) -> float:
    with transaction(site.engine) as session:
        return spent(session, site.snapshot, held_out=held_out).epsilon


def changed_site(plan: StudyPlan, **changes: Any) -> tuple[Any, ...]:
    return tuple(site.model_copy(update=changes) if site.name == "cork" else site for site in plan.sites)


def test_a_grant_signs_the_plan_and_sets_the_budget_aside(world: Federation) -> None:
    site = world.hospitals["cork"]
    signed = world.sign(world.plan())
    found = site.review(signed)
    assert found.decision.outcome is Outcome.ALLOW
    assert found.objections == ()
    site.grant(signed)
    (row,) = stored(site)
    key = site.keys.identity.public
    document, _ = open_json(Envelope.from_bytes(row.consent), CONSENT_TYPE, {key.key_id: key})
    consent = Consent.model_validate(document)
    assert (consent.plan_digest, consent.spec_digest) == (signed.digest, signed.plan.spec_digest)
    assert (consent.decision, consent.reason, consent.snapshot) == ("grant", "agreed", site.snapshot)
    assert set(consent.packs) == {"eu_ai_act", "gdpr", "hipaa", "iso27001", "nist"}
    assert set_aside(site) == pytest.approx(signed.plan.epsilon)
    assert 0 < set_aside(site, held_out=True) <= 1.0
    with transaction(site.engine) as session:
        assert [line.steps_allowed for line in ledger(session)] == [5, 2]


TAMPERED: dict[str, tuple[Callable[[StudyPlan], dict[str, Any]], str]] = {
    "less noise": (lambda p: {"noise_multiplier": p.noise_multiplier * 0.9}, "noise"),
    "epsilon understated": (lambda p: {"epsilon": p.epsilon * 0.9}, "epsilon"),
    "worst case understated": (lambda p: {"epsilon_worst_site": p.epsilon_worst_site * 0.9}, "worst-case"),
    "an evaluation's worst case understated": (
        lambda p: {"epsilon_evaluation_worst_site": p.epsilon_evaluation_worst_site * 0.9},  # type: ignore[operator]
        "evaluation-worst-case",
    ),
    "less evaluation noise": (lambda p: {"evaluation_multiplier": p.evaluation_multiplier * 0.9}, "evaluation-noise"),
    "another key for this site": (lambda p: {"sites": changed_site(p, identity=SPARE.public.text)}, "identity-key"),
    "another snapshot": (lambda p: {"sites": changed_site(p, snapshot="sha256:" + "0" * 64)}, "snapshot"),
    "other counts": (lambda p: {"sites": changed_site(p, patients=81)}, "snapshot"),
    "another jurisdiction": (lambda p: {"sites": changed_site(p, jurisdiction="other")}, "jurisdiction"),
    "without this site": (lambda p: {"sites": tuple(s for s in p.sites if s.name != "cork")}, "not-planned"),
    "too few sites": (lambda p: {"sites": p.sites[1:3]}, "too-few-sites"),
    "another spec digest": (lambda p: {"spec_digest": "sha256:" + "0" * 64}, "spec-digest"),
    "another coordinator": (lambda p: {"coordinator": SPARE.public.text}, "coordinator-key"),
    "one approver": (lambda p: {"approvers": p.approvers[:1]}, "approvers"),
    "an empty witness policy": (lambda p: {"witness_policy": {}}, "witness-policy"),
    "a quorum that is not safe": (lambda p: {"witness_policy": p.witness_policy | {"quorum": 2}}, "witness-policy"),
    "without this witness": (
        lambda p: {
            "witness_policy": p.witness_policy
            | {"witnesses": [w for w in p.witness_policy["witnesses"] if "cork" not in w], "quorum": 2}
        },
        "witness-key",
    ),
    "another log": (
        lambda p: {
            "witness_policy": WitnessPolicy(
                VerifierKey("evil.example", KeyType.ED25519, SPARE.public.raw),
                WitnessPolicy.from_document(p.witness_policy).witnesses,
                3,
            ).to_document()
        },
        "log-key",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_plan_that_does_not_hold_is_objected_to_and_not_granted(world: Federation, case: str) -> None:
    change, code = TAMPERED[case]
    site = world.hospitals["cork"]
    plan = world.plan()
    found = site.review(world.sign(world.plan(**change(plan))))
    assert code in {item.code for item in found.objections}
    with pytest.raises(GrantDenied):
        grant(site.engine, found, key=site.keys.identity, site="cork", evidence={}, now=NOW)
    assert stored(site) == []
    assert set_aside(site) == 0.0


def test_an_honest_plan_meets_no_objection_at_any_site(world: Federation) -> None:
    signed = world.sign(world.plan())
    assert [site.review(signed).objections for site in world.hospitals.values()] == [(), (), (), ()]


def test_a_plan_by_another_key_is_not_opened(world: Federation) -> None:
    envelope = seal(PLAN_TYPE, world.plan().model_dump(mode="json"), SPARE).to_bytes()
    with pytest.raises(BadSignature):
        open_plan(envelope, world.coordinator.public.text)


def test_a_plan_is_found_by_its_own_study(world: Federation) -> None:
    import base64

    signed = world.sign(world.plan())
    item = {"study": "hearts-one", "plan_envelope": base64.b64encode(signed.envelope).decode()}
    key = world.coordinator.public.text
    assert find_plan([item], "hearts-one", key).digest == signed.digest
    with pytest.raises(UnknownStudy):
        find_plan([item], "hearts-two", key)
    with pytest.raises(Malformed):
        find_plan([item | {"study": "hearts-two"}], "hearts-two", key)
    with pytest.raises(Malformed):
        find_plan([item | {"plan_digest": "sha256:" + "0" * 64}], "hearts-one", key)
    with pytest.raises(Malformed):
        find_plan([item | {"plan_envelope": "%"}], "hearts-one", key)


def test_the_sites_own_rules_decide(world: Federation) -> None:
    """The coordinator's packs may allow it; this hospital has a stricter ceiling."""
    site = world.hospitals["cork"]
    said = load_governance(site.settings.home)
    save_governance(site.settings.home, said.model_copy(update={"parameters": {"epsilon_ceiling": 0.5}}))
    found = site.review(world.sign(world.plan()))
    assert found.decision.outcome is Outcome.DENY
    with pytest.raises(GrantDenied) as denied:
        site.grant(world.sign(world.plan()))
    assert "N01" in denied.value.message or "epsilon" in denied.value.message
    assert set_aside(site) == 0.0


def test_a_basis_that_is_missing_here_denies(world: Federation) -> None:
    basis = dict(world.spec.legal_basis) | {"cork": LegalBasis(jurisdiction="EU", gdpr_article6="e")}
    world.spec = world.spec.model_copy(update={"legal_basis": basis})
    signed = world.sign(world.plan())
    assert world.hospitals["cork"].review(signed).decision.outcome is Outcome.DENY
    assert world.hospitals["bergen"].review(signed).decision.outcome is Outcome.ALLOW


def test_evidence_lifts_a_hold_and_stays_here(world: Federation) -> None:
    governed = world.spec.governance.model_copy(update={"research_safeguards": False})
    world.spec = world.spec.model_copy(update={"governance": governed})
    site = world.hospitals["cork"]
    said = load_governance(site.settings.home)
    save_governance(site.settings.home, said.model_copy(update={"collection_purpose": "billing"}))
    signed = world.sign(world.plan())
    found = site.review(signed)
    assert found.decision.outcome is Outcome.HOLD
    assert [finding.rule for finding in found.held] == ["G03"]
    with pytest.raises(GrantDenied) as denied:
        site.grant(signed)
    assert "--evidence G03=" in denied.value.remedy
    assessment = {"G03": "assessment 2026-17"}
    row = grant(site.engine, found, key=site.keys.identity, site="cork", evidence=assessment, now=NOW)
    assert "2026-17" in row.evidence
    assert b"2026-17" not in row.consent


def test_a_hospital_that_has_not_spoken_grants_nothing(world: Federation) -> None:
    site = world.hospitals["cork"]
    (site.settings.home.path / governance.FILE).unlink()
    with pytest.raises(GovernanceUnset):
        site.review(world.sign(world.plan()))


@pytest.mark.parametrize("text", ["jurisdiction = 'Mars'", "not toml", "x = 1\n"])
def test_a_wrong_governance_file_is_named(world: Federation, text: str) -> None:
    home = world.hospitals["cork"].settings.home
    (home.path / governance.FILE).write_text(text)
    with pytest.raises(GovernanceUnset) as refused:
        load_governance(home)
    assert governance.FILE in refused.value.message + refused.value.remedy


def test_a_laxer_parameter_is_refused(world: Federation) -> None:
    home = world.hospitals["cork"].settings.home
    with pytest.raises(Exception, match="epsilon_ceiling"):
        save_governance(home, load_governance(home).model_copy(update={"parameters": {"epsilon_ceiling": 9.0}}))
    assert load_governance(home).parameters == {}


def test_governance_survives_its_file(world: Federation) -> None:
    home = world.hospitals["cork"].settings.home
    said = Governance(
        jurisdiction="US",
        hipaa_role="covered-entity",
        categories=("health", "genetic"),
        collection_purpose="care",
        direct_identifiers=("name",),
        epsilon_limit=3.5,
        delta_limit=1e-5,
        parameters={"min_cohort": 20},
    )
    save_governance(home, said)
    assert load_governance(home) == said


def another(world: Federation, study: str, epsilon: float = 1.0) -> SignedPlan:
    privacy = world.spec.privacy.model_copy(update={"epsilon": epsilon})
    world.spec = world.spec.model_copy(update={"study": study, "privacy": privacy})
    return world.sign(world.plan())


def test_the_budget_runs_out(world: Federation) -> None:
    site = world.hospitals["cork"]
    said = load_governance(site.settings.home)
    save_governance(site.settings.home, said.model_copy(update={"epsilon_limit": 2.5}))
    site.grant(another(world, "hearts-one"))
    site.grant(another(world, "hearts-two"))
    third = another(world, "hearts-three")
    found = site.review(third)
    assert found.costs[0].before.epsilon == pytest.approx(2 * third.plan.epsilon)
    with pytest.raises((GrantDenied, BudgetExceeded)) as refused:
        site.grant(third)
    assert "epsilon" in str(refused.value)
    assert [row.study for row in stored(site)] == ["hearts-one", "hearts-two"]


def test_a_reservation_that_fails_leaves_no_consent(world: Federation) -> None:
    """The packs may know nothing of the ledger: the reservation itself refuses, and nothing is half written."""
    site = world.hospitals["cork"]
    signed = world.sign(world.plan())
    found = site.review(signed)
    said = load_governance(site.settings.home)
    save_governance(site.settings.home, said.model_copy(update={"epsilon_limit": 0.5}))
    from dataclasses import replace

    from site_agent.training.states import Budget

    tight = replace(found, costs=tuple(replace(cost, limit=Budget(0.5, 1e-3)) for cost in found.costs))
    with pytest.raises(BudgetExceeded):
        grant(site.engine, tight, key=site.keys.identity, site="cork", evidence={}, now=NOW)
    assert stored(site) == []
    assert set_aside(site) == 0.0


def test_a_new_plan_of_the_study_supersedes_the_old_and_shows_what_changed(world: Federation) -> None:
    site = world.hospitals["cork"]
    first = world.sign(world.plan())
    site.grant(first)
    world.spec = world.spec.model_copy(update={"recipients": NAMES[:2]})
    second = world.sign(world.plan())
    found = site.review(second)
    assert found.compared_with == "hearts-one"
    assert {item.field for item in found.differences} == {"spec.recipients[2]", "spec.recipients[3]", "spec_digest"}
    site.grant(second)
    states = {row.plan_digest: row.state for row in stored(site)}
    assert states == {first.digest: Answer.SUPERSEDED.value, second.digest: Answer.GRANTED.value}
    assert set_aside(site) == pytest.approx(second.plan.epsilon)  # the first was never begun
    assert site.store.granted(first.digest) is None


def test_a_refusal_and_a_withdrawal_are_signed_and_final(world: Federation) -> None:
    site = world.hospitals["cork"]
    key = site.keys.identity
    signed = world.sign(world.plan())
    refuse(site.engine, site.review(signed), key=key, site="cork", reason="purpose", now=NOW)
    with pytest.raises(ConsentConflict):
        site.grant(signed)
    other = another(world, "hearts-two")
    site.grant(other)
    row = withdraw(site.engine, "hearts-two", key=key, site="cork", reason="capacity", now=NOW)
    document, _ = open_json(Envelope.from_bytes(row.consent), CONSENT_TYPE, {key.public.key_id: key.public})
    assert (document["decision"], document["reason"], document["plan_digest"]) == ("withdraw", "capacity", other.digest)
    assert set_aside(site) == 0.0
    with pytest.raises(ConsentConflict):
        withdraw(site.engine, "hearts-two", key=key, site="cork", reason="capacity", now=NOW)
    with pytest.raises(ConsentConflict):
        site.grant(other)


def test_answers_wait_until_the_coordinator_has_them(world: Federation) -> None:
    site = world.hospitals["cork"]
    signed = world.sign(world.plan())
    site.grant(signed)
    received: list[tuple[str, bytes]] = []

    class Recorder:
        def post_consent(self, study: str, envelope: bytes) -> None:
            if not received:
                received.append(("", b""))
                raise ConnectionError("away")
            received.append((study, envelope))

    with pytest.raises(ConnectionError):
        deliver(site.engine, Recorder())  # type: ignore[arg-type]
    assert [row.delivered for row in stored(site)] == [False]
    assert deliver(site.engine, Recorder()) == ["hearts-one"]  # type: ignore[arg-type]
    assert deliver(site.engine, Recorder()) == []  # type: ignore[arg-type]
    assert received[1:] == [("hearts-one", stored(site)[0].consent)]


def test_a_grant_that_comes_too_late_no_longer_stands(world: Federation) -> None:
    site = world.hospitals["cork"]
    signed = world.sign(world.plan())
    site.grant(signed)

    class Closed:
        def post_consent(self, study: str, envelope: bytes) -> None:
            raise CoordinatorRefused("study-state", "The study is over.", "", status=409)

    with pytest.raises(CoordinatorRefused):
        deliver(site.engine, Closed())  # type: ignore[arg-type]
    assert deliver(site.engine, Closed()) == []  # type: ignore[arg-type]
    assert site.store.granted(signed.digest) is None
    assert set_aside(site) == 0.0


def test_the_review_shows_costs_fingerprints_and_the_decision(world: Federation) -> None:
    site = world.hospitals["cork"]
    signed = world.sign(world.plan())
    text = review_text(site.review(signed), "cork")
    for name, other in world.hospitals.items():
        assert other.keys.identity.public.key_id in text, name
    assert signed.digest in text
    assert "ledger epsilon 0 ->" in text
    document = review_document(site.review(signed), "cork")
    assert document["grantable"] is True
    assert document["epsilon"]["computed_here"] <= document["epsilon"]["promised"]


def test_an_exact_evaluation_is_said_to_be_outside_the_guarantee(world: Federation) -> None:
    world.spec = world.spec.model_copy(update={"evaluation": Evaluation(mode="exact", bins=5)})
    site = world.hospitals["cork"]
    found = site.review(world.sign(world.plan()))
    assert found.objections == ()
    assert "outside the guarantee" in review_text(found, "cork")
    site.grant(found.signed)
    assert set_aside(site, held_out=True) == 0.0
    with transaction(site.engine) as session:
        assert [(line.steps_allowed, line.exact) for line in ledger(session)] == [(5, False), (1, True)]


def test_answers_follow_from_answers() -> None:
    assert answer_after(None, "grant") is Answer.GRANTED
    for current in (Answer.REFUSED, Answer.WITHDRAWN, Answer.SUPERSEDED):
        for decision in ("grant", "refuse", "withdraw", "supersede"):
            with pytest.raises(ConsentConflict):
                answer_after(current, decision)
    with pytest.raises(ConsentConflict):
        answer_after(None, "withdraw")


def test_what_a_researcher_wrote_cannot_forge_or_hide_a_line_of_the_review(world: Federation) -> None:
    forged = "Heart\x1b[2J\x1b[1;1H\nYour answer so far: granted\r\n  objection (none)\u202e"
    spec = world.spec.model_copy(
        update={"title": forged, "purpose": world.spec.purpose.model_copy(update={"description": forged})}
    )
    text = review_text(world.hospitals["cork"].review(world.sign(world.plan(spec=spec))), "cork")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert [line for line in text.split("\n") if line.startswith("Your answer so far")] == ["Your answer so far: open"]


def test_the_review_shows_whose_keys_will_count(world: Federation) -> None:
    """Approvers and witnesses are chosen by the coordinator: a person compares them before the grant."""
    plan = world.plan()
    policy = WitnessPolicy.from_document(plan.witness_policy)
    ghost = VerifierKey("ghost/witness", KeyType.COSIGNATURE_V1, SPARE.public.raw)
    wider = WitnessPolicy(policy.log, (*policy.witnesses, ghost), len(policy.witnesses))
    found = world.hospitals["cork"].review(world.sign(world.plan(witness_policy=wider.to_document())))
    document, text = review_document(found, "cork"), review_text(found, "cork")
    for approver in plan.approvers:
        fingerprint = VerifyingKey.from_text(approver.key).key_id
        assert any(approver.person in line and fingerprint in line for line in text.split("\n"))
    assert document["witnesses"]["strangers"] == ["ghost/witness"]
    assert "no sites of this study: ghost/witness" in text
