"""Studies of other outcomes than yes or no, over the real driver, participation and secure sum: what they report."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from coordinator.client.simulated_sites import exact_measure
from coordinator.database import transaction
from coordinator.releases.build import model_files, subject_of
from coordinator.releases.model_card import write
from coordinator.rounds.optimiser import from_bytes
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import SiteDataset
from coordinator.studies.plan import schema_digest
from coordinator.studies.states import StudyState
from privacy.local.patients import Cohort, part
from protocol.dataset import DatasetSchema, NumberLabel, SurvivalLabel
from protocol.evaluation import EvaluationReport, RegressionReport, SurvivalReport, read_report
from protocol.release import EpsilonStatement, ReleaseSubject
from protocol.timestamp import timestamp
from site_agent.releases.self_check import check
from site_agent.serving.app import create_app
from site_agent.serving.predictor import Predictor
from tests.simulator.computing_worker import ComputingWorker
from tests.simulator.federation import NAMES, SCHEMA, Federation, study_spec

PATIENTS, HELD_OUT = 300, 75
PRESSURE = NumberLabel(
    kind="number", name="pressure", column="mmhg", unit="mmHg", minimum=60, maximum=260, center=120, scale=20
)
DEATH = SurvivalLabel(name="death", column="dead", operator="==", value=1, time="months", edges=(6.0, 12.0, 24.0))


def schema_of(label: NumberLabel | SurvivalLabel) -> DatasetSchema:
    return DatasetSchema(name="hearts", features=SCHEMA.features, label=label)


def cohort_of(site: str, schema: DatasetSchema) -> Cohort:
    """Age decides: pressure rises by 1 mmHg a year, the hazard with age."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "big"))
    ages = np.clip(random.normal(54, 9, PATIENTS), 20, 100)
    x = np.array([schema.encode({"age": float(age), "sex": int(random.integers(0, 2))}) for age in ages])
    if isinstance(schema.label, NumberLabel):
        values = np.clip(120 + 2 * (ages - 54) + random.normal(0, 6, PATIENTS), 60, 260)
        codes = [schema.label.code({"mmhg": float(value)}) for value in values]
    else:
        times = np.minimum(random.exponential(30 * np.exp(-(ages - 54) / 6)) + 0.01, 100)
        ends = random.exponential(60, PATIENTS) + 0.01
        records = [
            {"dead": int(time <= end), "months": float(min(time, end))} for time, end in zip(times, ends, strict=True)
        ]
        codes = [float(schema.label.code(record)) for record in records]
    return part(x, np.array(codes), np.arange(PATIENTS), np.arange(PATIENTS) < HELD_OUT)


def run(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, study: str, schema: DatasetSchema, **changes: object
) -> tuple[EvaluationReport, dict[str, Cohort], np.ndarray]:
    """Propose, consent, train, evaluate; (report, the sites' patients, the candidate's weights)."""
    entropy_source = np.random.default_rng(11)
    cohorts = {name: cohort_of(name, schema) for name in NAMES}
    federation.reset()
    with transaction(federation.appliance.engine) as session:
        for name, site in federation.sites.items():
            row = SiteDataset(
                site=name, name="other", schema_digest=schema_digest(schema), snapshot=site.snapshot,
                patients=PATIENTS, held_out=HELD_OUT, registered_at=timestamp(federation.clock.now()),
            )  # fmt: skip
            SiteRepository(session).put_dataset(row)
    for name, site in federation.sites.items():
        monkeypatch.setattr(site, "worker", ComputingWorker(cohorts[name], entropy_source.bytes))
        site.restart()
    document: dict[str, object] = {
        "dataset": schema.model_dump(mode="json"),
        "justified_columns": ["age", "sex", *schema.label.columns],
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 1},
        "training": {"rounds": 15, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 4.0},
        "evaluation": {"mode": "exact", "bins": 10},
    }
    federation.ready(study_spec(study, **{**document, **changes}))
    assert federation.driver(study).run() is StudyState.CANDIDATE, federation.row(study).detail
    candidate = federation.candidate(study)
    assert candidate is not None
    report = read_report(candidate.evaluation)
    evaluated = next(event for event in federation.events(study) if event.event == "candidate.evaluated")
    assert evaluated.labels["measure"] == report.kind
    card = write(
        federation.plan(study), EpsilonStatement.model_validate_json(candidate.epsilon), report, None,
        intended_use="research.heart", use_mode="research",
    )  # fmt: skip
    assert schema.label.name in card
    return report, cohorts, from_bytes(candidate.weights)


def released(federation: Federation, study: str) -> Predictor:
    """The candidate's release as a site takes it: its files built, checked against each other, loaded."""
    candidate, plan = federation.candidate(study), federation.plan(study)
    assert candidate is not None
    epsilon = EpsilonStatement.model_validate_json(candidate.epsilon)
    report, use = read_report(candidate.evaluation), "research.heart"
    files = model_files(plan, candidate.weights, epsilon, report, intended_use=use, use_mode="research")
    row = federation.row(study)
    subject = subject_of(
        f"{study}-r1", plan, row.plan_digest or "", files, epsilon, report, intended_use=use, use_mode="research"
    )
    assert ReleaseSubject.model_validate_json(subject.model_dump_json()) == subject
    check(subject, files["model.safetensors"], files["model.onnx"])
    return Predictor(files["model.onnx"], subject)


async def asked(predictor: Predictor, study: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the loopback application answers to one record, and how it describes the model."""
    transport = httpx.ASGITransport(app=create_app(predictor, lambda: None, lambda _: None))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.post("/v1/predict", json={"records": [{"age": 70, "sex": 0}]})
        return answer.json(), (await client.get(f"/v2/models/{study}")).json()


def test_linear_regression_learns_a_number_and_says_how_well(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, cohorts, weights = run(
        federation, monkeypatch, "pressure-1", schema_of(PRESSURE), model={"architecture": "linear_regression"}
    )
    assert isinstance(report, RegressionReport)
    assert (report.unit, report.limit, report.spread, report.held_out) == ("mmHg", 60.0, 20.0, 4 * HELD_OUT)
    measured = exact_measure(federation.plan("pressure-1"), cohorts, weights)
    assert measured is not None
    assert report.rmse.value == pytest.approx(measured, abs=1.5)  # known to the width of a bin, 6 mmHg
    spread = np.std(np.concatenate([cohort.held_out.y for cohort in cohorts.values()])) * 20
    assert measured < 0.7 * spread  # the standard deviation of the values: what knowing nothing would give
    assert report.skill.value is not None
    assert report.skill.value > 0.5
    predictor = released(federation, "pressure-1")
    young, old = predictor.predict([{"age": 40, "sex": 0}, {"age": 70, "sex": 0}])
    assert 60 < young < 115
    assert 125 < old < 200
    answer, described = asyncio.run(asked(predictor, "pressure-1"))
    assert (answer["values"], answer["unit"], "probabilities" in answer) == ([old], "mmHg", False)
    assert described["outputs"][0]["name"] == "value"


def test_survival_reports_those_who_were_lost(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    report, cohorts, weights = run(
        federation, monkeypatch, "death-1", schema_of(DEATH),
        model={"architecture": "discrete_time_survival", "intervals": 3},
    )  # fmt: skip
    assert isinstance(report, SurvivalReport)
    codes = np.concatenate([cohort.held_out.y for cohort in cohorts.values()])
    died, lost = codes % 2 == 1, (codes % 2 == 0) & (codes < 6)
    assert report.lost.value == pytest.approx(lost.mean())
    assert report.observed_least.value == pytest.approx(died.mean())
    assert report.observed_most.value == pytest.approx((died | lost).mean())
    measured = exact_measure(federation.plan("death-1"), cohorts, weights)
    assert measured is not None
    assert report.auc.value == pytest.approx(measured, abs=0.05)
    assert measured > 0.7
    young, old = released(federation, "death-1").predict([{"age": 40, "sex": 0}, {"age": 70, "sex": 0}])
    assert 0 < young < old < 1


def linear(operator_input: str, weight: str, bias: str) -> dict[str, Any]:
    named = (("input", operator_input), ("weight", weight), ("bias", bias))
    arguments = [{"name": name, "kind": "tensor", "value": value} for name, value in named]
    return {"operator": "linear.default", "arguments": arguments}


def network(loss: str, outputs: int) -> dict[str, Any]:
    """A graph by hand: linear, tanh, linear, over the three inputs of the schema."""
    return {
        "architecture": "exported_graph",
        "loss": loss,
        "input": [3],
        "parameters": [[6, 3], [6], [outputs, 6], [outputs]],
        "nodes": [
            linear("x", "p0", "p1"),
            {"operator": "tanh.default", "arguments": [{"name": "self", "kind": "tensor", "value": "n0"}]},
            linear("n1", "p2", "p3"),
        ],
        "output": "n2",
    }


def test_a_brought_graph_trains_evaluates_and_is_released(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, cohorts, weights = run(federation, monkeypatch, "graph-1", schema_of(PRESSURE), model=network("squared", 1))
    assert isinstance(report, RegressionReport)
    measured = exact_measure(federation.plan("graph-1"), cohorts, weights)
    assert measured is not None
    assert report.rmse.value == pytest.approx(measured, abs=1.5)
    assert measured < 17  # 20 is what the spread of the made-up pressures would give
    young, old = released(federation, "graph-1").predict([{"age": 40, "sex": 0}, {"age": 70, "sex": 0}])
    assert young < old


def test_a_brought_survival_graph_begins_with_the_researcher_s_weights(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = np.random.default_rng(3).normal(size=6 * 3 + 6 + 3 * 6 + 3).astype("<f4")
    model = {**network("hazard", 3), "initial": base64.b64encode(first.tobytes()).decode()}
    training = {"rounds": 1, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 1e-9}
    report, _, weights = run(
        federation, monkeypatch, "graph-2", schema_of(DEATH), model=model, training=training
    )  # fmt: skip
    assert isinstance(report, SurvivalReport)
    np.testing.assert_allclose(weights, first, atol=1e-4)
    assert 0 < released(federation, "graph-2").predict([{"age": 40, "sex": 0}])[0] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "n1"}, "has 6 outputs"),
        ({"loss": "logistic"}, "packed for the logistic loss"),
        ({"parameters": [[10**6, 10**6], [6], [1, 6], [1]]}, "parameters; at most"),
        ({"input": [4]}, "do not fit the input"),
        ({"parameters": [[6, 4], [6], [1, 6], [1]], "input": [4]}, "takes records of shape"),
        ({"initial": "AAAA"}, "initial weights"),
        (
            {"nodes": [{"operator": "batch_norm.default", "arguments": []}], "output": "n0"},
            "use GroupNorm or LayerNorm",
        ),
    ],
)
def test_a_graph_that_no_site_would_train_is_no_proposal(change: dict[str, Any], message: str) -> None:
    dataset = schema_of(PRESSURE).model_dump(mode="json")
    study_spec("graph-3", dataset=dataset, model=network("squared", 1))
    with pytest.raises(ValidationError, match=message):
        study_spec("graph-3", dataset=dataset, model={**network("squared", 1), **change})


def test_a_noised_evaluation_of_a_number_carries_its_interval(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, cohorts, weights = run(
        federation, monkeypatch, "pressure-2", schema_of(PRESSURE), model={"architecture": "linear_regression"},
        evaluation={"mode": "noised", "epsilon": 3.0, "attempts": 1, "bins": 10},
    )  # fmt: skip
    assert isinstance(report, RegressionReport)
    measured = exact_measure(federation.plan("pressure-2"), cohorts, weights)
    low, high = report.rmse.low, report.rmse.high
    assert measured is not None
    assert low is not None
    assert high is not None
    assert low < measured < high
    assert high - low > 2.0
