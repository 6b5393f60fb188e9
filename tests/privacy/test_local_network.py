"""Outputs, scores and per-patient gradients of networks, against the formulas written out with autograd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from privacy.errors import ParameterError
from privacy.local.contribution import private_gradient_sum, score_histogram
from privacy.local.network import Network
from privacy.local.outcome import TorchOutcome, hazard_targets, scores
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


def test_a_patient_lost_from_sight_is_counted_apart() -> None:
    network = Network((1, 2), "hazard")
    people = Group(np.zeros((4, 1)), np.array([1.0, 2.0, 0.0, 4.0]), np.array([0, 1, 1, 2]), 3)
    found = network.scores(np.zeros(4), people)
    assert (found.scores.tolist(), found.labels.tolist(), found.groups) == ([0.75] * 3, [1.0, 2.0, 0.0], 3)
    counts = score_histogram(people, network, np.zeros(4), cells=12, noise_std=None, entropy=entropy_of(1))
    assert counts.tolist() == [0, 0, 0, 1] * 3


def test_a_number_is_learned_by_squared_error_and_judged_by_its_residual() -> None:
    network = Network((2, 1), "squared")
    x, y = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([2.0, 0.0, 9.0])
    people = Group(x, y, np.array([0, 0, 1]), 2)
    parameters = np.array([0.5, -0.5, 1.0])
    rows = ((x @ parameters[:2] + 1.0 - y)[:, None]) * np.c_[x, np.ones(3)]
    each = [rows[:2].mean(axis=0), rows[2]]
    clipped = sum(row * min(1.0, 0.25 / np.linalg.norm(row)) for row in each)
    np.testing.assert_allclose(network.gradient_sum(parameters, people, 0.25), clipped, rtol=1e-6)
    # The first patient's residuals are -0.5 and 0.5, the second's -8, which counts as -3.
    found = network.scores(parameters, people)
    assert (found.scores.tolist(), found.groups) == ([0.5, 0.0], 1)
    counts = score_histogram(people, network, parameters, cells=6, noise_std=None, entropy=entropy_of(1))
    assert counts.tolist() == [1, 0, 0, 1, 0, 0]
    with pytest.raises(ParameterError, match="hold no 3 groups"):
        score_histogram(people, Network((2, 1), "hazard"), parameters, cells=8, noise_std=None, entropy=entropy_of(1))
    with pytest.raises(ParameterError):
        network.chances(parameters, x)


def test_a_prediction_that_is_no_number_counts_as_the_worst_not_as_the_best() -> None:
    spoilt = np.array([[np.nan], [np.inf], [-np.inf], [0.0]])
    here = scores("squared", spoilt, np.zeros(4))
    assert here.tolist() == [1.0, 1.0, 0.0, 0.5]
    there = TorchOutcome("squared", 1).fit(torch.from_numpy(spoilt), torch.zeros(4))
    assert there.tolist() == here.tolist()


def test_torch_judges_every_outcome_as_numpy_does() -> None:
    random = np.random.default_rng(1)
    for loss, outputs, y in (
        ("logistic", 1, np.array([0.0, 1.0, 1.0, 0.0])),
        ("hazard", 2, np.array([0.0, 1.0, 3.0, 4.0])),
        ("squared", 1, np.array([-9.0, 0.2, 0.4, 9.0])),
    ):
        flat, deep = Network((3, outputs), loss), Network((3, 4, outputs), loss)
        for network in (flat, deep):
            parameters = random.normal(size=network.parameters)
            people = Group(random.normal(size=(4, 3)), y, np.arange(4), 4)
            here, there = network.scores(parameters, people), network._in_torch.scores(parameters, people)
            np.testing.assert_allclose(here.scores, there.scores, atol=1e-6)
            assert (here.labels.tolist(), here.groups) == (there.labels.tolist(), there.groups)
            np.testing.assert_allclose(
                network.gradient_sum(parameters, people, 0.5),
                network._in_torch.gradient_sum(parameters, people, 0.5),
                atol=1e-5,
            )


@pytest.mark.parametrize("size", [1, 3])
def test_nobody_moves_a_sum_of_squared_errors_by_more_than_the_clip(size: int) -> None:
    """However far a label lies: the L2 distance of the sums with and without a patient is at most the clip."""
    network, random = Network((3, 1), "squared"), np.random.default_rng(size)
    parameters = random.normal(size=4)
    x, y = random.normal(size=(6 * size, 3)), random.normal(size=6 * size)
    y[:size] = 1e9
    people = Group(x, y, np.repeat(np.arange(6), size), 6)
    rest = Group(x[size:], y[size:], np.repeat(np.arange(5), size), 5)
    difference = network.gradient_sum(parameters, people, 0.25) - network.gradient_sum(parameters, rest, 0.25)
    assert np.linalg.norm(difference) <= 0.25 * (1 + 1e-9)


@pytest.mark.parametrize("widths", [(4,), (4, 0), (4, 2, 2)])
def test_an_impossible_network_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        Network(widths, "logistic")
