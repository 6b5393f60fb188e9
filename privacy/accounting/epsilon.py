"""Epsilon of the Poisson-sampled Gaussian by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022).

Where the loss is so large that a distribution would not fit in memory (a hostile plan of a million full-batch steps),
Renyi accounting gives the bound instead: looser, and no less valid.

The discretised distribution is pessimistic ("connect the dots"): the epsilon returned is an upper bound. 1e-4 is the
ledger's interval; forecasts use 1e-3, some ten times cheaper and never lower in practice. Values are cached: the
same plan is judged many times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.stats import binom

from privacy.accounting.events import ADJACENCY, training_event
from privacy.errors import ParameterError
from privacy.parameters import Mechanism, require_count, require_probability

LEDGER_INTERVAL = 1e-4
FORECAST_INTERVAL = 1e-3
COARSEST_INTERVAL = 1e-2
MOST_CURVE_POINTS = 128
MOST_SITES = 1000
LARGEST_LOSS = 400.0
_REACH_DELTA = 1e-9
_RENYI_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
"""Whole ones: the series for others converges slowly, or for some plans not at all."""


def _check_interval(interval: float) -> None:
    if not 1e-6 <= interval <= COARSEST_INTERVAL:
        raise ParameterError(
            f"The discretisation interval {interval} is outside 1e-6 to {COARSEST_INTERVAL}.", "Use 1e-3 or 1e-4."
        )


def _composed(mechanisms: Iterable[Mechanism], interval: float) -> Any:
    _check_interval(interval)
    events = [training_event(mechanism) for mechanism in mechanisms]
    renyi = RdpAccountant(_RENYI_ORDERS, ADJACENCY)
    for event in events:
        renyi.compose(event)
    if events and _reach(renyi) > LARGEST_LOSS:
        return renyi
    accountant = PLDAccountant(ADJACENCY, value_discretization_interval=interval)
    for event in events:
        accountant.compose(event)
    return accountant


def _reach(renyi: Any) -> float:
    return float(renyi.get_epsilon(_REACH_DELTA))


@lru_cache(maxsize=512)
def epsilon(mechanism: Mechanism, interval: float = LEDGER_INTERVAL) -> float:
    """Epsilon >= 0 of the whole mechanism at its delta, an upper bound; inf where none is finite."""
    return float(_composed((mechanism,), interval).get_epsilon(mechanism.delta))


@lru_cache(maxsize=512)
def delta(mechanism: Mechanism, target_epsilon: float, interval: float = LEDGER_INTERVAL) -> float:
    """Delta of the whole mechanism at `target_epsilon` >= 0, an upper bound; the mechanism's own delta is unused."""
    if not target_epsilon >= 0:
        raise ParameterError(f"Epsilon must be at least 0 and is {target_epsilon}.", "Correct epsilon.")
    return float(_composed((mechanism,), interval).get_delta(target_epsilon))


def curve_points(steps: int) -> tuple[int, ...]:
    """Every step up to 128 of them, else 128 spread evenly, the last always among them."""
    count = min(steps, MOST_CURVE_POINTS)
    return tuple(math.ceil(steps * (index + 1) / count) for index in range(count))


@lru_cache(maxsize=64)
def epsilon_per_round(
    mechanism: Mechanism, interval: float = FORECAST_INTERVAL, points: tuple[int, ...] | None = None
) -> tuple[tuple[int, float], ...]:
    """((steps, epsilon after that many steps), ...) at the mechanism's delta; `points` rise, 1 to `steps`.

    One step's distribution is made once and convolved forward between points, so a curve costs little more than
    its last point. Raises ParameterError for points out of order.
    """
    _check_interval(interval)
    wanted = curve_points(mechanism.steps) if points is None else points
    if any(b <= a for a, b in zip((0, *wanted), wanted, strict=False)) or (wanted and wanted[-1] > mechanism.steps):
        raise ParameterError("The points of the curve must rise from 1 to the steps.", "Correct the points.")
    if not isinstance(_composed((mechanism,), interval), PLDAccountant):
        return tuple((point, epsilon(replace(mechanism, steps=point), interval)) for point in wanted)
    single: Any = privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=mechanism.sampling_rate,
        neighboring_relation=ADJACENCY,
    )
    strides: dict[int, Any] = {}
    curve: list[tuple[int, float]] = []
    total: Any = None
    done = 0
    for point in wanted:
        stride = point - done
        if stride not in strides:
            strides[stride] = single if stride == 1 else single.self_compose(stride)
        total = strides[stride] if total is None else total.compose(strides[stride])
        done = point
        curve.append((point, float(total.get_epsilon_for_delta(mechanism.delta))))
    return tuple(curve)


def composed_epsilon(mechanisms: Iterable[Mechanism], target_delta: float, interval: float = LEDGER_INTERVAL) -> float:
    """Epsilon of several mechanisms together at `target_delta`, their own deltas unused; 0 for none.

    For showing what a cohort has spent. Studies are chosen adaptively, so no ledger may admit by it: see
    privacy.accounting.ledger.
    """
    require_probability("delta", target_delta, allow_one=False)
    return float(_composed(mechanisms, interval).get_epsilon(target_delta))


@lru_cache(maxsize=128)
def group_epsilon(mechanism: Mechanism, sites: int, interval: float = FORECAST_INTERVAL) -> float:
    """Epsilon at the mechanism's delta for a patient who is registered at `sites` = m of the sites, an upper bound.

    Each site samples by itself, so the number of clipped contributions in a step is binomial (m, q), and a step is a
    mixture of Gaussians with sensitivities 0 to m C (Choquette-Choo et al. 2024, Lemma 4.5). Unlike the general bound
    `privacy.accounting.gaussian.group_privacy`, delta stays as it is. Raises ParameterError for m < 1 or m over 1,000.
    """
    require_count("the number of sites", sites, 1)
    if sites > MOST_SITES:
        raise ParameterError(f"A patient at {sites} sites is beyond {MOST_SITES}.", "Look for a wrong count.")
    _check_interval(interval)
    rate = mechanism.sampling_rate
    whole = Mechanism(mechanism.noise_multiplier / sites, 1 - (1 - rate) ** sites, mechanism.steps, mechanism.delta)
    if not isinstance(_composed((whole,), interval), PLDAccountant):
        # As if everybody who is sampled anywhere were sampled everywhere.
        return epsilon(whole, interval)
    step: Any = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        mechanism.noise_multiplier,
        sensitivities=list(range(sites + 1)),
        sampling_probs=[float(chance) for chance in binom.pmf(range(sites + 1), sites, rate)],
        value_discretization_interval=interval,
    )
    return float(step.self_compose(mechanism.steps).get_epsilon_for_delta(mechanism.delta))
