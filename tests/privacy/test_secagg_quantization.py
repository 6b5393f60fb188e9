"""Randomised rounding against its formula and a slow oracle, and the way to the modulus and back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.entropy import KeyStream
from privacy.errors import OverflowRisk, ProtocolViolation
from privacy.parameters import ROUNDING_STD, Grid
from privacy.secagg.discrete_gaussian import UNIT, WORDS, atoms, density, residual
from privacy.secagg.field import as_bytes, decode_centred, words_of
from privacy.secagg.quantization import CHUNK, Quantizer, quantize
from tests.privacy.secagg_rounding_oracle import acceptance, round_slowly

SEED = b"q" * 32
UNIT_GRID = Grid(1.0)


def draws_for(x: np.ndarray, seed: bytes = SEED) -> np.ndarray:
    return quantize(x, UNIT_GRID, KeyStream(seed)).view(np.int32).astype(np.float64)


def law(support: np.ndarray, centre: float) -> np.ndarray:
    weights = np.exp(-((support - centre) ** 2) / (2 * ROUNDING_STD**2))
    return weights / weights.sum()


def pvalue(draws: np.ndarray, support: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square of the draws against `expected` counts; what is expected under 10 times is pooled."""
    observed = np.array([(draws == z).sum() for z in support])
    keep = expected >= 10
    observed = np.append(observed[keep], draws.size - observed[keep].sum())
    expected = np.append(expected[keep], max(draws.size - expected[keep].sum(), 1e-9))
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("centre", [0.0, 0.5, -0.5, 0.25, -1e-20, 1234.875, -77.3, 2.0**-19 / 2, 3e8 + 0.3, -1e9 - 0.7])
def test_rounding_follows_its_formula(centre: float) -> None:
    count = 400_000
    draws = draws_for(np.full(count, centre))
    support = np.arange(math.floor(centre) - 27, math.floor(centre) + 29)
    assert pvalue(draws, support, law(support, centre) * count) > 1e-4


def test_nearest_rounding_of_a_gaussian_would_fail_that_test() -> None:
    # The proposal without its rejection has variance s^2 + 1/12: the sample is large enough to see it.
    count = 1_000_000
    draws = draws_for(np.full(count, 0.25))
    standard_error = ROUNDING_STD**2 * math.sqrt(2 / count)
    assert abs(draws.var() - ROUNDING_STD**2) < 3.5 * standard_error
    assert 6 * standard_error < 1 / 12


def test_moments_for_any_fraction() -> None:
    centres = np.random.default_rng(5).uniform(-3, 3, 1_000_000)
    deviation = draws_for(centres) - centres
    n = centres.size
    assert abs(deviation.mean()) < 4 * ROUNDING_STD / math.sqrt(n)
    assert abs(deviation.var() - ROUNDING_STD**2) < 4 * ROUNDING_STD**2 * math.sqrt(2 / n)
    assert abs(stats.skew(deviation)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(deviation)) < 4 * math.sqrt(24 / n)
    # Independent of the fraction that was rounded, as the convolution theorem needs it.
    assert abs(np.corrcoef(deviation, centres - np.floor(centres))[0, 1]) < 4 / math.sqrt(n)


def test_the_slow_oracle_draws_from_the_same_law() -> None:
    centres = np.random.default_rng(6).uniform(0, 1, 300_000)
    fast, slow = draws_for(centres), round_slowly(centres, KeyStream(b"o" * 32))
    support = np.arange(-9, 11)
    counts = np.array([[(sample == z).sum() for z in support] for sample in (fast, slow)])
    assert stats.chi2_contingency(counts).pvalue > 1e-4


def test_neighbouring_coordinates_are_independent() -> None:
    draws = draws_for(np.zeros(600_000))
    for lag in (1, 2, 7, CHUNK):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4.5 / math.sqrt(draws.size)


# --- the table's promise: c(z) <= 2^16 p(z - x) for every x, or the second branch's weights would be negative


def test_no_window_holds_more_atoms_than_the_law_allows() -> None:
    table = atoms().sorted
    first = np.arange(table.size)
    # The window of distance d is [d, d + 1). For d >= 0 the law falls while d grows, so that each content of a window
    # is tightest where its first atom is about to leave; for d <= 0 where its last atom has just come in. Both ends
    # are counted, which covers the rounding of x by 2^-20 too.
    inside = np.searchsorted(table, table + 1.0, side="right") - first
    assert (inside - WORDS * density(table + UNIT))[table >= 0].max() < -0.01
    inside = first - np.searchsorted(table, table - 1.0, side="left") + 1
    assert (inside - WORDS * density(table - 1.0 - UNIT))[table <= 1].max() < -0.01


@settings(max_examples=200, deadline=None)
@given(x=st.floats(-(2.0**30), 2.0**30))
def test_weights_of_the_second_branch_are_probabilities_under_their_ceiling(x: float) -> None:
    table = atoms()
    z = np.rint(x) + np.arange(-40.0, 41.0)
    rounded = np.rint(x * 2.0**19) / 2.0**19
    counts = table.count(z, np.full(z.size, rounded))
    weights = WORDS * density(z - x) - counts
    assert (weights > 0).all()
    assert (weights[27:54] <= table.ceiling).all()
    assert (weights[54:] <= table.tail / 2.0).all()
    assert (weights[26::-1] <= table.tail / 2.0).all()
    assert counts.sum() == table.sorted.size
    assert weights.sum() == pytest.approx(WORDS - table.sorted.size, abs=1e-6)


def test_the_table_is_exact_and_the_second_branch_rare() -> None:
    table = atoms()
    assert (table.sorted / UNIT == np.rint(table.sorted / UNIT)).all()
    assert (table.shifted[: table.sorted.size] - 1.5 * 2.0**33 == table.sorted).all()
    assert 1 - table.sorted.size / WORDS < 5e-4


@pytest.mark.parametrize("centre", [0.0, 0.3, -0.499])
def test_second_branch_follows_its_weights_far_tails_included(centre: float) -> None:
    count = 400_000
    draws = residual(np.full(count, centre), KeyStream(SEED))
    z = np.arange(-40.0, 41.0)
    rounded = np.rint(centre * 2.0**19) / 2.0**19
    weights = WORDS * density(z - centre) - atoms().count(z, np.full(z.size, rounded))
    assert pvalue(draws, z, weights / weights.sum() * count) > 1e-4
    far = draws[np.abs(draws) > 13]
    assert far.size > 2000
    beyond = z[np.abs(z) > 13]
    assert pvalue(far, beyond, law(beyond, centre) * far.size) > 1e-4


def test_the_oracles_acceptance_is_the_ratio_of_the_two_laws() -> None:
    distances = np.linspace(0, 27, 109)

    def proposal_over_target(d: float) -> float:
        mass = stats.norm.cdf((d + 0.5) / ROUNDING_STD) - stats.norm.cdf((d - 0.5) / ROUNDING_STD)
        if d > 8:
            mass = stats.norm.sf((d - 0.5) / ROUNDING_STD) - stats.norm.sf((d + 0.5) / ROUNDING_STD)
        return mass / math.exp(-(d**2) / (2 * ROUNDING_STD**2))

    h0 = proposal_over_target(0.0)
    np.testing.assert_allclose(acceptance(distances), [h0 / proposal_over_target(d) for d in distances], rtol=1e-9)


# --- vectors


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


@pytest.mark.parametrize("size", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_rounding_over_the_values_themselves_gives_the_same_words(size: int) -> None:
    values = np.random.default_rng(size).normal(0, 1e5, size)
    apart = quantize(values, UNIT_GRID, KeyStream(SEED))
    over = values.view(np.uint32)[:size]
    quantizer = Quantizer(UNIT_GRID, KeyStream(SEED))
    for start in range(0, size, CHUNK):
        quantizer.chunk(values[start : start + CHUNK], over[start : start + CHUNK], start)
    quantizer.finish(over)
    np.testing.assert_array_equal(over, apart)


def test_words_may_be_added_to_before_the_last_draws() -> None:
    values, added = np.zeros(CHUNK), np.random.default_rng(1).integers(0, 2**32, CHUNK, dtype=np.uint32)
    out = np.empty(CHUNK, dtype=np.uint32)
    quantizer = Quantizer(UNIT_GRID, KeyStream(SEED))
    quantizer.chunk(values, out, 0)
    out += added
    quantizer.finish(out)
    np.testing.assert_array_equal(out - added, quantize(values, UNIT_GRID, KeyStream(SEED)))


def test_bytes_round_trip_and_sign() -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert (words_of(as_bytes(words)) == words).all()
    assert as_bytes(words)[4:8] == b"\x01\x00\x00\x00"
    assert as_bytes(words).readonly
    assert decode_centred(words, Grid(0.5)).tolist() == [0.0, 0.5, (2**31 - 1) / 2, -(2.0**30), -0.5]
    with pytest.raises(ProtocolViolation):
        words_of(b"abc")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [0.0, 1e12])
def test_values_that_are_not_finite_are_refused(bad: float, other: float) -> None:
    values = np.full(40_000, other)
    values[39_999] = bad
    with pytest.raises((ProtocolViolation, OverflowRisk)) as caught:
        quantize(values, Grid(1.0), KeyStream(SEED))
    assert caught.value.code == ("secagg-not-finite" if other == 0 else "overflow-risk")


@pytest.mark.parametrize("bad", [2.0**31, -(2.0**31), 2.0**31 - 48, 48 - 2.0**31, 1e308])
def test_values_beyond_the_modulus_are_refused(bad: float) -> None:
    with pytest.raises(OverflowRisk):
        quantize(np.array([0.0, bad]), Grid(2.0**-10) if bad == 1e308 else UNIT_GRID, KeyStream(SEED))


def test_many_large_values_within_the_modulus_are_kept() -> None:
    values = np.tile([2.0**31 - 49, 49 - 2.0**31], CHUNK)
    assert np.abs(draws_for(values) - values).max() < 30
