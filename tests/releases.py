"""A whole, valid release bundle made from real keys, a real log and real witnesses: what the attack tests alter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coordinator.releases import build
from protocol.approver_signature import Signed
from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import canonical, digest, sha256_hex
from protocol.checkpoint import TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.consent import PLAN_TYPE
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.envelope import Envelope, seal
from protocol.evaluation import ClassificationReport, Interval
from protocol.identifiers import Role
from protocol.merkle import Tree, inclusion_proof, leaf_hash
from protocol.model import LogisticRegression, parameter_count
from protocol.note import KeyType, VerifierKey
from protocol.plan import PlannedApprover, PlannedSite
from protocol.proposal import Governance, LegalBasis, Privacy, Purpose
from protocol.release import (
    APPROVAL_TYPE,
    STATEMENT_TYPE,
    WAIVER_TYPE,
    Approval,
    EpsilonStatement,
    ReleaseWaiver,
)
from protocol.signing import SigningKey
from protocol.study import Evaluation, StudyPlan, StudySpec, Training
from protocol.tlog_proof import TlogProof
from protocol.witness_policy import WitnessPolicy
from tests.authenticator import Authenticator

SITES = ("clinic-a", "clinic-b", "clinic-c", "clinic-d")
HASH = "sha256:" + "1" * 64
SCHEMA = DatasetSchema(
    name="heart",
    features=(
        Feature(name="age", kind="number", unit="years", minimum=0, maximum=120, center=55, scale=10, impute=55),
        Feature(name="pain", kind="category", levels=(1, 2, 3, 4), impute=4),
    ),
    label=LabelRule(name="disease", column="num", operator=">", value=0),
)
ORIGIN = "cloister/test"
ADDRESS = "cloister.example.org:8443"
GOVERNANCE = Governance(
    research_safeguards=True, notice="n", controllers=("clinic-a",), dpia="d",
    updates_until="2027-06-30", checkpoints_until="2027-06-30", model_until="2031-06-30",
)  # fmt: skip


def keys(*names: str) -> dict[str, SigningKey]:
    """One key per name, the same in every test."""
    return {name: SigningKey.from_seed(sha256_hex(name.encode())[7:39].encode()) for name in names}


@dataclass
class Maker:
    """Makes a bundle; a test changes a field before `files` to play an adversary who holds the coordinator."""

    coordinator: SigningKey = field(default_factory=lambda: keys("coordinator")["coordinator"])
    log: SigningKey = field(default_factory=lambda: keys("log")["log"])
    people: dict[str, SigningKey] = field(default_factory=lambda: keys("ada", "bo", "cy", "eve"))
    witnesses: dict[str, SigningKey] = field(default_factory=lambda: keys(*(f"{s}/witness" for s in SITES)))
    cosigners: int = 3
    voters: tuple[tuple[str, Role], ...] = (("bo", Role.COMPLIANCE_OFFICER), ("cy", Role.CLINICAL_LEAD))
    decision: str = "approve"
    waiver: dict[str, Any] | None = None
    waived_by: str = "bo"
    passkeys: dict[str, Authenticator] = field(default_factory=dict)
    assertion: dict[str, Any] = field(default_factory=dict)
    approve_digest: str | None = None
    event_changes: dict[str, Any] = field(default_factory=dict)
    plan_changes: dict[str, Any] = field(default_factory=dict)
    subject_changes: dict[str, Any] = field(default_factory=dict)
    weight_scale: float = 1.0
    use_mode: Literal["research", "decision-support"] = "research"

    def policy(self) -> WitnessPolicy:
        witnesses = tuple(cosigner_key(name, key) for name, key in self.witnesses.items())
        return WitnessPolicy(VerifierKey(ORIGIN, KeyType.ED25519, self.log.public.raw), witnesses, 3)

    def plan(self) -> StudyPlan:
        spec = StudySpec(
            study="heart-study",
            title="Heart",
            purpose=Purpose(code="research.heart", description="d"),
            governance=GOVERNANCE,
            legal_basis={site: LegalBasis(jurisdiction="EU", gdpr_article6="e", gdpr_article9="j") for site in SITES},
            dataset=SCHEMA,
            model=LogisticRegression(architecture="logistic_regression"),
            privacy=Privacy(epsilon=1, delta=1e-4),
            training=Training(rounds=10, sampling_rate=0.25, clip=0.25, learning_rate=1),
            evaluation=Evaluation(),
            minimum_sites=3,
            recipients=SITES,
        )
        site_keys = keys(*SITES)
        fields: dict[str, Any] = {
            "spec": spec,
            "spec_digest": digest(spec.model_dump(mode="json")),
            "proposal_digest": HASH,
            "submitter": "ada",
            "sites": tuple(
                PlannedSite(
                    name=site,
                    identity=site_keys[site].public.text,
                    jurisdiction="EU",
                    patients=100,
                    held_out=30,
                    snapshot=HASH,
                )
                for site in SITES
            ),
            "approvers": tuple(
                PlannedApprover(person=name, role=role, **self._signs(name))
                for name, role in (("bo", Role.COMPLIANCE_OFFICER), ("cy", Role.CLINICAL_LEAD))
            ),
            "noise_multiplier": 5.0,
            "evaluation_multiplier": 4.0,
            "epsilon": 0.99,
            "epsilon_worst_site": 1.9,
            "epsilon_evaluation_worst_site": 2.3,
            "packs": {"gdpr": HASH},
            "witness_policy": self.policy().to_document(),
            "coordinator": self.coordinator.public.text,
            "created_at": "2026-11-23T00:00:00Z",
        }
        return StudyPlan(**{**fields, **self.plan_changes})

    def _signs(self, name: str) -> dict[str, Any]:
        held = self.passkeys.get(name)
        return {"key": self.people[name].public.text} if held is None else {"passkeys": (held.passkey,)}

    def weights(self) -> bytes:
        """The candidate's vector, float64 little-endian."""
        count = parameter_count(self.plan().spec.model, SCHEMA.width)
        return (self.weight_scale * np.linspace(-1, 1, count)).astype("<f8").tobytes()

    def model_digest(self) -> str:
        """Of the vector that an honest coordinator has evaluated."""
        return sha256_hex(self.weights())

    def files(self) -> dict[str, bytes]:
        plan = self.plan()
        plan_envelope = seal(PLAN_TYPE, plan.model_dump(mode="json"), self.coordinator)
        weights = self.weights()
        epsilon = EpsilonStatement(
            unit="patient",
            adjacency="zero-out",
            epsilon=0.99,
            delta=1e-4,
            epsilon_worst_site=1.9,
            epsilon_cohort_to_date=dict.fromkeys(SITES, 0.99),
            epsilon_evaluation=1.0,
            epsilon_evaluation_worst_site=2.3,
            steps_charged=16,
            rounds_executed=10,
            attempts=10,
            sampling="Poisson",
            accountant="PLD",
            trust="two honest sites",
        )
        evaluation = ClassificationReport(
            mode="noised",
            outside_guarantee=False,
            held_out=120,
            bins=10,
            auc=Interval(value=0.9, low=0.8, high=1.0),
            accuracy=Interval(value=0.8, low=0.7, high=0.9),
            calibration_error=Interval(value=None, reason="too few"),
        )
        model = build.model_files(
            plan, weights, epsilon, evaluation, intended_use="research.heart", use_mode=self.use_mode
        )
        subject = build.subject_of(
            "heart-study-r1",
            plan,
            sha256_hex(plan_envelope.payload),
            model,
            epsilon,
            evaluation,
            intended_use="research.heart",
            use_mode=self.use_mode,
        )
        subject = subject.model_copy(update=self.subject_changes)
        approvals = [self._approval(name, role, subject.digest) for name, role in self.voters]
        statement = seal(
            STATEMENT_TYPE,
            build.statement_of(
                subject,
                model,
                approvals,
                waivers=self._waivers(subject.digest),
                rounds_digest=HASH,
                decision_digest=HASH,
                sealed_at="2026-11-23T02:00:00Z",
            ),
            self.coordinator,
        ).to_bytes()
        event_fields: dict[str, Any] = {
            "event": EventType.RELEASE_SEALED,
            "at": "2026-11-23T02:00:00Z",
            "actor": "coordinator",
            "subject": f"release:{subject.release}",
            "digests": {"subject": subject.digest, "statement": sha256_hex(statement)},
        }
        event = AuditEvent(**{**event_fields, **self.event_changes}).leaf()
        return build.bundle_files(
            model,
            subject=canonical(subject.model_dump(mode="json")),
            plan=plan_envelope.to_bytes(),
            statement=statement,
            event=event,
            proof=self._proof(event),
        )

    def _approval(self, name: str, role: Role, subject_digest: str) -> Signed:
        approval = Approval(
            release="heart-study-r1",
            subject_digest=self.approve_digest or subject_digest,
            person=name,
            role=role,
            decision=self.decision,  # type: ignore[arg-type]
            meaning="reviewed-and-approved" if self.decision == "approve" else "reviewed-and-rejected",
            reason_hash=HASH,
            packs={"gdpr": HASH},
            challenge=sha256_hex(f"{name} {role}".encode()),
            signed_at="2026-11-23T01:00:00Z",
        )
        document = approval.model_dump(mode="json")
        if name in self.passkeys:
            return self.passkeys[name].sign(APPROVAL_TYPE, canonical(document), **self.assertion)
        return seal(APPROVAL_TYPE, document, self.people[name])

    def _waivers(self, subject_digest: str) -> list[Envelope]:
        if self.waiver is None:
            return []
        fields: dict[str, Any] = {
            "release": "heart-study-r1",
            "subject_digest": subject_digest,
            "person": "bo",
            "role": Role.COMPLIANCE_OFFICER,
            "pack": "eu_ai_act",
            "rule": "A03",
            "reason_hash": HASH,
            "expires_at": "2026-12-23T00:00:00Z",
            "challenge": HASH,
            "signed_at": "2026-11-23T01:00:00Z",
        }
        waiver = ReleaseWaiver(**{**fields, **self.waiver})
        return [seal(WAIVER_TYPE, waiver.model_dump(mode="json"), self.people[self.waived_by])]

    def _proof(self, event: bytes) -> bytes:
        tree = Tree(leaf_hash(entry) for entry in (b"first", b"second", event, b"fourth", b"fifth"))
        head = TreeHead(ORIGIN, tree.size, tree.root())
        note = sign_checkpoint(head, self.log).with_signatures(
            *(cosign(head, name, key, timestamp=1) for name, key in list(self.witnesses.items())[: self.cosigners])
        )
        return TlogProof(2, inclusion_proof(2, tree.size, tree.read), note.to_bytes()).to_bytes()
