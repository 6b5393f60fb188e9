"""What a researcher may ask before proposing a study: counts, means, histograms and quantiles of the schema's columns.

A closed document. All of it is one noised vector per cohort, with one epsilon and delta; no filter and no expression
can be asked, so the answer's sensitivity follows from the document alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema, LabelRule, NumberLabel, SurvivalLabel
from protocol.errors import Malformed
from protocol.identifiers import ColumnName, Frozen

MAX_QUERIES = 64
MAX_BINS = 200
Kind = Literal["count", "mean", "histogram", "quantiles"]


class Statistic(Frozen):
    """One statistic of one feature, or of the label by its name.

    count: patients whose category is `level`. mean: of a number. histogram: patients in each level of a category, or in
    `bins` equal parts of a number's range. quantiles: `probabilities` of a number, read off `bins` equal parts of its
    range. A number's range is that which training sees: the dictionary's, within 3 scales of its centre.
    """

    kind: Kind
    column: ColumnName
    level: int | str | None = None
    bins: Annotated[int, Field(ge=2, le=MAX_BINS)] | None = None
    probabilities: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=20)] = ()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Statistic:
        if (self.level is not None) != (self.kind == "count"):
            raise ValueError(f"column {self.column}: a level belongs to a count, and to nothing else")
        if bool(self.probabilities) != (self.kind == "quantiles"):
            raise ValueError(f"column {self.column}: probabilities belong to quantiles, and to nothing else")
        if self.bins is not None and self.kind not in ("histogram", "quantiles"):
            raise ValueError(f"column {self.column}: a {self.kind} has no bins")
        return self


@dataclass(frozen=True)
class Resolved:
    """A statistic in terms of the encoded inputs; the fields are those of privacy.statistics.queries.Query."""

    kind: Kind
    start: int | None
    inputs: int
    scale: float
    center: float
    low: float
    high: float
    edges: tuple[float, ...]
    level: int | None
    probabilities: tuple[float, ...]

    @property
    def length(self) -> int:
        """Coordinates of a patient's vector: one for a count or a mean, else one for each bin or level."""
        if self.kind in ("count", "mean"):
            return 1
        return len(self.edges) - 1 if self.edges else self.inputs


def resolve(schema: DatasetSchema, statistic: Statistic) -> Resolved:
    """Raises Malformed for a column that the schema lacks, and for a kind that its type does not have."""
    label = schema.label
    if statistic.column == label.name and isinstance(label, NumberLabel):
        return _numeric(statistic, None, (label.minimum, label.maximum), label.center, label.scale, label.scale)
    if statistic.column == label.name and isinstance(label, LabelRule) and not isinstance(label, SurvivalLabel):
        return _categorical(statistic, None, (0, 1))
    start = 0
    for feature in schema.features:
        if feature.name == statistic.column:
            break
        start += feature.width
    else:
        raise Malformed(
            f"The data set {schema.name} has no column {statistic.column} that a statistic can be asked of.",
            "Name a feature, or the label by its own name.",
        )
    if feature.kind == "category":
        return _categorical(statistic, start, feature.levels)
    unscaled = feature.scale * math.sqrt(schema.width)
    return _numeric(statistic, start, feature.bounds, feature.center, feature.scale, unscaled)


def _numeric(
    statistic: Statistic, start: int | None, bounds: tuple[float, float], center: float, scale: float, unscaled: float
) -> Resolved:
    """unscaled: what an encoded input is times, to be a value less the centre."""
    if statistic.kind == "count":
        raise Malformed(f"Column {statistic.column} is a number and has no levels to count.", "Ask for its histogram.")
    low = max(bounds[0], center - CLIP_DEVIATIONS * scale)
    high = min(bounds[1], center + CLIP_DEVIATIONS * scale)
    if not low < high:
        raise Malformed(f"Column {statistic.column} has one value for training.", "Correct its centre and scale.")
    edges: tuple[float, ...] = ()
    if statistic.kind != "mean":
        if statistic.bins is None:
            raise Malformed(f"The {statistic.kind} of {statistic.column} needs bins.", f"Give 2 to {MAX_BINS} bins.")
        edges = tuple(low + (high - low) * part / statistic.bins for part in range(statistic.bins + 1))
    return Resolved(
        kind=statistic.kind,
        start=start,
        inputs=1,
        scale=unscaled,
        center=center,
        low=low,
        high=high,
        edges=edges,
        level=None,
        probabilities=statistic.probabilities,
    )


def _categorical(statistic: Statistic, start: int | None, levels: tuple[int | str, ...]) -> Resolved:
    if statistic.kind not in ("count", "histogram") or statistic.bins is not None:
        raise Malformed(
            f"Column {statistic.column} is a category: it has counts and a histogram of its levels, without bins.",
            "Ask for one of these.",
        )
    if statistic.kind == "count" and statistic.level not in levels:
        raise Malformed(f"Column {statistic.column} has no such level.", f"Use one of {', '.join(map(str, levels))}.")
    level = None if statistic.level is None else levels.index(statistic.level)
    return Resolved(statistic.kind, start, len(levels), 1.0, 0.0, 0.0, 1.0, (), level, ())
