"""What one record is when it is no row of values: an image, or a sequence of measurements on a fixed grid of time.

All constants (window, ranges, centre, scale) come from outside the study's patients, as those of a `Feature` do.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from protocol.identifiers import ColumnName, Frozen, Label

MAX_RECORD_ELEMENTS = 1 << 22
"""Numbers in one encoded record: 16 MiB of float32."""
MAX_CHANNELS = 64
Shape = tuple[int, ...]


class ImageInput(Frozen):
    """One image: encoded as (channels, height, width), each value (clip(v, low, high) - low) / (high - low), then
    (that - center) / scale.

    low, high: the window, in the file's own values (Hounsfield units for CT). fit: exact refuses an image of another
    size; resize scales it (bilinear over the pixels' area), aspect ratio not kept. modality: DICOM files must be of it.
    """

    name: ColumnName
    channels: Annotated[int, Field(ge=1, le=16)]
    height: Annotated[int, Field(ge=4, le=2048)]
    width: Annotated[int, Field(ge=4, le=2048)]
    low: float
    high: float
    center: float
    scale: Annotated[float, Field(gt=0)]
    fit: Literal["exact", "resize"] = "exact"
    modality: Label | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ImageInput:
        if not self.low < self.high:
            raise ValueError(f"image {self.name}: the window needs low < high")
        if self.channels * self.height * self.width > MAX_RECORD_ELEMENTS:
            raise ValueError(f"image {self.name}: more than {MAX_RECORD_ELEMENTS} values")
        return self

    @property
    def shape(self) -> Shape:
        """(channels, height, width)."""
        return self.channels, self.height, self.width


class SequenceChannel(Frozen):
    """One measurement over time, encoded as clip((v - center) / scale, +-3).

    impute: the value before the first measurement; without it a record that begins without one is a bad record.
    outside: what a value out of minimum..maximum is: a bad value, or a missing one (an artefact of the device).
    """

    name: ColumnName
    unit: Annotated[str, StringConstraints(max_length=40)] = ""
    minimum: float
    maximum: float
    center: float
    scale: Annotated[float, Field(gt=0)]
    impute: float | None = None
    outside: Literal["refuse", "missing"] = "refuse"

    @model_validator(mode="after")
    def _consistent(self) -> SequenceChannel:
        if not self.minimum < self.maximum:
            raise ValueError(f"channel {self.name}: minimum must be below maximum")
        if self.impute is not None and not self.minimum <= self.impute <= self.maximum:
            raise ValueError(f"channel {self.name}: the imputation constant lies outside the range")
        return self


class SequenceInput(Frozen):
    """Measurements on a grid: `length` steps of `interval` seconds each, encoded as (channels, length).

    A step's value is the mean of what was measured in it; an empty step carries the last value forward.
    """

    name: ColumnName
    channels: Annotated[tuple[SequenceChannel, ...], Field(min_length=1, max_length=MAX_CHANNELS)]
    length: Annotated[int, Field(ge=2, le=100_000)]
    interval: Annotated[float, Field(gt=0, le=86_400 * 366)]

    @model_validator(mode="after")
    def _consistent(self) -> SequenceInput:
        names = [channel.name for channel in self.channels]
        if len(set(names)) != len(names):
            raise ValueError(f"sequence {self.name}: two channels have one name")
        if len(names) * self.length > MAX_RECORD_ELEMENTS:
            raise ValueError(f"sequence {self.name}: more than {MAX_RECORD_ELEMENTS} values")
        return self

    @property
    def shape(self) -> Shape:
        """(channels, length)."""
        return len(self.channels), self.length
