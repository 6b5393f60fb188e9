"""The released model as ONNX: raw clinical values in, a prediction out. Images, sequences: `onnx_networks`.

The graph contains the whole path (imputation, scaling, clipping, one-hot, layers), so whoever runs it cannot
prepare the inputs differently from training. Input "features": (N, F) double, one column per feature of the schema
in order; a category is given as the index of its level; NaN is a missing value. Output "probability": (N, 1) double;
of a model that predicts a number, "value" in the label's unit.
Source: ONNX operators, opset 17.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from coordinator.releases.onnx_exported import scan_graph
from coordinator.releases.onnx_graph import OUTPUT, VALUE, Graph
from coordinator.releases.onnx_networks import encoded_media, network_outputs
from protocol.architectures import NETWORKS
from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema, Feature, NumberLabel
from protocol.graph import ExportedGraph
from protocol.media import Shape
from protocol.model import Model, loss_of, parameter_count, parameter_shapes

INPUT = "features"


def tensors(model: Model, inputs: int | Shape, vector: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The flat vector (P,) as named tensors in wire order. ValueError when P does not fit the model."""
    if vector.shape != (parameter_count(model, inputs),) or not np.isfinite(vector).all():
        raise ValueError("the parameter vector does not fit the model or is not finite")
    result: dict[str, NDArray[np.float64]] = {}
    offset = 0
    for name, shape in parameter_shapes(model, inputs):
        size = math.prod(shape)
        result[name] = np.ascontiguousarray(vector[offset : offset + size]).reshape(shape)
        offset += size
    return result


def build(model: Model, schema: DatasetSchema, vector: NDArray[np.float64]) -> bytes:
    """Serialised ModelProto, checked by onnx's own checker."""
    weights = tensors(model, schema.shape, vector)
    if isinstance(model, NETWORKS):
        graph = Graph()
        given, outputs, gives = network_outputs(graph, model, schema, weights)
        output = predicted(graph, model, schema, outputs)
        columns = {"columns": ",".join(schema.columns)}
        return graph.model(schema.name, given, TensorProto.FLOAT, schema.shape, columns, output, gives)
    if isinstance(model, ExportedGraph):
        return _build_exported(model, schema, weights)
    graph = Graph()
    current = _encoded_table(graph, schema)
    layers = len(weights) // 2
    for layer in range(layers):
        weight = graph.constant(f"layers.{layer}.weight", weights[f"layers.{layer}.weight"])
        bias = graph.constant(f"layers.{layer}.bias", weights[f"layers.{layer}.bias"])
        current = graph.add("Gemm", [current, weight, bias], f"layer{layer}", transB=1)
        if layer < layers - 1:
            current = graph.add("Tanh", [current], f"hidden{layer}")
    output = predicted(graph, model, schema, current)
    columns = {"columns": ",".join(schema.columns)}
    return graph.model(schema.name, INPUT, TensorProto.DOUBLE, (len(schema.features),), columns, output)


def _encoded_table(graph: Graph, schema: DatasetSchema) -> str:
    encoded = graph.add(
        "Concat", [_encode(graph, i, feature) for i, feature in enumerate(schema.features)], "encoded", axis=1
    )
    return graph.add("Div", [encoded, graph.constant("root", np.array(math.sqrt(schema.width)))], "inputs")


def _build_exported(model: ExportedGraph, schema: DatasetSchema, weights: dict[str, NDArray[np.float64]]) -> bytes:
    graph, columns = Graph(), {"columns": ",".join(schema.columns)}
    if schema.media is not None:
        given, encoded = encoded_media(graph, schema.media)
        output = predicted(graph, model, schema, scan_graph(graph, model, weights, encoded))
        return graph.model(schema.name, given, TensorProto.FLOAT, schema.shape, columns, output)
    encoded = graph.add("Cast", [_encoded_table(graph, schema)], "inputs32", to=TensorProto.FLOAT)
    output = predicted(graph, model, schema, scan_graph(graph, model, weights, encoded))
    return graph.model(schema.name, INPUT, TensorProto.DOUBLE, (len(schema.features),), columns, output)


def predicted(graph: Graph, model: Model, schema: DatasetSchema, outputs: str) -> str:
    """(N, J) double, what the network gives -> the model's output, by its name."""
    match loss_of(model), schema.label:
        case "hazard", _:
            _event_by_horizon(graph, outputs)
        case "squared", NumberLabel() as label:
            scaled = graph.add("Mul", [outputs, graph.constant("label_scale", np.array(label.scale))], "scaled_value")
            return graph.add("Add", [scaled, graph.constant("label_center", np.array(label.center))], VALUE)
        case _:
            graph.add("Sigmoid", [outputs], OUTPUT)
    return OUTPUT


def _event_by_horizon(graph: Graph, logits: str) -> None:
    """One minus the product of the chances to live through each interval, sigmoid(-z)."""
    lived = graph.add("Sigmoid", [graph.add("Neg", [logits], "negated")], "lived")
    logs = graph.add("Log", [lived], "logs")
    total = graph.add("ReduceSum", [logs, graph.constant("axis", np.array([1], dtype=np.int64))], "total", keepdims=1)
    survival = graph.add("Exp", [total], "survival")
    graph.add("Sub", [graph.constant("one", np.array(1.0)), survival], OUTPUT)


def _encode(graph: Graph, index: int, feature: Feature) -> str:
    """One raw column -> its encoded inputs, before the division by sqrt(D)."""
    where = graph.constant(f"index{index}", np.array([index], dtype=np.int64))
    column = graph.add("Gather", [INPUT, where], f"column{index}", axis=1)
    if feature.impute is not None:
        stand_in = float(feature.levels.index(feature.impute)) if feature.kind == "category" else float(feature.impute)
        missing = graph.add("IsNaN", [column], f"missing{index}")
        impute = graph.constant(f"impute{index}", np.array([[stand_in]]))
        column = graph.add("Where", [missing, impute, column], f"filled{index}")
    if feature.kind == "category":
        levels = graph.constant(f"levels{index}", np.arange(len(feature.levels), dtype=np.float64)[None, :])
        return graph.add("Cast", [graph.add("Equal", [column, levels], f"is{index}")], f"hot{index}", to=11)
    center = graph.constant(f"center{index}", np.array([[feature.center]]))
    scale = graph.constant(f"scale{index}", np.array([[feature.scale]]))
    centered = graph.add("Sub", [column, center], f"centered{index}")
    scaled = graph.add("Div", [centered, scale], f"scaled{index}")
    low = graph.constant(f"low{index}", np.array(-CLIP_DEVIATIONS))
    high = graph.constant(f"high{index}", np.array(CLIP_DEVIATIONS))
    return graph.add("Clip", [scaled, low, high], f"clipped{index}")
