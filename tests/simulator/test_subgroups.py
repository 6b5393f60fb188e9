"""Declared subgroups through a whole study: the same secure sum and epsilon, a report for each, small ones untold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from coordinator.client.forecast import groups_of, subgroup_lines
from coordinator.releases.facts import _measured
from coordinator.releases.model_card import write
from coordinator.rounds.evaluation import evaluate_histogram, noise_std_of
from protocol.evaluation import RegressionReport, figures
from protocol.release import EpsilonStatement
from protocol.study import StudySpec
from protocol.subgroups import MINIMUM_SUBGROUP, Subgroup, group_names, sensitivity
from tests.simulator.federation import SCHEMA, Federation, study_spec
from tests.simulator.test_outcomes import HELD_OUT, PRESSURE, run, schema_of

BOTH = [{"column": "sex"}, {"column": "age", "edges": [54]}]
SEXES = ("sex 0", "sex 1")
AGES = ("age below 54", "age 54 or more")


def spec(**evaluation: Any) -> StudySpec:
    asked = {"mode": "noised", "epsilon": 3.0, "attempts": 1, "bins": 10}
    made = study_spec("groups-1", evaluation={**asked, **evaluation})
    assert isinstance(made, StudySpec)
    return made


def test_a_study_reports_each_subgroup_at_the_same_epsilon(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"mode": "noised", "epsilon": 3.0, "attempts": 1, "bins": 10}
    report, _, _ = run(
        federation, monkeypatch, "groups-2", schema_of(PRESSURE), model={"architecture": "linear_regression"},
        evaluation={**asked, "subgroups": BOTH},
    )  # fmt: skip
    assert isinstance(report, RegressionReport)
    assert tuple(one.group for one in report.subgroups) == (*SEXES, *AGES)
    for one in report.subgroups:
        assert one.value.low is not None
        assert one.value.high is not None
        assert one.value.high - one.value.low > 0
    plan = federation.plan("groups-2")
    planned = plan.secure_sum("evaluate", plan.names)
    without = plan.spec.evaluation.model_copy(update={"subgroups": ()})
    bare = plan.model_copy(update={"spec": plan.spec.model_copy(update={"evaluation": without})})
    plain = bare.secure_sum("evaluate", plan.names)
    assert planned.noise_multiplier == plain.noise_multiplier  # so the epsilon is the same
    assert planned.length == 5 * plain.length
    assert math.isclose(planned.clip, math.sqrt(3))
    assert noise_std_of(planned) / noise_std_of(plain) == pytest.approx(math.sqrt(3), rel=0.05)
    total = 4 * HELD_OUT
    for first, second in (report.subgroups[:2], report.subgroups[2:]):
        assert first.patients is not None
        assert second.patients is not None
        assert abs(first.patients + second.patients - total) < 5 * noise_std_of(planned) * math.sqrt(40) + 1
    candidate = federation.candidate("groups-2")
    assert candidate is not None
    epsilon = EpsilonStatement.model_validate_json(candidate.epsilon)
    assert epsilon.epsilon_evaluation == pytest.approx(3.0, rel=1e-3)
    card = write(plan, epsilon, report, None, intended_use="research.heart", use_mode="research")
    assert "skill, sex 0 (about" in card
    assert "nor per subgroup" not in card
    told = _measured(report)
    assert [one["group"] for one in told["subgroups"]] == [*SEXES, *AGES]
    assert told["subgroups_unmeasured"] == []


def test_a_subgroup_of_few_patients_is_told_nothing_of(federation: Federation) -> None:
    made = federation.ready(spec(subgroups=[{"column": "sex"}]))
    del made
    plan = federation.plan("groups-1")
    length = 2 * plan.spec.evaluation.bins
    counts = np.zeros(3 * length)
    counts[length - 3 : length] = 20.0
    counts[length : 2 * length] = 300 / length
    counts[2 * length] = MINIMUM_SUBGROUP - 1.0
    report = evaluate_histogram(plan, plan.names, counts)
    large, small = report.subgroups
    assert large.patients == 300
    assert (small.patients, small.value.value) == (None, None)
    assert str(MINIMUM_SUBGROUP - 1) not in (small.value.reason or "")
    assert _measured(report)["subgroups_unmeasured"] == ["sex 1"]
    named = dict(figures(report))
    assert named["AUC, sex 1"].value is None


def test_the_forecast_tells_what_subgroups_cost_before_anybody_is_asked() -> None:
    made = spec(subgroups=BOTH)
    assert groups_of(made) == (*SEXES, *AGES)
    (line,) = subgroup_lines(made)
    assert f"{sensitivity(made.evaluation.subgroups):.2f} times the noise" in line
    assert subgroup_lines(spec()) == []


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"subgroups": [{"column": "height"}]}, "no column of the dictionary"),
        ({"subgroups": [{"column": "age"}]}, "give the edges"),
        ({"subgroups": [{"column": "sex", "edges": [1]}]}, "leave out its edges"),
        ({"subgroups": [{"column": "age", "edges": [60, 50]}]}, "do not rise"),
        ({"subgroups": [{"column": "age", "edges": [110]}]}, "outside 27 to 81"),
        ({"subgroups": [{"column": "sex"}, {"column": "sex"}]}, "twice"),
        ({"subgroups": [{"column": "sex"}] * 3}, "at most 2"),
        ({"subgroups": [{"column": "sex"}], "mode": "exact"}, "small subgroups"),
    ],
)
def test_what_cannot_be_told_apart_is_no_proposal(evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**evaluation)


def test_a_name_of_a_level_cannot_steer_a_terminal() -> None:
    sex = SCHEMA.features[1].model_copy(update={"levels": ("a\x1b[2J", "b")})
    names = group_names(Subgroup(column="sex"), SCHEMA.model_copy(update={"features": (SCHEMA.features[0], sex)}))
    assert names == ("sex a[2J", "sex b")
    assert json.dumps(names)
