"""Data dictionaries: what they say, and what they may not."""

from __future__ import annotations

import pytest
import yaml

from protocol.dataset import Feature
from protocol.dictionary import parse_dictionary, parse_number, parse_value
from protocol.errors import Malformed

GOOD = """\
dictionary: 1
name: heart
file:
  header: true
  patient_id: pid
columns:
  - {name: pid, role: patient_id}
  - {name: age, role: feature, type: integer, unit: years, minimum: 0, maximum: 120, center: 55, scale: 10}
  - {name: chol, role: feature, type: number, minimum: 50, maximum: 800, center: 210, scale: 45,
     missing: [0], impute: 210}
  - {name: cp, role: feature, type: category, levels: [1, 2, 3, 4]}
  - {name: note, role: ignore}
  - {name: num, role: label, type: integer, minimum: 0, maximum: 4}
label: {name: disease, operator: ">", value: 0}
"""


def parse(text: str):
    return parse_dictionary(text.encode())


def test_the_schema_holds_features_and_outcome_alone():
    schema = parse(GOOD).schema
    assert [feature.name for feature in schema.features] == ["age", "chol", "cp"]
    assert schema.width == 6
    assert (schema.label.name, schema.label.column, schema.label.value) == ("disease", "num", 0)


def test_the_file_part_is_not_in_the_schemas_digest():
    """Two hospitals with files of another shape share a study; another range or scale is another schema."""
    other = GOOD.replace("header: true", 'header: false\n  missing: ["?"]\n  delimiter: ";"')
    other = other.replace("role: ignore}", "role: ignore, missing: [-9]}").replace("missing: [0], ", "on_bad: drop, ")
    assert parse(other).schema.digest == parse(GOOD).schema.digest
    for old, new in (("maximum: 120", "maximum: 121"), ("scale: 45", "scale: 46"), ("impute: 210", "impute: 211")):
        assert parse(GOOD.replace(old, new)).schema.digest != parse(GOOD).schema.digest


def test_missing_marks_are_the_files_and_the_columns():
    dictionary = parse(GOOD.replace("header: true", 'header: true\n  missing: ["", "?", -9]'))
    age, chol = dictionary.columns[1], dictionary.columns[2]
    assert dictionary.is_missing(age, "?")
    assert dictionary.is_missing(age, "-9.0")
    assert not dictionary.is_missing(age, "0")
    for zero in ("0", "0.0", "00", "-0", "0e5"):
        assert dictionary.is_missing(chol, zero)


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("dictionary: 1", "dictionary: 2", "line 1: dictionary"),
        ("dictionary: 1\n", "", "dictionary: Field required"),
        ("name: heart", "name: Heart Disease", "line 2: name"),
        ("header: true", "header: maybe", "line 4: file.header"),
        ("header: true", 'header: true\n  delimiter: "x"', "line 3: file: delimiter must be"),
        ("header: true", "header: true\n  encoding: utf-16", "line 5: file.encoding"),
        ("header: true", "header: true\n  max_rows_per_patient: 0", "line 5: file.max_rows_per_patient"),
        ("role: ignore", "role: maybe", "line 12: columns.note.role"),
        ("{name: note, role: ignore}", "{name: note, role: ignore, min: 3}", "line 12: columns.note.min: Extra"),
        (
            "minimum: 0, maximum: 120",
            "minimum: 120, maximum: 0",
            "line 8: columns.age: column age: a number needs a range",
        ),
        ("minimum: 0, maximum: 120", "maximum: 120", "column age: a number needs a range"),
        ("scale: 10", "scale: 0", "line 8: columns.age.scale"),
        (", center: 55, scale: 10", "", "column age: a integer feature needs a center and a scale"),
        ("impute: 210", "impute: 9000", "column chol: the imputation constant"),
        ("levels: [1, 2, 3, 4]", "levels: [1]", "column cp: a category needs"),
        ("levels: [1, 2, 3, 4]", "levels: [1, 1]", "column cp: a category needs"),
        ("levels: [1, 2, 3, 4]", "levels: [true, false]", "line 11: true is no value"),
        ("type: category, levels", "type: number, levels", "column cp"),
        ("type: category, ", "", "column cp: a feature needs a type"),
        (
            "{name: pid, role: patient_id}",
            "{name: pid, role: patient_id, type: number}",
            "column pid: patient_id takes no",
        ),
        ("name: note", "name: age", "line 12: column 'age' stands twice .first on line 8"),
        ("name: note", "name: note, source: pid", "line 12: header 'pid' stands twice"),
        ("name: note, role: ignore", "name: note, role: patient_id", "patient_id says pid, but .* pid, note"),
        ("{name: pid, role: patient_id}", "{name: pid, role: ignore}", "patient_id says pid, but .* no column"),
        ("patient_id: pid", "patient_id: generated", "patient_id says generated, but .* pid"),
        ("patient_id: pid", "patient_id: age", "patient_id says age"),
        ("role: label", "role: feature, center: 0, scale: 1", "0 columns have the role label"),
        ("role: ignore", "role: label, type: integer, minimum: 0, maximum: 1", "2 columns have the role label"),
        ("value: 0", "value: 9", "line 14: the value lies outside the range of num"),
        ("value: 0", "value: sick", "line 14: num is a number, the value is not"),
        ('operator: ">"', 'operator: "=>"', "line 14: label.operator"),
        ("name: disease", "name: age", "label age is also a column"),
        ("name: age", "name: 'age; drop'", "line 8: columns.age; drop.name"),
        ("impute: 210", "impute: .nan", "line 10: a number is not finite"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_column(old, new, match):
    with pytest.raises(Malformed, match=match) as caught:
        parse(change(GOOD, old, new))
    assert caught.value.remedy


def test_a_label_of_words_takes_equality_alone():
    words = change(GOOD, "type: integer, minimum: 0, maximum: 4}", "type: category, levels: [benign, malignant]}")
    with pytest.raises(Malformed, match="words have no order"):
        parse(change(words, "value: 0", "value: malignant"))
    equal = change(words, '">"', '"=="')
    with pytest.raises(Malformed, match="not a level"):
        parse(change(equal, "value: 0", "value: cancer"))
    rule = parse(change(equal, "value: 0", "value: malignant")).schema.label
    assert (rule.of("malignant"), rule.of("benign")) == (1, 0)


@pytest.mark.parametrize("text", ["[]", "3", "just words", "- a\n- b", "{}"])
def test_another_document_is_refused(text):
    with pytest.raises(Malformed):
        parse(text)


def test_a_dictionary_without_features_is_refused():
    document = yaml.safe_load(GOOD)
    document["columns"] = [column for column in document["columns"] if column["role"] != "feature"]
    with pytest.raises(Malformed, match="no column has the role feature"):
        parse(yaml.safe_dump(document))


def test_many_findings_are_counted():
    columns = "".join(f"  - {{name: c{number}, role: nothing}}\n" for number in range(30))
    head = "dictionary: 1\nname: heart\nfile: {patient_id: generated}\n"
    with pytest.raises(Malformed, match="and 20 more"):
        parse(f"{head}columns:\n{columns}label: {{name: x, operator: '>', value: 1}}\n")


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "1_0", "٣", "0x1", "", " ", "1,5", "1" * 65, "infinity"]
)
def test_what_is_no_plain_finite_number_is_none(text):
    assert parse_number(text) is None


def test_integers_may_be_written_with_a_point():
    integer = Feature(name="n", kind="integer", minimum=0, maximum=9)
    levels = Feature(name="c", kind="category", levels=(1, 2))
    assert parse_value(integer, "3.0") == 3
    assert parse_value(integer, "3.5") is None
    assert parse_value(levels, "2.0") == 2
    assert not levels.admits(parse_value(levels, "2.5"))
    assert not levels.admits(parse_value(levels, "3"))
