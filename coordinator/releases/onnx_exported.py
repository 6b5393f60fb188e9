"""A researcher's graph as ONNX, operator by operator, in float32.

The graph is of one record, so it becomes the body of a Scan over the patients: in the released file too, no operator
can reach another patient's record. Source: ONNX operators, opset 17; the meaning of each is that of the ATen operator,
which a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from coordinator.releases.onnx_graph import Graph
from protocol.graph import ExportedGraph, GraphNode
from protocol.graph_shapes import measure
from protocol.operator_call import Call, Shape, axis
from protocol.operator_shapes import cut, pooling, spread

Tensors = Mapping[str, NDArray[np.float64]]


def scan_graph(outer: Graph, model: ExportedGraph, tensors: Tensors, encoded: str) -> str:
    """Add the graph to `outer`. encoded: (N, *input) float32; the result is (N, J) double."""
    cost = measure(model)
    names = {f"p{place}": outer.float32(tensor) for place, tensor in enumerate(tensors.values())}
    shapes: dict[str, Shape] = {f"p{place}": shape for place, shape in enumerate(model.parameters)}
    shapes["x"] = (1, *model.input)
    body = _Body(outer, names, shapes)
    names["x"] = body.reshaped("record", shapes["x"])
    for place, (node, shape) in enumerate(zip(model.nodes, cost.values, strict=True)):
        names[f"n{place}"] = body.translate(node, shape)
        shapes[f"n{place}"] = shape
    body.nodes.append(helper.make_node("Reshape", [names[model.output], outer.int64(cost.outputs)], ["record_output"]))
    inner = helper.make_graph(
        body.nodes,
        "record",
        [helper.make_tensor_value_info("record", TensorProto.FLOAT, list(model.input))],
        [helper.make_tensor_value_info("record_output", TensorProto.FLOAT, [cost.outputs])],
    )
    scanned = outer.add("Scan", [encoded], "scanned", body=inner, num_scan_inputs=1)
    return outer.add("Cast", [scanned], "outputs", to=TensorProto.DOUBLE)


class _Body:
    """The nodes of the Scan's body. Constants and weights stand outside, where a body may read them."""

    def __init__(self, outer: Graph, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.outer = outer
        self._names = names
        self.shapes = shapes

    def add(self, operator: str, inputs: Sequence[str], **attributes: object) -> str:
        """A node; the name of its value."""
        name = f"record_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def reshaped(self, value: str, shape: Shape) -> str:
        """The same numbers in another shape."""
        return self.add("Reshape", [value, self.outer.int64(*shape)])

    def translate(self, node: GraphNode, shape: Shape) -> str:
        """The value of a node, whose shape is `shape`."""
        return TABLE[node.operator](_Translated(self, self._names, Call.of(node, self.shapes), shape))


class _Translated:
    """One node on its way."""

    def __init__(self, body: _Body, names: Mapping[str, str], call: Call, shape: Shape) -> None:
        self.body, self.call, self.shape = body, call, shape
        self._names = names
        self.add = body.add

    def given(self, name: str) -> str:
        """The tensor of an argument."""
        return self._names[str(self.call.arguments[name])]

    def optional(self, name: str) -> str | None:
        """The same, or None."""
        return self.given(name) if isinstance(self.call.arguments.get(name), str) else None

    def several(self, name: str) -> list[str]:
        """The tensors of an argument."""
        value = self.call.arguments[name]
        assert isinstance(value, tuple)
        return [self._names[str(item)] for item in value]

    def real(self, name: str, default: float) -> float:
        """A number."""
        value = self.call.arguments.get(name)
        return default if value is None else float(str(value))

    def number(self, value: float) -> str:
        """A constant."""
        return self.body.outer.float32(value)

    def operand(self) -> str:
        """`other` times alpha: a tensor or a number."""
        alpha, other = self.real("alpha", 1.0), self.optional("other")
        if other is None:
            return self.number(self.real("other", 0.0) * alpha)
        return other if alpha == 1.0 else self.add("Mul", [other, self.number(alpha)])


def _one(operator: str, **attributes: object) -> Callable[[_Translated], str]:
    return lambda node: node.add(operator, [node.given("self")], **attributes)


def _two(operator: str) -> Callable[[_Translated], str]:
    return lambda node: node.add(operator, [node.given("self"), node.operand()])


def _product(left: str, right: str) -> Callable[[_Translated], str]:
    return lambda node: node.add("MatMul", [node.given(left), node.given(right)])


def _reshaped(node: _Translated) -> str:
    return node.body.reshaped(node.given("self"), node.shape)


def _ordered(node: _Translated, order: Sequence[int]) -> str:
    return node.add("Transpose", [node.given("self")], perm=list(order))


def _linear(node: _Translated) -> str:
    weight, bias = node.add("Transpose", [node.given("weight")], perm=[1, 0]), node.optional("bias")
    product = node.add("MatMul", [node.given("input"), weight])
    return product if bias is None else node.add("Add", [product, bias])


def _addmm(node: _Translated) -> str:
    return node.add("Add", [_product("mat1", "mat2")(node), node.given("self")])


def _transposed(node: _Translated) -> str:
    return _ordered(node, range(len(node.shape))[::-1])


def _permuted(node: _Translated) -> str:
    return _ordered(node, [axis(place, len(node.shape)) for place in node.call.wholes("dims")])


def _exchanged(node: _Translated) -> str:
    order = list(range(len(node.shape)))
    first, second = (axis(node.call.whole(name), len(order)) for name in ("dim0", "dim1"))
    order[first], order[second] = order[second], order[first]
    return _ordered(node, order)


def _expanded(node: _Translated) -> str:
    return node.add("Expand", [node.given("self"), node.body.outer.int64(*node.shape)])


def _selected(node: _Translated) -> str:
    sizes = node.call.shape("self")
    place = axis(node.call.whole("dim"), len(sizes))
    index = node.body.outer.int64(axis(node.call.whole("index"), sizes[place]))
    return node.body.reshaped(node.add("Gather", [node.given("self"), index], axis=place), node.shape)


def _sliced(node: _Translated) -> str:
    place, start, end, step = cut(node.call)
    whole = node.body.outer.int64
    return node.add("Slice", [node.given("self"), whole(start), whole(end), whole(place), whole(step)])


def _joined(node: _Translated) -> str:
    return node.add("Concat", node.several("tensors"), axis=axis(node.call.whole("dim", 0), len(node.shape)))


def _mean(node: _Translated) -> str:
    axes, keep = list(node.call.wholes("dim")), node.call.flag("keepdim", False)
    return node.add("ReduceMean", [node.given("self")], axes=axes, keepdims=int(keep))


def _sum(node: _Translated) -> str:
    axes, keep = node.body.outer.int64(*node.call.wholes("dim")), node.call.flag("keepdim", False)
    return node.add("ReduceSum", [node.given("self"), axes], keepdims=int(keep))


def _softmax(operator: str) -> Callable[[_Translated], str]:
    return lambda node: node.add(operator, [node.given("self")], axis=axis(node.call.whole("dim"), len(node.shape)))


def _silu(node: _Translated) -> str:
    return node.add("Mul", [node.given("self"), node.add("Sigmoid", [node.given("self")])])


def _gelu(node: _Translated) -> str:
    x = node.given("self")
    if node.call.arguments.get("approximate") == "tanh":
        cube = node.add("Mul", [node.add("Mul", [x, x]), node.add("Mul", [x, node.number(0.044715)])])
        inner = node.add("Mul", [node.add("Add", [x, cube]), node.number(math.sqrt(2 / math.pi))])
        part = node.add("Tanh", [inner])
    else:
        part = node.add("Erf", [node.add("Mul", [x, node.number(math.sqrt(0.5))])])
    return node.add("Mul", [node.add("Mul", [x, node.number(0.5)]), node.add("Add", [part, node.number(1.0)])])


def _layer_norm(node: _Translated) -> str:
    wanted = node.call.wholes("normalized_shape")
    scale = node.optional("weight") or node.body.outer.float32(np.ones(wanted))
    bias = node.optional("bias") or node.body.outer.float32(np.zeros(wanted))
    return node.add(
        "LayerNormalization", [node.given("input"), scale, bias], axis=-len(wanted), epsilon=node.real("eps", 1e-5)
    )


def _group_norm(node: _Translated) -> str:
    groups = node.call.whole("num_groups")
    parts = node.body.reshaped(node.given("input"), (node.shape[0], groups, math.prod(node.shape[1:]) // groups))
    outer = node.body.outer
    scale, bias = outer.float32(np.ones(groups)), outer.float32(np.zeros(groups))
    value = node.add("InstanceNormalization", [parts, scale, bias], epsilon=node.real("eps", 1e-5))
    return _scaled(node, node.body.reshaped(value, node.shape))


def _instance_norm(node: _Translated) -> str:
    outer, channels = node.body.outer, node.shape[1]
    scale, bias = outer.float32(np.ones(channels)), outer.float32(np.zeros(channels))
    value = node.add("InstanceNormalization", [node.given("input"), scale, bias], epsilon=node.real("eps", 1e-5))
    return _scaled(node, value)


def _scaled(node: _Translated, value: str) -> str:
    """Times weight, plus bias, one number for each channel."""
    each = (1, node.shape[1], *(1 for _ in node.shape[2:]))
    for name, operator in (("weight", "Mul"), ("bias", "Add")):
        given = node.optional(name)
        if given is not None:
            value = node.add(operator, [value, node.body.reshaped(given, each)])
    return value


def _prelu(node: _Translated) -> str:
    slopes = node.call.shape("weight")
    each = (*slopes, *(1 for _ in node.shape[2:]))
    return node.add("PRelu", [node.given("self"), node.body.reshaped(node.given("weight"), each)])


def _convolution(axes: int) -> Callable[[_Translated], str]:
    def translate(node: _Translated) -> str:
        bias = node.optional("bias")
        stride, padding, dilation = (
            list(spread(node.call.wholes(name, (default,)), axes))
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        inputs = [node.given("input"), node.given("weight"), *([] if bias is None else [bias])]
        group = node.call.whole("groups", 1)
        return node.add("Conv", inputs, strides=stride, pads=padding * 2, dilations=dilation, group=group)

    return translate


def _pooled(operator: str, axes: int) -> Callable[[_Translated], str]:
    def translate(node: _Translated) -> str:
        kernel, stride, padding, dilation = (list(sizes) for sizes in pooling(node.call, axes))
        if operator == "MaxPool":
            more: dict[str, object] = {"dilations": dilation}
        else:
            more = {"count_include_pad": int(node.call.flag("count_include_pad", True))}
        return node.add(operator, [node.given("self")], kernel_shape=kernel, strides=stride, pads=padding * 2, **more)

    return translate


def _adaptive(node: _Translated) -> str:
    kernel = [size // wanted for size, wanted in zip(node.call.shape("self")[2:], node.shape[2:], strict=True)]
    return node.add("AveragePool", [node.given("self")], kernel_shape=kernel, strides=kernel)


def _attention(node: _Translated) -> str:
    query, key = node.call.shape("query"), node.call.shape("key")
    order = [*range(len(key) - 2), len(key) - 1, len(key) - 2]
    turned = node.add("Transpose", [node.given("key")], perm=order)
    factor = node.real("scale", 1.0 / math.sqrt(query[-1]))
    scores = node.add("Mul", [node.add("MatMul", [node.given("query"), turned]), node.number(factor)])
    if node.call.flag("is_causal", False):
        later = np.where(np.triu(np.ones((query[-2], key[-2]), dtype=bool), 1), -math.inf, 0.0)
        scores = node.add("Add", [scores, node.body.outer.float32(later)])
    return node.add("MatMul", [node.add("Softmax", [scores], axis=-1), node.given("value")])


TABLE: Mapping[str, Callable[[_Translated], str]] = {
    "linear.default": _linear,
    "addmm.default": _addmm,
    "mm.default": _product("self", "mat2"),
    "matmul.default": _product("self", "other"),
    "bmm.default": _product("self", "mat2"),
    "t.default": _transposed,
    "permute.default": _permuted,
    "transpose.int": _exchanged,
    **dict.fromkeys(("contiguous.default", "alias.default", "clone.default"), _one("Identity")),
    "prelu.default": _prelu,
    "instance_norm.default": _instance_norm,
    **dict.fromkeys(
        ("view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "unsqueeze.default", "squeeze.dim"),
        _reshaped,
    ),
    "expand.default": _expanded,
    "select.int": _selected,
    "slice.Tensor": _sliced,
    "cat.default": _joined,
    "add.Tensor": _two("Add"),
    "sub.Tensor": _two("Sub"),
    "mul.Tensor": _two("Mul"),
    "div.Tensor": _two("Div"),
    "mean.dim": _mean,
    "sum.dim_IntList": _sum,
    "relu.default": _one("Relu"),
    "tanh.default": _one("Tanh"),
    "sigmoid.default": _one("Sigmoid"),
    "exp.default": _one("Exp"),
    "silu.default": _silu,
    "gelu.default": _gelu,
    "elu.default": lambda node: node.add("Elu", [node.given("self")], alpha=node.real("alpha", 1.0)),
    "leaky_relu.default": lambda node: node.add(
        "LeakyRelu", [node.given("self")], alpha=node.real("negative_slope", 0.01)
    ),
    "softmax.int": _softmax("Softmax"),
    "log_softmax.int": _softmax("LogSoftmax"),
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    **{f"conv{axes}d.default": _convolution(axes) for axes in (1, 2, 3)},
    **{f"max_pool{axes}d.default": _pooled("MaxPool", axes) for axes in (1, 2, 3)},
    **{f"avg_pool{axes}d.default": _pooled("AveragePool", axes) for axes in (1, 2, 3)},
    **{f"adaptive_avg_pool{axes}d.default": _adaptive for axes in (1, 2, 3)},
    "scaled_dot_product_attention.default": _attention,
}
"""Each listed operator -> its ONNX nodes."""
