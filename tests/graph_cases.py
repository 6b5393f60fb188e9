"""Each operator that a graph may hold, with inputs of its own."""

from __future__ import annotations

from typing import Any

from protocol.graph import GraphNode

Values = dict[str, tuple[str, Any]]
X: tuple[str, Any] = ("tensor", "x")


def ints(*values: int) -> tuple[str, Any]:
    return "ints", values


# (operator, shape of one record, shapes of parameters, arguments); the leading axis of 1 is the graph's own.
CASES: list[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...], Values]] = [
    ("linear.default", (3, 4), ((5, 4), (5,)), {"input": X, "weight": ("tensor", "p0"), "bias": ("tensor", "p1")}),
    ("linear.default", (4,), ((5, 4),), {"input": X, "weight": ("tensor", "p0"), "bias": ("none", None)}),
    ("addmm.default", (4,), ((3,), (4, 3)), {"self": ("tensor", "p0"), "mat1": X, "mat2": ("tensor", "p1")}),
    ("mm.default", (4,), ((4, 3),), {"self": X, "mat2": ("tensor", "p0")}),
    ("matmul.default", (2, 3, 4), ((4, 5),), {"self": X, "other": ("tensor", "p0")}),
    ("bmm.default", (3, 4), ((1, 4, 2),), {"self": X, "mat2": ("tensor", "p0")}),
    ("t.default", (4,), ((1,),), {"self": X}),
    ("permute.default", (2, 3, 4), ((1,),), {"self": X, "dims": ints(0, 3, -2, 1)}),
    ("transpose.int", (3, 4), ((1,),), {"self": X, "dim0": ("int", 1), "dim1": ("int", -1)}),
    ("contiguous.default", (3,), ((1,),), {"self": X}),
    ("expand.default", (1, 3), ((1,),), {"self": X, "size": ints(2, -1, 4, 3)}),
    ("expand.default", (4, 3), ((1,),), {"self": X, "size": ints(1, 4, -1)}),
    ("alias.default", (3,), ((1,),), {"self": X}),
    ("clone.default", (3,), ((1,),), {"self": X}),
    ("prelu.default", (3, 4), ((3,),), {"self": X, "weight": ("tensor", "p0")}),
    ("prelu.default", (3,), ((3,),), {"self": X, "weight": ("tensor", "p0")}),
    ("prelu.default", (3, 2, 2), ((1,),), {"self": X, "weight": ("tensor", "p0")}),
    ("view.default", (4, 3), ((1,),), {"self": X, "size": ints(1, 2, -1)}),
    ("reshape.default", (4, 3), ((1,),), {"self": X, "shape": ints(-1, 6)}),
    ("flatten.using_ints", (2, 3, 4), ((1,),), {"self": X, "start_dim": ("int", 1), "end_dim": ("int", 2)}),
    ("unflatten.int", (6, 2), ((1,),), {"self": X, "dim": ("int", 1), "sizes": ints(2, -1)}),
    ("unsqueeze.default", (3,), ((1,),), {"self": X, "dim": ("int", -1)}),
    ("squeeze.dim", (1, 3), ((1,),), {"self": X, "dim": ("int", 1)}),
    ("squeeze.dim", (2, 3), ((1,),), {"self": X, "dim": ("int", 1)}),
    ("select.int", (3, 4), ((1,),), {"self": X, "dim": ("int", -1), "index": ("int", -2)}),
    ("slice.Tensor", (7, 2), ((1,),), {"self": X, "dim": ("int", 1), "start": ("int", -5), "end": ("int", 7),
                                       "step": ("int", 2)}),
    ("slice.Tensor", (7, 2), ((1,),), {"self": X, "dim": ("int", 1), "start": ("int", 2), "end": ("none", None)}),
    ("cat.default", (3, 2), ((1, 2, 2),), {"tensors": ("tensors", ("x", "p0", "x")), "dim": ("int", -2)}),
    ("add.Tensor", (3, 2), ((3, 1),), {"self": X, "other": ("tensor", "p0"), "alpha": ("float", 0.5)}),
    ("add.Tensor", (3, 2), ((1,),), {"self": X, "other": ("float", 1.5)}),
    ("sub.Tensor", (3, 2), ((2,),), {"self": X, "other": ("tensor", "p0")}),
    ("sub.Tensor", (3, 2), ((2,),), {"self": X, "other": ("int", 2), "alpha": ("int", 3)}),
    ("mul.Tensor", (3, 2), ((2,),), {"self": X, "other": ("tensor", "p0")}),
    ("div.Tensor", (3, 2), ((2,),), {"self": X, "other": ("tensor", "p0")}),
    ("div.Tensor", (3, 2), ((2,),), {"self": X, "other": ("int", 4)}),
    ("mean.dim", (3, 2, 4), ((1,),), {"self": X, "dim": ints(-1, 1), "keepdim": ("bool", True)}),
    ("sum.dim_IntList", (3, 2, 4), ((1,),), {"self": X, "dim": ints(2)}),
    *((f"{name}.default", (3, 2), ((1,),), {"self": X}) for name in ("relu", "tanh", "sigmoid", "silu", "exp", "gelu")),
    ("gelu.default", (6,), ((1,),), {"self": X, "approximate": ("text", "tanh")}),
    ("elu.default", (6,), ((1,),), {"self": X, "alpha": ("float", 0.7)}),
    ("leaky_relu.default", (6,), ((1,),), {"self": X, "negative_slope": ("float", 0.2)}),
    ("leaky_relu.default", (6,), ((1,),), {"self": X}),
    ("softmax.int", (3, 4), ((1,),), {"self": X, "dim": ("int", 1)}),
    ("log_softmax.int", (3, 4), ((1,),), {"self": X, "dim": ("int", -1)}),
    ("layer_norm.default", (3, 4), ((4,), (4,)), {"input": X, "normalized_shape": ints(4), "weight": ("tensor", "p0"),
                                                  "bias": ("tensor", "p1"), "eps": ("float", 1e-3)}),
    ("layer_norm.default", (3, 4), ((1,),), {"input": X, "normalized_shape": ints(3, 4)}),
    ("group_norm.default", (4, 3), ((4,), (4,)), {"input": X, "num_groups": ("int", 2), "weight": ("tensor", "p0"),
                                                  "bias": ("tensor", "p1")}),
    ("group_norm.default", (4, 3, 3), ((1,),), {"input": X, "num_groups": ("int", 4), "eps": ("float", 1e-2)}),
    ("instance_norm.default", (3, 5), ((3,), (3,)), {"input": X, "weight": ("tensor", "p0"), "bias": ("tensor", "p1"),
                                                     "running_mean": ("none", None), "running_var": ("none", None),
                                                     "use_input_stats": ("bool", True), "momentum": ("float", 0.1),
                                                     "eps": ("float", 1e-3), "cudnn_enabled": ("bool", False)}),
    ("instance_norm.default", (3, 4, 4), ((3,),), {"input": X, "weight": ("tensor", "p0"), "bias": ("none", None),
                                                   "running_mean": ("none", None), "running_var": ("none", None),
                                                   "use_input_stats": ("bool", True), "momentum": ("float", 0.1),
                                                   "eps": ("float", 1e-5), "cudnn_enabled": ("bool", False)}),
    ("instance_norm.default", (2, 3, 2, 2), ((2,), (2,)), {
        "input": X, "weight": ("tensor", "p0"), "bias": ("tensor", "p1"), "running_mean": ("none", None),
        "running_var": ("none", None), "use_input_stats": ("bool", True), "momentum": ("float", 0.1),
        "eps": ("float", 1e-5), "cudnn_enabled": ("bool", True)}),
    ("conv1d.default", (4, 9), ((6, 2, 3), (6,)), {"input": X, "weight": ("tensor", "p0"), "bias": ("tensor", "p1"),
                                                   "stride": ints(2), "padding": ints(1), "groups": ("int", 2)}),
    ("conv2d.default", (2, 7, 8), ((3, 2, 3, 2),), {"input": X, "weight": ("tensor", "p0"), "stride": ints(1, 2),
                                                    "padding": ints(2, 1), "dilation": ints(2, 1)}),
    ("conv3d.default", (1, 4, 4, 5), ((2, 1, 2, 2, 2),), {"input": X, "weight": ("tensor", "p0")}),
    ("max_pool1d.default", (2, 9), ((1,),), {"self": X, "kernel_size": ints(3), "stride": ints(2), "padding": ints(1)}),
    ("max_pool2d.default", (2, 6, 8), ((1,),), {"self": X, "kernel_size": ints(2), "dilation": ints(2)}),
    ("avg_pool1d.default", (2, 9), ((1,),), {"self": X, "kernel_size": ints(3), "padding": ints(1)}),
    ("avg_pool2d.default", (2, 6, 8), ((1,),), {"self": X, "kernel_size": ints(3, 2), "stride": ints(1, 2),
                                                "padding": ints(1, 0), "count_include_pad": ("bool", False)}),
    ("max_pool3d.default", (2, 4, 5, 6), ((1,),), {"self": X, "kernel_size": ints(2), "stride": ints(2, 1, 2)}),
    ("avg_pool3d.default", (2, 4, 5, 6), ((1,),), {"self": X, "kernel_size": ints(2, 3, 2), "padding": ints(1)}),
    ("adaptive_avg_pool3d.default", (2, 4, 3, 6), ((1,),), {"self": X, "output_size": ints(2, 1, 3)}),
    ("adaptive_avg_pool1d.default", (2, 8), ((1,),), {"self": X, "output_size": ints(4)}),
    ("adaptive_avg_pool2d.default", (2, 6, 8), ((1,),), {"self": X, "output_size": ints(1, 2)}),
    ("scaled_dot_product_attention.default", (2, 5, 4), ((1, 2, 5, 4), (1, 2, 5, 3)),
     {"query": X, "key": ("tensor", "p0"), "value": ("tensor", "p1"), "is_causal": ("bool", True)}),
    ("scaled_dot_product_attention.default", (5, 4), ((1, 3, 4), (1, 3, 2)),
     {"query": X, "key": ("tensor", "p0"), "value": ("tensor", "p1"), "scale": ("float", 0.3)}),
]  # fmt: skip


def node(operator: str, arguments: Values) -> GraphNode:
    given = [{"name": name, "kind": kind, "value": value} for name, (kind, value) in arguments.items()]
    return GraphNode.model_validate({"operator": operator, "arguments": given})
