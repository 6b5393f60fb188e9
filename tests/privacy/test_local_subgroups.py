"""Subgroups: a patient is in exactly one of each column's, and one patient moves all histograms by a known length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.errors import ParameterError
from privacy.local.contribution import score_histogram
from privacy.local.model import CPU, Hardware, PatientScores
from privacy.local.patients import Group
from privacy.local.subgroups import Banding, subgroup_of

LEVELS, BANDS = Banding(at=1, width=3), Banding(at=0, width=1, edges=(-0.5, 0.5))


def one_hot(levels: np.ndarray) -> np.ndarray:
    return np.eye(3)[levels] / 2


def group(patients: int, seed: int = 1) -> Group:
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    x = np.column_stack([random.normal(size=patient.size), one_hot(random.integers(0, 3, patient.size))])
    return Group(x, random.integers(0, 2, patient.size).astype(float), patient, patients)


class Scorer:
    """Scores that are known."""

    def scores(self, parameters: np.ndarray, patients: Group, hardware: Hardware = CPU) -> PatientScores:
        del parameters, hardware
        random = np.random.default_rng(patients.patients)
        whole = random.uniform(size=1000)[: patients.patients]
        return PatientScores(whole, (whole > 0.4).astype(float))


def histogram(patients: Group, *subgroups: Banding) -> np.ndarray:
    return score_histogram(
        patients,
        Scorer(),
        np.zeros(1),
        cells=8,
        noise_std=None,
        entropy=bytes,
        subgroups=subgroups,  # type: ignore[arg-type]
    )


def test_a_level_is_that_of_most_records_and_a_band_that_of_their_mean() -> None:
    x = np.column_stack([[-1.0, 0.4, 0.5, 2.0, -0.5], one_hot(np.array([0, 0, 2, 1, 2]))])
    known = Group(x, np.zeros(5), np.array([0, 0, 1, 2, 3]), 4)
    assert subgroup_of(known, LEVELS).tolist() == [0, 2, 1, 2]
    assert subgroup_of(known, BANDS).tolist() == [1, 2, 2, 1]


def test_the_subgroups_of_a_column_add_up_to_all() -> None:
    counts = histogram(group(60), LEVELS, BANDS).reshape(-1, 8)
    assert counts.shape == (7, 8)
    np.testing.assert_array_equal(counts[1:4].sum(axis=0), counts[0])
    np.testing.assert_array_equal(counts[4:].sum(axis=0), counts[0])
    assert counts[0].sum() == 60


@pytest.mark.parametrize("declared", [(), (LEVELS,), (LEVELS, BANDS)])
def test_one_patient_moves_it_by_the_root_of_one_and_the_columns(declared: tuple[Banding, ...]) -> None:
    alone = histogram(group(1), *declared)
    nobody = histogram(Group(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), 0), *declared)
    assert nobody.sum() == 0
    assert math.isclose(float(np.linalg.norm(alone)), math.sqrt(1 + len(declared)))


def test_a_column_outside_the_records_is_refused() -> None:
    with pytest.raises(ParameterError, match="outside the records"):
        subgroup_of(group(3), Banding(at=3, width=2))
    images = Group(np.zeros((3, 2, 2)), np.zeros(3), np.arange(3), 3)
    with pytest.raises(ParameterError, match="outside the records"):
        subgroup_of(images, LEVELS)
