"""The scan for identifiers: what has the name or the form of one is found in the snapshot as it is stored."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from protocol.dataset import DatasetSchema, Feature, LabelRule, NumberLabel
from protocol.media import ImageInput
from site_agent.cohort.identifier_patterns import CLASSES, named_class, text_class
from site_agent.cohort.identifier_scan import IdentifierScan, scan
from site_agent.cohort.snapshot import SnapshotArrays

TODAY = date(2026, 3, 1)
PATIENTS = 50


def feature(name: str, **changes: Any) -> Feature:
    plain = {"kind": "integer", "minimum": 0, "maximum": 10**11, "center": 0, "scale": 10**11}
    return Feature.model_validate({"name": name, **plain, **changes})


def scanned(*columns: tuple[Feature, list[float | int | str]]) -> IdentifierScan:
    """A table with these columns, encoded as a snapshot is."""
    schema = DatasetSchema(
        name="ward",
        features=tuple(column for column, _ in columns),
        label=LabelRule(name="disease", column="num", operator=">", value=0),
    )
    rows = len(columns[0][1])
    x = [schema.encode({column.name: values[row] for column, values in columns}) for row in range(rows)]
    arrays = SnapshotArrays(
        x=np.array(x), y=np.zeros(rows), patient=np.arange(rows), held_out=np.zeros(rows, bool), schema_digest=""
    )
    return scan(schema, arrays, on=TODAY)


def letters(result: IdentifierScan) -> set[str]:
    return {item.letter for item in result.found}


def numbers(start: int, step: int = 1) -> list[float | int | str]:
    return [start + step * row for row in range(PATIENTS)]


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        ("patient_name", "A"), ("PatientName", "A"), ("surname", "A"), ("name", "A"), ("Vorname", "A"),
        ("street", "B"), ("home_address", "B"), ("city", "B"), ("lat", "B"),
        ("birth_date", "C"), ("dob", "C"), ("admission-date", "C"), ("geburtsdatum", "C"),
        ("phone", "D"), ("mobile_number", "D"), ("fax", "E"), ("email", "F"), ("e_mail", "F"), ("email_address", "F"),
        ("ssn", "G"), ("social_security_number", "G"), ("mrn", "H"), ("patient_id", "H"), ("patient_nbr", "H"),
        ("encounter_id", "H"), ("medicare_number", "I"), ("member_id", "I"), ("account_no", "J"), ("iban", "J"),
        ("license_number", "K"), ("certificate_no", "K"), ("vin", "L"), ("plate_number", "L"), ("device_id", "M"),
        ("pacemaker_serial", "M"), ("url", "N"), ("ip_address", "O"), ("fingerprint", "P"), ("iris_code", "P"),
        ("IrisScan", "P"),
        ("photo", "Q"), ("uuid", "R"), ("sample_id", "R"), ("row_id", "R"),
        ("age", None), ("drug_name", None), ("cholesterol", None), ("num_visits", None), ("number_of_lesions", None),
        ("chest_pain", None), ("update_rate", None), ("birth_year", None), ("zip3", None), ("candidate", None),
    ],
)  # fmt: skip
def test_names_of_columns(name: str, letter: str | None) -> None:
    assert named_class(name) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("ada@hospital.org", "F"), ("https://x.org/p/1", "N"), ("www.x.org", "N"), ("10.1.2.3", "O"),
        ("fe80::1:2:3", "O"),
        ("123-45-6789", "G"), ("2020-01-31", "C"), ("31.01.2020", "C"), ("1/31/20", "C"), ("2020-01-31T10:00:00", "C"),
        ("123e4567-e89b-12d3-a456-426614174000", "R"), ("1HGBH41JXMN109186", "L"), ("12345-6789", "B"),
        ("SW1A 1AA", "B"),
        ("+49 30 1234567", "D"), ("(555) 123-4567", "D"),
        ("low", None), ("3", None), ("stage II", None), ("2020", None), ("1.5", None), ("ABCDEFGHJKLMNPRST", None),
    ],
)  # fmt: skip
def test_levels_of_categories(text: str, letter: str | None) -> None:
    assert text_class(text) == letter


def test_a_level_is_found_though_no_patient_has_it() -> None:
    """It stands in the schema, which leaves the site."""
    column = feature("contact", kind="category", levels=("none", "ada@hospital.org"), minimum=None, maximum=None)
    result = scanned((column, ["none"] * PATIENTS))
    assert [(item.letter, item.by, item.direct) for item in result.found] == [("F", "levels", True)]


@pytest.mark.parametrize(
    ("values", "letter"),
    [
        (numbers(20200101), "C"),
        (numbers(123_456_789, 1013), "G"),
        (numbers(5_551_234_567, 1013), "D"),
        (numbers(7_654_321, 17), "R"),
        ([1_234_567] * PATIENTS, None),  # everybody's number is nobody's
        (numbers(1), None),
        ([value % 5 * 100_000 for value in range(PATIENTS)], None),  # platelets per microlitre, say
    ],
)  # fmt: skip
def test_forms_of_whole_numbers(values: list[float | int | str], letter: str | None) -> None:
    days = [20200101 + row % 28 for row in range(PATIENTS)] if letter == "C" else values
    assert letters(scanned((feature("x1"), days))) == ({letter} if letter else set())


def test_numbers_that_are_not_whole_are_measurements() -> None:
    measured = feature("x1", kind="number")
    assert not scanned((measured, [1e6 + row * 0.37 for row in range(PATIENTS)])).found


@pytest.mark.parametrize(
    ("name", "unit", "old", "pooled"),
    [
        ("age", "years", [89, 89, 89], True),
        ("age", "years", [90, 90, 90], True),  # one category: 90 and over
        ("age", "years", [90, 91, 90], False),
        ("age", "months", [12 * 90, 12 * 95, 60], False),
        ("age", "months", [100, 101, 102], True),
        ("alter", "", [97, 93, 95], False),
        ("birth_year", "", [1930, 1932, 1980], False),
        ("birth_year", "", [1936, 1936, 1980], True),
        ("birth_year", "", [1940, 1941, 1942], True),
        ("heart_rate", "", [90, 91, 120], True),
    ],
)
def test_ages_of_90_and_over_are_one_category(name: str, unit: str, old: list[int], pooled: bool) -> None:
    column = feature(name, unit=unit, maximum=3000, scale=3000)
    result = scanned((column, [*old, *[50 if name != "birth_year" else 1970] * PATIENTS]))
    assert result.ages_pooled is pooled
    assert letters(result) == (set() if pooled else {"C"})


@pytest.mark.parametrize(
    ("values", "kept"),
    [([100, 104, 946], True), ([100, 36, 946], False), ([0, 104, 946], True), ([2139, 2138, 104], False)],
)
def test_the_rule_of_three_digits_of_a_postal_code(values: list[int], kept: bool) -> None:
    column = feature("zip3", maximum=99_999, scale=99_999)
    result = scanned((column, [*values, *[100] * PATIENTS]))
    assert result.zip3_rule is kept
    assert letters(result) == (set() if kept else {"B"})


def test_a_postal_code_in_words_is_not_three_digits() -> None:
    column = feature("postcode", kind="category", levels=("SW1A", "N1"), minimum=None, maximum=None)
    assert not scanned((column, ["N1"] * PATIENTS)).zip3_rule


def test_a_limited_data_set_may_hold_dates_and_towns_and_no_street() -> None:
    plain = {"kind": "category", "levels": ("a", "b"), "minimum": None, "maximum": None}
    columns = [(feature(name, **plain), ["a"] * PATIENTS) for name in ("admission_date", "city", "street", "email")]
    facts = scanned(*columns).facts()
    assert facts["lds_identifiers"] == 2
    found = {letter: count for letter, count in facts["identifier_scan"].items() if count}
    assert found == {"B": 2, "C": 1, "F": 1}
    assert set(facts["identifier_scan"]) == set(CLASSES)


def test_the_outcome_is_scanned_too() -> None:
    label = NumberLabel(kind="number", name="y", column="age", minimum=0, maximum=120, center=60, scale=15)
    schema = DatasetSchema(name="ward", features=(feature("x1", maximum=9, scale=9),), label=label)
    x = np.array([schema.encode({"x1": row % 9}) for row in range(PATIENTS)])
    y = np.array([(90 + row % 3 - 60) / 15 for row in range(PATIENTS)])
    arrays = SnapshotArrays(x, y, np.arange(PATIENTS), np.zeros(PATIENTS, bool), "")
    assert not scan(schema, arrays, on=TODAY).ages_pooled


def test_whether_images_show_faces_is_for_the_hospital_to_say() -> None:
    image = ImageInput(name="film", channels=1, height=4, width=4, low=0, high=255, center=0.5, scale=0.5)
    schema = DatasetSchema(
        name="films", image=image, label=LabelRule(name="disease", column="num", operator=">", value=0)
    )
    arrays = SnapshotArrays(np.zeros((9, 1, 4, 4), np.float32), np.zeros(9), np.arange(9), np.zeros(9, bool), "")
    silent, without, showing = (scan(schema, arrays, on=TODAY, faces=faces).facts() for faces in (None, False, True))
    assert "Q" not in silent["identifier_scan"]
    assert "lds_identifiers" not in silent
    assert (without["identifier_scan"]["Q"], without["lds_identifiers"]) == (0, 0)
    assert (showing["identifier_scan"]["Q"], showing["lds_identifiers"]) == (1, 1)
