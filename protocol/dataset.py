"""The dataset schema that every site of a study agrees on, and the encoding of one patient's record.

A schema holds names, types, units, ranges and scaling constants. The constants come from a clinical data
dictionary, never from the study's own patients: a statistic of the data would have to be paid for
(design: scaling comes from sources outside the study's data).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from protocol.canonical import digest
from protocol.identifiers import ColumnName, Frozen, SiteName
from protocol.media import ImageInput, SequenceInput, Shape

Value = float | int | str | None
CLIP_DEVIATIONS = 3.0
MAX_FEATURES = 4096
MAX_INTERVALS = 50


class Feature(Frozen):
    """One input column.

    number, integer: `minimum <= value <= maximum` in `unit`; encoded as clip((v - center) / scale, +-3).
    category: `levels` in order; encoded one-hot, one input per level.
    `impute` replaces a missing value; without it a missing value is a bad value.
    """

    name: ColumnName
    kind: Literal["number", "integer", "category"]
    unit: Annotated[str, StringConstraints(max_length=40)] = ""
    minimum: float | None = None
    maximum: float | None = None
    levels: tuple[int | str, ...] = ()
    center: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    impute: float | int | str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        if self.kind == "category":
            if not 2 <= len(self.levels) <= 256 or len(set(self.levels)) != len(self.levels):
                raise ValueError(f"column {self.name}: a category needs 2 to 256 distinct levels")
        else:
            if self.minimum is None or self.maximum is None or not self.minimum < self.maximum:
                raise ValueError(f"column {self.name}: a number needs a range with minimum < maximum")
            if self.levels:
                raise ValueError(f"column {self.name}: levels belong to a category")
        if self.impute is not None and not self.admits(self.impute):
            raise ValueError(f"column {self.name}: the imputation constant lies outside the allowed values")
        return self

    @property
    def width(self) -> int:
        """Encoded inputs of this column: one, or one per level."""
        return len(self.levels) if self.kind == "category" else 1

    @property
    def bounds(self) -> tuple[float, float]:
        """(minimum, maximum) of a number or integer column. ValueError for a category."""
        if self.minimum is None or self.maximum is None:
            raise ValueError(f"column {self.name} has no range")
        return self.minimum, self.maximum

    def admits(self, value: Value) -> bool:
        """Whether a present value lies within the range or levels."""
        if self.kind == "category":
            return value in self.levels and not isinstance(value, bool)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.kind == "integer" and value != int(value):
            return False
        minimum, maximum = self.bounds
        return minimum <= value <= maximum


class LabelRule(Frozen):
    """The binary outcome: true where `column operator value`, e.g. num > 0."""

    name: ColumnName
    column: ColumnName
    operator: Literal[">", ">=", "<", "<=", "==", "!="]
    value: float | int | str

    def of(self, value: float | int | str) -> int:
        """1 where the rule holds for a present value of the column, else 0. TypeError never: kinds differ -> 0/1 by
        equality only."""
        if isinstance(value, str) or isinstance(self.value, str):
            same = str(value) == str(self.value)
            return int(same if self.operator == "==" else not same if self.operator == "!=" else False)
        match self.operator:
            case ">":
                return int(value > self.value)
            case ">=":
                return int(value >= self.value)
            case "<":
                return int(value < self.value)
            case "<=":
                return int(value <= self.value)
            case "==":
                return int(value == self.value)
            case _:
                return int(value != self.value)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the outcome is read from."""
        return (self.column,)

    def code(self, record: Mapping[str, Value]) -> int:
        """The record's label as snapshots hold it: 0 or 1. ValueError naming a column without a value."""
        return self.of(_present(record, self.column))


class SurvivalLabel(LabelRule):
    """Time to an event. The rule on `column` says whether the patient's `time` ended with the event; else the patient
    was lost from sight then. `edges`: the ends of the J intervals, rising, in the unit of `time`; the last is the
    horizon, beyond which nothing is asked.
    """

    time: ColumnName
    edges: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=MAX_INTERVALS)]

    @model_validator(mode="after")
    def _rising(self) -> SurvivalLabel:
        if any(later <= earlier for earlier, later in pairwise(self.edges)):
            raise ValueError("the label's edges must rise")
        if self.time == self.column:
            raise ValueError("the event and its time are one column")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the outcome is read from."""
        return self.column, self.time

    def code(self, record: Mapping[str, Value]) -> int:
        """2 k + e: k intervals were lived through, and e says whether the event came in the next one; 2 J beyond the
        horizon. An event at an edge falls in the interval that ends there; so does the end of one who was lost from
        sight, who lived through it. ValueError naming a column without a value."""
        time = _present(record, self.time)
        if isinstance(time, str):
            raise ValueError(f"column {self.time}: not a number")
        if self.of(_present(record, self.column)) == 0:
            return 2 * bisect_right(self.edges, time)
        lived = bisect_left(self.edges, time)
        return 2 * lived + int(lived < len(self.edges))


class NumberLabel(Frozen):
    """A number to be predicted. `minimum <= value <= maximum` in the column's `unit`; it is learned as
    (value - center) / scale, with constants from a data dictionary: center and scale stand for its mean and standard
    deviation outside the study."""

    kind: Literal["number"]
    name: ColumnName
    column: ColumnName
    unit: Annotated[str, StringConstraints(max_length=40)] = ""
    minimum: Annotated[float, Field(allow_inf_nan=False)]
    maximum: Annotated[float, Field(allow_inf_nan=False)]
    center: Annotated[float, Field(allow_inf_nan=False)]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _rising(self) -> NumberLabel:
        if not self.minimum <= self.center <= self.maximum or self.minimum == self.maximum:
            raise ValueError("the label needs minimum < maximum and a center between them")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the outcome is read from."""
        return (self.column,)

    def code(self, record: Mapping[str, Value]) -> float:
        """The record's label as snapshots hold it: (value - center) / scale. ValueError naming a column without a
        number."""
        value = _present(record, self.column)
        if isinstance(value, str) or not self.minimum <= value <= self.maximum:
            raise ValueError(f"column {self.column}: not a number within the label's range")
        return (float(value) - self.center) / self.scale


class MaskLabel(Frozen):
    """Which pixels of the image show what is looked for: those where `operator value` holds of the mask, an image of
    one channel in the file that the manifest's `column` names."""

    kind: Literal["mask"]
    name: ColumnName
    column: ColumnName
    operator: Literal[">", ">=", "<", "<=", "==", "!="] = ">"
    value: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the outcome is read from."""
        return (self.column,)

    def code(self, record: Mapping[str, Value]) -> float:
        """0: the outcome lies in the mask's file. ValueError naming a column without a value."""
        _present(record, self.column)
        return 0.0


Outcome = SurvivalLabel | LabelRule | NumberLabel | MaskLabel


def _present(record: Mapping[str, Value], column: str) -> float | int | str:
    value = record.get(column)
    if value is None:
        raise ValueError(f"column {column}: missing")
    return value


class DatasetSchema(Frozen):
    """What a study trains on: a row of features, or one image, or one sequence. Its digest (RFC 8785, SHA-256) stands
    in the plan and in each site's snapshot."""

    name: SiteName
    version: Literal[1] = 1
    features: Annotated[tuple[Feature, ...], Field(max_length=MAX_FEATURES)] = ()
    image: ImageInput | None = None
    sequence: SequenceInput | None = None
    label: Outcome

    @model_validator(mode="after")
    def _distinct(self) -> DatasetSchema:
        if sum((bool(self.features), self.image is not None, self.sequence is not None)) != 1:
            raise ValueError("a data set has features, or one image, or one sequence")
        if isinstance(self.label, MaskLabel) and self.image is None:
            raise ValueError("a mask is the outcome of an image alone")
        names = self.columns
        if len(set(names)) != len(names):
            raise ValueError("two features have one name")
        if {self.label.name, *self.label.columns} & set(names):
            raise ValueError("the label's column must not be a feature: the model would be told the answer")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the schema's canonical JSON: what a study and a snapshot must share."""
        return digest(self.model_dump(mode="json"))

    @property
    def media(self) -> ImageInput | SequenceInput | None:
        """The input that lies in files of its own, or None for a table."""
        return self.image or self.sequence

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is read of a patient, the outcome apart."""
        if self.sequence is not None:
            return tuple(channel.name for channel in self.sequence.channels)
        return tuple(feature.name for feature in self.features) if self.image is None else (self.image.name,)

    @property
    def shape(self) -> Shape:
        """Of one encoded record: (D,), (channels, height, width) or (channels, length)."""
        return (sum(feature.width for feature in self.features),) if self.media is None else self.media.shape

    @property
    def width(self) -> int:
        """Number of encoded inputs D."""
        return math.prod(self.shape)

    def encode(self, record: Mapping[str, Value]) -> list[float]:
        """One row of a table -> D floats, each within +-3/sqrt(D), so that a row's L2 norm is at most 3.

        Missing (None) takes the imputation constant. Raises ValueError naming the column, never the value.
        """
        root = math.sqrt(self.width)
        inputs: list[float] = []
        for feature in self.features:
            value = record.get(feature.name)
            if value is None:
                value = feature.impute
            if value is None:
                raise ValueError(f"column {feature.name}: missing, and the schema has no imputation constant")
            if not feature.admits(value):
                raise ValueError(f"column {feature.name}: outside the allowed range or levels")
            if feature.kind == "category":
                inputs.extend((1.0 if level == value else 0.0) / root for level in feature.levels)
            else:
                scaled = (float(value) - feature.center) / feature.scale
                inputs.append(min(CLIP_DEVIATIONS, max(-CLIP_DEVIATIONS, scaled)) / root)
        return inputs
