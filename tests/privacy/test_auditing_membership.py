"""Membership inference: the attacks find the members of a model that memorised them, and not those of a private one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.special import expit

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.gaussian import gaussian_multiplier_for
from privacy.auditing.membership import (
    Fit,
    MembershipReport,
    attack_histogram,
    joint_sensitivity,
    lira_attack,
    loss_attack,
    noised_histograms,
    report,
    shadow_logits,
    true_label_logit,
)
from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError
from privacy.evaluation.histogram import ScoreHistogram
from privacy.local.contribution import private_gradient_sum
from privacy.local.network import Network
from privacy.local.patients import Group

PATIENTS, WIDTH, BINS, DELTA = 600, 600, 10, 1e-5


def entropy_of(seed: str) -> Callable[[int], bytes]:
    """Repeatable bytes: what is tested is the attack, not the luck of one draw."""
    counter = iter(range(1 << 30))
    return lambda count: hashlib.shake_256(f"{seed}/{next(counter)}".encode()).digest(count)


NOISE = entropy_of("training")
"""Goes on from model to model: shadow models with the target's own noise would subtract it."""


def patients(random: np.random.Generator, count: int) -> tuple[Float64, Float64]:
    """One informative column among many; labels are drawn, so no model can know them."""
    x = random.normal(size=(count, WIDTH)) / math.sqrt(WIDTH)
    return x, (random.random(count) < expit(40 * x[:, 0])).astype(np.float64)


def memorise(x: Float64, y: Float64) -> object:
    """Logistic regression without noise or regularisation, with as many columns as patients."""
    inputs, weights = np.c_[x, np.ones(len(x))], np.zeros(x.shape[1] + 1)
    for _ in range(250):
        weights -= 40 * inputs.T @ (expit(inputs @ weights) - y) / len(y)
    return lambda targets: expit(np.c_[targets, np.ones(len(targets))] @ weights)


def train_privately(x: Float64, y: Float64) -> object:
    """The product's step at epsilon 1, with momentum and averaging."""
    rounds, rate, clip = 60, 0.25, 0.25
    sigma = noise_multiplier_for(1.0, DELTA, rate, rounds)
    group = Group(x, y, np.arange(len(y)), len(y))
    weights = np.zeros(x.shape[1] + 1)
    velocity, average = np.zeros_like(weights), np.zeros_like(weights)
    for number in range(rounds):
        noisy = private_gradient_sum(
            group,
            Network((x.shape[1], 1), "logistic"),
            weights,
            clip=clip,
            sampling_rate=rate,
            noise_std=sigma * clip,
            entropy=NOISE,
        )
        velocity = 0.9 * velocity + noisy / (rate * len(y))
        weights = weights - 2.0 * velocity
        if number >= rounds // 2:
            average += weights / (rounds - rounds // 2)
    return lambda targets: expit(np.c_[targets, np.ones(len(targets))] @ average)


@cache
def attacked(name: str) -> tuple[MembershipReport, MembershipReport]:
    """What leaves the site about one model, at epsilon 2 for both attacks together: loss, LiRA."""
    fit: Fit = {"memorised": memorise, "private": train_privately}[name]  # type: ignore[assignment]
    random = np.random.default_rng(5)
    (x_in, y_in), (x_out, y_out) = patients(random, PATIENTS), patients(random, PATIENTS)
    x, y = np.concatenate([x_in, x_out]), np.concatenate([y_in, y_out])
    members = np.arange(2 * PATIENTS) < PATIENTS
    logits = true_label_logit(fit(x_in, y_in)(x), y)
    # The reference belongs to nobody who is counted: here, drawn anew from the same source.
    shadows = shadow_logits(fit, patients(random, 2 * PATIENTS), (x, y), 8, KeyStream.fresh(entropy_of("halves")))
    scores = (loss_attack(logits), lira_attack(logits, shadows))
    std = gaussian_multiplier_for(2.0, DELTA) * joint_sensitivity(2)
    noise = KeyStream.fresh(entropy_of("noise"))
    sent = noised_histograms([attack_histogram(s, members, BINS) for s in scores], std, noise)
    loss, lira = (
        report(ScoreHistogram(part, std), members=PATIENTS, non_members=PATIENTS) for part in np.split(sent, 2)
    )
    return loss, lira


def test_both_attacks_find_the_members_of_a_model_that_memorised_them() -> None:
    loss, lira = attacked("memorised")
    assert loss.finds_members, loss
    assert lira.finds_members, lira
    assert loss.advantage.value is not None
    assert loss.advantage.value > 0.3


def test_neither_attack_finds_the_members_of_a_private_model() -> None:
    for found in attacked("private"):
        assert not found.finds_members, found
        # Under epsilon 1 no attacker's advantage exceeds (e - 1)/(e + 1) = 0.46.
        assert found.advantage.low is not None
        assert found.advantage.low < 0.46


def test_a_logit_is_that_of_the_true_label() -> None:
    logits = true_label_logit(np.array([0.9, 0.9, 1.0, 0.0]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert logits[0] == pytest.approx(math.log(9))
    assert logits[1] == pytest.approx(-math.log(9))
    assert np.isfinite(logits).all()
    assert loss_attack(logits)[[2, 3]].tolist() == [1.0, 0.0]


def test_the_likelihood_ratio_is_in_units_of_the_patients_own_spread() -> None:
    shadows = np.stack([np.array([0.0, 10.0]) + sign * np.array([1.0, 2.0]) for sign in (-1, 1) * 4])
    spread = shadows.std(axis=0, ddof=1)
    scores = lira_attack(np.array([0.0, 10.0]) + 2 * spread, shadows)
    assert scores == pytest.approx([0.75, 0.75])  # two of four standard deviations, halfway from the middle to the top
    assert np.isfinite(lira_attack(np.array([0.0, 10.0]), np.zeros((8, 2)))).all()


def test_shadow_models_see_the_reference_alone() -> None:
    seen: list[Float64] = []

    def fit(x: Float64, y: Float64) -> object:
        seen.append(x[:, 0])
        return lambda targets: np.full(len(targets), 0.5)

    reference = (np.arange(20.0)[:, np.newaxis], np.ones(20))
    targets = (np.full((3, 1), 99.0), np.ones(3))
    logits = shadow_logits(fit, reference, targets, 8, KeyStream(b"s" * 32))  # type: ignore[arg-type]
    assert logits.shape == (8, 3)
    assert all(len(set(rows)) == 10 and set(rows) <= set(range(20)) for rows in seen)
    assert len({tuple(sorted(rows)) for rows in seen}) == 8


def test_one_patient_moves_what_leaves_by_the_stated_sensitivity() -> None:
    random = np.random.default_rng(3)
    logits, shadows = random.normal(size=30), random.normal(size=(8, 30))
    members = random.random(30) < 0.5

    def histograms(kept: np.ndarray) -> Float64:
        scores = (loss_attack(logits[kept]), lira_attack(logits[kept], shadows[:, kept]))
        return np.concatenate([attack_histogram(s, members[kept], BINS) for s in scores])

    everybody = np.ones(30, dtype=bool)
    for one in range(30):
        without = everybody.copy()
        without[one] = False
        assert np.linalg.norm(histograms(everybody) - histograms(without)) <= joint_sensitivity(2) * (1 + 1e-12)


def test_shadow_models_of_the_sites_own_patients_break_the_sensitivity() -> None:
    """Why no site sends LiRA: leave one patient out of the shadow models' reference, count the very same targets, and
    the histogram moves by more than any one patient is charged for. The loss attack's does not move at all."""
    random = np.random.default_rng(8)
    reference, targets = patients(random, 60), patients(random, 120)
    logits = random.normal(size=120)
    members = np.arange(120) < 60

    def counted(without: int) -> Float64:
        kept = np.arange(60) != without
        # The same halves but for the one, so that nothing else differs.
        models = []
        for half in np.random.default_rng(9).random((8, 60)) < 0.5:
            rows = half & kept
            fitted = memorise(reference[0][rows], reference[1][rows])
            models.append(true_label_logit(fitted(targets[0]), targets[1]))  # type: ignore[operator]
        return attack_histogram(lira_attack(logits, np.stack(models)), members, BINS)

    everybody = counted(-1)
    most = max(float(np.linalg.norm(everybody - counted(one))) for one in range(4))
    assert most > 2 * joint_sensitivity(1)


def test_rates_of_a_known_histogram() -> None:
    """100 non-members even over ten bins; 100 members, half of them in the last bin."""
    negatives, positives = np.full(10, 10.0), np.r_[np.full(5, 2.0), np.full(4, 10.0), 50.0]
    found = report(ScoreHistogram(np.concatenate([negatives, positives]), 0.0), members=100, non_members=100)
    assert found.true_positive_rates[0.1].value == pytest.approx(0.5)
    assert found.true_positive_rates[0.01].value == pytest.approx(0.05)  # a tenth of the way into the last bin
    assert found.advantage.value == pytest.approx(0.4)
    for estimate in (*found.true_positive_rates.values(), found.advantage):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low <= estimate.value <= estimate.high


def test_a_perfect_attack_and_a_coin() -> None:
    apart = np.r_[100.0, np.zeros(9), np.zeros(9), 100.0]
    perfect = report(ScoreHistogram(apart, 0.0), members=100, non_members=100)
    assert perfect.advantage.value == 1.0
    assert perfect.true_positive_rates[0.01].value == 1.0
    coin = report(ScoreHistogram(np.full(20, 10.0), 0.0), members=100, non_members=100)
    assert coin.advantage.value == 0.0
    assert not coin.finds_members


@pytest.mark.parametrize("noise_std", [0.0, 3.0])
def test_intervals_hold_the_truth(noise_std: float) -> None:
    """Drawn again and again from known shares: at least 95 % of all reports hold every true value."""
    random = np.random.default_rng(7)
    out = np.full(10, 0.1)
    inside = np.arange(1, 11) / 55
    true_rate, true_advantage = float(inside[-1]), float(np.max(np.cumsum((inside - out)[::-1])))
    held = 0
    for _ in range(300):
        counts = np.concatenate([random.multinomial(300, out), random.multinomial(300, inside)]).astype(float)
        found = report(
            ScoreHistogram(counts + random.normal(0, noise_std, 20) if noise_std else counts, noise_std),
            members=300,
            non_members=300,
        )
        rate, advantage = found.true_positive_rates[0.1], found.advantage
        held += rate.low <= true_rate <= rate.high and advantage.low <= true_advantage <= advantage.high  # type: ignore[operator]
    assert held >= 285


def test_a_rate_below_one_patient_is_undefined() -> None:
    found = report(ScoreHistogram(np.full(20, 4.0), 0.0), members=40, non_members=40)
    assert found.true_positive_rates[0.01].value is None
    assert "40 non-members" in (found.true_positive_rates[0.01].reason or "")
    assert found.true_positive_rates[0.1].value is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda: true_label_logit(np.array([1.2]), np.array([1.0])),
        lambda: true_label_logit(np.array([np.nan]), np.array([1.0])),
        lambda: true_label_logit(np.array([0.5]), np.array([2.0])),
        lambda: true_label_logit(np.array([0.5]), np.array([1.0, 0.0])),
        lambda: lira_attack(np.zeros(3), np.zeros((7, 3))),
        lambda: lira_attack(np.zeros(3), np.zeros((8, 4))),
        lambda: noised_histograms([np.zeros(20)], 0.0, KeyStream(b"s" * 32)),
        lambda: joint_sensitivity(0),
        lambda: report(ScoreHistogram(np.zeros(20), 0.0), members=0, non_members=3),
        lambda: report(ScoreHistogram(np.zeros(20), 0.0), members=3, non_members=3, at=(0.0,)),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call: object) -> None:
    with pytest.raises(ParameterError):
        call()  # type: ignore[operator]
