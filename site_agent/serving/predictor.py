"""The installed model, run on values a practitioner names: validated, never guessed.

The ONNX file holds the whole path from raw values to probability; this module checks the values against the
release's schema and hands them over. Nothing about a patient is kept or logged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from protocol.dataset import DatasetSchema, Feature, MaskLabel, NumberLabel
from protocol.errors import Malformed
from protocol.release import ReleaseSubject
from site_agent.serving.media_inputs import file_record, model_input, named_record, tensor_name

MAX_ROWS = 10_000
Prediction = float | list[list[float]]


class Predictor:
    """Loads one release's ONNX file. Thread-safe: an ONNX Runtime session may be run concurrently."""

    def __init__(self, model: bytes, subject: ReleaseSubject) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.subject = subject
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @property
    def schema(self) -> DatasetSchema:
        """What the model takes."""
        return self.subject.dataset

    def predict(self, records: Sequence[Mapping[str, object]]) -> list[Prediction]:
        """One probability in [0, 1] per record of named values, or one number in the label's unit, or one probability
        of each pixel as nested lists.

        Raises Malformed naming the record's number and the column, never the value.
        """
        if not 1 <= len(records) <= MAX_ROWS:
            raise Malformed(f"A request holds 1 to {MAX_ROWS} records.", "Send fewer, or at least one.")
        media = self.schema.media
        if media is not None:
            return self.run(np.stack([named_record(number, media, record) for number, record in enumerate(records, 1)]))
        rows = [self._row(number, record) for number, record in enumerate(records, start=1)]
        return self.run(np.array(rows, dtype=np.float64))

    def predict_file(self, data: bytes) -> Prediction:
        """`predict` for one image or sequence as a file holds it. Raises Malformed."""
        if self.schema.media is None:
            raise Malformed("The model takes no file.", "Send named values to /v1/predict.")
        return self.run(file_record(self.schema.media, data)[np.newaxis])[0]

    @property
    def output(self) -> str:
        """The ONNX file's output: probability or value."""
        return "value" if isinstance(self.schema.label, NumberLabel) else "probability"

    @property
    def input(self) -> tuple[str, str, tuple[int, ...]]:
        """The ONNX file's input: name, the protocol's datatype, shape of one record."""
        if self.schema.media is not None:
            return tensor_name(self.schema.media), "FP32", self.schema.shape
        return "features", "FP64", (len(self.schema.features),)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of what is predicted of one record: (1,), or (height, width) of masks."""
        return self.schema.shape[1:] if isinstance(self.schema.label, MaskLabel) else (1,)

    def run(self, rows: NDArray[np.float64]) -> list[Prediction]:
        """`outputs` as lists: N predictions, or N nested lists of one for each pixel."""
        found = self.outputs(rows)
        values: list[Prediction] = (found[:, 0] if self.output_shape == (1,) else found).tolist()
        return values

    def outputs(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """rows (N, F) or (N, *shape) as in the ONNX file's input -> (N, *output_shape) predictions. Raises Malformed
        for another shape or a value that the schema does not admit."""
        if self.schema.media is not None:
            given = model_input(self.schema.media, rows)
            (output,) = self._session.run(None, {tensor_name(self.schema.media): given})
            return _numbers(output)
        if rows.ndim != 2 or rows.shape[1] != len(self.schema.features) or not 1 <= rows.shape[0] <= MAX_ROWS:
            raise Malformed(
                f"The input is not a table of {len(self.schema.features)} columns and 1 to {MAX_ROWS} rows.",
                "Ask GET /v2/models/NAME for the columns and their order.",
            )
        for index, feature in enumerate(self.schema.features):
            _check_column(feature, rows[:, index])
        (output,) = self._session.run(None, {"features": rows})
        return _numbers(output)

    def _row(self, number: int, record: Mapping[str, object]) -> list[float]:
        known = {feature.name for feature in self.schema.features}
        for name in record:
            if name not in known:
                raise Malformed(
                    f"Record {number} names a column that the model does not have.",
                    f"The columns are {', '.join(sorted(known))}.",
                )
        return [_value(number, feature, record.get(feature.name)) for feature in self.schema.features]


def _numbers(output: object) -> NDArray[np.float64]:
    """A graph that a researcher brought may divide by 0: such an answer is none."""
    found = np.asarray(output, dtype=np.float64)
    if not np.isfinite(found).all():
        raise Malformed("The model gives no number for a record of the request.", "Leave the record out.")
    return found


def _value(number: int, feature: Feature, value: object) -> float:
    if value is None:
        if feature.impute is None:
            raise Malformed(f"Record {number} lacks column {feature.name}.", "Give the value; it is not imputed.")
        return math.nan
    if not isinstance(value, int | float | str) or not feature.admits(value):
        raise Malformed(f"Record {number}, column {feature.name}: not an allowed value.", _allowed(feature))
    return float(feature.levels.index(value)) if feature.kind == "category" else float(value)


def _check_column(feature: Feature, column: NDArray[np.float64]) -> None:
    present = column[~np.isnan(column)]
    if present.size < column.size and feature.impute is None:
        raise Malformed(f"Column {feature.name} has a missing value.", "Give the value; it is not imputed.")
    if feature.kind == "category":
        good = (present >= 0) & (present < len(feature.levels)) & (present == np.floor(present))
    else:
        low, high = feature.bounds
        good = np.isfinite(present) & (present >= low) & (present <= high)
        if feature.kind == "integer":
            good &= present == np.floor(present)
    if not good.all():
        raise Malformed(f"Column {feature.name} has a value that is not allowed.", _allowed(feature))


def _allowed(feature: Feature) -> str:
    if feature.kind == "category":
        return f"Allowed: {', '.join(str(level) for level in feature.levels)}."
    return f"Allowed: {feature.minimum:g} to {feature.maximum:g} {feature.unit}".rstrip() + "."
