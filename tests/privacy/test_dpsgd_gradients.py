"""Per-patient gradients: closed form, torch.func and Opacus agree to 1e-4."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.module_gradients import module_gradients, parameter_names
from privacy.dpsgd.per_patient import average_by_patient, linear_gradients, logistic_gradients
from privacy.errors import ParameterError

torch.set_num_threads(1)
RECORDS, WIDTH, PATIENTS = 300, 7, 60


@pytest.fixture(scope="module")
def records() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    patients = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, RECORDS - PATIENTS)])
    return rng.normal(0, 1, (RECORDS, WIDTH)), rng.integers(0, 2, RECORDS).astype(float), patients


def opacus_gradients(module: nn.Module, loss: object, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per-record gradients by Opacus' hooks, in the order of named_parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule

        wrapped = GradSampleModule(module, loss_reduction="sum")
        loss(wrapped(torch.tensor(features, dtype=torch.float32)), torch.tensor(labels, dtype=torch.float32)).backward()
        rows = [p.grad_sample.flatten(1).numpy().astype(float) for p in wrapped._module.parameters()]
    return np.concatenate(rows, axis=1)


def logistic_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output.squeeze(-1), label, reduction="sum")


def test_logistic_closed_form_torch_and_opacus_agree(records: tuple) -> None:
    features, labels, patients = records
    weights = np.random.default_rng(6).normal(0, 1, WIDTH + 1)
    module = nn.Linear(WIDTH, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights[None, :WIDTH], dtype=torch.float32))
        module.bias.copy_(torch.tensor(weights[WIDTH:], dtype=torch.float32))
    ours = logistic_gradients(weights, features, labels, patients, PATIENTS)
    functional = module_gradients(
        module,
        logistic_loss,
        torch.tensor(features, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.float32),
        patients,
        PATIENTS,
    )
    oracle = average_by_patient(opacus_gradients(module, logistic_loss, features, labels), patients, PATIENTS)
    np.testing.assert_allclose(ours, functional, atol=1e-5)
    np.testing.assert_allclose(ours, oracle, atol=1e-4)
    np.testing.assert_allclose(clip_gradients(ours, 0.25).gradients, clip_gradients(oracle, 0.25).gradients, atol=1e-4)


def test_mlp_agrees_with_opacus(records: tuple) -> None:
    features, labels, patients = records
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(WIDTH, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)
    )
    functional = module_gradients(
        module,
        logistic_loss,
        torch.tensor(features, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.float32),
        patients,
        PATIENTS,
    )
    oracle = average_by_patient(opacus_gradients(module, logistic_loss, features, labels), patients, PATIENTS)
    assert functional.shape == (PATIENTS, sum(p.numel() for p in module.parameters()))
    np.testing.assert_allclose(functional, oracle, atol=1e-4)
    assert parameter_names(module)[0] == "0.weight"


def test_linear_regression_is_the_gradient_of_half_the_squared_error(records: tuple) -> None:
    features, _, patients = records
    rng = np.random.default_rng(8)
    targets, weights = rng.normal(0, 2, RECORDS), rng.normal(0, 1, WIDTH)

    def loss(w: np.ndarray, patient: int) -> float:
        mine = patients == patient
        return 0.5 * float(np.mean((features[mine] @ w - targets[mine]) ** 2))

    ours = linear_gradients(weights, features, targets, patients, PATIENTS, intercept=False)
    for patient in (0, 17, 59):
        for column in range(WIDTH):
            step = np.zeros(WIDTH)
            step[column] = 1e-5
            slope = (loss(weights + step, patient) - loss(weights - step, patient)) / 2e-5
            assert ours[patient, column] == pytest.approx(slope, abs=1e-6)


def test_a_patients_records_are_one_gradient_however_many(records: tuple) -> None:
    features, labels, _ = records
    weights = np.ones(WIDTH + 1)
    once = logistic_gradients(weights, features[:1], labels[:1], np.array([0]), 1)
    fifty = logistic_gradients(weights, np.repeat(features[:1], 50, 0), np.repeat(labels[:1], 50), np.zeros(50, int), 1)
    np.testing.assert_allclose(once, fifty, rtol=1e-12)


def test_a_patient_without_records_counts_zero_and_no_patients_is_empty() -> None:
    rows = logistic_gradients(np.ones(3), np.ones((1, 2)), np.ones(1), np.array([2]), 4)
    assert (rows[[0, 1, 3]] == 0).all()
    assert rows[2].any()
    empty = logistic_gradients(np.ones(3), np.ones((0, 2)), np.ones(0), np.zeros(0, int), 0)
    assert empty.shape == (0, 3)


def test_extreme_scores_do_not_overflow() -> None:
    features = np.array([[1e8], [-1e8]])
    rows = logistic_gradients(np.array([1.0, 0.0]), features, np.array([0.0, 0.0]), np.array([0, 1]), 2)
    assert rows[0, 1] == 1.0
    assert rows[1, 1] == 0.0


@pytest.mark.parametrize(
    ("weights", "features", "labels", "patients", "count"),
    [
        (np.ones(4), np.ones((2, 2)), np.ones(2), np.array([0, 1]), 2),
        (np.ones(3), np.ones((2, 2)), np.ones(3), np.array([0, 1]), 2),
        (np.ones(3), np.ones((2, 2)), np.ones(2), np.array([0, 2]), 2),
        (np.ones(3), np.ones((2, 2)), np.ones(2), np.array([-1, 0]), 2),
        (np.ones(3), np.ones((2, 2)), np.ones(2), np.array([0.0, 1.0]), 2),
        (np.ones(3), np.ones(2), np.ones(2), np.array([0, 1]), 2),
    ],
)
def test_arrays_that_do_not_fit_are_refused(weights, features, labels, patients, count) -> None:
    with pytest.raises(ParameterError):
        logistic_gradients(weights, features, labels, patients, count)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_layers_that_couple_or_randomise_are_refused(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1))
    with pytest.raises(ParameterError, match="layer 1"):
        module_gradients(module, logistic_loss, torch.ones(2, 3), torch.ones(2), np.array([0, 1]), 2)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    rows = module_gradients(module, logistic_loss, torch.ones(2, 3), torch.ones(2), np.array([0, 1]), 2)
    assert rows.shape == (2, 5)


def test_only_module_gradients_loads_torch() -> None:
    program = (
        "import sys\n"
        "import privacy.dpsgd.step, privacy.dpsgd.per_patient, privacy.dpsgd.noise\n"
        "import privacy.secagg.client, privacy.secagg.server\n"
        "import privacy.accounting.calibration, privacy.accounting.ledger, privacy.accounting.gaussian\n"
        "import privacy.evaluation.metrics\n"
        "sys.exit(1 if 'torch' in sys.modules else 0)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
