"""k-means from noised sums: the bound on a patient, the noise's size, and where centres go."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import ParameterError
from privacy.local.patients import Group
from privacy.statistics.clusters import (
    START,
    Weights,
    cluster_vectors,
    clusters,
    initial_centers,
    next_centers,
    private_cluster_sum,
)
from privacy.statistics.queries import Query

AXES = (Query("mean", 0, low=0.0, high=10.0), Query("mean", 1, low=-1.0, high=3.0))


def stream(seed: str):  # type: ignore[no-untyped-def]
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")).bytes


def scaled(points: list[tuple[float, float]]) -> np.ndarray:
    return np.array([[(a - 5) / 5, (b - 1) / 2] for a, b in points])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda axes: st.tuples(
            st.lists(st.lists(st.floats(-1e6, 1e6), min_size=axes, max_size=axes), min_size=1, max_size=8),
            st.lists(st.lists(st.floats(-1e6, 1e6), min_size=axes, max_size=axes), min_size=1, max_size=5),
        )
    )
)
def test_a_patient_adds_a_vector_of_norm_at_most_one_to_one_cell_whatever_the_centres(
    drawn: tuple[list[list[float]], list[list[float]]],
) -> None:
    points, centers = np.array(drawn[0]), np.array(drawn[1])
    vectors = cluster_vectors(points, centers)
    assert np.linalg.norm(vectors, axis=1).max() <= 1 + 1e-12
    cells = vectors.reshape(points.shape[0], centers.shape[0], -1)
    assert ((cells != 0).any(axis=2).sum(axis=1) == 1).all()


@pytest.mark.parametrize("axes", [1, 2, 7, 64])
def test_count_and_coordinates_share_the_bound_where_the_error_is_least(axes: int) -> None:
    weights = Weights.of(axes)
    assert weights.count**2 + axes * weights.coordinate**2 == pytest.approx(1)
    norm = 0.225 * math.sqrt(axes)

    def error(share: float) -> float:
        coordinate = (1 - share) / axes
        return axes / coordinate + norm**2 / share

    least = min(error(share) for share in np.linspace(0.001, 0.999, 999))
    assert error(weights.count**2) == pytest.approx(least, rel=1e-3)


def test_the_first_centres_are_spread_and_come_from_the_seed_alone() -> None:
    first = initial_centers(5, 3, "sha256:a")
    assert np.array_equal(first, initial_centers(5, 3, "sha256:a"))
    assert not np.array_equal(first, initial_centers(5, 3, "sha256:b"))
    assert np.abs(first).max() <= START
    gaps = np.linalg.norm(first[:, np.newaxis] - first[np.newaxis], axis=2)[np.triu_indices(5, 1)]
    assert gaps.min() > 0.4


def test_without_noise_it_is_lloyds_algorithm() -> None:
    random = np.random.default_rng(5)
    points = np.concatenate([random.normal(center, 0.1, (50, 2)) for center in ((-0.5, 0.3), (0.4, -0.6), (0.6, 0.6))])
    centers = initial_centers(3, 2, "sha256:seed")
    for _ in range(8):
        total = cluster_vectors(points, centers).sum(axis=0)
        nearest = np.linalg.norm(points[:, np.newaxis] - centers[np.newaxis], axis=2).argmin(axis=1)
        moved = next_centers(total, centers, noise_std=0.0)
        for cell in range(3):
            members = np.clip(points[nearest == cell], -1, 1)
            expected = members.mean(axis=0) if len(members) else centers[cell]
            assert moved[cell] == pytest.approx(expected)
        centers = moved
    assert sorted(centers[:, 0]) == [pytest.approx(value, abs=0.06) for value in (-0.5, 0.4, 0.6)]


def test_a_cell_that_may_be_empty_keeps_its_centre_and_says_nothing_of_it() -> None:
    centers = scaled([(2.0, 0.0), (8.0, 2.0)])
    total = cluster_vectors(scaled([(2.0, 0.5)] * 200), centers).sum(axis=0)
    moved = next_centers(total, centers, noise_std=5.0)
    assert moved[0] == pytest.approx(scaled([(2.0, 0.5)])[0])
    assert np.array_equal(moved[1], centers[1])
    full, empty = clusters(total, centers, AXES, noise_std=5.0, patients=200)
    assert empty.center is None
    assert empty.patients.low == 0.0
    assert full.center is not None
    assert full.center[0].value == pytest.approx(2.0)
    assert full.patients.low <= 200 <= full.patients.high


def test_the_intervals_cover_the_noise_as_often_as_they_say() -> None:
    random = np.random.default_rng(6)
    points = np.concatenate([random.normal(-0.5, 0.1, (300, 2)), random.normal(0.5, 0.1, (200, 2))])
    centers = np.array([[-0.4, -0.4], [0.4, 0.4]])
    truth = cluster_vectors(points, centers).sum(axis=0)
    held = []
    for _ in range(400):
        noised = truth + random.normal(0.0, 6.0, truth.size)
        for cluster, members in zip(
            clusters(noised, centers, AXES, noise_std=6.0, patients=500), (points[:300], points[300:]), strict=True
        ):
            held.append(cluster.patients.low <= len(members) <= cluster.patients.high)
            assert cluster.center is not None
            mean = members.mean(axis=0) * [5, 2] + [5, 1]
            held += [figure.low <= value <= figure.high for figure, value in zip(cluster.center, mean, strict=True)]
    assert 0.94 < np.mean(held) < 0.965


def test_a_site_adds_noise_of_the_planned_size_and_averages_a_patients_records_first() -> None:
    group = Group(np.array([[1.0, 0.0], [3.0, 2.0], [9.0, 3.0]]), np.zeros(3), np.array([0, 0, 1]), 2)
    centers, entropy = scaled([(2.0, 0.0), (8.0, 2.0)]), stream("noise")
    exact = cluster_vectors(scaled([(2.0, 1.0), (9.0, 3.0)]), centers).sum(axis=0)
    draws = np.array(
        [private_cluster_sum(group, AXES, centers, noise_std=2.0, entropy=entropy) - exact for _ in range(2000)]
    )
    assert draws.mean(axis=0) == pytest.approx(0, abs=0.2)
    assert draws.std() == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("centers", [np.zeros((2, 3)), np.zeros((0, 2)), np.array([[0.0, np.nan]])])
def test_centres_that_do_not_fit_are_refused(centers: np.ndarray) -> None:
    with pytest.raises(ParameterError):
        cluster_vectors(np.zeros((4, 2)), centers)


def test_a_value_that_is_no_number_adds_nothing() -> None:
    group = Group(np.array([[np.nan, 0.0], [9.0, 3.0]]), np.zeros(2), np.arange(2), 2)
    centers = scaled([(2.0, 0.0), (8.0, 2.0)])
    total = private_cluster_sum(group, AXES, centers, noise_std=1e-9, entropy=stream("nan"))
    assert total == pytest.approx(cluster_vectors(scaled([(9.0, 3.0)]), centers).sum(axis=0), abs=1e-6)
