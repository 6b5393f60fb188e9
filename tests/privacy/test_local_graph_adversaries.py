"""Graphs made to get a patient past the clip, or to couple patients: the sum is that of each patient alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privacy.local.graph_layers import OwnOperator
from privacy.local.graph_network import graph_model
from privacy.local.graph_operators import tensors_of
from privacy.local.patients import Group
from protocol.graph import ExportedGraph, ExportRefused, GraphNode
from protocol.graph_shapes import measure
from tests.graph_cases import X, ints, node
from tests.graph_oracle import Given, exact, graph_of, same_outputs, t

torch.set_num_threads(1)


def any_graph(random: np.random.Generator) -> ExportedGraph:
    """Operators at random, on values at random; most of them about axes, the leading one too."""
    sizes = [(4,), (2, 3), (3, 2, 2)]
    shape = sizes[random.integers(3)]
    parameters = tuple(tuple(int(size) for size in random.integers(1, 5, size=random.integers(1, 3))) for _ in range(4))
    nodes: list[GraphNode] = []
    values = ["x", *(f"p{place}" for place in range(4))]

    static = set(values[1:])

    def some() -> str:
        recent = values[-3:] if random.random() < 0.6 else values
        name = recent[random.integers(len(recent))]
        # Most parameters are taken once, as in a model that means well.
        again = name in static and any(name in tensors_of(made_node) for made_node in nodes)
        return "x" if again and random.random() < 0.7 else name

    count = random.integers(2, 8)
    while len(nodes) < count:
        axis, other = (("int", int(random.integers(-3, 3))) for _ in range(2))
        made: tuple[str, dict[str, Given]] = [
            ("linear.default", {"input": t(some()), "weight": t(some()), "bias": t(some())}),
            ("linear.default", {"input": t(some()), "weight": t(f"p{random.integers(4)}")}),
            ("matmul.default", {"self": t(some()), "other": t(some())}),
            ("t.default", {"self": t(some())}),
            ("transpose.int", {"self": t(some()), "dim0": axis, "dim1": other}),
            ("reshape.default", {"self": t(some()), "shape": ints(-1)}),
            ("reshape.default", {"self": t(some()), "shape": ints(-1, int(random.integers(1, 4)))}),
            ("unsqueeze.default", {"self": t(some()), "dim": axis}),
            ("squeeze.dim", {"self": t(some()), "dim": axis}),
            ("select.int", {"self": t(some()), "dim": axis, "index": ("int", 0)}),
            ("slice.Tensor", {"self": t(some()), "dim": axis, "start": other}),
            ("cat.default", {"tensors": ("tensors", (some(), some())), "dim": axis}),
            ("add.Tensor", {"self": t(some()), "other": t(some())}),
            ("mul.Tensor", {"self": t(some()), "other": t(some())}),
            ("mean.dim", {"self": t(some()), "dim": ints(axis[1]), "keepdim": ("bool", True)}),
            ("sum.dim_IntList", {"self": t(some()), "dim": ints(axis[1])}),
            ("softmax.int", {"self": t(some()), "dim": axis}),
            ("tanh.default", {"self": t(some())}),
            ("relu.default", {"self": t(some())}),
            ("layer_norm.default", {"input": t(some()), "normalized_shape": ints(int(random.integers(1, 5)))}),
            ("scaled_dot_product_attention.default", {"query": t(some()), "key": t(some()), "value": t(some())}),
        ][random.integers(21)]  # fmt: skip
        flat = node("reshape.default", {"self": t(f"n{len(nodes)}"), "shape": ints(1, -1)})
        tried = (*nodes, node(*made), flat)
        try:
            measure(ExportedGraph(input=shape, parameters=parameters, nodes=tried, output=f"n{len(nodes) + 1}"))
        except ExportRefused:
            continue
        nodes.append(node(*made))
        values.append(f"n{len(nodes) - 1}")
        if all(name in static for name in tensors_of(nodes[-1])):
            static.add(values[-1])
    # Whatever nobody took goes into the output, so that every parameter that was reached has a gradient.
    taken = {name for made_node in nodes for name in tensors_of(made_node)}
    for loose in ["x", *(name for name in values[5:] if name not in taken)]:
        nodes.append(node("reshape.default", {"self": t(loose), "shape": ints(1, -1)}))
        nodes.append(
            node("sum.dim_IntList", {"self": t(f"n{len(nodes) - 1}"), "dim": ints(1), "keepdim": ("bool", True)})
        )
        if loose != "x":
            nodes.append(node("add.Tensor", {"self": t(f"n{len(nodes) - 1}"), "other": t(f"n{len(nodes) - 3}")}))
    return ExportedGraph(input=shape, parameters=parameters, nodes=tuple(nodes), output=f"n{len(nodes) - 1}")


def test_any_graph_at_all_gives_the_interpreter_s_sum() -> None:
    """100 graphs of random operators over axes, values and parameters: shared, transposed, unused, mixed with the
    leading axis. Layers or vmap, the clipped sum is that of the patients one by one."""
    random, ways = np.random.default_rng(11), {"layers": 0, "vmap": 0}
    for _ in range(100):
        graph = any_graph(random)
        ways["vmap" if same_outputs(graph, records=3) is None else "layers"] += 1
        exact(graph, random, clip=0.5)
    assert min(ways.values()) >= 10, ways


LINEAR = "linear.default"
ADVERSARIES: dict[str, tuple[ExportedGraph, str]] = {
    "one weight in two layers": (
        graph_of(
            (4,),
            ((4, 4), (1, 4)),
            (LINEAR, {"input": X, "weight": t("p0")}),
            ("relu.default", {"self": t("n0")}),
            (LINEAR, {"input": t("n1"), "weight": t("p0")}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "layers",
    ),
    "one weight in two layers, one with a bias": (
        graph_of(
            (4,),
            ((4, 4), (4,), (1, 4)),
            (LINEAR, {"input": X, "weight": t("p0")}),
            (LINEAR, {"input": t("n0"), "weight": t("p0"), "bias": t("p1")}),
            (LINEAR, {"input": t("n1"), "weight": t("p2")}),
        ),
        "vmap",
    ),
    "one kernel and one norm twice": (
        graph_of(
            (2, 5),
            ((2, 2, 3), (2,), (5,), (1, 10)),
            ("conv1d.default", {"input": X, "weight": t("p0"), "bias": t("p1"), "padding": ints(1)}),
            ("layer_norm.default", {"input": t("n0"), "normalized_shape": ints(5), "weight": t("p2")}),
            ("conv1d.default", {"input": t("n1"), "weight": t("p0"), "bias": t("p1"), "padding": ints(1)}),
            ("layer_norm.default", {"input": t("n2"), "normalized_shape": ints(5), "weight": t("p2")}),
            ("reshape.default", {"self": t("n3"), "shape": ints(1, -1)}),
            (LINEAR, {"input": t("n4"), "weight": t("p3")}),
        ),
        "layers",
    ),
    "one kernel in two layers with another padding": (
        graph_of(
            (2, 5),
            ((2, 2, 3), (1, 6)),
            ("conv1d.default", {"input": X, "weight": t("p0"), "padding": ints(1)}),
            ("conv1d.default", {"input": t("n0"), "weight": t("p0")}),
            ("reshape.default", {"self": t("n1"), "shape": ints(1, -1)}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "vmap",
    ),
    "an own operator twice, once scaled": (
        graph_of(
            (4,),
            ((4,), (1, 4)),
            ("add.Tensor", {"self": X, "other": t("p0")}),
            ("add.Tensor", {"self": t("n0"), "other": t("p0"), "alpha": ("int", 2)}),
            (LINEAR, {"input": t("n1"), "weight": t("p1")}),
        ),
        "vmap",
    ),
    "an own operator twice": (
        graph_of(
            (4,),
            ((4,), (1, 4)),
            ("mul.Tensor", {"self": X, "other": t("p0")}),
            ("tanh.default", {"self": t("n0")}),
            ("mul.Tensor", {"self": t("n1"), "other": t("p0")}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "own",
    ),
    "an own operator on itself": (
        graph_of(
            (4,),
            ((4,), (1, 4)),
            ("add.Tensor", {"self": t("p0"), "other": X}),
            ("add.Tensor", {"self": X, "other": t("p0")}),
            ("mul.Tensor", {"self": t("n0"), "other": t("n1")}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "vmap",
    ),
    "a loop unrolled, whose first state leaves a layer behind a gate": (
        graph_of(
            (3, 2),
            ((2, 2), (2,), (2, 2), (1, 2)),
            *(("select.int", {"self": X, "dim": ("int", 1), "index": ("int", k)}) for k in range(3)),
            (LINEAR, {"input": t("n0"), "weight": t("p0"), "bias": t("p1")}),
            ("relu.default", {"self": t("n3")}),
            (LINEAR, {"input": t("n4"), "weight": t("p2")}),
            (LINEAR, {"input": t("n1"), "weight": t("p0"), "bias": t("p1")}),
            ("add.Tensor", {"self": t("n5"), "other": t("n6")}),
            ("tanh.default", {"self": t("n7")}),
            (LINEAR, {"input": t("n8"), "weight": t("p2")}),
            (LINEAR, {"input": t("n2"), "weight": t("p0"), "bias": t("p1")}),
            ("add.Tensor", {"self": t("n9"), "other": t("n10")}),
            ("tanh.default", {"self": t("n11")}),
            (LINEAR, {"input": t("n12"), "weight": t("p3")}),
        ),
        "layers",
    ),
    "one weight in two layers, once transposed": (
        graph_of(
            (4,),
            ((3, 4), (1, 4)),
            (LINEAR, {"input": X, "weight": t("p0")}),
            ("tanh.default", {"self": t("n0")}),
            ("t.default", {"self": t("p0")}),
            (LINEAR, {"input": t("n1"), "weight": t("n2")}),
            (LINEAR, {"input": t("n3"), "weight": t("p1")}),
        ),
        "vmap",
    ),
    "a weight outside its layer too": (
        graph_of(
            (4,),
            ((1, 4),),
            (LINEAR, {"input": X, "weight": t("p0")}),
            ("mul.Tensor", {"self": X, "other": t("p0")}),
            ("sum.dim_IntList", {"self": t("n1"), "dim": ints(1), "keepdim": ("bool", True)}),
            ("add.Tensor", {"self": t("n0"), "other": t("n2")}),
        ),
        "vmap",
    ),
    "a weight outside its layer behind a closed gate": (
        # Records with positive values never open it: two of them prove nothing about the others.
        graph_of(
            (4,),
            ((1, 4),),
            (LINEAR, {"input": X, "weight": t("p0")}),
            ("mul.Tensor", {"self": X, "other": ("float", -1.0)}),
            ("relu.default", {"self": t("n1")}),
            ("mul.Tensor", {"self": t("n2"), "other": t("p0")}),
            ("sum.dim_IntList", {"self": t("n3"), "dim": ints(1), "keepdim": ("bool", True)}),
            ("add.Tensor", {"self": t("n0"), "other": t("n4")}),
        ),
        "vmap",
    ),
    "a bias that is a weight too": (
        graph_of(
            (4,),
            ((4,), (1, 4)),
            ("layer_norm.default", {"input": X, "normalized_shape": ints(4), "weight": t("p0"), "bias": t("p0")}),
            (LINEAR, {"input": t("n0"), "weight": t("p1")}),
        ),
        "own",
    ),
    "a weight used transposed": (
        graph_of(
            (4,),
            ((4, 3), (1, 3)),
            ("t.default", {"self": t("p0")}),
            (LINEAR, {"input": X, "weight": t("n0")}),
            ("tanh.default", {"self": t("n1")}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "own",
    ),
    "a square weight turned twice": (
        graph_of(
            (4,),
            ((4, 4), (1, 4)),
            ("t.default", {"self": t("p0")}),
            ("t.default", {"self": t("n0")}),
            ("mm.default", {"self": X, "mat2": t("n1")}),
            (LINEAR, {"input": t("n2"), "weight": t("p1")}),
        ),
        "own",
    ),
    "the mean over the leading axis": (
        graph_of(
            (4,),
            ((1, 4),),
            ("mean.dim", {"self": X, "dim": ints(0), "keepdim": ("bool", True)}),
            ("sub.Tensor", {"self": X, "other": t("n0")}),
            ("softmax.int", {"self": X, "dim": ("int", 0)}),
            ("add.Tensor", {"self": t("n1"), "other": t("n2")}),
            ("add.Tensor", {"self": t("n3"), "other": X}),
            (LINEAR, {"input": t("n4"), "weight": t("p0")}),
        ),
        "layers",
    ),
    "the leading axis turned into one that a layer runs along": (
        graph_of(
            (4,),
            ((5, 1), (5,), (1, 20)),
            ("permute.default", {"self": X, "dims": ints(1, 0)}),
            (LINEAR, {"input": t("n0"), "weight": t("p0"), "bias": t("p1")}),
            ("tanh.default", {"self": t("n1")}),
            ("reshape.default", {"self": t("n2"), "shape": ints(1, -1)}),
            (LINEAR, {"input": t("n3"), "weight": t("p2")}),
        ),
        "layers",
    ),
    "a record cut into several, normalised by groups and convolved": (
        graph_of(
            (12,),
            ((2,), (2,), (3, 2, 2), (1, 9)),
            ("reshape.default", {"self": X, "shape": ints(3, 2, -1)}),
            ("group_norm.default", {"input": t("n0"), "num_groups": ("int", 1), "weight": t("p0"), "bias": t("p1")}),
            ("conv1d.default", {"input": t("n1"), "weight": t("p2")}),
            ("reshape.default", {"self": t("n2"), "shape": ints(1, -1)}),
            (LINEAR, {"input": t("n3"), "weight": t("p3")}),
        ),
        "own",
    ),
    "one axis of all values": (
        graph_of(
            (2, 2),
            ((4,), (4,), (1, 4)),
            ("reshape.default", {"self": X, "shape": ints(-1)}),
            ("layer_norm.default", {"input": t("n0"), "normalized_shape": ints(4), "weight": t("p0"), "bias": t("p1")}),
            ("unsqueeze.default", {"self": t("n1"), "dim": ("int", 0)}),
            (LINEAR, {"input": t("n2"), "weight": t("p2")}),
        ),
        "layers",
    ),
    "a bias between two values of the record's": (
        graph_of(
            (4,),
            ((1, 4), (4,)),
            ("tanh.default", {"self": X}),
            ("layer_norm.default", {"input": X, "normalized_shape": ints(4), "bias": t("p1")}),
            ("add.Tensor", {"self": t("n0"), "other": t("n1")}),
            (LINEAR, {"input": t("n2"), "weight": t("p0")}),
        ),
        "own",
    ),
    "a bias for a product of two values": (
        graph_of(
            (2, 2),
            ((2,), (1, 4)),
            ("select.int", {"self": X, "dim": ("int", 0), "index": ("int", 0)}),
            ("tanh.default", {"self": t("n0")}),
            ("addmm.default", {"self": t("p0"), "mat1": t("n0"), "mat2": t("n1")}),
            ("reshape.default", {"self": t("n2"), "shape": ints(1, 4)}),
            (LINEAR, {"input": t("n3"), "weight": t("p1")}),
        ),
        "vmap",
    ),
    "parameters that nothing depends on": (
        graph_of(
            (4,),
            ((3, 3), (1, 4), (2,)),
            (LINEAR, {"input": X, "weight": t("p1")}),
            ("tanh.default", {"self": t("p2")}),
            ("add.Tensor", {"self": t("n0"), "other": ("float", 1.0)}),
        ),
        "layers",
    ),
    "an output without the record": (
        graph_of(
            (4,), ((4, 1), (1, 4)), ("t.default", {"self": t("p0")}), (LINEAR, {"input": t("n0"), "weight": t("p1")})
        ),
        "vmap",
    ),
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_graph_gets_a_patient_past_the_clip(name: str) -> None:
    graph, way = ADVERSARIES[name]
    measure(graph)
    layered = same_outputs(graph)
    assert (layered is None) == (way == "vmap")
    if layered is not None:
        assert any(isinstance(part, OwnOperator) for part in layered.modules()) == (way == "own")
    for clip in (0.05, 1e6):
        exact(graph, np.random.default_rng(5), clip)


def test_a_patient_who_is_refused_spoils_nobody_else() -> None:
    graph = ADVERSARIES["a record cut into several, normalised by groups and convolved"][0]
    random = np.random.default_rng(8)
    vector, x, y = random.normal(size=graph.parameter_count), random.normal(size=(6, 12)), np.ones(6)
    local = graph_model(graph, "logistic", 1)
    two = local.gradient_sum(vector, Group(x[:2], y[:2], np.arange(2), 2), 0.1)
    x[2:] = np.inf
    np.testing.assert_allclose(local.gradient_sum(vector, Group(x, y, np.arange(6), 6), 0.1), two, atol=1e-7)
