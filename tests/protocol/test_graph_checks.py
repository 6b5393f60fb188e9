"""A graph in a plan: checked by whoever reads it, bounded before anything is allocated, one record by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coordinator.releases.onnx_exported import TABLE
from privacy.errors import ParameterError
from privacy.local.graph_network import GraphNetwork, graph_model, graph_outputs
from privacy.local.graph_operators import OPERATORS as INTERPRETED
from privacy.local.patients import Group
from protocol.graph import OPERATORS, ExportedGraph, ExportRefused, GraphNode
from protocol.graph_shapes import MAX_ELEMENTS, measure
from protocol.operator_shapes import RULES

torch.set_num_threads(1)


def graph_of(operator: str, **arguments: tuple[str, Any]) -> ExportedGraph:
    given = [{"name": name, "kind": kind, "value": value} for name, (kind, value) in arguments.items()]
    node = GraphNode.model_validate({"operator": operator, "arguments": given})
    return ExportedGraph(input=(4,), parameters=((1, 4),), nodes=(node,), output="n0")


def test_a_graph_from_a_plan_is_checked_wherever_it_is_read() -> None:
    good = graph_of("linear.default", input=("tensor", "x"), weight=("tensor", "p0"))
    assert measure(good).outputs == 1
    assert graph_outputs(good, np.ones(4), np.ones((1, 4))).item() == 4
    for bad in (
        graph_of("rand_like.default", self=("tensor", "x")),
        graph_of("linear.default", input=("tensor", "n0"), weight=("tensor", "p0")),
        graph_of("linear.default", input=("tensor", "x"), weight=("tensor", "p0"), out=("tensor", "x")),
        graph_of("softmax.int", self=("tensor", "x"), dim=("bool", True)),
        graph_of("softmax.int", self=("tensor", "x"), dim=("int", 1 << 40)),
        good.model_copy(update={"output": "p0"}),
        good.model_copy(update={"parameters": ((50_000_000, 2),)}),
        good.model_copy(update={"parameters": ((10**6, 10**6),)}),
    ):
        with pytest.raises(ExportRefused):
            measure(bad)
    with pytest.raises(ParameterError, match="not listed"):
        GraphNetwork(graph_of("rand_like.default", self=("tensor", "x")))
    with pytest.raises(ValidationError):
        ExportedGraph.model_validate({**good.model_dump(), "code": "import os"})
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="finite"):
            graph_of("add.Tensor", self=("tensor", "x"), other=("float", number))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of("matmul.default", self=("tensor", "x"), other=("tensor", "p0")), "matrices do not fit"),
        (graph_of("relu.default", self=("tensor", "p0"), **{}), None),
        (graph_of("relu.default"), "self is missing"),
        (graph_of("select.int", self=("tensor", "x"), dim=("int", 1), index=("int", 4)), "no axis 4"),
        (graph_of("view.default", self=("tensor", "x"), size=("ints", (3, -1))), "shape does not fit"),
        (graph_of("slice.Tensor", self=("tensor", "x"), dim=("int", 1), start=("int", 4)), "empty"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_work_is_refused_with_the_node(graph: ExportedGraph, message: str | None) -> None:
    if message is None:
        assert measure(graph).values == ((1, 4),)
        return
    with pytest.raises(ExportRefused, match=f"Operator 0 .*{message}"):
        measure(graph)


def node(operator: str, **arguments: tuple[str, Any]) -> GraphNode:
    return graph_of(operator, **arguments).nodes[0]


def test_statistics_that_are_not_the_record_s_own_are_refused() -> None:
    given = {"input": ("tensor", "x"), "momentum": ("float", 0.1), "eps": ("float", 1e-5),
             "cudnn_enabled": ("bool", False)}  # fmt: skip
    for stats in ({}, {"use_input_stats": ("bool", False)}):
        made = node("instance_norm.default", **given, **stats)
        graph = ExportedGraph(input=(2, 4), parameters=((1,),), nodes=(made,), output="n0")
        with pytest.raises(ExportRefused, match="its own values"):
            measure(graph)
    with pytest.raises(ValueError, match="its own values"):
        graph_outputs(graph, np.ones(1), np.ones((1, 2, 4)))


def test_values_that_would_fill_the_memory_are_refused_unallocated() -> None:
    graph = ExportedGraph(
        input=(30_000, 1),
        parameters=((1, 1),),
        nodes=(
            node("transpose.int", self=("tensor", "x"), dim0=("int", 1), dim1=("int", 2)),
            node("matmul.default", self=("tensor", "x"), other=("tensor", "n0")),
        ),
        output="n1",
    )
    with pytest.raises(ExportRefused, match=f"more than {MAX_ELEMENTS} numbers"):
        measure(graph)


def test_a_graph_that_doubles_at_every_node_is_refused_at_once() -> None:
    """1,900 nodes, each joining a value with itself: 2^1900 numbers."""
    joined = tuple(
        node("cat.default", tensors=("tensors", (before, before)), dim=("int", 1))
        for before in ("x", *(f"n{place}" for place in range(1900)))
    )
    graph = ExportedGraph(input=(4,), parameters=((1, 4),), nodes=joined[:1900], output="n3")
    with pytest.raises(ExportRefused, match="numbers"):
        measure(graph)


def test_a_graph_that_would_compute_for_days_is_refused() -> None:
    square = node("mm.default", self=("tensor", "p0"), mat2=("tensor", "p0"))
    graph = ExportedGraph(input=(4,), parameters=((1400, 1400),), nodes=(square,) * 15, output="n0")
    with pytest.raises(ExportRefused, match="multiplications"):
        measure(graph)


def test_no_graph_can_reach_another_patient_s_record() -> None:
    """A graph that sums over its leading axis, normalises over it and turns it around: over a batch that would couple
    patients; here each patient is alone, so nobody's gradient or score changes with the others."""
    graph = ExportedGraph(
        input=(4,),
        parameters=((1, 4), (4,), (4,)),
        nodes=(
            node("mean.dim", self=("tensor", "x"), dim=("ints", (0,)), keepdim=("bool", True)),
            node("sub.Tensor", self=("tensor", "x"), other=("tensor", "n0")),
            node("add.Tensor", self=("tensor", "n1"), other=("tensor", "x")),
            node("softmax.int", self=("tensor", "x"), dim=("int", 0)),
            node("add.Tensor", self=("tensor", "n2"), other=("tensor", "n3")),
            node("reshape.default", self=("tensor", "n4"), shape=("ints", (-1,))),
            node("unsqueeze.default", self=("tensor", "n5"), dim=("int", 0)),
            node("layer_norm.default", input=("tensor", "n6"), normalized_shape=("ints", (4,)),
                 weight=("tensor", "p1"), bias=("tensor", "p2")),
            node("linear.default", input=("tensor", "n7"), weight=("tensor", "p0")),
        ),
        output="n8",
    )  # fmt: skip
    measure(graph)
    random = np.random.default_rng(4)
    parameters, local = random.normal(size=graph.parameter_count), graph_model(graph, "logistic", 1)
    x, y = random.normal(size=(6, 4)), random.integers(0, 2, 6).astype(float)
    everybody = Group(x, y, np.arange(6), 6)
    alone = [Group(x[[place]], y[[place]], np.arange(1), 1) for place in range(6)]
    summed = sum(local.gradient_sum(parameters, one, 0.1) for one in alone)
    # Two records or more go through book-keeping, which lowers the clip by 1e-5; one goes through vmap.
    np.testing.assert_allclose(local.gradient_sum(parameters, everybody, 0.1), summed, rtol=2e-5, atol=1e-7)
    scores = [local.scores(parameters, one).scores[0] for one in alone]
    np.testing.assert_allclose(local.scores(parameters, everybody).scores, scores, atol=1e-7)
    # Whatever the others hold, infinity included, one patient's part of the sum is the same.
    x[1:] = np.inf
    spoilt = local.gradient_sum(parameters, Group(x, y, np.arange(6), 6), 0.1)
    np.testing.assert_allclose(spoilt, local.gradient_sum(parameters, alone[0], 0.1), atol=1e-7)


def test_a_parameter_that_several_operators_share_has_one_gradient() -> None:
    tied = ExportedGraph(
        input=(4,),
        parameters=((4, 4), (1, 4)),
        nodes=(
            node("linear.default", input=("tensor", "x"), weight=("tensor", "p0")),
            node("tanh.default", self=("tensor", "n0")),
            node("linear.default", input=("tensor", "n1"), weight=("tensor", "p0")),
            node("linear.default", input=("tensor", "n2"), weight=("tensor", "p1")),
        ),
        output="n3",
    )
    random = np.random.default_rng(5)
    parameters, x, y = random.normal(size=20), random.normal(size=(3, 4)), np.array([0.0, 1.0, 1.0])
    found = graph_model(tied, "logistic", 1).gradient_sum(parameters, Group(x, y, np.arange(3), 3), 100.0)
    w = torch.tensor(parameters, requires_grad=True)
    first, last = w[:16].reshape(4, 4), w[16:].reshape(1, 4)
    logits = (torch.tanh(torch.from_numpy(x) @ first.T) @ first.T @ last.T)[:, 0]
    nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y), reduction="sum").backward()
    assert w.grad is not None
    np.testing.assert_allclose(found, w.grad.numpy(), atol=1e-5)


def test_every_listed_operator_exists_in_torch_and_takes_the_listed_arguments() -> None:
    for name, arguments in OPERATORS.items():
        operator, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, operator), overload)._schema
        assert set(arguments) <= {argument.name for argument in schema.arguments}, name
        assert not schema.is_mutable, name


def test_the_list_the_interpreter_the_shapes_and_the_release_know_the_same_operators() -> None:
    assert set(OPERATORS) == set(INTERPRETED) == set(RULES) == set(TABLE)
