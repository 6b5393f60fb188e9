"""A federation in one process: the coordinator's own round driver and the sites' own participation, over an exchange
that loses, delays, repeats and forges messages as a test says.

Real: both databases, keys, proposals, plans, consents, secure aggregation, ledgers, the log's entries. Stood in for:
the transport, the worker that reads patients (a known vector instead), and how the log is witnessed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlmodel import col, select

from coordinator.appliance import Appliance, open_appliance
from coordinator.audit.append import append
from coordinator.audit.health import LogHealth
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import build_policy, set_policy
from coordinator.database import reading, transaction
from coordinator.initialise import initialise
from coordinator.people.facts import Actor
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.rounds.driver import RoundDriver
from coordinator.rounds.exchange import Answer, Kind, Unreached
from coordinator.rounds.repository import CandidateRepository, RecordedAttempt, RoundRepository, round_record
from coordinator.rounds.tables import Candidate
from coordinator.rounds.uploads import Uploads
from coordinator.sites.repository import SiteRepository
from coordinator.sites.statements import keep, receive
from coordinator.sites.tables import Site, SiteDataset
from coordinator.studies.consent import answer
from coordinator.studies.control import start
from coordinator.studies.plan import schema_digest
from coordinator.studies.propose import Proposed, prepare, propose
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import StudyState
from coordinator.studies.tables import Study
from policies.packs import SHARED
from privacy.errors import PrivacyError
from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import digest, sha256_hex
from protocol.checkpoint import cosigner_key
from protocol.consent import CONSENT_TYPE, PROPOSAL_TYPE, Consent
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.envelope import seal
from protocol.errors import CloisterError
from protocol.round import Phase
from protocol.signing import SigningKey
from protocol.study import StudyPlan, StudySpec
from protocol.study_kind import AnySpec
from protocol.timestamp import timestamp
from site_agent.cohort.tables import Snapshot, SnapshotPatient
from site_agent.cohort.withdrawal import attest
from site_agent.consent.governance import Governance, save_governance
from site_agent.consent.judgement import charges, own_epsilons
from site_agent.consent.tables import StudyGrant
from site_agent.coordinator_client import CoordinatorRefused
from site_agent.database import create_database
from site_agent.database import transaction as site_transaction
from site_agent.federation.upload import Uploader
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteHome, SiteSettings
from site_agent.training.budget_store import BudgetStore, ledger, reserve
from site_agent.training.participate import Participant
from site_agent.training.states import Budget
from site_agent.training.worker_client import WorkerFailed
from tests.papers import give_papers, give_site_papers, statement_of
from tests.tested_engine import mark_tested

NAMES = ("aachen", "berlin", "cologne", "dresden")
CHUNK = 4096
"""Bytes: the smallest there is, so that a small model crosses in several."""
EPOCH = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SCHEMA = DatasetSchema(
    name="hearts",
    features=(
        Feature(name="age", kind="number", unit="years", minimum=0, maximum=120, center=54, scale=9),
        Feature(name="sex", kind="category", levels=(0, 1)),
    ),
    label=LabelRule(name="disease", column="num", operator=">", value=0),
)


class SimulatedClock:
    """Wall and monotonic time that pass only when somebody waits."""

    def __init__(self, begins: datetime = EPOCH) -> None:
        self.begins = begins
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.begins + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class HealthyLog:
    """The log as a working federation has it."""

    def health(self) -> LogHealth:
        return LogHealth(quorum=True, age_seconds=1, unwitnessed=0)


class KnownWorker:
    """Computes no gradient: a vector that depends on site, model and call, with noise of the planned size.

    `returned` keeps every vector by the digest of the model it was asked for, so that a test knows the true sum.
    """

    def __init__(self, site: str) -> None:
        self._site = site
        self._draw = np.random.default_rng(int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big"))
        self.returned: dict[str, list[np.ndarray]] = defaultdict(list)
        self.noisy_steps = 0
        self.fails = False
        self.poisoned: Callable[[str], bool] = lambda _model: False

    def reset(self) -> None:
        """Forget what was computed so far."""
        self.returned.clear()
        self.noisy_steps, self.fails = 0, False
        self.poisoned = lambda _model: False

    def open(self, plan: StudyPlan, snapshot: str) -> None:
        del plan, snapshot

    def compute(
        self, plan: StudyPlan, phase: Phase, round_number: int, body: bytes, *, noise_std: float | None
    ) -> bytes:
        del round_number
        if phase == "evaluate":
            return self._evaluate(plan, body, noise_std)
        if phase == "check":
            return self._check(plan, body, noise_std or 0.0)
        if phase == "membership":
            return self._attack(plan, body, noise_std or 0.0)
        return self._train(plan, body, noise_std or 0.0)

    def _train(self, plan: StudyPlan, parameters: bytes, noise_std: float) -> bytes:
        weights = np.frombuffer(parameters, dtype="<f8")
        vector = -0.1 * weights + self._draw.normal(0.0, noise_std, weights.size)
        if (largest := plan.spec.training.largest_delta) is not None:
            vector *= min(1.0, plan.patients_share((self._site,)) * largest / float(np.linalg.norm(vector)))
        return self._give(parameters, vector, plan.steps_of("train"))

    def _evaluate(self, plan: StudyPlan, parameters: bytes, noise_std: float | None) -> bytes:
        bins = plan.spec.evaluation.bins
        counts = np.concatenate([np.linspace(3, 1, bins), np.linspace(1, 3, bins)]).round()
        noise = 0.0 if noise_std is None else self._draw.normal(0.0, noise_std, counts.size)
        return self._give(parameters, counts + noise)

    def _check(self, plan: StudyPlan, parameters: bytes, noise_std: float) -> bytes:
        """Many patients, told apart well, or the wrong way round where `poisoned` says so of the model."""
        bins = plan.spec.evaluation.bins
        # 80 patients a site at most are planned for: beyond that the sum would wrap.
        half = 40.0 * np.arange(bins) / np.arange(bins).sum()
        counts = np.concatenate([half[::-1], half])
        counts = np.concatenate([half, half[::-1]]) if self.poisoned(sha256_hex(parameters)) else counts
        return self._give(parameters, counts + self._draw.normal(0.0, noise_std, counts.size))

    def _attack(self, plan: StudyPlan, parameters: bytes, noise_std: float) -> bytes:
        bins = plan.spec.audit.membership.bins
        counts = np.concatenate([np.full(bins, 20 / bins), np.full(bins, 60 / bins)])
        return self._give(parameters, counts + self._draw.normal(0.0, noise_std, counts.size))

    def _give(self, parameters: bytes, vector: np.ndarray, steps: int = 1) -> bytes:
        if self.fails:
            raise WorkerFailed("the worker was told to fail")
        self.noisy_steps += steps
        self.returned[sha256_hex(parameters)].append(vector)
        return vector.astype("<f8").tobytes()


@dataclass
class SimulatedSite:
    """One hospital: its database, keys, ledger and participation."""

    name: str
    settings: SiteSettings
    keys: SiteKeys
    store: BudgetStore
    worker: KnownWorker
    clock: SimulatedClock
    snapshot: str
    reached: Callable[[str], None] = lambda _point: None
    chunk_bytes: int = CHUNK
    participant: Participant = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process over the same database."""
        self.participant = Participant(
            settings=self.settings,
            keys=self.keys,
            store=self.store,
            worker=self.worker,  # type: ignore[arg-type]
            clock=self.clock.now,
            chunk_bytes=self.chunk_bytes,
            reached=lambda point: self.reached(point),
        )

    def uploader(self, uploads: Uploads) -> Uploader:
        """The agent's own, towards the coordinator's own, without the wire."""
        client: Any = UploadsHere(self.name, uploads)
        return Uploader(self.store, lambda: client, stop=threading.Event())


@dataclass
class UploadsHere:
    """What CoordinatorClient does for contributions, in this process; refusals come back as it gives them."""

    site: str
    uploads: Uploads

    def __enter__(self) -> UploadsHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def offer_contribution(self, packet: bytes) -> tuple[str, tuple[int, ...]]:
        return self._refused(lambda: self.uploads.offer(self.site, packet))

    def put_chunk(self, attempt: str, number: int, chunk: bytes) -> None:
        self._refused(lambda: self.uploads.put(self.site, attempt, number, chunk))

    def _refused(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (CloisterError, PrivacyError) as error:
            raise CoordinatorRefused(error.code, error.message, error.remedy, status=409) from None


Fault = Callable[["Delivery"], Answer | None]
"""What comes back to the coordinator for one delivery: bytes, Unreached, or None for no answer."""


@dataclass
class Delivery:
    """A request on its way to a site; `answer()` lets the site work, as often as it is called."""

    kind: Kind
    site: SimulatedSite
    packet: bytes
    group: str
    number: int
    uploads: Uploads
    said: list[bytes] = field(default_factory=list)

    def answer(self) -> bytes:
        """The site works, sends the chunks of what it announces, and says it."""
        self.said.append(self.compute())
        self.site.uploader(self.uploads).deliver(self.said[-1], until=time.time() + 5)
        return self.said[-1]

    def compute(self) -> bytes:
        """The site works; no chunk is sent."""
        return self.site.participant.answer(self.kind, self.packet)


class SimulatedExchange:
    """In memory, sequential. `faults`: tried in order for each delivery; the first that does not pass decides."""

    def __init__(self, sites: Mapping[str, SimulatedSite], clock: SimulatedClock, uploads: Uploads) -> None:
        self._sites = dict(sites)
        self.uploads = uploads
        self._clock = clock
        self.absent: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[tuple[Kind, str, dict[str, bytes]]] = []
        self.answers: list[tuple[str, bytes, bytes]] = []
        self.after_request: Callable[[], None] = lambda: None
        self.before_request: Callable[[], None] = lambda: None

    def reset(self) -> None:
        """No faults, nothing seen."""
        self.absent.clear()
        self.faults.clear()
        self.requests.clear()
        self.answers.clear()
        self.after_request = self.before_request = lambda: None

    def present(self) -> frozenset[str]:
        return frozenset(self._sites) - self.absent

    def wait(self, seconds: float) -> None:
        self._clock.seconds += seconds

    def request(
        self,
        kind: Kind,
        packets: Mapping[str, bytes],
        *,
        group: str,
        deadline_seconds: float,
        on_answer: Callable[[str, Answer], None] | None = None,
        elsewhere: Callable[[], Collection[str]] = tuple,
    ) -> dict[str, Answer]:
        self.before_request()
        self.requests.append((kind, group, dict(packets)))
        answers: dict[str, Answer] = {}
        for name, packet in packets.items():
            delivery = Delivery(kind, self._sites[name], packet, group, len(self.requests), self.uploads)
            given = self._deliver(delivery)
            self.answers += [(name, packet, said) for said in delivery.said]
            if given is not None:
                answers[name] = given
                if on_answer is not None:
                    on_answer(name, given)
        self._clock.seconds += 0.5 if len(answers) == len(packets) else deadline_seconds
        self.after_request()
        return {} if on_answer is not None else answers

    def _deliver(self, delivery: Delivery) -> Answer | None:
        if delivery.site.name in self.absent:
            return Unreached("offline")
        for fault in self.faults:
            outcome = fault(delivery)
            if outcome is not PASS:
                return outcome
        return delivery.answer()


PASS = Unreached("pass")
"""What a fault returns when it leaves a delivery alone."""


@dataclass
class Federation:
    """Everything, with a study that is ready to start unless a test says otherwise."""

    appliance: Appliance
    clock: SimulatedClock
    sites: dict[str, SimulatedSite]
    exchange: SimulatedExchange
    researcher: Person
    researcher_key: SigningKey
    approver_keys: dict[str, SigningKey]

    def driver(self, study: str = "hearts-1", exchange: SimulatedExchange | None = None) -> RoundDriver:
        """A new driver process."""
        return RoundDriver(
            self.appliance,
            study,
            exchange or self.exchange,
            watch=HealthyLog(),
            monotonic=self.clock.monotonic,
        )

    def propose(self, spec: AnySpec) -> Proposed:
        give_papers(self.appliance, spec)
        data = seal(PROPOSAL_TYPE, spec.model_dump(mode="json"), self.researcher_key).to_bytes()
        with reading(self.appliance.engine) as session:
            prepared = prepare(session, self.appliance, active_policy(session, self.appliance), self.researcher, data)
        with transaction(self.appliance.engine) as session:
            rosa = Actor(self.researcher, AuthLevel.KEY)
            return propose(session, self.appliance, active_policy(session, self.appliance), rosa, data, prepared)

    def consent(self, asked: str, name: str, decision: str = "grant", **changes: object) -> StudyState:
        """The site's signed answer; a grant reserves its ledger and lets it take part."""
        with reading(self.appliance.engine) as session:
            row = StudyRepository(session).get(asked)
        plan, here = plan_of(row), self.sites[name]
        consent = Consent.model_validate(
            {
                "study": asked,
                "site": name,
                "plan_digest": row.plan_digest,
                "spec_digest": plan.spec_digest,
                "snapshot": here.snapshot,
                "decision": decision,
                "reason": "agreed" if decision == "grant" else "other",
                "decision_digest": digest({"site": name}),
                "packs": {name: value for name, value in plan.packs.items() if name not in SHARED},
                "at": timestamp(self.clock.now()),
                **changes,
            }
        )
        signed = seal(CONSENT_TYPE, consent.model_dump(mode="json"), here.keys.identity).to_bytes()
        if decision == "grant":
            self._grant_locally(here, plan, row.plan or b"", row.plan_digest or "", signed)
        with transaction(self.appliance.engine) as session:
            return answer(session, self.appliance, name, asked, signed)

    def _grant_locally(
        self, site: SimulatedSite, plan: StudyPlan, envelope: bytes, plan_digest: str, consent: bytes
    ) -> None:
        at = timestamp(self.clock.now())
        with site_transaction(site.store._engine) as session:
            if session.get(StudyGrant, plan_digest) is not None:
                return
            reserve(
                session,
                study=plan.spec.study,
                plan_digest=plan_digest,
                snapshot=site.snapshot,
                charges=charges(plan, own_epsilons(plan)),
                cap=Budget(1000, 0.9),
                at=at,
            )
            session.add(
                StudyGrant(
                    plan_digest=plan_digest,
                    study=plan.spec.study,
                    spec_digest=plan.spec_digest,
                    snapshot=site.snapshot,
                    state="granted",
                    plan=envelope,
                    consent=consent,
                    decision="{}",
                    evidence="{}",
                    decided_at=at,
                    delivered=True,
                )
            )

    def start(self, study: str = "hearts-1") -> None:
        with transaction(self.appliance.engine) as session:
            start(session, self.appliance, self.researcher, study)

    def ready(self, spec: AnySpec | None = None, refuse: tuple[str, ...] = ()) -> AnySpec:
        """Propose, let every site answer, start."""
        spec = spec or study_spec()
        self.propose(spec)
        for name in spec.invited:
            self.consent(spec.study, name, "refuse" if name in refuse else "grant")
        self.start(spec.study)
        return spec

    def state(self, study: str = "hearts-1") -> StudyState:
        with reading(self.appliance.engine) as session:
            return StudyState(StudyRepository(session).get(study).state)

    def reset(self) -> None:
        """Before another study: no faults, fresh processes."""
        self.exchange.reset()
        for site in self.sites.values():
            site.worker.reset()
            site.reached = lambda _point: None
            site.restart()

    def records(self, study: str) -> list[dict[str, Any]]:
        """The committed rounds, training first."""
        with reading(self.appliance.engine) as session:
            return [round_record(row) for row in RoundRepository(session).rounds(study)]

    def attempts(self, study: str) -> list[RecordedAttempt]:
        """Every attempt, in order."""
        with reading(self.appliance.engine) as session:
            return RoundRepository(session).attempts(study)

    def plan(self, study: str) -> StudyPlan:
        with reading(self.appliance.engine) as session:
            return plan_of(StudyRepository(session).get(study))

    def row(self, study: str) -> Study:
        with reading(self.appliance.engine) as session:
            return StudyRepository(session).get(study)

    def candidate(self, study: str) -> Candidate | None:
        with reading(self.appliance.engine) as session:
            return CandidateRepository(session).find(study)

    def events(self, study: str) -> list[AuditEvent]:
        """The study's entries of the log, in order."""
        with reading(self.appliance.engine) as session:
            entries = session.exec(select(LogEntry).order_by(col(LogEntry.id))).all()
        found = [AuditEvent.model_validate_json(entry.leaf) for entry in entries]
        return [event for event in found if event.subject == study]

    def charged(self, study: str, site: str) -> dict[bool, int]:
        """Steps charged at a site, by whether of held-out patients."""
        with site_transaction(self.sites[site].store._engine) as session:
            lines = ledger(session)
        return {line.held_out: line.steps_charged for line in lines if line.study == study}


def study_spec(study: str = "hearts-1", names: tuple[str, ...] = NAMES, **changes: object) -> StudySpec:
    """A small study: 3 rounds, 3 retries."""
    document: dict[str, object] = {
        "study": study,
        "title": "Heart disease",
        "purpose": {"code": "cardiology", "description": "Predict heart disease"},
        "legal_basis": {
            name: {
                "jurisdiction": "EU",
                "gdpr_article6": "e",
                "gdpr_article9": "j",
                "member_state_law": "BDSG 27",
            }
            for name in names
        },
        "governance": {
            "controllers": ["University hospital"],
            "notice": "https://example.org/notice",
            "dpia": "DPIA-7",
            "research_safeguards": True,
            "updates_until": "2027-01-01",
            "checkpoints_until": "2027-01-01",
            "model_until": "2030-01-01",
        },
        "dataset": SCHEMA.model_dump(mode="json"),
        "justified_columns": ["age", "sex", "num"],
        "model": {"architecture": "logistic_regression"},
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 3},
        "training": {"rounds": 3, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0},
        "evaluation": {"epsilon": 2.0, "attempts": 2, "bins": 4},
        "minimum_sites": 3,
        "recipients": list(names),
    }
    return StudySpec.model_validate({**document, **changes})


def build_federation(
    folder: Path, names: tuple[str, ...] = NAMES, *, address: str = "127.0.0.1:8443", begins: datetime = EPOCH
) -> Federation:
    """A coordinator with people and enrolled sites, each with a registered snapshot."""
    clock = SimulatedClock(begins)
    home = folder / "coordinator"
    initialise(home, address=address, clock=clock.now)
    appliance = open_appliance(home, clock=clock.now)
    keys = {name: SigningKey.generate() for name in ("rosa", "carl", "lena", "rita")}
    roles = {"rosa": "researcher", "carl": "compliance_officer", "lena": "clinical_lead", "rita": "regulatory"}
    sites = {name: _site(folder / name, name, appliance, clock) for name in names}
    with transaction(appliance.engine) as session:
        people = PersonRepository(session)
        for name, role in roles.items():
            people.save(
                Person(
                    name=name,
                    role=role,
                    status="active",
                    key=keys[name].public.text,
                    invited_at=timestamp(clock.now()),
                    registered_at=timestamp(clock.now()),
                    certified_at=timestamp(clock.now()),
                )
            )
        _enrol(session, appliance, sites, clock)
        researcher = people.get("rosa")
    assert researcher is not None
    exchange = SimulatedExchange(sites, clock, Uploads(appliance))
    return Federation(appliance, clock, sites, exchange, researcher, keys["rosa"], keys)


def _enrol(session, appliance: Appliance, sites: Mapping[str, SimulatedSite], clock: SimulatedClock) -> None:  # type: ignore[no-untyped-def]
    rows, at = SiteRepository(session), timestamp(clock.now())
    witnesses = []
    for name, site in sites.items():
        witnesses.append(cosigner_key(name, site.keys.witness).text)
        rows.save(
            Site(
                name=name,
                status="active",
                invited_at=at,
                enrolled_at=at,
                identity=site.keys.identity.public.text,
                witness=witnesses[-1],
            )
        )
        rows.put_dataset(
            SiteDataset(
                site=name,
                name="hearts",
                schema_digest=schema_digest(SCHEMA),
                snapshot=site.snapshot,
                patients=80,
                held_out=20,
                registered_at=at,
            )
        )
        data = statement_of(name, site.keys.identity, appliance.keys.authority.fingerprint, now=clock.now())
        keep(session, appliance, receive(session, appliance, name, site.keys.identity.public, data))
    policy = build_policy(session, appliance, witnesses)
    assert policy is not None
    entry = append(session, appliance, EventType.SITE_ENROLLED, actor="coordinator", subject="site:all")
    set_policy(session, appliance, policy, entry=entry)


def _site(folder: Path, name: str, appliance: Appliance, clock: SimulatedClock) -> SimulatedSite:
    folder.mkdir()
    (folder / "keys").mkdir()
    engine = create_database(folder / "site.db")
    mark_tested(engine)
    snapshot = sha256_hex(name.encode())
    with site_transaction(engine) as session:
        session.add(
            Snapshot(
                digest=snapshot,
                name="hearts",
                schema_text="{}",
                schema_digest=schema_digest(SCHEMA),
                records=80,
                dropped=0,
                patients=80,
                held_out=20,
                created_at=timestamp(clock.now()),
            )
        )
        session.flush()
        session.add_all(
            SnapshotPatient(snapshot=snapshot, patient_hash=number.to_bytes(32, "big"), held_out=number < 20)
            for number in range(80)
        )
        attest(session, timestamp(clock.now()), now=clock.now())
        give_site_papers(session, name, now=clock.now())
    save_governance(
        SiteHome(folder),
        Governance(
            jurisdiction="EU",
            hipaa_role="none",
            categories=("health",),
            collection_purpose="cardiology",
            epsilon_limit=1000,
            delta_limit=0.9,
        ),
    )
    settings = SiteSettings(
        home=SiteHome(folder),
        site=name,
        address="127.0.0.1:8443",
        log="log",
        coordinator=appliance.keys.coordinator.public.text,
        poll_seconds=1.0,
    )
    return SimulatedSite(
        name=name,
        settings=settings,
        keys=SiteKeys.generate(folder / "keys"),
        store=BudgetStore(engine),
        worker=KnownWorker(name),
        clock=clock,
        snapshot=snapshot,
    )
