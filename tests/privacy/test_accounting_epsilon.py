"""Epsilon, its curve, calibration, the one-shot Gaussian and groups: bounds, monotonicity and refusals."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import composed_epsilon, curve_points, delta, epsilon, epsilon_per_round
from privacy.accounting.events import ADJACENCY, gaussian_event
from privacy.accounting.gaussian import gaussian_epsilon, gaussian_multiplier_for, group_privacy
from privacy.errors import ParameterError
from privacy.parameters import Mechanism

TYPICAL = Mechanism(noise_multiplier=6.0, sampling_rate=0.25, steps=65, delta=1e-5)


def test_adjacency_is_zero_out_and_equals_add_or_remove_for_our_mechanism() -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    assert ADJACENCY is dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    other = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    other.compose(gaussian_event(6.0, 0.25, 65))
    assert other.get_epsilon(1e-5) == epsilon(TYPICAL, 1e-3)


def test_forecast_interval_bounds_the_ledgers() -> None:
    fine, coarse = epsilon(TYPICAL, 1e-4), epsilon(TYPICAL, 1e-3)
    assert fine <= coarse <= fine * 1.001


def test_curve_rises_to_the_total_and_matches_single_computations() -> None:
    curve = epsilon_per_round(TYPICAL)
    assert [steps for steps, _ in curve] == list(range(1, 66))
    values = [value for _, value in curve]
    assert all(b > a for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(epsilon(TYPICAL, 1e-3), abs=1e-6)
    at_20 = epsilon(Mechanism(6.0, 0.25, 20, 1e-5), 1e-3)
    assert values[19] == pytest.approx(at_20, abs=1e-6)


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    points = curve_points(2249)
    assert len(points) == 128
    assert points[-1] == 2249
    assert all(b > a for a, b in itertools.pairwise(points))
    assert curve_points(3) == (1, 2, 3)


@pytest.mark.parametrize("points", [(0, 1), (2, 2), (3, 1), (66,)])
def test_curve_points_out_of_order_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        epsilon_per_round(TYPICAL, points=points)


@pytest.mark.parametrize("interval", [0.0, 0.1, math.nan])
def test_intervals_out_of_range_are_refused(interval: float) -> None:
    with pytest.raises(ParameterError):
        epsilon(TYPICAL, interval)


def test_delta_inverts_epsilon() -> None:
    assert delta(TYPICAL, epsilon(TYPICAL, 1e-3), 1e-3) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("target", "target_delta", "rate", "steps"),
    [(1.0, 1e-4, 0.25, 60), (3.0, 1e-5, 0.25, 65), (0.1, 1e-6, 0.05, 30), (1.0, 1e-5, 1.0, 4)],
)
def test_calibrated_noise_keeps_the_promise_and_wastes_little(
    target: float, target_delta: float, rate: float, steps: int
) -> None:
    multiplier = noise_multiplier_for(target, target_delta, rate, steps)
    spent = epsilon(Mechanism(multiplier, rate, steps, target_delta), 1e-4)
    assert spent <= target
    assert spent > 0.999 * target


def test_hostile_plans_get_a_renyi_bound_in_bounded_memory() -> None:
    hostile = Mechanism(0.5, 1.0, 10_000_000, 1e-5)
    assert epsilon(hostile) >= gaussian_epsilon(0.5 / math.sqrt(10_000_000), 1e-5)
    curve = epsilon_per_round(hostile)
    assert curve[-1] == (10_000_000, epsilon(hostile, 1e-3))
    assert composed_epsilon([hostile, TYPICAL], 1e-5) >= epsilon(hostile)
    assert delta(hostile, 8.0) > 0.99


def test_calibration_that_cannot_be_is_refused() -> None:
    with pytest.raises(ParameterError, match="10,000"):
        noise_multiplier_for(1e-6, 1e-12, 1.0, 1_000_000)
    for bad in ((0.0, 1e-5, 0.1, 1), (1.0, 0.0, 0.1, 1), (1.0, 1e-5, 1.5, 1), (1.0, 1e-5, 0.1, 0)):
        with pytest.raises(ParameterError):
            noise_multiplier_for(*bad)


def test_composed_epsilon_is_below_the_sum_and_above_each() -> None:
    other = Mechanism(5.0, 0.2, 40, 1e-5)
    together = composed_epsilon([TYPICAL, other], 1e-5, 1e-3)
    parts = [epsilon(TYPICAL, 1e-3), epsilon(other, 1e-3)]
    assert max(parts) < together < sum(parts)
    assert composed_epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize("target_delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("target", [0.01, 0.5, 1.0, 8.0])
def test_one_shot_gaussian_is_exact(target: float, target_delta: float) -> None:
    sigma = gaussian_multiplier_for(target, target_delta)
    assert gaussian_epsilon(sigma, target_delta) <= target
    mu = 1 / sigma
    log_two = target + stats.norm.logcdf(-mu / 2 - target / mu)
    found = stats.norm.cdf(mu / 2 - target / mu) - math.exp(log_two)
    assert found == pytest.approx(target_delta, rel=1e-4)


def test_group_privacy_composes_one_step_at_a_time() -> None:
    assert group_privacy(0.7, 1e-6, 1) == (0.7, 1e-6)
    eps, dlt = group_privacy(0.7, 1e-6, 3)
    assert eps == pytest.approx(2.1)
    assert dlt == pytest.approx(1e-6 * (1 + math.exp(0.7) + math.exp(1.4)))
    assert group_privacy(100.0, 1e-6, 50) == (5000.0, 1.0)
    assert group_privacy(5.0, 1e-3, 3)[1] == 1.0
    # It bounds the exact value: a Gaussian with m times the sensitivity.
    for sites in (2, 3):
        bound_eps, bound_delta = group_privacy(0.5, 1e-6, sites)
        exact = gaussian_epsilon(gaussian_multiplier_for(0.5, 1e-6) / sites, min(bound_delta, 0.999))
        assert exact <= bound_eps
    assert np.isclose(group_privacy(0.0, 1e-6, 4)[1], 4e-6)


def test_group_privacy_refuses_nonsense() -> None:
    for bad in ((-1.0, 1e-6, 2), (1.0, 1e-6, 0), (math.nan, 1e-6, 2)):
        with pytest.raises(ParameterError):
            group_privacy(*bad)
