"""One private step against a plain computation of the same, patient by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import ParameterError
from privacy.local.contribution import private_gradient_sum, score_histogram
from privacy.local.model import Hardware
from privacy.local.patients import part
from protocol.model import LogisticRegression, MultilayerPerceptron, parameter_count
from site_agent.training.architectures.catalogue import local_model

LOGISTIC = LogisticRegression(architecture="logistic_regression")
NETWORK = MultilayerPerceptron(architecture="mlp", hidden=(5, 3))
TINY = 1e-12
torch.set_num_threads(1)


def entropy_of(seed: int) -> Callable[[int], bytes]:
    """Repeatable bytes, for comparing two computations."""
    counter = iter(range(1 << 30))
    return lambda n: hashlib.shake_256(f"{seed}/{next(counter)}".encode()).digest(n)


def data(seed: int, records: int = 60, patients: int = 25, width: int = 4) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    patient = np.concatenate([np.arange(patients), random.integers(0, patients, records - patients)])
    random.shuffle(patient)
    x, y = random.normal(size=(records, width)), random.integers(0, 2, records).astype(np.float64)
    return x, y, patient.astype(np.int64), random.random(patients) < 0.3


def gradient(model: object, parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean loss over one patient's records, by autograd on a network written out here."""
    flat = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
    widths = [x.shape[1], *(getattr(model, "hidden", ())), 1]
    values, start = torch.tensor(x), 0
    for layer, (a, b) in enumerate(pairwise(widths)):
        weight = flat[start : start + a * b].reshape(b, a)
        bias = flat[start + a * b : start + a * b + b]
        start += a * b + b
        values = values @ weight.T + bias
        if layer < len(widths) - 2:
            values = torch.tanh(values)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(values[:, 0], torch.tensor(y))
    loss.backward()
    assert flat.grad is not None
    return flat.grad.numpy()


def expected_sum(model: object, parameters: np.ndarray, cohort: tuple[np.ndarray, ...], clip: float) -> np.ndarray:
    x, y, patient, held_out = cohort
    total = np.zeros(parameters.size)
    for number in np.flatnonzero(~held_out):
        row = gradient(model, parameters, x[patient == number], y[patient == number])
        total += row * min(1.0, clip / np.linalg.norm(row))
    return total


@pytest.mark.parametrize("model", [LOGISTIC, NETWORK], ids=["logistic", "mlp"])
@pytest.mark.parametrize("clip", [0.05, 50.0])
def test_everybody_sampled_gives_the_clipped_gradients_of_all_that_train(
    model: LogisticRegression | MultilayerPerceptron, clip: float
) -> None:
    cohort = data(1)
    parameters = np.random.default_rng(2).normal(size=parameter_count(model, 4))
    expected = expected_sum(model, parameters, cohort, clip)
    for memory in (1 << 30, 3 * 24 * parameters.size, 1):  # all patients at once, a few, and one at a time
        total = private_gradient_sum(
            part(*cohort).training,
            local_model(model, 4),
            parameters,
            clip=clip,
            sampling_rate=1.0,
            noise_std=TINY,
            entropy=entropy_of(3),
            hardware=Hardware(memory=memory),
        )
        assert total == pytest.approx(expected, rel=1e-4, abs=1e-5 * np.abs(expected).max())


def test_held_out_patients_never_change_a_training_sum() -> None:
    x, y, patient, held_out = data(4)
    parameters = np.random.default_rng(5).normal(size=5)
    changed = x.copy()
    changed[held_out[patient]] = 1e6
    sums = [
        private_gradient_sum(
            part(values, y, patient, held_out).training,
            local_model(LOGISTIC, 4),
            parameters,
            clip=1.0,
            sampling_rate=0.5,
            noise_std=0.1,
            entropy=entropy_of(6),
        )
        for values in (x, changed)
    ]
    assert np.array_equal(sums[0], sums[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 10.0), st.floats(0.05, 1.0))
def test_one_patient_moves_the_sum_by_at_most_the_clip(seed: int, clip: float, rate: float) -> None:
    """The same sample and noise, one patient's gradient gone: the sensitivity that the noise is scaled to."""
    x, y, patient, held_out = data(seed)
    parameters = np.random.default_rng(seed).normal(size=5)

    def total(values: np.ndarray) -> np.ndarray:
        return private_gradient_sum(
            part(values, y, patient, held_out).training,
            local_model(LOGISTIC, 4),
            parameters,
            clip=clip,
            sampling_rate=rate,
            noise_std=TINY,
            entropy=entropy_of(seed),
        )

    one = int(np.flatnonzero(~held_out)[0])
    without = x.copy()
    without[patient == one] = np.nan  # a gradient that is not finite counts as zero
    assert np.linalg.norm(total(x) - total(without)) <= clip * (1 + 1e-9) + 1e-9


def test_the_noise_has_the_given_spread_even_with_nobody_sampled() -> None:
    cohort = part(*data(7))
    empty = part(*data(7)[:3], np.ones(25, dtype=bool)).training
    assert empty.patients == 0
    parameters = np.zeros(parameter_count(NETWORK, 4))
    draws = [
        private_gradient_sum(
            group,
            local_model(model, 4),
            np.zeros(parameter_count(model, 4)),
            clip=1e-9,
            sampling_rate=0.5,
            noise_std=2.0,
            entropy=entropy_of(number),
        )
        for number in range(40)
        for group, model in ((empty, NETWORK), (cohort.training, LOGISTIC))
    ]
    values = np.concatenate(draws)
    assert values.size == 40 * (parameters.size + 5)
    assert 1.85 < values.std() < 2.15  # about 2100 draws: three standard errors
    assert abs(values.mean()) < 0.15


def test_a_sample_is_poisson_over_patients() -> None:
    """With a rate of a half about half of the patients are in, and it varies from step to step."""
    x, y, patient, held_out = data(8, records=400, patients=400)
    group = part(x, y, patient, np.zeros(400, dtype=bool)).training
    counts = []
    for number in range(60):
        # Every gradient of the intercept is clipped to about the same length: the sum counts the sample.
        total = private_gradient_sum(
            part(np.zeros_like(x), np.ones(400), patient, held_out & False).training,
            local_model(LOGISTIC, 4),
            np.zeros(5),
            clip=0.1,
            sampling_rate=0.5,
            noise_std=TINY,
            entropy=entropy_of(number),
        )
        counts.append(-total[4] / 0.1)
    assert group.patients == 400
    assert 190 < np.mean(counts) < 210
    assert 6.5 < np.std(counts) < 14  # binomial: 10


@pytest.mark.parametrize("model", [LOGISTIC, NETWORK], ids=["logistic", "mlp"])
def test_the_histogram_counts_each_held_out_patient_once(model: LogisticRegression | MultilayerPerceptron) -> None:
    x, y, patient, held_out = data(9)
    parameters = np.random.default_rng(10).normal(size=parameter_count(model, 4))
    histogram = score_histogram(
        part(x, y, patient, held_out).held_out,
        local_model(model, 4),
        parameters,
        cells=20,
        noise_std=None,
        entropy=entropy_of(11),
    )
    expected = np.zeros(20)
    for number in np.flatnonzero(held_out):
        score = local_model(model, 4).chances(parameters, x[patient == number]).mean()
        label = y[patient == number].mean() >= 0.5
        expected[min(int(score * 10), 9) + 10 * label] += 1
    assert np.array_equal(histogram, expected)
    assert histogram.sum() == held_out.sum()
    noised = score_histogram(
        part(x, y, patient, held_out).held_out,
        local_model(model, 4),
        parameters,
        cells=20,
        noise_std=3.0,
        entropy=entropy_of(12),
    )
    assert 0.5 < np.std(noised - histogram) < 6


def test_a_certain_score_falls_into_the_last_bin() -> None:
    parameters = np.array([0.0, 0.0, 0.0, 0.0, 800.0])
    histogram = score_histogram(
        part(*data(13)).held_out, local_model(LOGISTIC, 4), parameters, cells=8, noise_std=None, entropy=entropy_of(14)
    )
    assert histogram[3] + histogram[7] == histogram.sum() > 0


@pytest.mark.parametrize("parameters", [np.zeros(4), np.zeros(6), np.array([0, 0, 0, 0, np.inf])])
def test_parameters_that_do_not_fit_are_refused(parameters: np.ndarray) -> None:
    with pytest.raises(ParameterError):
        score_histogram(
            part(*data(15)).held_out,
            local_model(LOGISTIC, 4),
            parameters,
            cells=8,
            noise_std=None,
            entropy=entropy_of(16),
        )


@pytest.mark.parametrize("model", [LOGISTIC, NETWORK], ids=["logistic", "mlp"])
@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_model_never_makes_the_answer_fail_by_what_a_patient_holds(
    model: LogisticRegression | MultilayerPerceptron, seed: int
) -> None:
    """Finite parameters whose products overflow give one patient a score that is no number. A refusal because of it
    would tell, without noise, that such a patient is here."""
    x = np.zeros((3, 8))
    x[0] = 3 / 8**0.5  # the largest encoded row
    x[1:] = 0.01
    y, patient = np.array([0.0, 1.0, 1.0]), np.arange(3)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], parameter_count(model, 8))
    hostile = signs * 1.79e308
    with np.errstate(all="ignore"):
        assert not np.isfinite(x[0] * hostile[:8]).all()
        held_out = part(x, y, patient, np.ones(3, dtype=bool)).held_out
        counts = score_histogram(
            held_out, local_model(model, 8), hostile, cells=8, noise_std=None, entropy=entropy_of(seed)
        )
        training = part(x, y, patient, np.zeros(3, dtype=bool)).training
        total = private_gradient_sum(
            training,
            local_model(model, 8),
            hostile,
            clip=1.0,
            sampling_rate=1.0,
            noise_std=TINY,
            entropy=entropy_of(seed),
        )
    assert counts.sum() == 3  # one count each, as the noise is scaled to
    assert np.linalg.norm(total) <= 3
