"""A researcher's graph in layers: it computes what the interpreter does, whatever the graph, and clips each patient."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd import private_gradients
from privacy.dpsgd.private_gradients import PrivateGradients
from privacy.local.graph_layers import LayeredGraph, OwnOperator, layered_module
from privacy.local.graph_network import GraphNetwork, graph_model
from privacy.local.graph_operators import OPERATORS, shapes_of, tensors_of
from privacy.local.outcome import TorchOutcome
from privacy.local.patients import Group
from protocol.exported import read_exported
from protocol.graph import ExportedGraph, ExportRefused, GraphNode
from protocol.graph_shapes import measure
from tests.graph_cases import CASES, X, ints, node

torch.set_num_threads(1)
LOSS = TorchOutcome("logistic", 1).loss
Given = tuple[str, Any]


def t(name: str) -> Given:
    return "tensor", name


def graph_of(
    shape: tuple[int, ...], parameters: tuple[tuple[int, ...], ...], *nodes: tuple[str, dict[str, Given]]
) -> ExportedGraph:
    made = tuple(node(operator, arguments) for operator, arguments in nodes)
    return ExportedGraph(input=shape, parameters=parameters, nodes=made, output=f"n{len(made) - 1}")


def fill(module: nn.Module, vector: np.ndarray) -> nn.Module:
    """The flat vector laid into the parameters in their order, as a site does it."""
    start = 0
    with torch.no_grad():
        for parameter in module.parameters():
            part = vector[start : start + parameter.numel()]
            parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
            start += parameter.numel()
    assert start == vector.size
    return module


def one_by_one(graph: ExportedGraph, vector: np.ndarray, x: np.ndarray) -> Tensor:
    """The interpreter's outputs, each record by itself, in float64."""
    module = fill(GraphNetwork(graph).double(), vector)
    return torch.cat([module(record.unsqueeze(0)).unsqueeze(0) for record in torch.from_numpy(x)])


def nothing(module: nn.Module) -> Tensor:
    """0, which depends on every parameter, so that one which the outputs don't depend on has the gradient 0."""
    return torch.stack([0 * parameter.sum() for parameter in module.parameters()]).sum()


def same_outputs(graph: ExportedGraph, records: int = 4) -> nn.Module | None:
    """The layered module, its outputs and its gradients compared with the interpreter's, or None where it has none."""
    layered = layered_module(graph)
    if layered is None:
        return None
    random = np.random.default_rng(3)
    vector, x = random.normal(size=graph.parameter_count), random.normal(size=(records, *graph.input))
    expected = one_by_one(graph, vector, x)
    fill(layered.double(), vector)
    found = layered(torch.from_numpy(x))
    torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=1e-9, atol=1e-9)
    ways = torch.from_numpy(random.normal(size=expected.numel()))
    wanted = fill(GraphNetwork(graph).double(), vector)
    one = torch.cat([wanted(record.unsqueeze(0)).flatten() for record in torch.from_numpy(x)])
    gradients = torch.autograd.grad(one @ ways + nothing(wanted), list(wanted.parameters()))
    own = torch.autograd.grad(found.reshape(-1) @ ways + nothing(layered), list(layered.parameters()))
    for mine, theirs in zip(own, gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    return layered


@pytest.mark.parametrize(("operator", "shape", "parameters", "arguments"), CASES, ids=[case[0] for case in CASES])
def test_every_operator_computes_the_same_on_many_records(
    operator: str, shape: tuple[int, ...], parameters: tuple[tuple[int, ...], ...], arguments: dict[str, Given]
) -> None:
    graph = graph_of(shape, parameters, (operator, arguments))
    assert same_outputs(graph) is not None
    # With a value of the record's in the place of every parameter: no layer, and nothing that reaches another record.
    cut = dict(arguments)
    nodes: list[tuple[str, dict[str, Given]]] = []
    for place, size in enumerate(parameters):
        count = math.prod(size)
        if count > math.prod(shape):
            return
        nodes += [
            ("reshape.default", {"self": X, "shape": ints(-1)}),
            ("slice.Tensor", {"self": t(f"n{3 * place}"), "dim": ("int", 0), "end": ("int", count)}),
            ("reshape.default", {"self": t(f"n{3 * place + 1}"), "shape": ints(*size)}),
        ]
        new = f"n{3 * place + 2}"
        for name, (kind, value) in cut.items():
            if value == f"p{place}":
                cut[name] = (kind, new)
            elif isinstance(value, tuple):
                cut[name] = (kind, tuple(new if item == f"p{place}" else item for item in value))
    assert same_outputs(graph_of(shape, ((1,),), *nodes, (operator, cut))) is not None


def test_a_reduction_over_no_axis_does_not_reach_the_records() -> None:
    """torch reduces all axes then. The plan's check refuses it; the site's table is right by itself."""
    graph = graph_of((3, 2), ((1,),), ("sum.dim_IntList", {"self": X, "dim": ints(), "keepdim": ("bool", True)}))
    with pytest.raises(ExportRefused):
        measure(graph)
    assert same_outputs(graph) is not None


@pytest.mark.parametrize("operator", ["add.Tensor", "matmul.default", "div.Tensor"])
def test_values_with_fewer_axes_meet_at_the_last_ones(operator: str) -> None:
    square = ("reshape.default", {"self": X, "shape": ints(2, 2)})
    cube = ("reshape.default", {"self": X, "shape": ints(2, 1, 2) if operator != "matmul.default" else ints(1, 2, 2)})
    for first, second in (("n0", "n1"), ("n1", "n0")):
        graph = graph_of((4,), ((1,),), square, cube, (operator, {"self": t(first), "other": t(second)}))
        assert same_outputs(graph, records=2) is not None


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


def exact(graph: ExportedGraph, random: np.random.Generator, clip: float, spread: float = 1.0) -> None:
    """The site's clipped sum against each patient's own by autograd in float64, twice: the engine's proof stands by
    the second batch, which has records of another kind."""
    local, reference = graph_model(graph, "logistic", 1), GraphNetwork(graph).double()
    vector = random.normal(size=graph.parameter_count) * spread
    for sign in (1.0, -1.0):
        patients = np.array([0, 0, 1, 2, 2, 2, 3, 4]) if sign > 0 else np.arange(8)
        x, y = sign * np.abs(random.normal(size=(8, *graph.input))), random.integers(0, 2, 8).astype(float)
        found = local.gradient_sum(vector, Group(x, y, patients, int(patients[-1]) + 1), clip)
        fill(reference, vector)
        expected = np.zeros(vector.size)
        for patient in range(int(patients[-1]) + 1):
            rows = np.flatnonzero(patients == patient)
            losses = torch.stack(
                [LOSS(reference(torch.from_numpy(x[[row]])), torch.from_numpy(y[[row]])).sum() for row in rows]
            )
            parts = torch.autograd.grad(losses.mean() + nothing(reference), list(reference.parameters()))
            own = torch.cat([part.flatten() for part in parts]).numpy()
            expected += own * min(1.0, clip / max(float(np.linalg.norm(own)), 1e-300))
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


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


class Perceptron(nn.Module):
    """Its layers are not declared in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(6, 1), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.b, self.head = nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.max_pool2d(torch.relu(self.norm(self.a(x))), 2)
        return self.head(torch.relu(self.b(h)).mean((2, 3)))


class Transformer(nn.Module):
    """Attention and feed-forward, normalised before each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = (
            self.qkv(self.first(h))[..., 8 * i : 8 * i + 8].unflatten(2, (2, 4)).transpose(1, 2) for i in range(3)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.out(mixed)
        h = h + self.down(nn.functional.gelu(self.up(self.second(h))))
        return self.head(h.mean(1))


class Table(nn.Module):
    """An embedding: one of four, as a dictionary encodes it, is a row of a table; with its place."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.place = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(1, 3, 5))
        self.head, self.unused = nn.Linear(15, 1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.rows + self.place[:, : x.shape[1]]).flatten(1))


BROUGHT: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (Perceptron, (8,)),
    (Convolutional, (2, 9, 9)),
    (Transformer, (5, 3)),
    (Table, (3, 4)),
    (lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 1)), (8,)),
]


def packed(model: nn.Module, shape: tuple[int, ...]) -> tuple[ExportedGraph, np.ndarray]:
    out = io.BytesIO()
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(1, *shape),)), out)
    graph, weights = read_exported(out.getvalue())
    return graph, np.frombuffer(weights, dtype="<f8").copy()


@pytest.mark.parametrize(("kind", "shape"), BROUGHT, ids=["mlp", "cnn", "transformer", "table", "sequential"])
def test_an_exported_model_keeps_books_and_agrees_with_opacus_and_vmap(
    kind: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model = kind()
    graph, vector = packed(model, shape)
    # The vector on the wire is the file's: the model's own parameters, in the order in which it declares them.
    own = torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()
    np.testing.assert_array_equal(vector, own)
    layered = layered_module(graph)
    assert layered is not None
    assert [tuple(p.shape) for p in layered.parameters()] == list(graph.parameters)
    assert isinstance(layered, nn.Sequential) == isinstance(model, nn.Sequential)
    random = np.random.default_rng(6)
    x, y = random.normal(size=(9, *shape)), random.integers(0, 2, 9).astype(float)
    for patients in (np.arange(9), np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])):
        people = Group(x, y, patients, int(patients[-1]) + 1)
        with monkeypatch.context() as patched:
            # torch.func is out of reach: the sum comes from the books.
            patched.setattr(private_gradients, "module_gradients", pytest.fail)
            found = graph_model(graph, "logistic", 1).gradient_sum(vector, people, 0.2)
        for engine, module in (("opacus", model.train()), ("vmap", fill(GraphNetwork(graph), vector))):
            if engine == "opacus" and isinstance(model, Transformer | Table):
                # Opacus has no rule for a parameter outside a layer.
                continue
            oracle = PrivateGradients(module, LOSS, clip=0.2, engine=engine)  # type: ignore[arg-type]
            told = oracle.clipped_sum(
                torch.from_numpy(x).float(), torch.from_numpy(y).float(), patients, people.patients
            )
            np.testing.assert_allclose(found, told.total.double().numpy(), atol=1e-4)
            assert np.abs(found).max() > 1e-2


def test_the_shapes_are_found_without_computing() -> None:
    graph, _ = packed(Convolutional(), (2, 9, 9))
    shapes = shapes_of(graph)
    assert [shapes[f"n{place}"] for place in range(len(graph.nodes))] == list(measure(graph).values)
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_layers_give_a_half_precise_sum_too() -> None:
    graph, vector = packed(Convolutional(), (2, 9, 9))
    layered = layered_module(graph)
    assert isinstance(layered, LayeredGraph)
    fill(layered, vector)
    x, y = torch.randn(6, 2, 9, 9), torch.ones(6)
    half = PrivateGradients(layered, LOSS, clip=0.2, engine="bookkeeping", autocast=torch.bfloat16)
    whole = PrivateGradients(layered, LOSS, clip=0.2, engine="bookkeeping")
    torch.testing.assert_close(half.clipped_sum(x, y).total, whole.clipped_sum(x, y).total, atol=0.02, rtol=0.1)
