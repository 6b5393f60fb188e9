"""Real sites in real folders, and a coordinator's key to ask them with: for tests of consent and of rounds.

Nothing is mocked: folders, keys, databases, packs, ledger and secure aggregation are the product's own. Tests that do
not start worker processes compute in this one, with the worker's own code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import gaussian_epsilon, gaussian_multiplier_for
from privacy.parameters import Mechanism, site_noise_multiplier
from privacy.secagg.server import SecureSum
from protocol.canonical import digest, sha256_hex
from protocol.consent import PLAN_TYPE
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.envelope import Envelope, open_json, seal
from protocol.model import LogisticRegression, MultilayerPerceptron
from protocol.note import KeyType, VerifierKey
from protocol.plan import PlannedApprover, PlannedSite
from protocol.proposal import Governance, LegalBasis, Privacy, Purpose
from protocol.round import (
    CONTRIBUTION_TYPE,
    KEY_REQUEST_TYPE,
    REFUSAL_TYPE,
    ROUND_REQUEST_TYPE,
    KeyRequest,
    Packet,
    RoundRefusal,
    RoundRequest,
    envelopes_to_body,
)
from protocol.signing import SigningKey
from protocol.study import Evaluation, StudyPlan, StudySpec, Training
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy, required_quorum
from site_agent.cohort import snapshot as snapshots
from site_agent.cohort.snapshot import Draft, SnapshotArrays, store
from site_agent.cohort.withdrawal import attest
from site_agent.consent import governance as local
from site_agent.consent.grant import grant
from site_agent.consent.plans import SignedPlan, open_plan
from site_agent.consent.review import Review, review
from site_agent.database import connect, create_database, transaction
from site_agent.durable_files import make_private_folder
from site_agent.keystore import SiteKeys
from site_agent.policy.federation import own_documents
from site_agent.settings import SiteDocument, SiteHome, SiteSettings, load_settings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.participate import Participant
from site_agent.training.sums import sum_parameters
from site_agent.training.worker import WorkerState
from site_agent.training.worker_client import WorkerClient, WorkerFailed
from site_agent.witness.names import own_witness
from tests.papers import give_site_papers
from tests.tested_engine import mark_tested

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NAMES = ("aarhus", "bergen", "cork", "delft")
SCHEMA = DatasetSchema(
    name="hearts",
    features=(
        Feature(name="age", kind="number", unit="years", minimum=0, maximum=120, center=60, scale=15),
        Feature(name="pressure", kind="number", unit="mmHg", minimum=0, maximum=300, center=130, scale=20),
    ),
    label=LabelRule(name="disease", column="num", operator=">", value=0),
)


class WorkerHere(WorkerClient):
    """The worker's own code in this process: for tests that are not about the process."""

    def __init__(self, home: SiteHome) -> None:
        super().__init__(home)
        self.state = WorkerState(home.path, gpu=False)
        self.computed = 0
        self.fail = False

    def _ask(self, header: dict[str, Any], body: bytes, *, length: int, seconds: float) -> bytes:
        if self.fail:
            raise WorkerFailed("The worker is out of order.")
        self.computed += header["op"] != "open"
        return self.state.answer(header, bytearray(body))


@dataclass
class Hospital:
    """One site: its folder, and what the agent would hold."""

    settings: SiteSettings
    keys: SiteKeys
    engine: Engine
    arrays: SnapshotArrays
    snapshot: str
    worker: WorkerClient
    now: datetime = NOW

    @property
    def name(self) -> str:
        return self.settings.site

    @property
    def store(self) -> BudgetStore:
        return BudgetStore(self.engine)

    def participant(self, *, reached: Callable[[str], None] = lambda _point: None) -> Participant:
        return Participant(
            settings=self.settings,
            keys=self.keys,
            store=BudgetStore(self.engine, reached=reached),
            worker=self.worker,
            clock=lambda: self.now,
            reached=reached,
        )

    def review(self, signed: SignedPlan) -> Review:
        with transaction(self.engine) as session:
            return review(
                session,
                self.settings,
                self.keys,
                local.load_governance(self.settings.home),
                signed,
                now=self.now,
            )

    def grant(self, signed: SignedPlan) -> None:
        grant(self.engine, self.review(signed), key=self.keys.identity, site=self.name, evidence={}, now=self.now)


def hospital(
    folder: Path, name: str, coordinator: SigningKey, log: VerifierKey, *, address: str = "127.0.0.1:1", seed: int = 1
) -> Hospital:
    """A site as `enrol` and `datasets add` leave it, with 80 patients of whom 20 are held out."""
    home = SiteHome(folder / name)
    for path in (home.path, home.keys, home.snapshots):
        make_private_folder(path)
    document = SiteDocument(
        site=name, address=address, log=log.text, coordinator=coordinator.public.text, poll_seconds=0.1
    )
    home.settings.write_text(document.to_toml())
    keys = SiteKeys.generate(home.keys)
    engine = create_database(home.database)
    mark_tested(engine)
    random = np.random.default_rng([seed, *name.encode()])
    y = random.integers(0, 2, 100).astype(np.float64)
    x = (random.normal(size=(100, 2)) + y[:, None]) / np.sqrt(2)
    patient = np.concatenate([np.arange(80), random.integers(0, 80, 20)]).astype(np.int64)
    arrays = SnapshotArrays(x=x, y=y, patient=patient, held_out=np.arange(80) >= 60, schema_digest=SCHEMA.digest)
    hashes = tuple(sha256_hex(f"{name}/{seed}/{number}".encode())[7:39].encode() for number in range(80))
    content = Draft("hearts", SCHEMA, arrays, hashes, snapshots._digest(keys.secret, arrays, hashes), 0)
    with transaction(engine) as session:
        row = store(session, home, content, now=NOW)
        attest(session, timestamp(NOW), now=NOW)
        give_site_papers(session, name, now=NOW)
    local.save_governance(
        home,
        local.Governance(jurisdiction="EU", hipaa_role="none", categories=("health",), collection_purpose="cardiology"),
    )
    return Hospital(load_settings(home), keys, engine, arrays, row.digest, WorkerHere(home))


@dataclass
class Federation:
    """Four hospitals, the coordinator's key, and the means to ask."""

    coordinator: SigningKey
    log: VerifierKey
    hospitals: dict[str, Hospital]
    spec: StudySpec

    def plan(self, **changes: Any) -> StudyPlan:
        """The plan that an honest coordinator makes of `self.spec`, then changed."""
        spec = self.spec
        tolerated = spec.privacy.colluders + spec.privacy.dropouts
        delta, rate = spec.privacy.delta, spec.training.sampling_rate
        sigma = noise_multiplier_for(spec.privacy.epsilon, delta, rate, spec.steps)
        alone = site_noise_multiplier(sigma, len(self.hospitals), tolerated)
        exact = spec.evaluation.mode == "exact"
        single = gaussian_multiplier_for(spec.evaluation.epsilon, delta)
        single_alone = site_noise_multiplier(single, len(self.hospitals), tolerated)
        witnesses = tuple(own_witness(name, site.keys) for name, site in self.hospitals.items())
        fields: dict[str, Any] = {
            "spec": spec,
            "spec_digest": digest(spec.model_dump(mode="json")),
            "proposal_digest": digest("proposal"),
            "submitter": "rosa",
            "sites": tuple(
                PlannedSite(
                    name=name,
                    identity=site.keys.identity.public.text,
                    jurisdiction="EU",
                    patients=80,
                    held_out=20,
                    snapshot=site.snapshot,
                )
                for name, site in sorted(self.hospitals.items())
            ),
            "approvers": (
                PlannedApprover(
                    person="carl", role="compliance_officer", key=SigningKey.from_seed(bytes(31) + b"c").public.text
                ),
                PlannedApprover(
                    person="lena", role="clinical_lead", key=SigningKey.from_seed(bytes(31) + b"l").public.text
                ),
            ),
            "noise_multiplier": sigma,
            "evaluation_multiplier": 0.0 if exact else single * spec.evaluations**0.5,
            "epsilon": epsilon(Mechanism(sigma, rate, spec.steps, delta)),
            "epsilon_worst_site": epsilon(Mechanism(alone, rate, spec.steps, delta)),
            "epsilon_evaluation_worst_site": None if exact else gaussian_epsilon(single_alone, delta),
            "packs": own_documents(),
            "witness_policy": WitnessPolicy(self.log, witnesses, required_quorum(len(witnesses))).to_document(),
            "coordinator": self.coordinator.public.text,
            "created_at": timestamp(NOW),
        }
        return StudyPlan.model_validate(fields | changes)

    def sign(self, plan: StudyPlan, key: SigningKey | None = None) -> SignedPlan:
        """The plan as sites get it; opened without the pinned key only where a test signs with another."""
        signer = key or self.coordinator
        return open_plan(seal(PLAN_TYPE, plan.model_dump(mode="json"), signer).to_bytes(), signer.public.text)

    def key_request(self, signed: SignedPlan, step: str, envelopes: list[Envelope], **changes: Any) -> bytes:
        """A key request's packet, signed by the coordinator."""
        body = envelopes_to_body(envelopes)
        fields = {
            "study": signed.plan.spec.study,
            "plan_digest": signed.digest,
            "step": step,
            "cohort": signed.plan.names,
            "body": sha256_hex(body),
        }
        request = KeyRequest.model_validate(fields | changes)
        return Packet(seal(KEY_REQUEST_TYPE, request.model_dump(mode="json"), self.coordinator), body).to_bytes()

    def establish(self, signed: SignedPlan) -> None:
        """The three set-up steps with all hospitals."""
        participants = {name: site.participant() for name, site in self.hospitals.items()}
        envelopes: list[Envelope] = []
        for kind, step in (
            ("query.keys", "advertise"),
            ("query.encapsulate", "encapsulate"),
            ("query.establish", "establish"),
        ):
            request = self.key_request(signed, step, envelopes)
            answers = [participants[name].answer(kind, request) for name in sorted(participants)]
            envelopes = [Packet.from_bytes(answer).envelope for answer in answers]
            assert all(envelope.payload_type != REFUSAL_TYPE for envelope in envelopes), answers

    def round_request(
        self, signed: SignedPlan, number: int = 1, attempt: int = 1, *, model: bytes | None = None, **changes: Any
    ) -> bytes:
        """A round request's packet, signed by the coordinator."""
        body = np.zeros(signed.plan.parameters, dtype="<f8").tobytes() if model is None else model
        fields: dict[str, Any] = {
            "study": signed.plan.spec.study,
            "plan_digest": signed.digest,
            "phase": "train",
            "round": number,
            "attempt": attempt,
            "cohort": signed.plan.names,
            "model": sha256_hex(body),
            "issued_at": timestamp(NOW),
            "expires_at": timestamp(NOW + timedelta(minutes=5)),
        }
        key = changes.pop("key", self.coordinator)
        request = RoundRequest.model_validate(fields | changes)
        return Packet(seal(ROUND_REQUEST_TYPE, request.model_dump(mode="json"), key), body).to_bytes()

    def decode(self, signed: SignedPlan, answers: dict[str, bytes], phase: str = "train") -> Any:
        """The secure sum of the answers, as the coordinator decodes it."""
        numbers = signed.plan.secure_sum(phase, answers)  # type: ignore[arg-type]
        grid, _ = sum_parameters(numbers)
        total = SecureSum(answers, numbers.length)
        for name, answer in answers.items():
            packet = Packet.from_bytes(answer)
            assert packet.envelope.payload_type == CONTRIBUTION_TYPE, refusal_in(answer)
            total.add(name, packet.body)
        return total.result(grid)


def federation(
    folder: Path,
    *,
    coordinator: SigningKey | None = None,
    log: VerifierKey | None = None,
    address: str = "127.0.0.1:1",
    **changes: Any,
) -> Federation:
    """Four hospitals that hold data of one schema, and a study over them."""
    coordinator = coordinator or SigningKey.generate()
    log = log or VerifierKey("log.example", KeyType.ED25519, SigningKey.generate().public.raw)
    hospitals = {name: hospital(folder, name, coordinator, log, address=address) for name in NAMES}
    return Federation(coordinator, log, hospitals, study(**changes))


def copy_of(world: Federation, source: Path, folder: Path) -> Federation:
    """The same federation on a copy of its folders: as cheap as the copy, and nothing is shared."""
    for site in world.hospitals.values():
        BudgetStore(site.engine).erase_traces()
        site.engine.dispose()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    hospitals = {}
    for name, site in world.hospitals.items():
        home = SiteHome(folder / name)
        keys = replace(site.keys, folder=home.keys)
        engine = connect(home.database)
        hospitals[name] = replace(site, settings=load_settings(home), keys=keys, engine=engine, worker=WorkerHere(home))
    return replace(world, hospitals=hospitals)


def study(**changes: Any) -> StudySpec:
    """A small study that every pack allows."""
    fields: dict[str, Any] = {
        "study": "hearts-one",
        "title": "Hearts",
        "purpose": Purpose(code="cardiology", description="Whose heart fails"),
        "legal_basis": {
            name: LegalBasis(jurisdiction="EU", gdpr_article6="e", gdpr_article9="j", member_state_law="Law 1")
            for name in NAMES
        },
        "governance": Governance(
            controllers=("Hospital",),
            notice="https://example.org",
            research_safeguards=True,
            updates_until="2027-01-01",
            checkpoints_until="2027-01-01",
            model_until="2030-01-01",
        ),
        "dataset": SCHEMA,
        "justified_columns": ("age", "pressure", "num"),
        "model": LogisticRegression(architecture="logistic_regression"),
        "privacy": Privacy(epsilon=1.0, delta=1e-4, retries=2),
        "training": Training(rounds=3, sampling_rate=0.5, clip=0.5, learning_rate=1.0),
        "evaluation": Evaluation(mode="noised", epsilon=1.0, bins=5, attempts=2),
        "minimum_sites": 3,
        "recipients": NAMES,
    }
    return StudySpec.model_validate(fields | changes)


def refusal_in(answer: bytes, site: Hospital | None = None) -> str:
    """The code of a refusal, whose signature is checked where the site is given."""
    envelope = Packet.from_bytes(answer).envelope
    assert envelope.payload_type == REFUSAL_TYPE, envelope.payload_type
    if site is not None:
        key = site.keys.identity.public
        open_json(envelope, REFUSAL_TYPE, {key.key_id: key})
    return RoundRefusal.model_validate_json(envelope.payload).code


def mlp(hidden: tuple[int, ...] = (4,)) -> MultilayerPerceptron:
    """A small network."""
    return MultilayerPerceptron(architecture="mlp", hidden=hidden)
