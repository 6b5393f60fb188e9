"""Clipping, sampling and the private sum: bounds that hold for every input."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from privacy.dpsgd.clipping import NOT_FINITE, clip_gradients
from privacy.dpsgd.sampling import poisson_sample
from privacy.dpsgd.step import clipped_sum, private_sum
from privacy.entropy import KeyStream
from privacy.errors import ParameterError

SEED = b"s" * 32


def exact_norm(row: np.ndarray) -> float:
    return float(np.linalg.norm(row.astype(np.longdouble)))


@settings(max_examples=150)
@given(
    gradients=hnp.arrays(
        np.float64,
        st.tuples(st.integers(0, 6), st.integers(1, 5)),
        elements=st.floats(allow_nan=True, allow_infinity=True),
    ),
    clip=st.floats(1e-6, 1e6),
)
def test_every_row_is_within_the_clip_whatever_comes_in(gradients: np.ndarray, clip: float) -> None:
    clipped = clip_gradients(gradients, clip)
    assert np.isfinite(clipped.gradients).all()
    assert all(exact_norm(row) <= clip for row in clipped.gradients)
    bad = ~np.isfinite(gradients).all(axis=1)
    assert clipped.refused.tolist() == np.flatnonzero(bad).tolist()
    assert (clipped.gradients[bad] == 0).all()
    assert clipped.reason == (NOT_FINITE if bad.any() else None)


@settings(max_examples=80)
@given(
    gradients=hnp.arrays(np.float64, (5, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    clip=st.floats(1e-3, 1e3),
    index=st.integers(0, 4),
)
def test_zeroing_one_patient_moves_the_sum_by_at_most_the_clip(gradients: np.ndarray, clip: float, index: int) -> None:
    other = gradients.copy()
    other[index] = 0.0
    moved = clipped_sum(gradients, clip).total - clipped_sum(other, clip).total
    assert np.linalg.norm(moved) <= clip * (1 + 1e-12)


def test_rows_within_the_clip_are_untouched_and_the_input_is_not_changed() -> None:
    rows = np.array([[0.3, 0.4], [30.0, 40.0]], dtype=np.float32)
    before = rows.copy()
    clipped = clip_gradients(rows, 1.0).gradients
    np.testing.assert_array_equal(clipped[0], rows[0].astype(np.float64))
    np.testing.assert_allclose(clipped[1], [0.6, 0.8], rtol=1e-8)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf"), 1e101])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ParameterError):
        clip_gradients(np.zeros((1, 1)), clip)


def test_huge_and_tiny_gradients_keep_their_direction() -> None:
    rows = np.array([[1.7e308, -1.7e308], [3e-200, 4e-200], [3e-200, 4e-200]])
    np.testing.assert_allclose(clip_gradients(rows, 1.0).gradients[0], [0.5**0.5, -(0.5**0.5)], rtol=1e-8)
    np.testing.assert_array_equal(clip_gradients(rows, 1.0).gradients[1], rows[1])
    np.testing.assert_allclose(clip_gradients(rows, 1e-200).gradients[2], [0.6e-200, 0.8e-200], rtol=1e-8)


def test_gradients_need_two_axes() -> None:
    with pytest.raises(ParameterError, match="patients, parameters"):
        clip_gradients(np.zeros(3), 1.0)


def test_sample_sizes_are_binomial_and_patients_independent() -> None:
    stream = KeyStream(SEED)
    masks = np.array([poisson_sample(40, 0.25, stream) for _ in range(4000)])
    sizes = masks.sum(axis=1)
    observed = np.array([(sizes == k).sum() for k in range(4, 18)])
    expected = stats.binom.pmf(np.arange(4, 18), 40, 0.25) * 4000
    observed = np.append(observed, 4000 - observed.sum())
    expected = np.append(expected, 4000 - expected.sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    assert np.abs(masks.mean(axis=0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert abs(np.corrcoef(masks[:, 0], masks[:, 1])[0, 1]) < 0.08


def test_sampling_everyone_and_refusals() -> None:
    assert poisson_sample(5, 1.0, KeyStream(SEED)).all()
    assert poisson_sample(0, 0.5, KeyStream(SEED)).shape == (0,)
    for bad in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ParameterError):
            poisson_sample(5, bad, KeyStream(SEED))


def test_an_empty_sample_is_a_zero_vector() -> None:
    result = private_sum(np.ones((3, 4)), 1.0, 1e-12, KeyStream.fresh(os.urandom))
    assert result.total.tolist() == [0.0] * 4
    assert (result.sensitivity, result.refused, result.reason) == (1.0, 0, None)


def test_the_sum_is_over_the_sample_alone() -> None:
    gradients = np.eye(6) * 0.5
    mask = poisson_sample(6, 0.5, KeyStream(SEED))
    assert 0 < mask.sum() < 6
    np.testing.assert_array_equal(private_sum(gradients, 1.0, 0.5, KeyStream(SEED)).total, mask * 0.5)


def test_refused_patients_are_counted_with_their_reason() -> None:
    gradients = np.array([[1.0, np.nan], [0.1, 0.1], [np.inf, 0.0]])
    result = clipped_sum(gradients, 1.0)
    np.testing.assert_array_equal(result.total, [0.1, 0.1])
    assert (result.refused, result.reason) == (2, NOT_FINITE)
