"""Private statistics: what one patient can change, what the answers are worth, and how they are asked for."""

from __future__ import annotations

import os
import random
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from privacy.accounting.gaussian import gaussian_multiplier_for
from privacy.entropy import KeyStream
from privacy.errors import ParameterError
from privacy.local.patients import Group
from privacy.parameters import plan_grid
from privacy.secagg.field import WIRE
from privacy.secagg.quantization import quantize
from privacy.secagg.server import SecureSum
from privacy.statistics.answers import Answer, answers
from privacy.statistics.queries import Query, patient_vectors, private_statistics, sensitivity, vector_length
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.errors import Malformed
from protocol.statistics import Statistic, resolve

SCHEMA = DatasetSchema(
    name="hearts",
    features=(
        Feature(name="age", kind="number", minimum=18, maximum=120, center=54, scale=9),
        Feature(name="pain", kind="category", levels=("none", "some", "much")),
        Feature(name="vessels", kind="integer", minimum=0, maximum=3, center=1, scale=1),
    ),
    label=LabelRule(name="disease", column="num", operator=">", value=0),
)
ASKED: list[dict[str, Any]] = [
    {"kind": "mean", "column": "age"},
    {"kind": "quantiles", "column": "age", "bins": 54, "probabilities": (0.1, 0.5, 0.9)},
    {"kind": "histogram", "column": "pain"},
    {"kind": "count", "column": "pain", "level": "much"},
    {"kind": "histogram", "column": "vessels", "bins": 3},
    {"kind": "count", "column": "disease", "level": 1},
]
QUERIES = [Query(**asdict(resolve(SCHEMA, Statistic.model_validate(asked)))) for asked in ASKED]


class Cohort:
    """Patients with one to three records, their raw values and the encoded group."""

    def __init__(self, seed: int, patients: int = 400) -> None:
        random = np.random.default_rng(seed)
        self.patient = np.sort(np.concatenate([np.arange(patients), random.integers(0, patients, patients // 2)]))
        count = self.patient.size
        self.age = np.clip(random.normal(56, 12, count), 18, 120)
        self.pain = random.integers(0, 3, count)
        self.vessels = random.integers(0, 4, count)
        records = [
            {"age": float(self.age[i]), "pain": ("none", "some", "much")[self.pain[i]], "vessels": int(self.vessels[i])}
            for i in range(count)
        ]
        x = np.array([SCHEMA.encode(record) for record in records])
        self.y = random.integers(0, 2, patients).astype(float)[self.patient]
        self.group = Group(x, self.y, self.patient, patients)
        self.weight = 1 / np.bincount(self.patient)[self.patient]


def exact(cohort: Cohort) -> tuple[Answer, ...]:
    total = patient_vectors(cohort.group, QUERIES).sum(axis=0)
    return answers(QUERIES, total, noise_std=0.0, patients=cohort.group.patients)


def test_without_noise_the_answers_are_those_of_the_raw_values() -> None:
    cohort = Cohort(1)
    seen = np.clip(cohort.age, 27, 81)  # within three scales of the centre
    mean, quantiles, pain, much, vessels, sick = exact(cohort)
    assert mean.figures[0].value == pytest.approx(np.average(seen, weights=cohort.weight))
    order = np.argsort(seen)
    ranks = np.cumsum(cohort.weight[order]) / cohort.group.patients
    for probability, figure in zip((0.1, 0.5, 0.9), quantiles.figures, strict=True):
        true = seen[order][np.searchsorted(ranks, probability)]
        assert figure.low <= true <= figure.high
        assert figure.value == pytest.approx(true, abs=1.0)  # bins of a year
        assert figure.high - figure.low <= 2.0
    levels = [cohort.weight[cohort.pain == level].sum() for level in range(3)]
    assert [figure.value for figure in pain.figures] == pytest.approx(levels)
    assert much.figures[0].value == pytest.approx(levels[2])
    assert sum(figure.value for figure in vessels.figures) == pytest.approx(400)
    assert sick.figures[0].value == pytest.approx((cohort.weight * cohort.y).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.booleans())
def test_one_patient_changes_the_sum_by_at_most_the_sensitivity(seed: int, broken: bool) -> None:
    random = np.random.default_rng(seed)
    patient = np.sort(random.integers(0, 5, 12))
    x = random.normal(0, 3, (12, SCHEMA.width)) * (1e200 if broken else 1.0)
    rows = patient_vectors(Group(x, random.integers(0, 2, 12).astype(float), patient, 5), QUERIES)
    assert sensitivity(QUERIES) == pytest.approx(np.sqrt(len(QUERIES)))
    assert (np.linalg.norm(rows, axis=1) <= sensitivity(QUERIES) * (1 + 1e-12)).all()


def test_the_bound_is_reached_so_no_smaller_noise_would_do() -> None:
    x = np.array([SCHEMA.encode({"age": 120.0, "pain": "much", "vessels": 3})])
    rows = patient_vectors(Group(x, np.ones(1), np.zeros(1, dtype=np.int64), 1), QUERIES)
    assert np.linalg.norm(rows) == pytest.approx(sensitivity(QUERIES))


def test_a_value_that_is_no_number_counts_as_nothing_and_stops_nobody() -> None:
    cohort = Cohort(2, patients=20)
    x = cohort.group.x.copy()
    x[cohort.patient == 3, 0] = np.nan
    broken = Group(x, cohort.y, cohort.patient, 20)
    kept = patient_vectors(cohort.group, QUERIES)[np.arange(20) != 3].sum(axis=0)
    total = private_statistics(broken, QUERIES, noise_std=1e-9, entropy=os.urandom)
    assert total == pytest.approx(kept, abs=1e-6)


def test_intervals_hold_the_cohort_s_true_figure_about_as_often_as_they_say() -> None:
    cohort = Cohort(3)
    generator = random.Random(5)  # fixed draws: a share over 300 of them must not fail by chance
    truth = exact(cohort)
    seen = np.clip(cohort.age, 27, 81)
    order = np.argsort(seen)
    ranks = np.cumsum(cohort.weight[order]) / cohort.group.patients
    quantile = [seen[order][np.searchsorted(ranks, p)] for p in (0.1, 0.5, 0.9)]
    held: dict[str, list[bool]] = {}
    sizes: dict[str, list[float]] = {}
    for _ in range(300):
        total = private_statistics(cohort.group, QUERIES, noise_std=8.0, entropy=generator.randbytes)
        for query, answer, true in zip(
            QUERIES, answers(QUERIES, total, noise_std=8.0, patients=400), truth, strict=True
        ):
            for place, figure in enumerate(answer.figures):
                wanted = quantile[place] if query.kind == "quantiles" else true.figures[place].value
                held.setdefault(query.kind, []).append(figure.low - 1e-9 <= wanted <= figure.high + 1e-9)
                sizes.setdefault(query.kind, []).append(figure.high - figure.low)
                assert figure.low <= figure.value <= figure.high
    share = {kind: float(np.mean(values)) for kind, values in held.items()}
    assert all(value >= 0.93 for value in share.values()), share
    assert all(share[kind] <= 0.97 for kind in ("mean", "count", "histogram")), share
    assert np.mean(sizes["mean"]) < 3  # of 54 years
    assert np.mean(sizes["quantiles"]) < 20


def test_four_sites_under_the_secure_sum_give_the_cohort_s_answer() -> None:
    cohorts = [Cohort(seed, patients=150) for seed in range(4)]
    names, bound = tuple("abcd"), sensitivity(QUERIES)
    parameters = plan_grid(
        clip=bound, sites=4, tolerated=1, b_max=600, noise_multiplier=gaussian_multiplier_for(8.0, 1e-5)
    )
    running = SecureSum(names, vector_length(QUERIES))
    for name, cohort in zip(names, cohorts, strict=True):
        vector = private_statistics(cohort.group, QUERIES, noise_std=parameters.site_std, entropy=os.urandom)
        words = quantize(vector, parameters.grid, KeyStream.fresh(os.urandom))
        running.add(name, words.astype(WIRE, copy=False).tobytes())
    found = answers(QUERIES, running.result(parameters.grid), noise_std=parameters.sum_std(4), patients=600)
    true = np.mean([exact(cohort)[0].figures[0].value for cohort in cohorts])
    assert found[0].figures[0].value == pytest.approx(true, abs=0.7)  # 27 years * 5 sd * 1.9 / 600
    assert found[0].figures[0].high - found[0].figures[0].low < 1.0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "mean", "column": "weight"}, "no column weight"),
        ({"kind": "mean", "column": "num"}, "no column num"),
        ({"kind": "mean", "column": "pain"}, "is a category"),
        ({"kind": "count", "column": "age", "level": 3}, "no levels"),
        ({"kind": "count", "column": "pain", "level": "worst"}, "no such level"),
        ({"kind": "histogram", "column": "age"}, "needs bins"),
        ({"kind": "histogram", "column": "pain", "bins": 3}, "without bins"),
        ({"kind": "quantiles", "column": "disease", "bins": 3, "probabilities": [0.5]}, "is a category"),
    ],
)
def test_a_statistic_that_the_schema_does_not_have_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        resolve(SCHEMA, Statistic.model_validate(asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "median", "column": "age"},
        {"kind": "mean", "column": "age", "where": "age > 60"},
        {"kind": "mean", "column": "age", "bins": 3},
        {"kind": "count", "column": "pain"},
        {"kind": "histogram", "column": "age", "bins": 1},
        {"kind": "histogram", "column": "age", "bins": 100_000},
        {"kind": "quantiles", "column": "age", "bins": 4},
        {"kind": "quantiles", "column": "age", "bins": 4, "probabilities": [1.0]},
    ],
)
def test_nothing_else_can_be_asked(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Statistic.model_validate(asked)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "mean", "low": 2.0, "high": 2.0},
        {"kind": "histogram", "edges": (1.0, 1.0)},
        {"kind": "histogram", "edges": (1.0,)},
        {"kind": "count", "inputs": 2, "level": 2},
        {"kind": "quantiles", "edges": (0.0, 1.0)},
    ],
)
def test_an_impossible_query_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Query(**{"start": 0, **changes})
