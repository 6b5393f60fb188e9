"""The one-run audit: its bound by definition and on known mechanisms, its stated power, and the product itself."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from privacy.accounting.calibration import noise_multiplier_for
from privacy.auditing.canaries import CanaryRecords, block_records, expected_spread, include_coins, score_canaries
from privacy.auditing.one_run import (
    AT_EPSILON_ONE,
    AuditDesign,
    AuditResult,
    audit,
    count_correct,
    epsilon_lower_bound,
    fewest_correct,
    guess_extremes,
    judge,
    p_value,
)
from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError
from privacy.local.contribution import private_gradient_sum
from privacy.local.patients import Group
from privacy.parameters import Mechanism
from protocol.model import LogisticRegression
from site_agent.training.architectures.catalogue import local_model

LOGISTIC = LogisticRegression(architecture="logistic_regression")
CLIP = 0.25


def products_step(records: CanaryRecords) -> Float64:
    """The step as a site takes it, at the noise that the audit's mechanism charges."""
    return private_gradient_sum(
        Group(records.features, records.labels, records.patients.astype(np.int64), records.count),
        local_model(LOGISTIC, records.count),
        np.zeros(records.count + 1),
        clip=CLIP,
        sampling_rate=AT_EPSILON_ONE.mechanism.sampling_rate,
        noise_std=AT_EPSILON_ONE.mechanism.noise_multiplier * CLIP,
        entropy=os.urandom,
    )


def exact_p_value(canaries: int, guesses: int, correct: int, right: Fraction, delta: Fraction) -> Fraction:
    """Theorem 5.2 in whole numbers, term by term."""

    def mass(value: int) -> Fraction:
        return math.comb(guesses, value) * right**value * (1 - right) ** (guesses - value)

    tail = sum((mass(value) for value in range(correct, guesses + 1)), Fraction(0))
    window = max(
        (sum((mass(v) for v in range(max(0, correct - i), correct)), Fraction(0)) / i for i in range(1, canaries + 1)),
        default=Fraction(0),
    )
    return min(Fraction(1), tail + 2 * canaries * delta * window)


@pytest.mark.parametrize(("canaries", "guesses", "correct"), [(30, 20, 17), (30, 20, 0), (20, 20, 20), (9, 4, 3)])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 1000)])
def test_the_p_value_is_the_theorems(canaries: int, guesses: int, correct: int, delta: Fraction) -> None:
    right = Fraction(7, 10)
    epsilon = math.log(7 / 3)
    expected = exact_p_value(canaries, guesses, correct, right, delta)
    assert p_value(canaries, guesses, correct, epsilon, float(delta)) == pytest.approx(float(expected), rel=1e-9)


def test_more_right_guesses_and_a_smaller_promise_are_harder_to_excuse() -> None:
    by_correct = [p_value(1000, 100, correct, 1.0, 1e-5) for correct in range(60, 101)]
    assert all(later <= earlier for earlier, later in pairwise(by_correct))
    by_epsilon = [p_value(1000, 100, 90, epsilon, 1e-5) for epsilon in np.linspace(0, 5, 51)]
    assert all(later >= earlier for earlier, later in pairwise(by_epsilon))


def test_nothing_is_refuted_by_no_guess_or_by_chance() -> None:
    assert epsilon_lower_bound(1000, 0, 0, 1e-5, 0.95) == 0.0
    assert epsilon_lower_bound(1000, 100, 50, 1e-5, 0.95) == 0.0
    assert fewest_correct(1000, 2, 1.0, 1e-5, 0.95) == 3  # two guesses, both right, are no proof


def test_the_bound_stays_below_the_truth_and_comes_near() -> None:
    """Randomised response at epsilon 2 is the worst mechanism that the theorem allows for."""
    random = np.random.default_rng(1)
    correct = random.binomial(500, 1 / (1 + math.exp(-2.0)), size=400)
    values, place = np.unique(correct, return_inverse=True)
    bounds = np.array([epsilon_lower_bound(500, 500, int(value), 0.0, 0.95) for value in values])[place]
    assert (bounds > 2.0).mean() <= 0.075  # at most 5 %, and two standard errors of 400 draws
    assert np.median(bounds) > 1.7


def test_guesses_are_the_extremes() -> None:
    scores = np.array([0.1, 5.0, -3.0, 0.2, 4.0, -2.0])
    made = guess_extremes(scores, 4)
    assert made.tolist() == [0, 1, -1, 0, 1, -1]
    assert count_correct(made, np.array([True, True, True, False, False, False])) == 2
    assert not guess_extremes(scores, 0).any()
    for wrong in (3, 8):
        with pytest.raises(ParameterError):
            guess_extremes(scores, wrong)


def test_a_canary_left_out_has_no_record_and_the_others_have_an_axis_each() -> None:
    records = block_records(np.array([True, False, True]), records=2)
    assert records.patients.tolist() == [0, 0, 2, 2]
    assert records.count == 3
    assert (records.features != 0).sum(axis=1).tolist() == [1, 1, 1, 1]
    assert records.features[:, 1].tolist() == [0.0] * 4


def test_coins_are_fair() -> None:
    included = include_coins(20_000, KeyStream(b"c" * 32))
    assert abs(included.mean() - 0.5) < 0.015


def test_scores_have_the_spread_that_the_power_rests_on() -> None:
    design = replace(AT_EPSILON_ONE, canaries=4000, guesses=400)
    included = include_coins(design.canaries, KeyStream.fresh(os.urandom))
    scores = score_canaries(included, products_step, steps=40, clip=CLIP, block=100)
    spread = expected_spread(design.mechanism)
    assert scores[included].mean() == pytest.approx(spread.mean, abs=6 * spread.std / math.sqrt(2000))
    assert scores[~included].mean() == pytest.approx(0.0, abs=6 * spread.std_out / math.sqrt(2000))
    assert scores[included].std() == pytest.approx(spread.std, rel=0.12)
    assert scores[~included].std() == pytest.approx(spread.std_out, rel=0.12)


@pytest.mark.parametrize("factor", [1.75, 2.0])
def test_the_power_is_what_simulated_audits_show(factor: float) -> None:
    design = replace(AT_EPSILON_ONE, canaries=8000, guesses=400)
    needed = fewest_correct(8000, 400, 1.0, design.mechanism.delta, 0.95)
    spread = expected_spread(design.mechanism, noise_divided_by=factor)
    random = np.random.default_rng(2)
    refuted = 0
    for _ in range(400):
        included = random.random(8000) < 0.5
        scores = np.where(
            included, random.normal(spread.mean, spread.std, 8000), random.normal(0.0, spread.std_out, 8000)
        )
        refuted += count_correct(guess_extremes(scores, 400), included) >= needed
    assert refuted / 400 == pytest.approx(design.power(factor), abs=0.09)  # over three standard errors


def test_the_gates_statement_of_itself_holds() -> None:
    """The numbers that the module's docstring states."""
    mechanism = AT_EPSILON_ONE.mechanism
    assert mechanism.noise_multiplier == noise_multiplier_for(1.0, 1e-5, mechanism.sampling_rate, mechanism.steps)
    assert (AT_EPSILON_ONE.canaries, AT_EPSILON_ONE.guesses) == (40_000, 1_200)
    assert AT_EPSILON_ONE.power(2.0) > 0.99
    assert AT_EPSILON_ONE.power(1.75) == pytest.approx(0.69, abs=0.01)
    assert AT_EPSILON_ONE.power(1.5) < 0.03
    assert AT_EPSILON_ONE.power(1.0) < 1e-4


def test_the_products_step_keeps_its_promise() -> None:
    result = audit(AT_EPSILON_ONE, products_step, clip=CLIP, stream=KeyStream.fresh(os.urandom))
    assert result.ran
    assert result.passes, result
    assert result.epsilon_lower < 1.0
    assert (result.factor, result.power) == (2.0, AT_EPSILON_ONE.power(2.0))


def test_an_audit_that_did_not_run_blocks() -> None:
    result = AuditResult.not_run(AT_EPSILON_ONE, "the worker failed")
    assert not result.passes
    small = replace(AT_EPSILON_ONE, canaries=200, guesses=20)
    scores = np.zeros(200)
    scores[3] = np.nan
    broken = judge(small, np.ones(200, dtype=bool), scores)
    assert not broken.ran
    assert not broken.passes
    assert broken.reason
    assert judge(small, np.ones(200, dtype=bool), np.zeros(200)).passes  # the same, but for the NaN


def test_no_guess_proves_nothing_and_the_design_says_so() -> None:
    assert replace(AT_EPSILON_ONE, guesses=0).power(100.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"canaries": 1001},
        {"guesses": 1201},
        {"guesses": 50_000},
        {"confidence": 1.0},
        {"records": 0},
        {"block": 0},
    ],
)
def test_a_design_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        AuditDesign(**{"mechanism": Mechanism(1.0, 0.5, 1, 1e-5), "epsilon": 1.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda: p_value(10, 5, 6, 1.0, 0.0),
        lambda: p_value(4, 5, 5, 1.0, 0.0),
        lambda: p_value(10, 5, 5, -1.0, 0.0),
        lambda: p_value(10, 5, 5, math.nan, 0.0),
        lambda: p_value(10, 5, 5, 1.0, 1.0),
        lambda: score_canaries(np.ones(10, dtype=bool), lambda r: np.zeros(3), steps=1, clip=1.0, block=5),
        lambda: score_canaries(np.ones(10, dtype=bool), lambda r: np.full(6, np.nan), steps=1, clip=1.0, block=5),
        lambda: score_canaries(np.ones(10, dtype=bool), lambda r: np.zeros(5), steps=1, clip=1.0, block=4),
        lambda: judge(AT_EPSILON_ONE, np.ones(3, dtype=bool), np.zeros(3)),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call: object) -> None:
    with pytest.raises(ParameterError):
        call()  # type: ignore[operator]
