"""The data dictionary: one YAML file that says what a hospital's table holds.

Where records are images or sequences, the table is a manifest: its column of role `file` names each record's file, and
the dictionary's `image` or `sequence` says what that file holds.

It has two parts. The schema (features, units, ranges, scaling, outcome) is what all sites of a study agree on; the
file part (delimiter, column order, missing marks, what to do with bad values) is the hospital's own business and does
not enter the schema's digest. A researcher's study names the same file for its schema part alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from protocol.dataset import (
    MAX_FEATURES,
    MAX_INTERVALS,
    DatasetSchema,
    Feature,
    LabelRule,
    MaskLabel,
    NumberLabel,
    Outcome,
    SurvivalLabel,
    Value,
)
from protocol.identifiers import ColumnName, Frozen, SiteName
from protocol.media import ImageInput, SequenceInput
from protocol.strict_yaml import DEFAULT_LIMIT, Path, YamlDocument, YamlValue, load_yaml

Role = Literal["patient_id", "feature", "file", "mask", "label", "time", "ignore"]
Action = Literal["refuse", "drop"]
Mark = Annotated[str, StringConstraints(max_length=64)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Column(Frozen):
    """One column of the file, in the dictionary's order.

    source: the header's text where it is not the name itself. missing: texts and numbers that mean "no value" here,
    beside the file's. on_bad: what a missing value that can't be imputed, or a value outside the range or levels, does:
    refuse the file, or drop the row.
    """

    name: ColumnName
    source: Source | None = None
    role: Role
    type: Literal["number", "integer", "category"] | None = None
    unit: Annotated[str, StringConstraints(max_length=40)] = ""
    minimum: float | None = None
    maximum: float | None = None
    levels: tuple[int | str, ...] = ()
    center: float | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    impute: float | int | str | None = None
    missing: tuple[Mark | int | float, ...] = ()
    on_bad: Action = "refuse"

    @model_validator(mode="after")
    def _fits_its_role(self) -> Column:
        described = self.type is not None
        if self.role == "time" and self.type not in ("number", "integer"):
            raise ValueError(f"column {self.name}: the time to an event needs the type number or integer")
        if self.role in ("feature", "label") and not described:
            raise ValueError(f"column {self.name}: a {self.role} needs a type: number, integer or category")
        if self.role in ("patient_id", "file", "mask", "ignore") and (
            described or self.levels or self.minimum is not None or self.maximum is not None
        ):
            raise ValueError(f"column {self.name}: {self.role} takes no type, range or levels")
        if self.role != "feature" and not (self.center is None and self.scale is None and self.impute is None):
            raise ValueError(f"column {self.name}: only a feature is scaled or imputed")
        if self.type == "category" and not (self.center is None and self.scale is None):
            raise ValueError(f"column {self.name}: a category is not scaled")
        if (
            self.role == "feature"
            and self.type in ("number", "integer")
            and (self.center is None or self.scale is None)
        ):
            raise ValueError(f"column {self.name}: a {self.type} feature needs a center and a scale")
        if described:
            self.feature()
        return self

    @property
    def header(self) -> str:
        """The text that names this column in the file's header."""
        return self.source or self.name

    def feature(self) -> Feature:
        """The column as the schema's Feature (for a label: its range or levels). ValueError if it has no type."""
        if self.type is None:
            raise ValueError(f"column {self.name} has no type")
        return Feature(
            name=self.name,
            kind=self.type,
            unit=self.unit,
            minimum=self.minimum,
            maximum=self.maximum,
            levels=self.levels,
            center=0.0 if self.center is None else self.center,
            scale=1.0 if self.scale is None else self.scale,
            impute=self.impute,
        )


class FileDescription(Frozen):
    """How the table lies in its file. Without a header, `columns` give the order and must be all of them.

    patient_id: a column's name, or "generated": each row is its own patient, known by its row number. Keep the rows of
    such a file in their order and append new ones, or patients change places.
    """

    header: bool = True
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = ","
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    missing: tuple[Mark | int | float, ...] = ("",)
    patient_id: ColumnName | Literal["generated"]
    max_rows_per_patient: Annotated[int, Field(ge=1, le=10_000)] = 100

    @model_validator(mode="after")
    def _plain_delimiter(self) -> FileDescription:
        if self.delimiter not in (",", ";", "\t", "|"):
            raise ValueError("delimiter must be a comma, a semicolon, a tab or a bar")
        return self


class _Outcome(Frozen):
    """A rule, with operator and value; or kind number, with center and scale: the column's value itself is predicted;
    or kind mask: the pixels where the rule (above 0 by default) holds of the file that the column of role mask names.

    edges: only for the time to an event, which the column of role time holds.
    """

    name: ColumnName
    kind: Literal["number", "mask"] | None = None
    operator: Literal[">", ">=", "<", "<=", "==", "!="] | None = None
    value: float | int | str | None = None
    edges: Annotated[tuple[float, ...], Field(max_length=MAX_INTERVALS)] = ()
    center: float | None = None
    scale: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> _Outcome:
        rule, number = (self.operator, self.value), (self.center, self.scale)
        if self.kind is None and (None in rule or number != (None, None)):
            raise ValueError("a label needs an operator and a value, and no center or scale unless its kind is number")
        if self.kind == "number" and (None in number or rule != (None, None) or self.edges):
            raise ValueError("a label of kind number needs a center and a scale, and no operator, value or edges")
        if self.kind == "mask" and (number != (None, None) or self.edges or isinstance(self.value, str)):
            raise ValueError("a label of kind mask has an operator and a number as its value, or neither")
        if self.kind == "mask" and (self.operator is None) != (self.value is None):
            raise ValueError("a label of kind mask has an operator and a number as its value, or neither")
        return self


class _Document(Frozen):
    dictionary: Literal[1]
    name: SiteName
    file: FileDescription
    columns: Annotated[tuple[Column, ...], Field(max_length=MAX_FEATURES + 64)]
    image: ImageInput | None = None
    sequence: SequenceInput | None = None
    label: _Outcome


@dataclass(frozen=True)
class Dictionary:
    """A data dictionary that holds together: its two parts and its columns in order."""

    schema: DatasetSchema
    file: FileDescription
    columns: tuple[Column, ...]

    @property
    def file_column(self) -> Column | None:
        """The column that names each record's file; None for a table of features."""
        return next((column for column in self.columns if column.role == "file"), None)

    @property
    def mask_column(self) -> Column | None:
        """The column that names each record's mask; None where the outcome is no mask."""
        return next((column for column in self.columns if column.role == "mask"), None)

    def is_missing(self, column: Column, text: str) -> bool:
        """Whether a cell's text (stripped) means "no value": equal to a mark, or to a mark's number."""
        return _matches(text, self.file.missing) or _matches(text, column.missing)


def parse_dictionary(data: bytes, *, limit: int = DEFAULT_LIMIT) -> Dictionary:
    """The dictionary in YAML `data`. Raises Malformed with line, column name and what to do."""
    document = load_yaml(data, limit=limit)
    if not isinstance(document.value, dict):
        raise document.refuse((), "a data dictionary is a mapping.", "Begin with dictionary: 1.")
    _refuse_truth_values(document, document.value, ())
    try:
        parsed = _Document.model_validate(document.value)
    except ValidationError as error:
        raise document.refuse_validation(error) from None
    _refuse_clashes(document, parsed)
    try:
        schema = DatasetSchema(
            name=parsed.name,
            features=tuple(column.feature() for column in parsed.columns if column.role == "feature"),
            image=parsed.image,
            sequence=parsed.sequence,
            label=_label(parsed),
        )
    except ValidationError as error:
        text = error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise document.refuse(("columns",), text, "Correct the dictionary.") from None
    return Dictionary(schema, parsed.file, parsed.columns)


def _label(parsed: _Document) -> Outcome:
    """The outcome of a document without clashes. ValidationError where its parts contradict each other."""
    named = {column.role: column.name for column in parsed.columns}
    if parsed.label.kind == "number":
        column = next(column for column in parsed.columns if column.role == "label")
        minimum, maximum = column.feature().bounds
        return NumberLabel.model_validate(
            {
                "kind": "number",
                "name": parsed.label.name,
                "column": column.name,
                "unit": column.unit,
                "minimum": minimum,
                "maximum": maximum,
                "center": parsed.label.center,
                "scale": parsed.label.scale,
            }
        )
    if parsed.label.kind == "mask":
        mask = {"kind": "mask", "name": parsed.label.name, "column": named["mask"]}
        given = {"operator": parsed.label.operator, "value": parsed.label.value}
        return MaskLabel.model_validate({**mask, **(given if parsed.label.operator else {})})
    rule = {
        "name": parsed.label.name,
        "column": named["label"],
        "operator": parsed.label.operator,
        "value": parsed.label.value,
    }
    if "time" not in named:
        return LabelRule.model_validate(rule)
    return SurvivalLabel.model_validate({**rule, "time": named["time"], "edges": parsed.label.edges})


def parse_number(text: str) -> float | None:
    """The finite number that a cell's text writes in plain ASCII digits (sign, point, exponent), else None."""
    if len(text) > 64 or not text.isascii() or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_value(feature: Feature, text: str) -> Value:
    """A present cell's value in the feature's own type, or None where the text has no such value.

    An integer may be written 3 or 3.0; an integer level likewise. Whether it lies in the range is `admits`' to say.
    """
    if feature.kind == "category" and not any(isinstance(level, int) for level in feature.levels):
        return text
    number = parse_number(text)
    if feature.kind == "number":
        return number
    if number is not None and number == int(number):
        return int(number)
    return text if feature.kind == "category" else None


def _matches(text: str, marks: tuple[str | int | float, ...]) -> bool:
    for mark in marks:
        if isinstance(mark, str):
            if text == mark:
                return True
        elif parse_number(text) == mark:
            return True
    return False


def _refuse_truth_values(document: YamlDocument, value: YamlValue, path: Path) -> None:
    """true and false would turn into 1 and 0 unseen: only `header` means one."""
    if isinstance(value, bool) and path != ("file", "header"):
        raise document.refuse(
            path, f"{value} is no value of a table.".lower(), "Quote a word; write 1 or 0 for a number."
        )
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_truth_values(document, item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_truth_values(document, item, (*path, key))


def _refuse_clashes(document: YamlDocument, parsed: _Document) -> None:
    names: dict[str, int] = {}
    headers: dict[str, int] = {}
    roles: dict[str, list[int]] = {}
    for index, column in enumerate(parsed.columns):
        for seen, key, what in ((names, column.name, "column"), (headers, column.header, "header")):
            if key in seen:
                first = document.line(("columns", seen[key]))
                raise document.refuse(
                    ("columns", index),
                    f"{what} {key!r} stands twice (first on line {first}).",
                    "Give each column one entry and one role.",
                )
            seen[key] = index
        roles.setdefault(column.role, []).append(index)
    masks = len(roles.get("mask", []))
    if masks != int(parsed.label.kind == "mask") or (masks and (parsed.image is None or "label" in roles)):
        raise document.refuse(
            ("label",),
            f"{masks} columns have the role mask, and the label's kind is {parsed.label.kind or 'a rule'}.",
            "For a mask describe an image, give one column the role mask and none the role label, and write "
            "label: {kind: mask}.",
        )
    if not masks and len(roles.get("label", [])) != 1:
        raise document.refuse(
            ("columns",), f"{len(roles.get('label', []))} columns have the role label.", "Give it to exactly one."
        )
    times = [parsed.columns[index] for index in roles.get("time", [])]
    if len(times) != int(bool(parsed.label.edges)):
        raise document.refuse(
            ("label",),
            f"{len(times)} columns have the role time, and the label has {len(parsed.label.edges)} edges.",
            "For the time to an event give one column the role time and the label its edges; else neither.",
        )
    if times and not parsed.label.edges[-1] <= (times[0].maximum or 0.0):
        raise document.refuse(
            ("label", "edges"), f"the last edge lies beyond the range of {times[0].name}.", "End within it."
        )
    files = len(roles.get("file", []))
    if files != int(parsed.image is not None) + int(parsed.sequence is not None):
        raise document.refuse(
            ("columns",),
            f"{files} columns have the role file, and the dictionary describes "
            f"{'an image' if parsed.image else 'a sequence' if parsed.sequence else 'neither image nor sequence'}.",
            "For images or sequences give one column the role file and describe one of the two; else neither.",
        )
    if not files and "feature" not in roles:
        raise document.refuse(("columns",), "no column has the role feature.", "Name at least one input.")
    identified = [parsed.columns[index].name for index in roles.get("patient_id", [])]
    wanted = [] if parsed.file.patient_id == "generated" else [parsed.file.patient_id]
    if identified != wanted:
        raise document.refuse(
            ("file", "patient_id"),
            f"patient_id says {parsed.file.patient_id}, but the role patient_id is given to "
            f"{', '.join(identified) or 'no column'}.",
            "Name the one column that identifies patients in both places, or write generated and give it to none.",
        )
    if not masks:
        _refuse_wrong_outcome(document, parsed, roles["label"][0])


def _refuse_wrong_outcome(document: YamlDocument, parsed: _Document, index: int) -> None:
    """The outcome's rule must be able to be true and false on the label column's values."""
    label, rule = parsed.columns[index].feature(), parsed.label
    where = ("label", "value")
    if rule.name in {column.name for column in parsed.columns} and rule.name != label.name:
        raise document.refuse(
            ("label", "name"), f"label {rule.name} is also a column.", "Give the outcome its own name."
        )
    if rule.kind == "number":
        if label.kind == "category":
            raise document.refuse(
                ("label", "kind"), f"{label.name} is a category, not a number.", "Give an operator and a value."
            )
        minimum, maximum = label.bounds
        if not minimum <= (rule.center or 0.0) <= maximum:
            raise document.refuse(
                ("label", "center"), f"the center lies outside the range of {label.name}.", "Use a value within it."
            )
        return
    if label.kind == "category":
        if rule.operator not in ("==", "!=") and any(isinstance(level, str) for level in label.levels):
            raise document.refuse(
                ("label", "operator"), "words have no order.", "Use == or != with a category of words."
            )
        if rule.operator in ("==", "!=") and rule.value not in label.levels:
            raise document.refuse(where, f"the value is not a level of {label.name}.", "Use one of its levels.")
    elif isinstance(rule.value, str):
        raise document.refuse(where, f"{label.name} is a number, the value is not.", "Compare it with a number.")
    elif not (label.minimum or 0.0) <= (rule.value or 0.0) <= (label.maximum or 0.0):
        raise document.refuse(where, f"the value lies outside the range of {label.name}.", "Use a value within it.")
