"""Epsilon, its curve, calibration, the one-shot Gaussian and groups: bounds, monotonicity and refusals."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import composed_epsilon, curve_points, delta, epsilon, epsilon_per_round, group_epsilon
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


def mixture_delta(sigma: float, rate: float, sites: int, eps: float) -> float:
    """Delta of one step for a patient at several sites, by the hockey-stick integral itself, the worse direction."""
    grid = np.linspace(-12 * sigma, sites + 12 * sigma, 400_001)
    chances = stats.binom.pmf(range(sites + 1), sites, rate)
    there = sum(chance * stats.norm.pdf(grid, number, sigma) for number, chance in enumerate(chances))
    gone = stats.norm.pdf(grid, 0, sigma)
    both = [np.trapezoid(np.maximum(a - math.exp(eps) * b, 0), grid) for a, b in ((there, gone), (gone, there))]
    return float(max(both))


@pytest.mark.parametrize(("sites", "rate"), [(2, 0.3), (3, 0.6)])
def test_a_patient_at_several_sites_is_a_mixture_of_gaussians(sites: int, rate: float) -> None:
    found = group_epsilon(Mechanism(1.7, rate, 1, 1e-4), sites)
    assert mixture_delta(1.7, rate, sites, found) <= 1e-4 * (1 + 1e-6)  # the truth, but for the integral
    assert mixture_delta(1.7, rate, sites, found * 0.995) > 1e-4  # and hardly more


def test_a_patient_at_one_site_is_the_mechanism_itself_and_at_more_costs_more() -> None:
    costs = [group_epsilon(TYPICAL, sites) for sites in (1, 2, 3, 4)]
    assert costs[0] == pytest.approx(epsilon(TYPICAL, 1e-3), rel=1e-4)
    assert all(b > a for a, b in itertools.pairwise(costs))
    everybody = Mechanism(20.0, 1.0, 30, 1e-5)
    assert group_epsilon(everybody, 4) == pytest.approx(gaussian_epsilon(20.0 / 4 / math.sqrt(30), 1e-5), rel=1e-3)


@pytest.mark.parametrize("sites", [2, 3])
def test_counting_what_is_sampled_never_exceeds_the_general_group_bound(sites: int) -> None:
    single = epsilon(TYPICAL, 1e-3)
    eps, dlt = group_privacy(single, TYPICAL.delta, sites)
    found = group_epsilon(Mechanism(TYPICAL.noise_multiplier, TYPICAL.sampling_rate, TYPICAL.steps, dlt), sites)
    assert found < eps


def test_a_group_without_a_finite_distribution_gets_the_renyi_bound() -> None:
    assert group_epsilon(Mechanism(0.5, 1.0, 10_000_000, 1e-5), 2) >= gaussian_epsilon(0.25 / math.sqrt(1e7), 1e-5)
    for sites in (0, 1001):
        with pytest.raises(ParameterError):
            group_epsilon(TYPICAL, sites)
