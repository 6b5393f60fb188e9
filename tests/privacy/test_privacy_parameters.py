"""The numbers of a plan: ranges, worst cases and a grid that cannot overflow."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import OverflowRisk, ParameterError, PrivacyError
from privacy.parameters import (
    Grid,
    Mechanism,
    SecureSumParameters,
    effective_multiplier_worst_case,
    plan_grid,
    site_noise_std,
)


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"steps": 0},
        {"steps": True},
        {"delta": 0.0},
        {"delta": 1.0},
    ],
)
def test_mechanism_refuses_what_is_out_of_range(bad: dict) -> None:
    good = {"noise_multiplier": 1.0, "sampling_rate": 0.25, "steps": 3, "delta": 1e-5}
    with pytest.raises(ParameterError) as caught:
        Mechanism(**{**good, **bad})
    assert caught.value.remedy
    assert caught.value.code == "privacy-parameter"
    assert isinstance(caught.value, PrivacyError)


def test_noise_shares_add_up_to_the_charge_when_the_tolerated_are_absent() -> None:
    share = site_noise_std(noise_multiplier=5.0, clip=0.25, sites=6, tolerated=2)
    assert math.sqrt(4) * share == pytest.approx(5.0 * 0.25)
    assert effective_multiplier_worst_case(5.0, sites=6, tolerated=2) == pytest.approx(2.5)


def test_no_honest_site_left_is_refused() -> None:
    with pytest.raises(ParameterError):
        site_noise_std(1.0, 1.0, sites=3, tolerated=3)
    with pytest.raises(ParameterError):
        plan_grid(clip=1.0, sites=3, tolerated=2, b_max=10, noise_multiplier=1.0)
    with pytest.raises(ParameterError):
        plan_grid(clip=1.0, sites=4, tolerated=0, b_max=10, noise_multiplier=1.0)


@given(
    clip=st.floats(1e-3, 1e3),
    sites=st.integers(3, 50),
    b_max=st.integers(1, 100_000),
    sigma=st.floats(0.3, 200.0),
)
def test_grid_satisfies_the_overflow_inequality(clip: float, sites: int, b_max: int, sigma: float) -> None:
    planned = plan_grid(clip=clip, sites=sites, tolerated=1, b_max=b_max, noise_multiplier=sigma)
    root = math.sqrt(sites)
    reach = b_max * clip + 8 * root * planned.site_std + 24 * root * planned.granularity
    assert planned.granularity >= 2 * reach / planned.modulus
    assert math.log2(planned.granularity) == int(math.log2(planned.granularity))


def test_a_grid_too_fine_or_a_sum_too_large_is_an_overflow_risk() -> None:
    planned = plan_grid(clip=1.0, sites=4, tolerated=1, b_max=1000, noise_multiplier=4.0)
    with pytest.raises(OverflowRisk, match="wrap around"):
        SecureSumParameters(1.0, 4, 1, 1000, 4.0, Grid(planned.granularity / 16))
    with pytest.raises(OverflowRisk, match="1024"):
        plan_grid(clip=1.0, sites=4, tolerated=1, b_max=10**7, noise_multiplier=4.0)


def test_only_the_agreed_modulus() -> None:
    with pytest.raises(ParameterError):
        Grid(1.0, modulus=2**31)


def test_noise_of_the_sum_names_the_price_of_tolerance() -> None:
    planned = plan_grid(clip=0.5, sites=4, tolerated=1, b_max=500, noise_multiplier=6.0)
    assert planned.sum_std(3) == pytest.approx(6.0 * 0.5, rel=1e-6)
    assert planned.sum_std(4) == pytest.approx(math.sqrt(4 / 3) * 6.0 * 0.5, rel=1e-6)
