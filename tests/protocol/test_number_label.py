"""A number as the outcome: its dictionary, its code, and what is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from protocol.dataset import DatasetSchema, NumberLabel
from protocol.dictionary import parse_dictionary
from protocol.errors import Malformed
from protocol.evaluation import kind_of, read_report, residual_limit
from protocol.table import read_table

TEXT = """dictionary: 1
name: pressure
file: {patient_id: id}
columns:
- {name: id, role: patient_id}
- {name: age, role: feature, type: number, minimum: 0, maximum: 120, center: 50, scale: 20}
- {name: systolic, role: label, type: number, unit: mmHg, minimum: 60, maximum: 260}
label: {kind: number, name: pressure, center: 120, scale: 20}
"""
LABEL = NumberLabel(
    kind="number", name="pressure", column="systolic", unit="mmHg", minimum=60, maximum=260, center=120, scale=20
)


def test_a_number_label_is_its_column_s_range_and_the_dictionary_s_constants() -> None:
    schema = parse_dictionary(TEXT.encode()).schema
    assert schema.label == LABEL
    assert DatasetSchema.model_validate_json(schema.model_dump_json()) == schema
    assert kind_of(schema) == "regression"
    assert residual_limit(LABEL) == 60
    assert LABEL.code({"systolic": 100}) == -1.0


def test_records_of_one_patient_may_hold_different_numbers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "t.csv"
    file.write_text("id,age,systolic\n1,40,120\n1,41,160\n2,50,100\n")
    with file.open("rb") as opened:
        table = read_table("t.csv", opened, parse_dictionary(TEXT.encode()), lambda who: who.encode())
    assert list(table.y) == [0.0, 2.0, -1.0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("center: 120, scale: 20}", "scale: 20}", "needs a center and a scale"),
        ("kind: number, ", "", "operator and a value"),
        ("center: 120, scale", "center: 300, scale", "outside the range"),
        ("type: number, unit: mmHg, minimum: 60, maximum: 260", "type: category, levels: [0, 1]", "is a category"),
        ("center: 120, scale: 20}", "center: 120, scale: 0}", "scale"),
        ("center: 120, scale: 20}", 'center: 120, scale: 20, operator: ">", value: 1}', "no operator"),
        ("center: 120, scale: 20}", "center: .nan, scale: 20}", "finite"),
    ],
)
def test_a_label_that_is_not_whole_is_refused(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(Malformed, match=said):
        parse_dictionary(TEXT.replace(old, new).encode())


@pytest.mark.parametrize("value", [None, "high", 59.9, 261, float("nan")])
def test_a_value_outside_the_range_has_no_code(value: object) -> None:
    with pytest.raises(ValueError, match="systolic"):
        LABEL.code({"systolic": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("change", [{"scale": 0}, {"center": 20}, {"maximum": 60, "center": 60}, {"scale": "inf"}])
def test_constants_that_make_no_scale_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NumberLabel.model_validate({**LABEL.model_dump(), **change})


def test_a_report_is_one_of_the_closed_kinds() -> None:
    figure = {"value": 0.5}
    common = {"mode": "noised", "outside_guarantee": False, "held_out": 99, "bins": 10}
    dice = {**common, "kind": "segmentation", "dice": figure, "above_half": figure}
    assert read_report(json.dumps(dice)).kind == "segmentation"
    for bad in ({**dice, "kind": "other"}, {**dice, "auc": figure}, {**common, "dice": figure, "above_half": figure}):
        with pytest.raises(ValidationError):
            read_report(json.dumps(bad))
