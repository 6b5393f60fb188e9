"""Randomised rounding against the discrete Gaussian's formula, and the way to the modulus and back."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.entropy import KeyStream
from privacy.errors import OverflowRisk, ProtocolViolation
from privacy.parameters import ROUNDING_STD, Grid
from privacy.secagg.field import decode_centred, to_bytes, words_of
from privacy.secagg.quantization import _SQUEEZE, acceptance, quantize, round_discrete_gaussian

SEED = b"q" * 32


def discrete_gaussian(support: np.ndarray, centre: float) -> np.ndarray:
    weights = np.exp(-((support - centre) ** 2) / (2 * ROUNDING_STD**2))
    return weights / weights.sum()


@pytest.mark.parametrize("centre", [0.0, 0.5, -0.5, 0.25, 1234.875, -77.3])
def test_rounding_follows_its_formula(centre: float) -> None:
    count = 400_000
    draws = round_discrete_gaussian(np.full(count, centre), KeyStream(SEED))
    assert (draws == np.rint(draws)).all()
    support = np.arange(math.floor(centre) - 27, math.floor(centre) + 29)
    expected = discrete_gaussian(support, centre) * count
    observed = np.array([(draws == z).sum() for z in support])
    keep = expected >= 10
    pooled_observed = np.append(observed[keep], count - observed[keep].sum())
    pooled_expected = np.append(expected[keep], count - expected[keep].sum())
    assert stats.chisquare(pooled_observed, pooled_expected).pvalue > 1e-4


def test_nearest_rounding_of_a_gaussian_would_fail_that_test() -> None:
    # The proposal without its rejection has variance s^2 + 1/12: the sample is large enough to see it.
    count = 400_000
    draws = round_discrete_gaussian(np.full(count, 0.25), KeyStream(SEED))
    standard_error = ROUNDING_STD**2 * math.sqrt(2 / count)
    assert abs(draws.var() - ROUNDING_STD**2) < 3.5 * standard_error
    assert 3.8 * standard_error < 1 / 12


def test_rounding_keeps_the_mean_for_any_fraction() -> None:
    centres = np.linspace(-3, 3, 600_001)
    draws = round_discrete_gaussian(centres, KeyStream(SEED))
    assert abs((draws - centres).mean()) < 4 * ROUNDING_STD / math.sqrt(centres.size)


def test_acceptance_is_the_ratio_of_the_two_laws_and_the_squeeze_is_below_it() -> None:
    distances = np.linspace(0, 27, 109)

    def proposal_over_target(d: float) -> float:
        mass = stats.norm.cdf((d + 0.5) / ROUNDING_STD) - stats.norm.cdf((d - 0.5) / ROUNDING_STD)
        if d > 8:
            mass = stats.norm.sf((d - 0.5) / ROUNDING_STD) - stats.norm.sf((d + 0.5) / ROUNDING_STD)
        return mass / math.exp(-(d**2) / (2 * ROUNDING_STD**2))

    h0 = proposal_over_target(0.0)
    expected = np.array([h0 / proposal_over_target(d) for d in distances])
    np.testing.assert_allclose(acceptance(distances), expected, rtol=1e-9)
    assert (1 - _SQUEEZE * distances**2 <= acceptance(distances) + 1e-15).all()


def test_sum_over_sites_is_the_exact_sum_within_the_rounding() -> None:
    rng = np.random.default_rng(3)
    grid = Grid(2.0**-16)
    values = rng.normal(0, 5, size=(6, 50_000))
    words = np.zeros(50_000, dtype=np.uint32)
    for index, row in enumerate(values):
        words += quantize(row, grid, KeyStream(bytes([index]) * 32))
    error = (decode_centred(words, grid) - values.sum(axis=0)) / grid.step
    expected = ROUNDING_STD * math.sqrt(6)
    assert error.std() == pytest.approx(expected, rel=0.02)
    assert np.abs(error).max() < 7 * expected


def test_bytes_round_trip_and_sign() -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert (words_of(to_bytes(words)) == words).all()
    assert to_bytes(words)[4:8] == b"\x01\x00\x00\x00"
    assert decode_centred(words, Grid(0.5)).tolist() == [0.0, 0.5, (2**31 - 1) / 2, -(2.0**30), -0.5]
    with pytest.raises(ProtocolViolation):
        words_of(b"abc")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = np.zeros(40_000)
    values[39_999] = bad
    with pytest.raises(ProtocolViolation, match="not finite"):
        quantize(values, Grid(1.0), KeyStream(SEED))


def test_values_beyond_the_modulus_are_refused() -> None:
    with pytest.raises(OverflowRisk):
        quantize(np.array([0.0, 2.0**31]), Grid(1.0), KeyStream(SEED))
