"""Does the ONNX file compute what the safetensors file says? Run before a release is switched in.

The two files are approved together; this finds a build fault that a signature can't.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.architectures import NETWORKS
from protocol.dataset import DatasetSchema, Feature, NumberLabel, Value
from protocol.errors import VerificationFailed
from protocol.graph import ExportedGraph
from protocol.media import ImageInput
from protocol.model import Loss, loss_of
from protocol.release import ReleaseSubject
from site_agent.cohort.sequences import normalise
from site_agent.releases.weights import REMEDY, read_weights
from site_agent.serving.predictor import Predictor

TOLERANCE = 1e-9
NETWORK_TOLERANCE = 1e-3
"""Of networks for images and sequences, which both programs compute in float32, each in its own order: seen up to 1e-5
in a U-Net of 128 x 128 pixels, where normalisations amplify rounding."""


def check(subject: ReleaseSubject, safetensors: bytes, onnx: bytes) -> float:
    """The largest difference between both files' probabilities, or values in units of the label's scale, on made-up
    records; at most 1e-9, of a network 1e-3.

    Raises VerificationFailed when a file can't be read, has other tensors than the model, or they disagree.
    """
    weights = read_weights(subject, safetensors)
    try:
        predictor = Predictor(onnx, subject)
    except Exception as error:  # ONNX Runtime's errors share no base class; none may pass
        raise VerificationFailed("model.onnx can't be loaded.", REMEDY) from error
    if isinstance(subject.model, ExportedGraph):
        served, wanted = _of_graph(subject, subject.model, weights, predictor)
        most = NETWORK_TOLERANCE
    elif isinstance(subject.model, NETWORKS):
        probed = media_probes(subject.dataset)
        served, wanted = np.array(predictor.run(probed)), network_outputs(subject, weights, probed)
        most = NETWORK_TOLERANCE
    else:
        records = probes(subject.dataset)
        served = np.array(predictor.predict(records))
        loss = loss_of(subject.model)
        wanted = np.array([forward(weights, np.array(subject.dataset.encode(record)), loss) for record in records])
        most = TOLERANCE
    label = subject.dataset.label
    if isinstance(label, NumberLabel):
        served = (served - label.center) / label.scale
        most *= max(1.0, float(np.max(np.abs(wanted))))
    worst = float(np.max(np.abs(served - wanted)))
    if not worst <= most:
        raise VerificationFailed("model.onnx and model.safetensors give different predictions.", REMEDY)
    return worst


def _of_graph(
    subject: ReleaseSubject, graph: ExportedGraph, weights: dict[str, NDArray[np.float64]], predictor: Predictor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(what the ONNX file says, what the site's own interpreter says) of made-up records."""
    from privacy.local.graph_network import graph_outputs
    from privacy.local.outcome import scores

    if subject.dataset.media is None:
        records = probes(subject.dataset)
        served = np.array(predictor.predict(records))
        encoded = np.array([subject.dataset.encode(record) for record in records])
    else:
        probed = media_probes(subject.dataset)
        served, encoded = np.array(predictor.run(probed)), _encoded(subject.dataset, probed)
    vector = np.concatenate([tensor.ravel() for tensor in weights.values()])
    outputs = graph_outputs(graph, vector, encoded)
    if graph.loss == "squared":
        return served, outputs[:, 0]
    return served, scores(graph.loss, outputs, np.zeros(len(outputs)))


def forward(weights: dict[str, NDArray[np.float64]], inputs: NDArray[np.float64], loss: Loss) -> float:
    """inputs (D,) encoded -> the probability that the safetensors parameters give, or the value in units of the
    label's scale."""
    current, layers = inputs, len(weights) // 2
    for layer in range(layers):
        current = weights[f"layers.{layer}.weight"] @ current + weights[f"layers.{layer}.bias"]
        if layer < layers - 1:
            current = np.tanh(current)
    if loss == "squared":
        return float(current[0])
    # One output: the chance itself. A survival model: one minus the chance to live through every interval.
    return float(1.0 - np.prod(1.0 - 1.0 / (1.0 + np.exp(-current))))


def network_outputs(
    subject: ReleaseSubject, weights: dict[str, NDArray[np.float64]], records: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, *shape) in the units of the model's input -> (N,) predictions, or (N, height, width) probabilities, by
    torch; numbers in units of the label's scale."""
    import torch

    from privacy.architectures.catalogue import build
    from privacy.local.outcome import scores, sigmoid

    model, encoded = subject.model, _encoded(subject.dataset, records)
    module = build(model.architecture, subject.dataset.shape, model.model_dump(exclude={"architecture"}))
    with torch.no_grad():
        for parameter, tensor in zip(module.parameters(), weights.values(), strict=True):
            parameter.copy_(torch.from_numpy(tensor))
        outputs = module(torch.from_numpy(encoded).float()).double().numpy()
    loss = loss_of(model)
    if outputs.ndim > 2:
        return sigmoid(outputs)
    return np.asarray(outputs[:, 0]) if loss == "squared" else scores(loss, outputs, np.zeros(len(outputs)))


def _encoded(schema: DatasetSchema, records: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, *shape) in the units of the model's input -> as it was trained on."""
    media = schema.media
    assert media is not None
    if isinstance(media, ImageInput):
        part = (np.clip(records, media.low, media.high) - media.low) / (media.high - media.low)
        return np.asarray((part - media.center) / media.scale)
    return np.stack([normalise(record, media) for record in records])


def media_probes(schema: DatasetSchema) -> NDArray[np.float64]:
    """(6, *shape) made-up records in the units of the model's input: noise over the whole range and over its ends, and
    noise with a slope along each axis. None is constant: normalising nothing but rounding gives anything.
    """
    media = schema.media
    assert media is not None
    if isinstance(media, ImageInput):
        low, high = np.array(media.low), np.array(media.high)
    else:
        low = np.array([channel.minimum for channel in media.channels])[:, np.newaxis]
        high = np.array([channel.maximum for channel in media.channels])[:, np.newaxis]
    drawn = np.random.default_rng(0).random((6, *schema.shape))
    for place, (begin, width) in enumerate(((0.0, 1.0), (0.0, 1.0), (0.0, 0.3), (0.7, 0.3))):
        drawn[place] = begin + width * drawn[place]
    for place, axis in ((4, -1), (5, -min(2, len(schema.shape) - 1))):
        slope = np.linspace(0.0, 0.7, schema.shape[axis])
        drawn[place] = 0.3 * drawn[place] + (slope if axis == -1 else slope[:, np.newaxis])
    inside: NDArray[np.float64] = np.clip(low + drawn * (high - low), low, high)
    return inside


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
