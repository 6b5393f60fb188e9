"""`cloister study simulate` computes what a study would: against the driver, the sites' participation, and ONNX."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from coordinator.client.simulated_sites import network_of, site_vector
from coordinator.client.simulation import seeded_entropy, simulate, simulated_plan
from coordinator.releases.onnx_model import build
from coordinator.rounds.optimiser import from_bytes
from coordinator.studies.states import StudyState
from privacy.local.contribution import private_gradient_sum, score_histogram
from privacy.local.patients import Cohort, Group, part
from protocol.evaluation import read_report
from site_agent.training.sums import sum_parameters
from tests.simulator.computing_worker import ComputingWorker, planned_model
from tests.simulator.federation import NAMES, SCHEMA, Federation, study_spec

Begin = Callable[..., str]
PATIENTS, HELD_OUT = 80, 20
MODELS = [{"architecture": "logistic_regression"}, {"architecture": "mlp", "hidden": [6, 3]}]
IDS = ["logistic", "mlp"]
torch.set_num_threads(1)


def cohort_of(site: str) -> Cohort:
    """80 patients with one or two records each, of whom 20 are held out, as the federation's sites have them."""
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "big"))
    patient = np.sort(np.concatenate([np.arange(PATIENTS), random.integers(0, PATIENTS, 30)]))
    sick = random.random(PATIENTS) < 0.5
    ages = np.clip(random.normal(np.where(sick, 66.0, 50.0), 6.0), 0, 120)
    records = [{"age": float(ages[who]), "sex": int(random.integers(0, 2))} for who in patient]
    x = np.array([SCHEMA.encode(record) for record in records])
    held_out = np.arange(PATIENTS) < HELD_OUT
    return part(x, sick[patient].astype(float), patient.astype(np.int64), held_out)


COHORTS = {name: cohort_of(name) for name in NAMES}


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_a_simulation_ends_with_the_model_that_the_federation_makes(
    federation: Federation, begin: Begin, model: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"rounds": 12, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 2.0}
    study = begin(model=model, training=training, privacy={"epsilon": 1.0, "delta": 1e-4, "retries": 1})
    entropy = seeded_entropy(7)
    for name, site in federation.sites.items():
        monkeypatch.setattr(site, "worker", ComputingWorker(COHORTS[name], entropy))
        site.restart()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    candidate, plan = federation.candidate(study), federation.plan(study)
    assert candidate is not None
    simulated = simulate(plan, COHORTS, seeded_entropy(7))
    assert simulated.weights is not None
    assert simulated.report is not None
    # Both round at random to grid steps of about 1e-7; everything else is the same number.
    weights = from_bytes(candidate.weights)
    np.testing.assert_allclose(simulated.weights, weights, atol=1e-4)
    assert np.linalg.norm(weights) > 0.5
    said = read_report(candidate.evaluation)
    assert simulated.report.auc.value == pytest.approx(said.auc.value, abs=1e-3)
    assert (simulated.rounds, simulated.attempts) == (12, 12)
    assert simulated.measured is not None
    assert simulated.measured > 0.8

    session = onnxruntime.InferenceSession(build(plan.spec.model, SCHEMA, weights))
    (found,) = session.run(None, {"features": np.array([[66.0, 0.0], [40.0, 1.0]])})
    inputs = np.array([SCHEMA.encode({"age": 66.0, "sex": 0}), SCHEMA.encode({"age": 40.0, "sex": 1})])
    np.testing.assert_allclose(found[:, 0], network_of(plan.spec.model, SCHEMA.width).chances(weights, inputs))
    assert found[0, 0] > found[1, 0]


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("mode", ["noised", "exact"])
def test_a_simulated_site_computes_the_site_s_own_step_bit_for_bit(
    federation: Federation, begin: Begin, model: dict[str, object], mode: str
) -> None:
    attempts = 2 if mode == "noised" else 1
    study = begin(model=model, evaluation={"mode": mode, "epsilon": 2.0, "attempts": attempts, "bins": 4})
    plan = federation.plan(study)
    spec, patients = plan.spec, COHORTS["berlin"]
    parameters = np.random.default_rng(3).normal(size=plan.parameters)
    _, std = sum_parameters(plan.secure_sum("train", NAMES))
    assert std is not None
    own = private_gradient_sum(
        patients.training, planned_model(plan), parameters, clip=spec.training.clip,
        sampling_rate=spec.training.sampling_rate, noise_std=std, entropy=seeded_entropy(1),
    )  # fmt: skip
    assert site_vector(plan, "train", NAMES, patients, parameters, seeded_entropy(1)).tobytes() == own.tobytes()
    assert not np.array_equal(site_vector(plan, "train", NAMES, patients, parameters, seeded_entropy(2)), own)
    _, std = sum_parameters(plan.secure_sum("evaluate", NAMES))
    counts = score_histogram(
        patients.held_out,
        planned_model(plan),
        parameters,
        cells=2 * spec.evaluation.bins,
        noise_std=std,
        entropy=seeded_entropy(4),
    )
    simulated = site_vector(plan, "evaluate", NAMES, patients, parameters, seeded_entropy(4))
    assert simulated.tobytes() == counts.tobytes()


@pytest.mark.parametrize("hidden", [[], [5]])
def test_a_simulated_site_computes_the_site_s_own_survival_step(hidden: list[int]) -> None:
    label = {"name": "death", "column": "num", "operator": "==", "value": 1, "time": "months", "edges": [6, 12]}
    model = {"architecture": "discrete_time_survival", "intervals": 2, "hidden": hidden}
    spec = study_spec(dataset={**SCHEMA.model_dump(mode="json"), "label": label}, model=model)
    plan = simulated_plan(spec, dict.fromkeys(NAMES, (PATIENTS, HELD_OUT)))
    here = COHORTS["berlin"].training
    codes = np.random.default_rng(5).integers(0, 5, here.patients).astype(float)[here.patient]
    group = Group(here.x, codes, here.patient, here.patients)
    parameters = np.random.default_rng(3).normal(size=plan.parameters)
    _, std = sum_parameters(plan.secure_sum("train", NAMES))
    assert std is not None
    own = private_gradient_sum(
        group, planned_model(plan), parameters, clip=spec.training.clip, sampling_rate=spec.training.sampling_rate,
        noise_std=std, entropy=seeded_entropy(1),
    )  # fmt: skip
    cohort = Cohort(group, COHORTS["berlin"].held_out)
    simulated = site_vector(plan, "train", NAMES, cohort, parameters, seeded_entropy(1))
    assert simulated.tobytes() == own.tobytes()


def test_lost_answers_cost_attempts_and_too_many_of_them_the_study(federation: Federation, begin: Begin) -> None:
    plan = federation.plan(begin())
    lost = iter([True, True, False, *[True] * 1000])  # cologne misses the first attempt
    one = simulate(plan, COHORTS, seeded_entropy(1), answers=lambda: next(lost))
    assert (one.failure, one.rounds, one.attempts) == (None, 3, 4)
    none = simulate(plan, COHORTS, seeded_entropy(1), answers=lambda: False)
    assert none.failure is not None
    assert none.failure.startswith("retries-exhausted")
    assert none.weights is None
