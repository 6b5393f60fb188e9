"""The time to an event: how a record's label is coded, what a dictionary may say of it, and which models fit it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from protocol.canonical import canonical, parse
from protocol.dataset import DatasetSchema, LabelRule, SurvivalLabel
from protocol.delimited import DatasetRefused
from protocol.dictionary import parse_dictionary
from protocol.errors import Malformed
from protocol.model import ModelSpec, layer_widths, loss_of, parameter_count
from protocol.study import StudySpec
from protocol.table import read_table
from tests.simulator.federation import study_spec

DICTIONARY = """\
dictionary: 1
name: follow-up
file: {patient_id: id}
columns:
- {name: id, role: patient_id}
- {name: age, role: feature, type: number, minimum: 0, maximum: 120, center: 54, scale: 9}
- {name: dead, role: label, type: category, levels: [0, 1]}
- {name: months, role: time, type: number, minimum: 0, maximum: 240, on_bad: drop}
label: {name: death, operator: "==", value: 1, edges: [12, 36, 60]}
"""
LABEL = SurvivalLabel(name="death", column="dead", operator="==", value=1, time="months", edges=(12, 36, 60))


@pytest.mark.parametrize(
    ("dead", "months", "code"),
    [
        (1, 0, 1), (1, 12, 1), (1, 12.5, 3), (1, 60, 5), (1, 60.5, 6),  # an event beyond the horizon is none
        (0, 0, 0), (0, 11.9, 0), (0, 12, 2), (0, 59, 4), (0, 60, 6), (0, 200, 6),
    ],
)  # fmt: skip
def test_a_code_says_how_far_a_patient_was_seen_and_how_it_ended(dead: int, months: float, code: int) -> None:
    assert LABEL.code({"dead": dead, "months": months}) == code


def test_a_label_without_its_time_is_told_by_column() -> None:
    with pytest.raises(ValueError, match="column months: missing"):
        LABEL.code({"dead": 1, "months": None})


def test_a_dictionary_gives_the_schema_and_the_schema_its_own_bytes_back() -> None:
    schema = parse_dictionary(DICTIONARY.encode()).schema
    assert schema.label == LABEL
    again = DatasetSchema.model_validate(parse(canonical(schema.model_dump(mode="json"))))
    assert again == schema
    assert isinstance(again.label, SurvivalLabel)
    assert again.digest == schema.digest
    text = DICTIONARY.replace(", edges: [12, 36, 60]", "")
    text = text.replace("time, type: number, minimum: 0, maximum: 240", "ignore")
    plain = parse_dictionary(text.encode()).schema
    assert type(plain.label) is LabelRule
    assert "edges" not in plain.model_dump(mode="json")["label"]


def test_a_table_is_read_into_codes() -> None:
    rows = b"id,age,dead,months\na,50,1,20\nb,60,0,70\nc,70,0,900\n"
    table = read_table("t.csv", io.BytesIO(rows), parse_dictionary(DICTIONARY.encode()), str.encode)
    assert table.y.tolist() == [3, 6]
    assert table.dropped == {("months", "outside the allowed range"): 1}


def test_rows_of_one_patient_that_end_differently_are_refused() -> None:
    rows = b"id,age,dead,months\na,50,1,20\na,51,0,20\n"
    with pytest.raises(DatasetRefused, match="outcome"):
        read_table("t.csv", io.BytesIO(rows), parse_dictionary(DICTIONARY.encode()), str.encode)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[12, 36, 60]", "[12, 12, 60]", "edges must rise"),
        ("[12, 36, 60]", "[0, 12]", "greater than 0"),
        ("[12, 36, 60]", "[12, 500]", "beyond the range"),
        (", edges: [12, 36, 60]", "", "role time"),
        ("role: time, type: number, minimum: 0, maximum: 240", "role: ignore", "role time"),
        ("type: number, minimum: 0, maximum: 240", "type: category, levels: [1, 2]", "number or integer"),
        (
            "type: number, minimum: 0, maximum: 240",
            "type: number, minimum: 0, maximum: 240, scale: 2",
            "only a feature",
        ),
    ],
)
def test_a_dictionary_that_contradicts_itself_is_refused(old: str, new: str, message: str) -> None:
    assert old in DICTIONARY
    with pytest.raises(Malformed, match=message):
        parse_dictionary(DICTIONARY.replace(old, new).encode())


def survival_study(**changes: Any) -> StudySpec:
    schema = parse_dictionary(DICTIONARY.encode()).schema.model_dump(mode="json")
    model = {"architecture": "discrete_time_survival", "intervals": 3}
    return study_spec(**{"dataset": schema, "model": model, **changes})


def test_a_survival_model_has_one_output_for_each_interval() -> None:
    model = survival_study(model={"architecture": "discrete_time_survival", "intervals": 3, "hidden": [4]}).model
    assert (layer_widths(model, 1), loss_of(model), parameter_count(model, 1)) == ((1, 4, 3), "hazard", 23)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"architecture": "logistic_regression"}},
        {"model": {"architecture": "discrete_time_survival", "intervals": 2}},
        {"dataset": study_spec().dataset.model_dump(mode="json")},
    ],
)
def test_a_model_that_does_not_fit_the_label_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="survival intervals"):
        survival_study(**changes)


@pytest.mark.parametrize("name", ["cox", "CoxPH", "cox-proportional-hazards", "deepsurv"])
def test_cox_regression_is_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(ValidationError, match="couples patients, so clipping does not bound its sensitivity"):
        TypeAdapter(ModelSpec).validate_python({"architecture": name})
