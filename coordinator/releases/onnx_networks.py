"""The networks for images and sequences as ONNX: raw values in, probability out, float32 between.

Written operator by operator from the plan's document and the flat vector: no torch module is traced, nothing unpickled.
Input "image" (N, channels, height, width) float: values as in the file, before the window. Input "sequence"
(N, channels, length) float: complete values in their units; carrying forward what is missing is done before.
Source: ONNX operators, opset 17; `privacy.architectures` has the same networks in torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from coordinator.releases.onnx_graph import Graph
from protocol.architectures import (
    ConvolutionalNetwork,
    NetworkModel,
    RecurrentNetwork,
    ResidualNetwork,
    TemporalConvolution,
    Transformer,
    UNet,
    group_count,
)
from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema
from protocol.media import ImageInput, SequenceInput, Shape

EPSILON = 1e-5
"""Of torch's GroupNorm and LayerNorm."""
Tensors = Mapping[str, NDArray[np.float64]]


def network_outputs(
    graph: Graph, model: NetworkModel, schema: DatasetSchema, tensors: Tensors
) -> tuple[str, str, Shape]:
    """(the input's name, the network's outputs in double, the shape of what is predicted of one record). ValueError for
    a schema of a table."""
    writer = _Writer(graph, tensors)
    if schema.media is None:
        raise ValueError("a network takes images or sequences")
    given, current = encoded_media(graph, schema.media)
    outputs = graph.add("Cast", [writer.outputs(model, current, schema.shape)], to=TensorProto.DOUBLE)
    return given, outputs, schema.shape[1:] if isinstance(model, UNet) else (1,)


def encoded_media(graph: Graph, media: ImageInput | SequenceInput) -> tuple[str, str]:
    """(the input's name, its encoded value)."""
    if isinstance(media, ImageInput):
        return "image", _encoded_image(graph, media)
    return "sequence", _encoded_sequence(graph, media)


def _encoded_image(graph: Graph, image: ImageInput) -> str:
    window = graph.add("Clip", ["image", graph.float32(image.low), graph.float32(image.high)])
    above = graph.add("Sub", [window, graph.float32(image.low)])
    part = graph.add("Div", [above, graph.float32(image.high - image.low)])
    return graph.add("Div", [graph.add("Sub", [part, graph.float32(image.center)]), graph.float32(image.scale)])


def _encoded_sequence(graph: Graph, sequence: SequenceInput) -> str:
    center = np.array([channel.center for channel in sequence.channels])[:, np.newaxis]
    scale = np.array([channel.scale for channel in sequence.channels])[:, np.newaxis]
    scaled = graph.add("Div", [graph.add("Sub", ["sequence", graph.float32(center)]), graph.float32(scale)])
    return graph.add("Clip", [scaled, graph.float32(-CLIP_DEVIATIONS), graph.float32(CLIP_DEVIATIONS)])


class _Writer:
    """Layers as ONNX nodes, with the tensors that the flat vector holds for them."""

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self._graph = graph
        self._tensors = tensors

    def outputs(self, model: NetworkModel, x: str, shape: Shape) -> str:
        """(N, outputs), or (N, height, width) of a network for masks."""
        match model:
            case ConvolutionalNetwork():
                for stage in range(len(model.widths)):
                    x = self._pool(self._relu(self._normalised(f"stages.{stage}", x)), 2)
                return self._linear("head", self._mean(x, 2, 3))
            case TemporalConvolution():
                for stage in range(len(model.widths)):
                    x = self._pool(self._relu(self._normalised(f"stages.{stage}", x)), 1)
                return self._linear("head", self._mean(x, 2))
            case ResidualNetwork():
                return self._residual(model, x)
            case UNet():
                return self._unet(model, x)
            case RecurrentNetwork():
                return self._recurrent(model, x)
            case Transformer():
                return self._transformer(model, x, shape)

    def _residual(self, model: ResidualNetwork, x: str) -> str:
        large = model.stem == "large"
        x = self._relu(self._normalised("stem", x, stride=2 if large else 1))
        if large:
            x = self._graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for stage in range(len(model.widths)):
            for block in range(model.blocks):
                name, halve = f"stages.{stage}.{block}", block == 0 and stage > 0
                stride = 2 if halve else 1
                inner = self._relu(self._normalised(f"{name}.first", x, stride=stride))
                inner = self._normalised(f"{name}.second", inner)
                past = self._normalised(f"{name}.shortcut", x, stride=2) if halve else x
                x = self._relu(self._graph.add("Add", [inner, past]))
        return self._linear("head", self._mean(x, 2, 3))

    def _unet(self, model: UNet, x: str) -> str:
        past: list[str] = []
        for level in range(len(model.widths)):
            x = self._double(f"down.{level}", self._pool(x, 2) if level else x)
            past.append(x)
        twice = self._graph.float32(np.array([1.0, 1.0, 2.0, 2.0]))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        for level in reversed(range(len(model.widths) - 1)):
            larger = self._graph.add("Resize", [x, "", twice], **how)
            x = self._double(f"up.{level}", self._graph.add("Concat", [larger, past[level]], axis=1))
        kernel, bias = (self._graph.float32(self._tensors[f"head.{kind}"]) for kind in ("weight", "bias"))
        logits = self._graph.add("Conv", [x, kernel, bias])
        return self._graph.add("Squeeze", [logits, self._graph.int64(1)])

    def _double(self, name: str, x: str) -> str:
        return self._relu(self._normalised(f"{name}.second", self._relu(self._normalised(f"{name}.first", x))))

    def _recurrent(self, model: RecurrentNetwork, x: str) -> str:
        x = self._graph.add("Transpose", [x], perm=[2, 0, 1])
        last = ""
        for layer in range(model.layers):
            weights = [self._gates(f"recurrent.{kind}_l{layer}", model.hidden) for kind in ("weight_ih", "weight_hh")]
            biases = [self._gates(f"recurrent.{kind}_l{layer}", model.hidden) for kind in ("bias_ih", "bias_hh")]
            inputs = [x, *(self._graph.float32(weight[np.newaxis]) for weight in weights),
                      self._graph.float32(np.concatenate(biases)[np.newaxis])]  # fmt: skip
            states = self._graph.add("GRU", inputs, hidden_size=model.hidden, linear_before_reset=1)
            x = self._graph.add("Squeeze", [states, self._graph.int64(1)])
            last = self._graph.add("Gather", [x, self._scalar(-1)], axis=0)
        return self._linear("head", last)

    def _gates(self, name: str, hidden: int) -> NDArray[np.float64]:
        """torch's reset, update, new -> ONNX' update, reset, new."""
        reset, update, new = np.split(self._tensors[name], [hidden, 2 * hidden])
        return np.concatenate([update, reset, new])

    def _transformer(self, model: Transformer, x: str, shape: Shape) -> str:
        tokens = model.token_count(shape)
        x = self._linear("embed", self._patches(model.patch, x, shape))
        x = self._graph.add("Add", [x, self._graph.float32(self._tensors["position.weight"])])
        for layer in range(model.layers):
            name = f"layers.{layer}"
            found = self._attention(name, model, self._layer_norm(f"{name}.attention_norm", x), tokens)
            x = self._graph.add("Add", [x, self._linear(f"{name}.mixed", found)])
            wide = self._gelu(self._linear(f"{name}.wide", self._layer_norm(f"{name}.feedforward_norm", x)))
            x = self._graph.add("Add", [x, self._linear(f"{name}.narrow", wide)])
        return self._linear("head", self._mean(self._layer_norm("norm", x), 1))

    def _patches(self, patch: int, x: str, shape: Shape) -> str:
        cut = [size for length in shape[1:] for size in (length // patch, patch)]
        axes = len(shape) - 1
        inner = self._graph.add("Reshape", [x, self._graph.int64(0, shape[0], *cut)])
        places, within = [2 + 2 * axis for axis in range(axes)], [3 + 2 * axis for axis in range(axes)]
        inner = self._graph.add("Transpose", [inner], perm=[0, *places, 1, *within])
        tokens = math.prod(length // patch for length in shape[1:])
        return self._graph.add("Reshape", [inner, self._graph.int64(0, tokens, shape[0] * patch**axes)])

    def _attention(self, name: str, model: Transformer, x: str, tokens: int) -> str:
        each = model.width // model.heads
        parts = self._linear(f"{name}.queries_keys_values", x)
        parts = self._graph.add("Reshape", [parts, self._graph.int64(0, tokens, 3, model.heads, each)])
        parts = self._graph.add("Transpose", [parts], perm=[2, 0, 3, 1, 4])
        queries, keys, values = (
            self._graph.add("Squeeze", [part, self._graph.int64(0)]) for part in self._graph.split(parts, 3, 0)
        )
        weights = self._graph.add("MatMul", [queries, self._graph.add("Transpose", [keys], perm=[0, 1, 3, 2])])
        weights = self._graph.add("Mul", [weights, self._graph.float32(1.0 / math.sqrt(each))])
        found = self._graph.add("MatMul", [self._graph.add("Softmax", [weights], axis=-1), values])
        found = self._graph.add("Transpose", [found], perm=[0, 2, 1, 3])
        return self._graph.add("Reshape", [found, self._graph.int64(0, tokens, model.width)])

    def _normalised(self, name: str, x: str, stride: int = 1) -> str:
        kernel = self._tensors[f"{name}.convolution.weight"]
        axes, width = kernel.ndim - 2, kernel.shape[0]
        x = self._graph.add(
            "Conv",
            [x, self._graph.float32(kernel)],
            strides=[stride] * axes,
            pads=[kernel.shape[2] // 2] * (2 * axes),
        )
        # GroupNorm: an instance norm over the groups, then each channel's own scale and shift.
        groups = group_count(width)
        size = self._graph.add("Shape", [x])
        grouped = self._graph.add("Reshape", [x, self._graph.int64(0, groups, -1)])
        ones, zeros = self._graph.float32(np.ones(groups)), self._graph.float32(np.zeros(groups))
        normal = self._graph.add("InstanceNormalization", [grouped, ones, zeros], epsilon=EPSILON)
        normal = self._graph.add("Reshape", [normal, size])
        scale, shift = (
            self._graph.float32(self._tensors[f"{name}.norm.{kind}"].reshape(-1, *[1] * axes))
            for kind in ("weight", "bias")
        )
        return self._graph.add("Add", [self._graph.add("Mul", [normal, scale]), shift])

    def _layer_norm(self, name: str, x: str) -> str:
        scale, shift = (self._graph.float32(self._tensors[f"{name}.{kind}"]) for kind in ("weight", "bias"))
        return self._graph.add("LayerNormalization", [x, scale, shift], axis=-1, epsilon=EPSILON)

    def _linear(self, name: str, x: str) -> str:
        product = self._graph.add("MatMul", [x, self._graph.float32(self._tensors[f"{name}.weight"].T)])
        return self._graph.add("Add", [product, self._graph.float32(self._tensors[f"{name}.bias"])])

    def _gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2."""
        part = self._graph.add("Erf", [self._graph.add("Mul", [x, self._graph.float32(math.sqrt(0.5))])])
        part = self._graph.add("Mul", [self._graph.add("Add", [part, self._graph.float32(1.0)]), x])
        return self._graph.add("Mul", [part, self._graph.float32(0.5)])

    def _relu(self, x: str) -> str:
        return self._graph.add("Relu", [x])

    def _pool(self, x: str, axes: int) -> str:
        return self._graph.add("MaxPool", [x], kernel_shape=[2] * axes, strides=[2] * axes)

    def _mean(self, x: str, *axes: int) -> str:
        return self._graph.add("ReduceMean", [x], axes=list(axes), keepdims=0)

    def _scalar(self, value: int) -> str:
        return self._graph.constant(f"constant{len(self._graph.constants)}", np.array(value, dtype=np.int64))
