"""From a candidate to a sealed bundle that a site accepts, and every way in which people may try to cut it short."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.appliance import Appliance
from coordinator.audit.sequencer import integrate_once
from coordinator.audit.witnessing import accept_cosignatures, latest_note, policy_in_force
from coordinator.database import reading, transaction
from coordinator.evidence.repository import EvidenceRepository
from coordinator.incidents.report import close, new_incident, open_by_person, update
from coordinator.people.facts import Actor
from coordinator.people.states import AuthLevel
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.releases import review, seal, stopping
from coordinator.releases.repository import ReleaseRepository
from coordinator.reviews.decide import close_review, open_review
from coordinator.reviews.repository import ReviewRepository
from coordinator.rounds.tables import Candidate
from coordinator.sites.repository import SiteRepository
from coordinator.studies.tables import Study
from policies.findings import reasons
from protocol.audit_event import AuditEvent, EventType
from protocol.bundle import unpack
from protocol.canonical import canonical, digest, sha256_hex
from protocol.checkpoint import cosigner_key
from protocol.consent import PLAN_TYPE
from protocol.enrolment import witness_name
from protocol.envelope import seal as sign
from protocol.errors import CloisterError, Malformed, Refused
from protocol.evaluation import ClassificationReport, Interval
from protocol.identifiers import Role
from protocol.incident import Incident, Settled
from protocol.model import parameter_count
from protocol.proposal import Governance, LegalBasis
from protocol.release import APPROVAL_TYPE, BUNDLE_FILES, Approval, EpsilonStatement
from protocol.signing import SigningKey
from protocol.timestamp import timestamp
from protocol.withdrawal import WITHDRAWAL_NOTICE_TYPE, WithdrawalNotice
from site_agent.releases.trusted_release import TrustRoot, verify
from tests.coordinator.appliances import Made, TestSite
from tests.papers import assessment_of
from tests.releases import SCHEMA, SITES, Maker

HASH = "sha256:" + "2" * 64
STUDY = "heart-study"
RELEASE = "heart-study-r1"


@dataclass
class Federation:
    """A coordinator with four witnessing sites, the people, and a candidate."""

    appliance: Appliance
    sites: list[TestSite]
    people: dict[str, Person] = field(default_factory=dict)
    keys: dict[str, SigningKey] = field(default_factory=dict)
    plan_digest: str = ""
    level: AuthLevel = AuthLevel.KEY

    def witness(self) -> None:
        """Integrate what is pending and have three of four sites cosign it."""
        integrate_once(self.appliance)
        with reading(self.appliance.engine) as session:
            note = latest_note(session, self.appliance)
        for site in self.sites[:3]:
            with transaction(self.appliance.engine) as session:
                vkey = cosigner_key(witness_name(site.name), site.witness).text
                accept_cosignatures(session, self.appliance, vkey, site.cosign(note, self.appliance.clock()))

    def to_review(self) -> None:
        with transaction(self.appliance.engine) as session:
            review.draft(
                session,
                self.appliance,
                self.people["ada"],
                study=STUDY,
                intended_use="research.heart",
                use_mode="research",
            )
        with transaction(self.appliance.engine) as session:
            review.submit(session, self.appliance, self.people["ada"], RELEASE)

    def decide(self, caller: str, /, decision: str = "approve", **changes: Any) -> None:
        with transaction(self.appliance.engine) as session:
            asked = review.challenge(session, self.appliance, self.people[caller], RELEASE)
        fields = {
            "release": RELEASE,
            "subject_digest": asked["subject_digest"],
            "person": caller,
            "role": Role(self.people[caller].role),
            "decision": decision,
            "meaning": "reviewed-and-approved" if decision == "approve" else "reviewed-and-rejected",
            "reason_hash": sha256_hex(b"read it"),
            "packs": asked["packs"],
            "challenge": asked["challenge"],
            "signed_at": "2026-11-23T00:00:00Z",
        }
        key = changes.pop("signed_by", caller)
        approval = Approval(**{**fields, **changes})
        envelope = sign(APPROVAL_TYPE, approval.model_dump(mode="json"), self.keys[key]).to_bytes()
        self.send(caller, envelope)

    def send(self, person: str, envelope: bytes) -> None:
        with transaction(self.appliance.engine) as session:
            review.decide(session, self.appliance, self.people[person], RELEASE, envelope=envelope, reason="read it")

    def seal(self) -> bool:
        with transaction(self.appliance.engine) as session:
            ada = Actor(self.people["ada"], self.level)
            decision = seal.seal(session, self.appliance, active_policy(session, self.appliance), ada, RELEASE)
        if decision is not None and not decision.allowed:
            raise seal.ReleaseDenied(decision)
        with transaction(self.appliance.engine) as session:
            return seal.finish(session, self.appliance, RELEASE)

    def bundle(self) -> bytes:
        with reading(self.appliance.engine) as session:
            return seal.bundle(session, RELEASE, now=self.appliance.clock())

    def events(self) -> list[AuditEvent]:
        from sqlmodel import select

        from coordinator.audit.tables import LogEntry

        with reading(self.appliance.engine) as session:
            return [AuditEvent.model_validate_json(row.leaf) for row in session.exec(select(LogEntry))]


def governed(maker: Maker) -> dict[str, Any]:
    """What the packs ask of a study with European sites."""
    spec = maker.plan().spec
    governance = Governance(
        controllers=("A",),
        notice="ref",
        dpia="ref",
        research_safeguards=True,
        updates_until="2030-01-01",
        checkpoints_until="2030-01-01",
        model_until="2036-01-01",
    )
    return {"spec": spec.model_copy(update={"governance": governance, "justified_columns": ("age", "pain")})}


def american(maker: Maker) -> dict[str, Any]:
    """The same with its first site in the United States, so that the rules of HIPAA are asked too."""
    first, *others = maker.plan().sites
    governing = governed(maker)["spec"]
    basis = {**governing.legal_basis, first.name: LegalBasis(jurisdiction="US", hipaa_path="authorization")}
    return {
        "spec": governing.model_copy(update={"legal_basis": basis}),
        "sites": (first.model_copy(update={"jurisdiction": "US"}), *others),
    }


@pytest.fixture
def federation(local: Made, tmp_path: Path, request: pytest.FixtureRequest) -> Federation:
    appliance = local.appliance
    sites = [TestSite(name, tmp_path / name) for name in SITES]
    for site in sites:
        site.enrol_in(appliance)
    maker = Maker(coordinator=appliance.keys.coordinator)
    with reading(appliance.engine) as session:
        policy = policy_in_force(session, appliance)
    assert policy is not None
    changes = getattr(request, "param", governed)(maker)
    maker.plan_changes = {**changes, "witness_policy": policy.to_document()}
    plan = maker.plan()
    envelope = sign(PLAN_TYPE, plan.model_dump(mode="json"), appliance.keys.coordinator)
    made = Federation(appliance, sites, keys=maker.people, plan_digest=sha256_hex(envelope.payload))
    roles = {"ada": Role.RESEARCHER, "bo": Role.COMPLIANCE_OFFICER, "cy": Role.CLINICAL_LEAD, "eve": Role.CLINICAL_LEAD}
    weights = np.linspace(-1, 1, parameter_count(plan.spec.model, SCHEMA.width)).astype("<f8").tobytes()
    epsilon = EpsilonStatement(
        unit="patient",
        adjacency="zero-out",
        epsilon=0.99,
        delta=1e-4,
        epsilon_worst_site=1.9,
        epsilon_cohort_to_date={},
        epsilon_evaluation=1.0,
        epsilon_evaluation_worst_site=2.3,
        steps_charged=16,
        rounds_executed=10,
        attempts=10,
        sampling="Poisson",
        accountant="PLD",
        trust="two honest sites",
    )
    figure = Interval(value=0.9, low=0.8, high=1.0)
    evaluation = ClassificationReport(
        mode="noised",
        outside_guarantee=False,
        held_out=120,
        bins=10,
        auc=figure,
        accuracy=figure,
        calibration_error=figure,
    )
    with transaction(appliance.engine) as session:
        for name, role in roles.items():
            person = Person(
                name=name,
                role=role.value,
                status="active",
                key=made.keys[name].public.text,
                invited_at="2026-11-23T00:00:00Z",
                certified_at="2026-11-23T00:00:00Z",
            )
            made.people[name] = person
            session.add(person)
        session.add(
            Study(
                id=STUDY,
                title="Heart",
                submitter="ada",
                state="candidate",
                proposal=b"{}",
                proposal_digest=HASH,
                plan=envelope.to_bytes(),
                plan_digest=made.plan_digest,
                decision='{"outcome": "allow", "findings": []}',
                proposed_at="2026-11-23T00:00:00Z",
            )
        )
        session.flush()
        assessed = assessment_of(appliance, plan.spec, spec=plan.spec_digest)
        EvidenceRepository(session).add(assessed, by="bo", at="2026-11-23T00:00:00Z")
        session.add(
            Candidate(
                study=STUDY,
                weights=weights,
                weights_digest=sha256_hex(weights),
                rounds_digest=HASH,
                evaluation=evaluation.model_dump_json(),
                histogram="[]",
                epsilon=epsilon.model_dump_json(),
                created_at="2026-11-23T00:00:00Z",
            )
        )
    made.witness()
    return made


def test_two_approvals_a_quorum_and_then_a_bundle_that_a_site_accepts(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")
    assert not federation.seal()
    with pytest.raises(Refused, match="sealing"):
        federation.bundle()
    federation.witness()
    assert federation.seal()
    with reading(federation.appliance.engine) as session:
        policy = policy_in_force(session, federation.appliance)
    assert policy is not None
    root = TrustRoot(
        "clinic-a",
        federation.appliance.keys.coordinator.public,
        policy,
        frozenset({federation.plan_digest}),
        {federation.plan_digest: frozenset({Maker().model_digest()})},
        federation.appliance.settings.address,
    )
    installable = verify(unpack(federation.bundle(), BUNDLE_FILES), root)
    assert installable.subject.release == RELEASE
    logged = [event.event for event in federation.events()]
    for event in (
        EventType.RELEASE_DRAFTED,
        EventType.RELEASE_SUBMITTED,
        EventType.RELEASE_APPROVED,
        EventType.POLICY_DECIDED,
        EventType.RELEASE_SEALED,
    ):
        assert event in logged
    assert logged.count(EventType.RELEASE_APPROVED) == 2


def test_the_log_holds_no_name_and_no_reason(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    leaves = b"".join(event.leaf() for event in federation.events())
    assert b"read it" not in leaves
    assert b'"bo"' not in leaves


def test_a_release_is_not_sealed_without_both(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    with pytest.raises(Refused, match="cannot become"):
        federation.seal()


def test_one_rejection_ends_it(federation: Federation) -> None:
    federation.to_review()
    federation.decide("cy", decision="reject")
    with pytest.raises(CloisterError, match="rejected"):
        federation.decide("bo")
    with pytest.raises(Refused):
        federation.seal()


@pytest.mark.parametrize(
    ("person", "changes", "why"),
    [
        ("ada", {}, "does not name ada"),
        ("eve", {}, "does not name eve"),
        ("bo", {"role": Role.CLINICAL_LEAD}, "does not name bo"),
        ("bo", {"subject_digest": HASH}, "another digest"),
        ("bo", {"challenge": HASH}, "unknown, used"),
        ("bo", {"signed_by": "cy"}, ""),
        ("bo", {"person": "cy", "role": Role.CLINICAL_LEAD, "signed_by": "cy"}, "another person"),
        ("bo", {"release": "heart-study-r2"}, "another person or release"),
        ("bo", {"reason_hash": HASH}, "reason"),
    ],
)
def test_wrong_approvals_are_refused(federation: Federation, person: str, changes: dict[str, Any], why: str) -> None:
    federation.to_review()
    with pytest.raises(CloisterError) as caught:
        federation.decide(person, **changes)
    assert why in caught.value.message
    with reading(federation.appliance.engine) as session:
        assert ReleaseRepository(session).votes(RELEASE) == []


def test_one_person_does_not_approve_twice(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    with pytest.raises(Refused, match="already decided"):
        federation.decide("bo")


def test_an_approval_is_not_replayed(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    with reading(federation.appliance.engine) as session:
        (vote,) = ReleaseRepository(session).votes(RELEASE)
    with pytest.raises(Refused, match="already decided"):
        federation.send("bo", vote.envelope)
    with pytest.raises(Refused, match="another person"):
        federation.send("cy", vote.envelope)


def test_only_the_submitter_drafts_and_submits(federation: Federation) -> None:
    with pytest.raises(Refused, match="submitter"), transaction(federation.appliance.engine) as session:
        review.draft(
            session,
            federation.appliance,
            federation.people["bo"],
            study=STUDY,
            intended_use="research.heart",
            use_mode="research",
        )


def test_an_undeclared_purpose_is_denied_and_the_denial_is_logged(federation: Federation) -> None:
    with transaction(federation.appliance.engine) as session:
        review.draft(
            session,
            federation.appliance,
            federation.people["ada"],
            study=STUDY,
            intended_use="marketing",
            use_mode="research",
        )
    with transaction(federation.appliance.engine) as session:
        review.submit(session, federation.appliance, federation.people["ada"], RELEASE)
    federation.decide("bo")
    federation.decide("cy")
    with pytest.raises(seal.ReleaseDenied) as caught:
        federation.seal()
    assert "G04" in caught.value.message
    assert caught.value.remedy
    decided = [event for event in federation.events() if event.event is EventType.POLICY_DECIDED]
    assert decided[-1].labels["outcome"] == "deny"


def test_the_statement_names_every_approval(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")
    federation.seal()
    federation.witness()
    federation.seal()
    files = unpack(federation.bundle(), BUNDLE_FILES)
    subject = json.loads(files["subject.json"])
    assert digest(subject) == sha256_hex(canonical(subject))
    assert subject["submitter"] == "ada"


def test_a_released_model_can_be_suspended_and_then_not_fetched(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")
    federation.seal()
    federation.witness()
    assert federation.seal()
    with transaction(federation.appliance.engine) as session:
        stopping.suspend(session, federation.appliance, federation.people["cy"], RELEASE, reason="a fault was seen")
    with pytest.raises(Refused, match="suspended"):
        federation.bundle()
    assert federation.events()[-1].event is EventType.RELEASE_SUSPENDED


def approved(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")


def happen(federation: Federation, scope: str, about: str, kind: str = "data-breach") -> str:
    with transaction(federation.appliance.engine) as session:
        told = Incident.model_validate(
            {
                "incident": new_incident(federation.appliance),
                "kind": kind,
                "scope": scope,
                "about": about,
                "aware_at": timestamp(federation.appliance.clock()),
            }
        )
        return open_by_person(session, federation.appliance, federation.people["eve"], told, words="It leaked").id


def over(federation: Federation, incident: str) -> None:
    duties = Settled(authority="not-required", individuals="not-required")
    with transaction(federation.appliance.engine) as session:
        update(session, federation.appliance, federation.people["bo"], incident, duties, words="Assessed")
        for name in ("bo", "cy"):
            close(session, federation.appliance, federation.people[name], incident, "resolved", words="Mended")


@pytest.mark.parametrize(
    ("scope", "about", "kind", "rule"),
    [
        ("study", STUDY, "data-breach", "G19"),
        ("site", "clinic-b", "security", "G19"),
        ("federation", "everything", "integrity", "G19"),
        ("site", "clinic-c", "basis-invalidated", "G25"),
    ],
)
def test_an_open_incident_of_study_or_contributor_keeps_a_release_from_being_sealed(
    federation: Federation, scope: str, about: str, kind: str, rule: str
) -> None:
    approved(federation)
    incident = happen(federation, scope, about, kind)
    with pytest.raises(seal.ReleaseDenied) as denied:
        federation.seal()
    assert rule in {finding["rule"] for finding in denied.value.facts["findings"]}
    over(federation, incident)
    federation.witness()
    federation.seal()


def test_what_was_sealed_waits_for_the_incident_that_came_after(federation: Federation) -> None:
    approved(federation)
    federation.seal()
    incident = happen(federation, "study", STUDY)
    federation.witness()
    for _ in range(2):
        with transaction(federation.appliance.engine) as session:
            assert not seal.finish(session, federation.appliance, RELEASE)
    over(federation, incident)
    federation.witness()
    with transaction(federation.appliance.engine) as session:
        assert seal.finish(session, federation.appliance, RELEASE)


def withdrew(federation: Federation, *grounds: str, sender: int = 1, **changes: object) -> str:
    """A hospital's notice that patients of the study withdrew, sent twice."""
    here = federation.sites[sender]
    fields = {
        "review": "review-00000000000000a1",
        "site": here.name,
        "study": STUDY,
        "plan_digest": federation.plan_digest,
        "grounds": grounds,
        "made_at": timestamp(federation.appliance.clock()),
    }
    key = changes.pop("signed_by", here.key)
    assert isinstance(key, SigningKey)
    notice = WithdrawalNotice.model_validate({**fields, **changes})
    data = sign(WITHDRAWAL_NOTICE_TYPE, notice.model_dump(mode="json"), key).to_bytes()
    with transaction(federation.appliance.engine) as session:
        row = SiteRepository(session).get(here.name)
        assert row is not None
        review = open_review(session, federation.appliance, row, data).id
        assert open_review(session, federation.appliance, row, data).id == review
    return review


def decided(federation: Federation, review: str, *grounds: str, by: str = "bo") -> None:
    with transaction(federation.appliance.engine) as session:
        close_review(session, federation.appliance, federation.people[by], review, grounds, words="As assessed")  # type: ignore[arg-type]


def test_a_model_of_patients_who_withdrew_is_released_only_once_a_ground_is_on_record(federation: Federation) -> None:
    approved(federation)
    review = withdrew(federation, "objection", "erasure")
    with pytest.raises(seal.ReleaseDenied) as denied:
        federation.seal()
    assert {finding["rule"] for finding in denied.value.facts["findings"]} == {"G11-review"}
    with pytest.raises(Malformed, match="erasure"):
        decided(federation, review, "art-21-6")
    with pytest.raises(Refused):
        decided(federation, review, "art-21-6", "art-17-3-d", by="cy")
    decided(federation, review, "art-21-6", "art-17-3-d")
    federation.witness()
    assert not federation.seal()
    again = withdrew(federation, "consent-withdrawn", review="review-00000000000000a2")
    federation.witness()
    with transaction(federation.appliance.engine) as session:
        assert not seal.finish(session, federation.appliance, RELEASE)  # it came before the quorum
    with pytest.raises(Refused, match="is out"):
        decided(federation, again, "model-withdrawn")
    decided(federation, again, "art-17-3-d")
    federation.witness()
    with transaction(federation.appliance.engine) as session:
        assert seal.finish(session, federation.appliance, RELEASE)
    told = [event for event in federation.events() if event.event in (EventType.REVIEW_OPENED, EventType.REVIEW_CLOSED)]
    assert [event.labels.get("grounds") for event in told] == [None, "art-17-3-d+art-21-6", None, "art-17-3-d"]
    assert {event.subject for event in told} == {STUDY}
    assert b"As assessed" not in b"".join(event.leaf() for event in told)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"study": "another-study"}, Refused),
        ({"plan_digest": HASH}, Refused),
        ({"site": "clinic-a"}, Refused),
        ({"signed_by": SigningKey.generate()}, CloisterError),
    ],
)
def test_a_notice_of_another_s_is_refused(
    federation: Federation, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        withdrew(federation, "erasure", **changes)
    with reading(federation.appliance.engine) as session:
        assert ReviewRepository(session).all() == []


@pytest.mark.parametrize("federation", [american], indirect=True)
def test_who_asks_for_a_release_must_be_one_certified_person_with_two_factors(federation: Federation) -> None:
    """H19 and H24, on what the database knows of the person and of their session."""
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")
    ada = federation.people["ada"]
    for change, rules in (
        ({"certified_at": "2025-11-01T00:00:00Z"}, {"H19"}),
        ({"certified_at": None}, {"H19"}),
        ({"shared": True}, {"H24", "A14-identity"}),
        ({"status": "disabled"}, {"H19", "H24", "A14-identity"}),
    ):
        federation.people["ada"] = Person(**{**ada.model_dump(), **change})
        assert _denied(federation) == rules, change
    federation.people["ada"], federation.level = ada, AuthLevel.FEDERATED
    assert _denied(federation) == {"H24"}
    for level in (AuthLevel.KEY, AuthLevel.PASSKEY, AuthLevel.PASSWORD_AND_CODE, AuthLevel.FEDERATED_MULTI_FACTOR):
        federation.level = level
        assert _denied(federation) == set(), level


def _denied(federation: Federation) -> set[str]:
    with reading(federation.appliance.engine) as session:
        ada = Actor(federation.people["ada"], federation.level)
        decision = seal.preview(
            session, federation.appliance, active_policy(session, federation.appliance), ada, RELEASE
        )
    return {finding.rule for finding in reasons(decision)}


def test_a_decision_in_a_role_that_was_taken_away_does_not_count(federation: Federation) -> None:
    federation.to_review()
    bo = federation.people["bo"]
    federation.people["bo"] = Person(**{**bo.model_dump(), "role": "administrator"})
    with pytest.raises(Refused, match="no longer have"):
        federation.decide("bo", role=Role.COMPLIANCE_OFFICER)
