"""A researcher's graph in layers: it computes what the interpreter does, through books that agree with Opacus."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.architectures.catalogue import build, network
from privacy.dpsgd import private_gradients
from privacy.dpsgd.private_gradients import PrivateGradients
from privacy.local.graph_layers import LayeredGraph, layered_module
from privacy.local.graph_network import GraphNetwork, graph_model
from privacy.local.graph_operators import OPERATORS, shapes_of
from privacy.local.patients import Group
from protocol.exported import read_exported
from protocol.graph import ExportedGraph, ExportRefused
from protocol.graph_shapes import measure
from tests.graph_cases import CASES, X, ints
from tests.graph_oracle import LOSS, Given, fill, graph_of, same_outputs, t

torch.set_num_threads(1)
# torch's own use of its own class, within run_decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


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
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(1, *shape),)).run_decompositions({}), out)
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


class Between(nn.Module):
    """Parameters outside a layer of torch's, behind a layer whose values are half precise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(5, 1)
        self.rows, self.scale = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)) @ self.rows * self.scale)


@pytest.mark.parametrize(("kind", "shape"), [(Convolutional, (2, 9, 9)), (Table, (3, 4)), (Between, (4,))])
def test_layers_give_a_half_precise_sum_too(kind: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    graph, vector = packed(kind(), shape)
    layered = layered_module(graph)
    assert isinstance(layered, LayeredGraph)
    fill(layered, vector)
    x, y = torch.randn(6, *shape), torch.ones(6)
    half = PrivateGradients(layered, LOSS, clip=0.2, engine="bookkeeping", autocast=torch.bfloat16)
    whole = PrivateGradients(layered, LOSS, clip=0.2, engine="bookkeeping")
    torch.testing.assert_close(half.clipped_sum(x, y).total, whole.clipped_sum(x, y).total, atol=0.02, rtol=0.1)


@pytest.mark.parametrize(
    ("family", "shape", "sizes"),
    [
        ("cnn", (1, 16, 16), {"widths": (8, 8)}),
        ("resnet", (2, 16, 16), {"widths": (8, 16), "blocks": 1, "stem": "small"}),
        ("cnn_1d", (3, 24), {"widths": (8, 8), "kernel": 5}),
        ("transformer", (3, 24), {"patch": 4, "width": 16, "heads": 2, "layers": 2, "feedforward": 24}),
    ],
)
def test_a_listed_family_brought_as_a_graph_is_the_family(
    family: str, shape: tuple[int, ...], sizes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    graph, vector = packed(build(family, shape, sizes), shape)
    random = np.random.default_rng(9)
    people = Group(random.normal(size=(8, *shape)), np.arange(8) % 2 + 0.0, np.array([0, 0, 1, 2, 3, 4, 4, 4]), 5)
    monkeypatch.setattr(private_gradients, "module_gradients", pytest.fail)
    found = graph_model(graph, "logistic", 1).gradient_sum(vector, people, 0.2)
    listed = network(family, shape, sizes).gradient_sum(vector, people, 0.2)
    np.testing.assert_allclose(found, listed, atol=1e-5)
    assert np.abs(listed).max() > 1e-3
