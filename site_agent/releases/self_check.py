"""Does the ONNX file compute what the safetensors file says? Run before a release is switched in.

The two files are approved together; this finds a build fault that a signature can't.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.dataset import DatasetSchema, Feature, Value
from protocol.errors import VerificationFailed
from protocol.release import ReleaseSubject
from site_agent.releases.weights import REMEDY, read_weights
from site_agent.serving.predictor import Predictor

TOLERANCE = 1e-9


def check(subject: ReleaseSubject, safetensors: bytes, onnx: bytes) -> float:
    """The largest difference between both files' probabilities on made-up records; at most 1e-9.

    Raises VerificationFailed when a file can't be read, has other tensors than the model, or they disagree.
    """
    weights = read_weights(subject, safetensors)
    try:
        predictor = Predictor(onnx, subject)
    except Exception as error:  # ONNX Runtime's errors share no base class; none may pass
        raise VerificationFailed("model.onnx can't be loaded.", REMEDY) from error
    records = probes(subject.dataset)
    served = np.array(predictor.predict(records))
    wanted = np.array([forward(weights, np.array(subject.dataset.encode(record))) for record in records])
    worst = float(np.max(np.abs(served - wanted)))
    if not worst <= TOLERANCE:
        raise VerificationFailed("model.onnx and model.safetensors give different probabilities.", REMEDY)
    return worst


def forward(weights: dict[str, NDArray[np.float64]], inputs: NDArray[np.float64]) -> float:
    """inputs (D,) encoded -> the probability that the safetensors parameters give."""
    current, layers = inputs, len(weights) // 2
    for layer in range(layers):
        current = weights[f"layers.{layer}.weight"] @ current + weights[f"layers.{layer}.bias"]
        if layer < layers - 1:
            current = np.tanh(current)
    # One output: the chance itself. A survival model: one minus the chance to live through every interval.
    return float(1.0 - np.prod(1.0 - 1.0 / (1.0 + np.exp(-current))))


def probes(schema: DatasetSchema) -> list[dict[str, Value]]:
    """Made-up records that reach each column's least, middle and greatest value, each level, and missing values."""
    records: list[dict[str, Value]] = []
    longest = max(max(len(feature.levels) for feature in schema.features), 4)
    for step in range(longest):
        record = {feature.name: _probe(feature, step) for feature in schema.features}
        records.append({name: value for name, value in record.items() if value is not None})
    return records


def _probe(feature: Feature, step: int) -> Value:
    if step == 3 and feature.impute is not None:
        return None
    if feature.kind == "category":
        return feature.levels[step % len(feature.levels)]
    low, high = feature.bounds
    value = (low, (low + high) / 2, high)[step % 3]
    return int(value) if feature.kind == "integer" else value
