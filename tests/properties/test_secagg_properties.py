"""Whatever drops out or lies, either the secure sum is exactly right or nothing about it decodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.entropy import KeyStream
from privacy.errors import MissingContributors
from privacy.parameters import MODULUS, Grid
from privacy.secagg.field import words_of
from privacy.secagg.quantization import quantize
from privacy.secagg.server import SecureSum
from tests.privacy.secagg_federation import MODEL, PLAN, exchange_keys, make_sites, ready_sites

NAMES = ["ana", "bo", "cy", "dee", "eve", "flo"]
GRID = Grid(2.0**-16)
STATE = {name: site.export_state() for name, site in ready_sites(NAMES, 8).items()}
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sites_of_length(length: int) -> dict:
    """The same study's keys, for vectors of `length`: setting up keys anew for every example would be slow."""
    from privacy.secagg.client import SecAggSite

    restored = {name: SecAggSite.restore(state) for name, state in STATE.items()}
    for site in restored.values():
        site.lengths = {"training": length}
    return restored


def seeded(label: str) -> Callable[[int], bytes]:
    return lambda count: hashlib.shake_256(label.encode()).digest(count)


def rounded(values: np.ndarray, label: str) -> np.ndarray:
    """The grid points that a site draws for these values and this entropy, so that sums can be compared exactly."""
    return quantize(values, GRID, KeyStream.fresh(seeded(label)))


def contribution(site, values: np.ndarray, **change: object) -> bytes:
    arguments: dict = {
        "round_number": 0,
        "attempt": 0,
        "cohort": NAMES,
        "model_digest": MODEL,
        "values": values,
        "grid": GRID,
        "entropy": seeded(site.site),
        "plan_digest": site.plan_digest,
    }
    return site.contribute(**{**arguments, **change})


@QUIET
@given(
    cohort=st.sets(st.sampled_from(NAMES), min_size=3),
    dropped=st.sets(st.sampled_from(NAMES)),
    round_number=st.integers(0, 40),
    attempt=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 40),
)
def test_any_dropout_pattern_gives_the_exact_sum_or_nothing(
    cohort: set, dropped: set, round_number: int, attempt: int, seed: int, length: int
) -> None:
    rng = np.random.default_rng(seed)
    sites = sites_of_length(length)
    total = SecureSum(cohort, length)
    expected = np.zeros(length, dtype=np.uint32)
    for name in sorted(cohort - dropped):
        values = rng.normal(0, 100, length)
        expected += rounded(values, name)
        total.add(name, contribution(sites[name], values, round_number=round_number, attempt=attempt, cohort=cohort))
    if cohort & dropped:
        with pytest.raises(MissingContributors) as caught:
            total.result(GRID)
        assert caught.value.missing == tuple(sorted(cohort & dropped))
    else:
        np.testing.assert_array_equal(total.result(GRID), expected.view(np.int32) * GRID.step)


@QUIET
@given(dropped=st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), round_number=st.integers(0, 5))
def test_after_a_dropout_the_next_attempt_on_the_rest_is_exact(dropped: set, round_number: int) -> None:
    rest = [name for name in NAMES if name not in dropped]
    sites = sites_of_length(8)
    for name in rest:
        contribution(sites[name], np.ones(8), round_number=round_number)
    if len(rest) < 3:
        return
    total = SecureSum(rest, 8)
    for name in rest:
        total.add(name, contribution(sites[name], np.full(8, 2.0), round_number=round_number, attempt=1, cohort=rest))
    expected = sum(rounded(np.full(8, 2.0), name) for name in rest)
    np.testing.assert_array_equal(total.result(GRID), expected.view(np.int32) * GRID.step)


def is_uniform(words: np.ndarray) -> bool:
    observed = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(observed).pvalue > 1e-6


LENGTH = 40_000


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_the_sum_of_any_strict_subset_is_uniform(kept: int) -> None:
    sites = sites_of_length(LENGTH)
    partial = np.zeros(LENGTH, dtype=np.uint32)
    for name in NAMES[:kept]:
        partial += words_of(contribution(sites[name], np.zeros(LENGTH)))
    assert is_uniform(partial)
    # The same test sees plain contributions, so it can fail.
    assert not is_uniform(rounded(np.zeros(LENGTH), "ana"))


LIES = {
    "cohort": {"cohort": NAMES[:5]},
    "model": {"model_digest": b"n" * 32},
    "round": {"round_number": 1},
    "attempt": {"attempt": 1},
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_coordinator_that_tells_one_site_another_story_gets_noise(lie: str) -> None:
    sites = sites_of_length(LENGTH)
    total = np.zeros(LENGTH, dtype=np.uint32)
    for name in NAMES:
        change = LIES[lie] if name == "bo" else {}
        total += words_of(contribution(sites[name], np.zeros(LENGTH), **change))
    assert is_uniform(total)


def test_cohorts_that_differ_but_pair_up_still_give_noise() -> None:
    # Each site is shown itself and its two neighbours on a ring: every pair agrees that it is a pair, so without the
    # cohort in the mask key all masks would cancel although no two sites saw the same cohort.
    sites = sites_of_length(LENGTH)
    total = np.zeros(LENGTH, dtype=np.uint32)
    for index, name in enumerate(NAMES):
        ring = [NAMES[index - 1], name, NAMES[(index + 1) % len(NAMES)]]
        total += words_of(contribution(sites[name], np.zeros(LENGTH), cohort=ring))
    assert is_uniform(total)


def test_honest_sites_alone_are_not_noise() -> None:
    sites = sites_of_length(LENGTH)
    total = np.zeros(LENGTH, dtype=np.uint32)
    for name in NAMES:
        total += words_of(contribution(sites[name], np.zeros(LENGTH)))
    assert not is_uniform(total)
    assert np.abs(total.view(np.int32)).max() < 3 * np.sqrt(6) * 8


def test_sites_under_different_plans_never_share_a_mask() -> None:
    one = exchange_keys(make_sites(NAMES[:3], LENGTH))
    other = exchange_keys(make_sites(NAMES[:3], LENGTH, plan=b"z" * 32))
    total = np.zeros(LENGTH, dtype=np.uint32)
    for name, site in (("ana", one["ana"]), ("bo", one["bo"]), ("cy", other["cy"])):
        total += words_of(contribution(site, np.zeros(LENGTH), cohort=NAMES[:3]))
        assert site.plan_digest == (PLAN if name != "cy" else b"z" * 32)
    assert is_uniform(total)


def test_masks_of_successive_attempts_and_rounds_are_unrelated() -> None:
    # Equal masks would show as a difference of two vectors that is no longer uniform.
    site = sites_of_length(LENGTH)["ana"]
    first = words_of(contribution(site, np.zeros(LENGTH)))
    again = words_of(contribution(site, np.zeros(LENGTH), attempt=1))
    later = words_of(contribution(site, np.zeros(LENGTH), round_number=1))
    assert is_uniform(first - again)
    assert is_uniform(again - later)


@QUIET
@given(values=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), seed=st.binary(min_size=32, max_size=32))
def test_quantised_values_decode_to_within_the_rounding(values: list, seed: bytes) -> None:
    from privacy.secagg.field import decode_centred

    array = np.array(values)
    decoded = decode_centred(quantize(array, GRID, KeyStream(seed)), GRID)
    assert np.abs(decoded - array).max() <= 28 * GRID.step
    assert GRID.half_range == MODULUS / 2 * GRID.step
