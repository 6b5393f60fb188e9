"""Outputs, scores and per-patient gradients of networks, against the formulas written out with autograd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from privacy.errors import ParameterError
from privacy.local.contribution import private_gradient_sum, score_histogram
from privacy.local.network import Network, hazard_targets
from privacy.local.patients import Group

INTERVALS = 3
NETWORKS = [
    Network((4, 1), "logistic"),
    Network((4, 5, 2, 1), "logistic"),
    Network((4, INTERVALS), "hazard"),
    Network((4, 6, INTERVALS), "hazard"),
]
IDS = ["logistic", "mlp", "hazard", "hazard mlp"]
torch.set_num_threads(1)


def entropy_of(seed: int) -> Callable[[int], bytes]:
    """Repeatable bytes, for comparing two computations."""
    counter = iter(range(1 << 30))
    return lambda n: hashlib.shake_256(f"{seed}/{next(counter)}".encode()).digest(n)


def group(network: Network, seed: int, records: int = 40, patients: int = 15) -> Group:
    random = np.random.default_rng(seed)
    patient = np.sort(np.concatenate([np.arange(patients), random.integers(0, patients, records - patients)]))
    most = 2 if network.loss == "logistic" else 2 * INTERVALS + 1
    return Group(random.normal(size=(records, 4)), random.integers(0, most, records).astype(float), patient, patients)


def likelihood_loss(network: Network, logits: torch.Tensor, label: float) -> torch.Tensor:
    """Minus the log-likelihood of one record: survive every interval before, then have the event or not."""
    if network.loss == "logistic":
        return -torch.nn.functional.logsigmoid(logits[0] if label else -logits[0])
    lived, event = int(label) // 2, int(label) % 2
    loss = -torch.nn.functional.logsigmoid(-logits[:lived]).sum()
    return loss - torch.nn.functional.logsigmoid(logits[lived]) if event else loss


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_a_patient_s_gradient_is_that_of_the_mean_likelihood(network: Network) -> None:
    people = group(network, 1)
    parameters = np.random.default_rng(2).normal(size=network.parameters)
    for number in range(people.patients):
        flat = torch.tensor(parameters, requires_grad=True)
        values, start = torch.tensor(people.x[people.patient == number]), 0
        for layer, (a, b) in enumerate(zip(network.widths, network.widths[1:], strict=False)):
            weight, bias = flat[start : start + a * b].reshape(b, a), flat[start + a * b : start + (a + 1) * b]
            start += (a + 1) * b
            values = values @ weight.T + bias
            values = torch.tanh(values) if layer < len(network.widths) - 2 else values
        labels = people.y[people.patient == number]
        losses = [likelihood_loss(network, logits, y) for logits, y in zip(values, labels, strict=True)]
        torch.stack(losses).mean().backward()
        assert flat.grad is not None
        alone = people.select(np.arange(people.patients) == number)
        found = network.gradient_sum(parameters, alone, 1e6)
        relative, absolute = (1e-9, 1e-12) if network.linear else (1e-4, 1e-6)  # torch computes in float32
        np.testing.assert_allclose(found, flat.grad.numpy(), rtol=relative, atol=absolute)


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
@pytest.mark.parametrize("seed", range(4))
def test_one_patient_moves_the_sum_by_at_most_the_clip(network: Network, seed: int) -> None:
    people = group(network, seed)
    parameters = np.random.default_rng(seed).normal(size=network.parameters)
    without = people.x.copy()
    without[people.patient == 3] = np.nan  # a gradient that is not finite counts as zero

    def total(x: np.ndarray) -> np.ndarray:
        changed = Group(x, people.y, people.patient, people.patients)
        return private_gradient_sum(
            changed, network, parameters, clip=0.3, sampling_rate=1.0, noise_std=1e-12, entropy=entropy_of(seed)
        )

    assert 0 < np.linalg.norm(total(people.x) - total(without)) <= 0.3 * (1 + 1e-9) + 1e-9


def test_survival_labels_say_when_a_patient_was_at_risk() -> None:
    events, at_risk = hazard_targets(np.array([0.0, 1.0, 2.0, 3.0, 5.0, 6.0]), INTERVALS)
    assert events.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert at_risk.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("label", [-1.0, 7.0, 0.5, np.nan])
def test_a_survival_label_of_another_model_is_refused(label: float) -> None:
    with pytest.raises(ParameterError, match="survival label"):
        hazard_targets(np.array([label]), INTERVALS)


def test_the_score_is_the_chance_of_the_event_before_the_last_interval_ends() -> None:
    network = Network((1, 2), "hazard")
    parameters = np.array([0.0, 0.0, np.log(0.25 / 0.75), np.log(0.5 / 0.5)])  # hazards 1/4 and 1/2
    assert network.chances(parameters, np.zeros((1, 1))) == pytest.approx([1 - 0.75 * 0.5])
    assert network.outcomes(np.array([1.0, 3.0, 4.0])).tolist() == [1, 1, 0]
    assert np.isnan(network.outcomes(np.array([0.0, 2.0]))).all()  # lost from sight before the end


def test_a_patient_lost_from_sight_is_counted_in_no_bin() -> None:
    network = Network((1, 2), "hazard")
    people = Group(np.zeros((4, 1)), np.array([1.0, 2.0, 0.0, 4.0]), np.array([0, 1, 1, 2]), 3)
    found = network.scores(np.zeros(4), people)
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.75, 0.75], [1.0, 0.0])
    counts = score_histogram(people, network, np.zeros(4), bins=4, noise_std=None, entropy=entropy_of(1))
    assert counts.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("widths", [(4,), (4, 0), (4, 2, 2)])
def test_an_impossible_network_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        Network(widths, "logistic")
