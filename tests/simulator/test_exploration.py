"""Explorations over the real driver, participation, ledgers and secure sum, on known patients: what comes out, what is
charged, and what a fault leaves behind."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

from coordinator.database import reading
from coordinator.rounds.attempts import compose, packet_of
from coordinator.rounds.exploration_result import Kept, centers_after
from coordinator.rounds.repository import RoundRepository
from coordinator.rounds.states import Begin as BeginAttempt
from coordinator.studies.states import StudyState
from policies.study_facts import document_facts
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from privacy.errors import BudgetExceeded
from privacy.local.patients import Group
from protocol.canonical import digest, sha256_hex
from protocol.exploration import ExplorationPlan, ExplorationResult, ExplorationSpec
from protocol.proposal import Proposal
from protocol.round import CONTRIBUTION_TYPE, ROUND_KINDS, Packet, Phase, RoundRefusal
from protocol.study_kind import AnyPlan
from site_agent.consent.judgement import Identity, charges, objections, own_epsilons
from site_agent.database import transaction as site_transaction
from site_agent.training.budget_store import ledger, reserve, spent
from site_agent.training.exploration import asked_of_worker, explore
from site_agent.training.states import Budget
from tests.simulator.federation import NAMES, PASS, SCHEMA, Federation, study_spec

TRAINED = 60
ASKED = [
    {"kind": "count", "column": "disease", "level": 1},
    {"kind": "mean", "column": "age"},
    {"kind": "histogram", "column": "sex"},
    {"kind": "quantiles", "column": "age", "bins": 27, "probabilities": [0.25, 0.5, 0.75]},
]
CLUSTERING = {"clusters": 2, "rounds": 3, "columns": ["age"]}
_numbers = itertools.count(1)


def group_of(site: str) -> Group:
    """60 patients with one to three records each: a young half near 42 and an old one near 66."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "big"))
    records = np.repeat(np.arange(TRAINED), random.integers(1, 4, TRAINED))
    ages = np.where(np.arange(TRAINED) % 2, 42.0, 66.0)[records] + random.normal(0, 2, records.size)
    rows = [{"age": float(age), "sex": int(patient % 3 == 0)} for age, patient in zip(ages, records, strict=True)]
    return Group(np.array([SCHEMA.encode(row) for row in rows]), (records % 2 == 0).astype(float), records, TRAINED)


class ExploringWorker:
    """The site's own computation, on known patients; what is asked crosses as JSON, as it does to the worker."""

    def __init__(self, site: str) -> None:
        self.group = group_of(site)
        random = np.random.default_rng(int.from_bytes(hashlib.sha256(site.encode()).digest()[4:8], "big"))
        self.entropy = random.bytes
        self.noisy_steps = 0

    def reset(self) -> None:
        self.noisy_steps = 0

    def open(self, plan: AnyPlan, snapshot: str) -> None:
        del plan, snapshot

    def compute(
        self, plan: AnyPlan, phase: Phase, round_number: int, body: bytes, *, noise_std: float | None, **_: object
    ) -> bytes:
        del round_number
        assert isinstance(plan, ExplorationPlan)
        header = json.loads(json.dumps({"op": phase, "noise_std": noise_std, **asked_of_worker(plan, phase)}))
        self.noisy_steps += 1
        return explore(self.group, header, body, self.entropy)


@pytest.fixture
def exploring(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    for name, site in federation.sites.items():
        monkeypatch.setattr(site, "worker", ExploringWorker(name))
        site.restart()
    yield federation
    monkeypatch.undo()
    federation.reset()


def exploration(study: str, **changes: object) -> ExplorationSpec:
    base = study_spec(study).model_dump(mode="json")
    kept = {name: base[name] for name in base if name in Proposal.model_fields}
    document = {
        **kept,
        "kind": "exploration",
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 2},
        "statistics": ASKED,
        "clustering": CLUSTERING,
        **changes,
    }
    return ExplorationSpec.model_validate(document)


def begin(federation: Federation, **changes: object) -> str:
    study = f"look-{next(_numbers)}"
    federation.ready(exploration(study, **changes))
    return study


def result(federation: Federation, study: str) -> ExplorationResult:
    with reading(federation.appliance.engine) as session:
        row = RoundRepository(session).result(study)
    assert row is not None
    assert digest(json.loads(row.result)) == row.result_digest
    return ExplorationResult.model_validate_json(row.result)


def charged(federation: Federation, study: str) -> dict[str, tuple[int, int]]:
    """Site -> (steps charged, steps executed by its worker)."""
    found = {}
    for name, site in federation.sites.items():
        with reading(site.store._engine) as session:
            lines = [line for line in ledger(session) if line.study == study]
        assert [line.held_out for line in lines] == [False]
        found[name] = lines[0].steps_charged, site.worker.noisy_steps
    return found


def test_what_was_asked_is_answered_within_its_intervals_and_charged_to_the_training_patients(
    exploring: Federation,
) -> None:
    study = begin(exploring)
    assert exploring.driver(study).run() is StudyState.COMPLETED
    found = result(exploring, study)
    assert found.patients == found.patients_clustered == 4 * TRAINED
    groups = [site.worker.group for site in exploring.sites.values()]
    sick = sum(float(np.bincount(g.patient, g.y).astype(bool).sum()) for g in groups)
    count, mean, sexes, quartiles = found.statistics
    assert count.figures[0].low <= sick <= count.figures[0].high
    assert 44 < mean.figures[0].low < 54 < mean.figures[0].high < 64
    assert sexes.names == ("0", "1")
    assert abs(sexes.figures[0].value - 160) < 5 * found.noise_std
    assert [figure.low <= figure.value <= figure.high for figure in quartiles.figures] == [True] * 3
    centers = sorted(cluster.center["age"].value for cluster in found.clusters if cluster.center is not None)
    assert centers == [pytest.approx(42, abs=10), pytest.approx(66, abs=10)]
    assert charged(exploring, study) == dict.fromkeys(NAMES, (4, 4))
    plan = exploring.plan(study)
    assert plan.epsilon == pytest.approx(1.0, rel=1e-6)
    assert plan.epsilon == repeated_gaussian_epsilon(plan.noise_multiplier, (1 + 2) + (3 + 2), 1e-4)


def test_the_log_holds_the_digest_of_the_result_and_no_number_of_it(exploring: Federation) -> None:
    study = begin(exploring)
    exploring.driver(study).run()
    completed = next(event for event in exploring.events(study) if event.event == "exploration.completed")
    with reading(exploring.appliance.engine) as session:
        row = RoundRepository(session).result(study)
    assert row is not None
    assert completed.digests["result"] == row.result_digest
    assert set(completed.numbers) == {"epsilon", "rounds", "attempts"}
    for record in exploring.records(study):
        assert record["norm"] is None


@pytest.mark.parametrize("at", range(1, 9))
def test_a_driver_that_is_killed_goes_on_to_the_same_centres_without_a_second_charge(
    exploring: Federation, at: int
) -> None:
    study = begin(exploring)

    class Killed(Exception):
        pass

    seen = itertools.count(1)

    def kill() -> None:
        if next(seen) == at:
            raise Killed

    if at % 2:
        exploring.exchange.after_request = kill
    else:
        exploring.exchange.before_request = kill
    with pytest.raises(Killed) if at <= 7 else pytest.MonkeyPatch.context():
        exploring.driver(study).run()
    exploring.exchange.after_request = exploring.exchange.before_request = lambda: None
    if at <= 7:
        assert exploring.driver(study).run() is StudyState.COMPLETED
    assert charged(exploring, study) == dict.fromkeys(NAMES, (4, 4))
    plan, row = exploring.plan(study), exploring.row(study)
    assert isinstance(plan, ExplorationPlan)
    with reading(exploring.appliance.engine) as session:
        sums = [Kept(*stored) for stored in RoundRepository(session).sums(study, "cluster")]
    assert len(sums) == 3
    asked = [exploring.exchange.requests[-1][2]["berlin"][-16:]]
    assert asked == [centers_after(plan, row.plan_digest or "", sums[:-1]).astype("<f8").tobytes()]


def test_a_site_that_drops_out_costs_an_attempt_and_is_invited_again(exploring: Federation) -> None:
    study = begin(exploring)
    lost = iter([True])

    def lose(delivery):  # type: ignore[no-untyped-def]
        if delivery.kind == "query.cluster" and delivery.site.name == "dresden" and next(lost, False):
            return None
        return PASS

    exploring.exchange.faults = [lose]
    assert exploring.driver(study).run() is StudyState.COMPLETED
    records = {(record["phase"], record["round"]): record for record in exploring.records(study)}
    assert records["cluster", 1]["contributed"] == ["aachen", "berlin", "cologne"]
    assert records["cluster", 2]["contributed"] == list(NAMES)
    assert charged(exploring, study) == {**dict.fromkeys(NAMES[:3], (5, 5)), "dresden": (3, 3)}


def test_retries_that_are_spent_end_the_exploration_and_stay_charged(exploring: Federation) -> None:
    study = begin(exploring)
    exploring.exchange.faults = [lambda d: None if d.kind == "query.statistics" and d.site.name == "aachen" else PASS]
    assert exploring.driver(study).run() is StudyState.COMPLETED  # the other three go on without it
    for site in exploring.sites.values():
        site.worker.reset()
    again = begin(exploring)
    exploring.exchange.faults = [lambda d: None if d.kind == "query.statistics" and d.site.name != "aachen" else PASS]
    assert exploring.driver(again).run() is StudyState.FAILED
    assert all(steps >= executed for steps, executed in charged(exploring, again).values())
    with reading(exploring.appliance.engine) as session:
        assert RoundRepository(session).result(again) is None
        assert RoundRepository(session).sums(again, "statistics") == []


def test_differencing_over_repeated_explorations_is_bounded_by_the_ledger(exploring: Federation) -> None:
    """A researcher who asks the same again and again averages the noise away: each time is charged, and the ledger
    refuses when the cohort's budget is spent."""
    site, at = exploring.sites["aachen"], "2026-03-01T12:00:00Z"
    with site_transaction(site.store._engine) as session:
        before = spent(session, site.snapshot, held_out=False).epsilon
    cap = Budget(before + 3.5, 0.5)
    admitted = []
    for _ in range(5):
        spec = exploration(f"look-{next(_numbers)}")
        exploring.propose(spec)
        plan, row = exploring.plan(spec.study), exploring.row(spec.study)
        with site_transaction(site.store._engine) as session:
            try:
                reserve(
                    session, study=spec.study, plan_digest=row.plan_digest or "", snapshot=site.snapshot,
                    charges=charges(plan, own_epsilons(plan)), cap=cap, at=at,
                )  # fmt: skip
                admitted.append(True)
            except BudgetExceeded:
                admitted.append(False)
    assert admitted == [True, True, True, False, False]
    with site_transaction(site.store._engine) as session:
        assert spent(session, site.snapshot, held_out=False).epsilon <= cap.epsilon


def test_what_policy_is_told_of_an_exploration(exploring: Federation) -> None:
    counts = exploration("look-counts", statistics=[ASKED[0], ASKED[2]], clustering=None)
    for spec, kind in ((counts, "feasibility"), (exploration("look-more"), "exploration")):
        exploring.propose(spec)
        facts = document_facts(exploring.plan(spec.study), "sha256:x")["plan"]
        assert (facts["kind"], facts["dp"]["sampling"], facts["evaluation"]["mode"]) == (kind, "none", "none")


class Stopped(BaseException):
    """The honest driver is taken out of the way here."""


def ready(federation: Federation, **changes: object) -> tuple[str, ExplorationPlan, str]:
    """An exploration whose sites have their keys and were asked for nothing yet."""
    study = begin(federation, **changes)

    def stop() -> None:
        if federation.exchange.requests[-1][1] == "keys-establish":
            raise Stopped

    federation.exchange.after_request = stop
    with pytest.raises(Stopped):
        federation.driver(study).run()
    federation.exchange.after_request = lambda: None
    plan = federation.plan(study)
    assert isinstance(plan, ExplorationPlan)
    return study, plan, federation.row(study).plan_digest or ""


def ask(
    federation: Federation, study: str, digest: str, phase: Phase, body: bytes, round_number: int = 1, attempt: int = 1
) -> str:
    """aachen's answer to a request that the coordinator's own key signs: its refusal's code, or "contributed"."""
    recorded = compose(
        BeginAttempt(phase, round_number, attempt, NAMES), study=study, plan_digest=digest,
        model_digest=sha256_hex(body), entry=0, signer=federation.appliance.keys.coordinator,
        now=federation.clock.now(), deadline_seconds=60,
    )  # fmt: skip
    said = federation.sites["aachen"].participant.answer(ROUND_KINDS[phase], packet_of(recorded, body))
    packet = Packet.from_bytes(said)
    if packet.envelope.payload_type == CONTRIBUTION_TYPE:
        return "contributed"
    return RoundRefusal.model_validate_json(packet.envelope.payload).code


@pytest.mark.parametrize(
    ("phase", "centers", "code"),
    [
        ("cluster", [np.nan, 0.0], "model-not-finite"),
        ("cluster", [1e9, 0.0], "model-too-large"),
        ("cluster", [0.1], "wrong-length"),
        ("cluster", [], "wrong-length"),
        ("statistics", [0.1], "wrong-length"),
        ("train", [], "round-unknown"),
        ("evaluate", [], "round-unknown"),
    ],
)
def test_a_request_that_the_plan_does_not_have_is_refused_and_charges_nothing(
    exploring: Federation, phase: Phase, centers: list[float], code: str
) -> None:
    study, _, digest = ready(exploring)
    assert ask(exploring, study, digest, phase, np.array(centers, dtype="<f8").tobytes()) == code
    assert charged(exploring, study)["aachen"] == (0, 0)


def test_rounds_without_end_with_chosen_centres_end_at_the_ledger(exploring: Federation) -> None:
    """A coordinator may choose centres that close in on one patient; the accounting allows for any, as many as are
    planned, and the statistics' attempts are not to be had once the clustering has begun."""
    study, plan, digest = ready(exploring)
    codes = []
    for number, round_number in enumerate((1, 1, 1, 2, 2, 3, 3, 3, 3)):
        body = np.array([0.0, 0.01 * number]).astype("<f8").tobytes()
        codes.append(ask(exploring, study, digest, "cluster", body, round_number, number + 1))
    # What is charged beyond the phase's own attempts never leaves: its masks are not to be had.
    assert codes == ["contributed"] * 5 + ["retries-spent"] * 3 + ["ledger-exhausted"]
    assert ask(exploring, study, digest, "statistics", b"") == "phase-over"
    assert ask(exploring, study, digest, "cluster", np.zeros(2).tobytes(), 4) == "round-unknown"
    steps, executed = charged(exploring, study)["aachen"]
    assert executed == steps == plan.spec.steps


def test_a_plan_that_states_less_than_it_costs_is_objected_to(exploring: Federation) -> None:
    spec = exploration(f"look-{next(_numbers)}")
    exploring.propose(spec)
    plan = exploring.plan(spec.study)
    nobody = Identity("aachen", "key", "coordinator", "log", b"", "EU")

    def codes(changed: AnyPlan) -> set[str]:
        epsilons = own_epsilons(changed)
        found = objections(changed, identity=nobody, data=None, epsilons=epsilons, log_sound=True)
        return {one.code for one in found}

    honest = codes(plan)
    assert not honest & {"noise", "epsilon", "worst-case", "evaluation-noise", "approvers", "secure-sum", "spec-digest"}
    for changes, expected in (
        ({"noise_multiplier": plan.noise_multiplier / 2}, {"noise", "epsilon", "worst-case"}),
        ({"epsilon": plan.epsilon / 2}, {"epsilon"}),
        ({"epsilon_worst_site": plan.epsilon}, {"worst-case"}),
        ({"spec": spec.model_copy(update={"statistics": spec.statistics[:1]})}, {"spec-digest"}),
    ):
        assert codes(plan.model_copy(update=changes)) - honest == expected
