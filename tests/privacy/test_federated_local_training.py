"""Local DP-SGD: the delta is the loop it claims to be, every step carries full noise, and none goes uncharged."""

import hashlib
import os

import numpy as np
import pytest

import privacy.local.contribution as contribution
from privacy.accounting.epsilon import epsilon
from privacy.accounting.ledger import StudyCharges
from privacy.dpsgd.noise import add_gaussian, standard_gaussian
from privacy.entropy import KeyStream
from privacy.errors import BudgetExceeded, ParameterError
from privacy.federated.local_training import (
    LocalTraining,
    bounded,
    local_delta,
    local_noise_multiplier,
    released_epsilon,
)
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.parameters import Mechanism

NETWORK = Network((3, 1), "logistic")


def seeded(seed: int):
    return KeyStream(hashlib.sha256(b"%d" % seed).digest()).bytes


def some_patients(patients: int = 40, records: int = 70) -> Group:
    random = np.random.default_rng(5)
    owner = np.sort(np.concatenate([np.arange(patients), random.integers(0, patients, records - patients)]))
    x = random.normal(size=(records, 3))
    return Group(x, (x[:, 0] > 0).astype(np.float64), owner, patients)


def training(**changed) -> LocalTraining:
    values = {
        "steps": 4, "learning_rate": 0.7, "clip": 0.5, "sampling_rate": 0.5, "noise_multiplier": 1.3,
        "expected_batch": 20.0, "momentum": 0.6,
    }  # fmt: skip
    return LocalTraining(**{**values, **changed})


def test_the_delta_is_the_loop_written_by_hand() -> None:
    group, plan, start = some_patients(), training(), np.array([0.1, -0.2, 0.3, 0.05])
    found = local_delta(group, NETWORK, start, plan, entropy=seeded(1))
    entropy = seeded(1)  # the same bytes: two seeds for each step, sample first
    w, velocity = start.copy(), np.zeros(4)
    for _ in range(4):
        chosen = KeyStream(entropy(32)).uniform53(40) < 0.5
        total = np.zeros(4)
        for patient in np.flatnonzero(chosen):
            rows = group.x[group.patient == patient]
            labels = group.y[group.patient == patient]
            gradient = np.zeros(4)
            for row, label in zip(rows, labels, strict=True):
                inputs = np.append(row, 1.0)
                gradient += (1 / (1 + np.exp(-inputs @ w)) - label) * inputs / len(rows)
            total += gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
        total += 1.3 * 0.5 * standard_gaussian(4, KeyStream(entropy(32)))
        velocity = 0.6 * velocity + total / 20.0
        w -= 0.7 * velocity
    np.testing.assert_allclose(found, w - start, rtol=0, atol=1e-8)
    assert np.linalg.norm(found) > 0.01


def test_the_same_entropy_gives_the_same_delta_and_other_entropy_another() -> None:
    group, start = some_patients(), np.zeros(4)
    one, same, other = (local_delta(group, NETWORK, start, training(), entropy=seeded(seed)) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes()
    assert np.abs(one - other).max() > 1e-3
    assert not start.any(), "the model that was sent in must stay as it was"


@pytest.mark.parametrize("patients", [0, 40])
def test_each_step_carries_the_full_noise_whoever_is_there(patients: int) -> None:
    group = some_patients() if patients else Group(np.zeros((0, 3)), np.zeros(0), np.zeros(0, np.int64), 0)
    plan = training(momentum=0.0, clip=1e-6, noise_multiplier=2.0, learning_rate=1.0, expected_batch=1.0, steps=5)
    found = np.concatenate([local_delta(group, NETWORK, np.zeros(4), plan, entropy=os.urandom) for _ in range(1500)])
    # Five independent draws of sigma C; the clipped sums add at most q n C each, and move the mean alone.
    expected = np.sqrt(5) * 2.0 * 1e-6
    spread = found.reshape(-1, 4).std(axis=0).mean()
    if patients:
        assert spread >= 0.97 * expected
    else:
        assert spread == pytest.approx(expected, rel=0.05)  # 6000 draws: sd of the estimate 0.9 %


def test_steps_executed_are_steps_charged_also_over_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    executed = []

    def counting(values, std, stream):
        executed.append(std)
        add_gaussian(values, std, stream)

    monkeypatch.setattr(contribution, "add_gaussian", counting)
    group, plan = some_patients(), training()
    charges, rounds, retries = StudyCharges(steps_allowed=7), 5, 2
    weights = np.zeros(4)
    for number, attempt in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (5, 1)]:  # rounds 2 and 3 are retried
        charges = charges.charge(number, attempt)
        weights = weights + local_delta(group, NETWORK, weights, plan, entropy=os.urandom)
        assert len(executed) == plan.steps_charged(charges)
    mechanism = plan.mechanism(rounds + retries, 1e-5)
    assert len(executed) == plan.steps_charged(charges) == mechanism.steps == 28
    assert set(executed) == {1.3 * 0.5}
    with pytest.raises(BudgetExceeded):
        charges.charge(6, 1)


def test_an_attempt_that_crashed_stays_charged_in_full() -> None:
    plan = training()
    charges = StudyCharges(steps_allowed=3).charge(1, 1)

    def breaking(count: int, left: list[int] = [5]) -> bytes:  # noqa: B006 - five seeds, then no more
        left[0] -= 1
        if left[0] < 0:
            raise OSError("no entropy")
        return os.urandom(count)

    with pytest.raises(OSError, match="no entropy"):
        local_delta(some_patients(), NETWORK, np.zeros(4), plan, entropy=breaking)
    assert plan.steps_charged(charges) == 4  # two were executed


def test_calibration_counts_every_local_step_and_the_release_is_the_worst_site() -> None:
    sigma = local_noise_multiplier(2.0, 1e-5, 0.25, attempts=12, steps=5)
    mechanism = training(noise_multiplier=sigma, sampling_rate=0.25, steps=5).mechanism(12, 1e-5)
    assert 1.99 < epsilon(mechanism) <= 2.0
    assert epsilon(Mechanism(sigma, 0.25, 12, 1e-5)) < 1.0, "rounds alone would have been far too few"
    weaker = Mechanism(sigma * 0.8, 0.25, 60, 1e-5)
    assert released_epsilon([mechanism, weaker]) == epsilon(weaker)
    for bad in ([], [mechanism, Mechanism(sigma, 0.25, 60, 1e-6)]):
        with pytest.raises(ParameterError, match="delta"):
            released_epsilon(bad)


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_a_bounded_delta_keeps_its_direction(size: float) -> None:
    delta = size * np.array([3.0, -4.0])
    assert np.hypot(*bounded(delta, size)) <= size
    np.testing.assert_allclose(bounded(delta, size), [0.6 * size, -0.8 * size], rtol=1e-9)
    np.testing.assert_array_equal(bounded(delta, 6 * size), delta)
    assert not bounded(np.zeros(2), 1.0).any()


def test_the_bound_of_the_plan_is_applied() -> None:
    free = local_delta(some_patients(), NETWORK, np.zeros(4), training(), entropy=seeded(3))
    plan = training(largest_delta=float(np.linalg.norm(free)) / 3)
    held = local_delta(some_patients(), NETWORK, np.zeros(4), plan, entropy=seeded(3))
    np.testing.assert_allclose(held, free / 3, rtol=1e-9)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"learning_rate": 0.0}, {"clip": float("nan")}, {"sampling_rate": 0.0}, {"sampling_rate": 1.01},
        {"noise_multiplier": 0.0}, {"expected_batch": 0.0}, {"momentum": 1.0}, {"largest_delta": -1.0},
    ],
)  # fmt: skip
def test_what_is_no_local_training_is_refused(bad: dict) -> None:
    with pytest.raises(ParameterError):
        training(**bad)


def test_a_model_of_another_length_and_a_runaway_are_refused() -> None:
    with pytest.raises(ParameterError, match="4 finite numbers"):
        local_delta(some_patients(), NETWORK, np.zeros(5), training(), entropy=os.urandom)
    for steps in (1, 2):
        plan = training(learning_rate=1e308, expected_batch=1e-3, steps=steps)
        with pytest.raises(ParameterError, match=r"finite numbers|ran away"):
            local_delta(some_patients(), NETWORK, np.zeros(4), plan, entropy=os.urandom)
