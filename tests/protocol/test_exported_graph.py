"""A model brought as a graph: it trains as the original would, and nothing but listed operators ever runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.dpsgd.step import clipped_sum
from privacy.local.graph_network import graph_model, graph_outputs
from privacy.local.patients import Group
from protocol.exported import read_exported
from protocol.graph import ExportedGraph, ExportRefused
from protocol.graph_shapes import measure

torch.set_num_threads(1)
WIDTH = 8


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 6), nn.LayerNorm(6), nn.GELU("tanh"), nn.Linear(6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Attention(nn.Module):
    """Convolution, group normalisation and self-attention over the inputs as a series."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.convolution(x.unsqueeze(1)))).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        pooled = nn.functional.max_pool1d(h.transpose(1, 2), 2) * 0.5
        return self.head(torch.cat([pooled[:, :, :2], pooled[:, :, 2:]], dim=2).flatten(1))


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 3, 3, stride=2), nn.Conv2d(3, 3, 1), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))
        return self.head((h + self.b(h)).mean(dim=(2, 3)))


MODELS = [(Perceptron, (WIDTH,)), (Attention, (WIDTH,)), (Image, (1, 7, 7))]


def exported(
    model: nn.Module, *shape: int, batch: int = 1, dtype: torch.dtype = torch.float32, **options: Any
) -> bytes:
    out = io.BytesIO()
    program = torch.export.export(model, (torch.zeros(batch, *shape, dtype=dtype),), **options)
    torch.export.save(program, out)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "shape"), MODELS, ids=["perceptron", "attention", "image"])
def test_a_graph_computes_and_trains_as_the_original(kind: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = kind().eval()
    graph, weights = read_exported(exported(model, *shape))
    parameters = np.frombuffer(weights, dtype="<f8").astype(np.float64)
    original = model.double()
    assert (graph.input, graph.parameter_count, measure(graph).outputs) == (shape, parameters.size, 1)
    assert parameters.size == sum(p.numel() for p in original.parameters())
    random = np.random.default_rng(2)
    x, y = random.normal(size=(9, *shape)), random.integers(0, 2, 9).astype(float)
    reference = original(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(graph_outputs(graph, parameters, x), reference, atol=1e-5)

    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    local = graph_model(graph, "logistic", 1)
    # The wire order is the file's; the original's gradients are put into it by their values' own places.
    order, expected, rows = _order(original, parameters), np.zeros(parameters.size), []
    for patient in range(5):
        original.zero_grad()
        logits = original(torch.from_numpy(x[patients == patient]))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y[patients == patient])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in original.parameters() if p.grad is not None]).numpy()[order])
        expected += rows[-1] * min(1.0, 0.1 / np.linalg.norm(rows[-1]))
    people = Group(x, y, patients, 5)
    found = local.gradient_sum(parameters, people, 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The engine and this program's own rule clip the same: no patient counts for more than the clip.
    np.testing.assert_allclose(found, clipped_sum(np.array(rows), 0.1).total, atol=1e-5)
    chances = 1 / (1 + np.exp(-reference[:, 0]))
    means = np.array([chances[patients == patient].mean() for patient in range(5)])
    np.testing.assert_allclose(local.scores(parameters, people).scores, means, atol=1e-5)
    assert ExportedGraph.model_validate_json(graph.model_dump_json()) == graph


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torch_s_own(causal: bool, scale: float | None) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = nn.functional.scaled_dot_product_attention(x, 2 * x, x, is_causal=causal, scale=scale)
            return self.head(h.flatten(1))

    model = Attending()
    graph, weights = read_exported(exported(model, 2, 3, 2))
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 2))
    found = graph_outputs(graph, np.frombuffer(weights, dtype="<f8"), x)
    np.testing.assert_allclose(found, model.double()(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def _order(original: nn.Module, parameters: np.ndarray) -> np.ndarray:
    flat = torch.cat([p.detach().flatten() for p in original.parameters()]).numpy()
    order = np.empty(flat.size, dtype=np.int64)
    order[np.argsort(parameters, kind="stable")] = np.argsort(flat, kind="stable")
    repeated = flat[order] != parameters
    assert not repeated.any()
    # Equal numbers (biases of 0, norms of 1) keep their order, which is the same in both when the tensors' is.
    return order


def test_nothing_of_the_researcher_s_machine_is_kept() -> None:
    graph, _ = read_exported(exported(Perceptron().eval(), WIDTH))
    text = graph.model_dump_json()
    assert "Perceptron" not in text
    assert "File" not in text
    assert "layers" not in text


class Dropping(Perceptron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layers(x), 0.5, training=True)


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


class Random(Perceptron):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + torch.rand_like(x))


class Constant(Perceptron):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.arange(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x * self.factor)


class Ordinary(nn.Module):
    """As models are written: dropout, in place, an instance norm, slopes; two of them need `run_decompositions`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True)
        self.slopes, self.attention = nn.PReLU(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.relu, self.dropout, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.slopes(self.norm(self.convolution(x))).flatten(2).transpose(1, 2)
        h = self.relu(self.attention(h, h, h, need_weights=False)[0])
        return self.head(self.dropout(h).mean(1))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own use of its own class
def test_what_writes_in_place_or_is_switched_off_is_gone_once_decomposed() -> None:
    torch.manual_seed(3)
    model = Ordinary().eval()
    one = torch.randn(1, 1, 6, 6)
    with pytest.raises(ExportRefused, match="on the list") as refused:
        read_exported(exported(model, 1, 6, 6))
    assert "run_decompositions" in refused.value.remedy
    out = io.BytesIO()
    torch.export.save(torch.export.export(model, (one,)).run_decompositions({}), out)
    graph, weights = read_exported(out.getvalue())
    values = np.frombuffer(weights, dtype="<f8")
    found = graph_outputs(graph, values, one.numpy().astype(float))
    np.testing.assert_allclose(found, model(one).detach().numpy(), atol=1e-5)
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    np.testing.assert_array_equal(values, own.double().numpy())
    scales = [name for name, shape in graph.tensors() if len(shape) == 1 and name.endswith("weight")]
    assert scales == ["parameters.2.weight"]  # the norm's: it begins at 1
    # Active dropout stays refused.
    out = io.BytesIO()
    torch.export.save(torch.export.export(Dropping(), (torch.zeros(1, WIDTH),)).run_decompositions({}), out)
    with pytest.raises(ExportRefused, match="on the list"):
        read_exported(out.getvalue())


class Placed(nn.Module):
    """Looks rows of a table up: by their places, or by what a record holds."""

    def __init__(self, padding: int | None = None, *, by_value: bool = False, offset: int = 0) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 3, padding_idx=padding), nn.Linear(15, 1)
        self.by_value, self.offset = by_value, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = x[:, :, 0].long() if self.by_value else torch.arange(x.shape[1]).unsqueeze(0)
        return self.head((x + self.table(places + self.offset if self.offset else places)).flatten(1))


def test_places_look_up_the_first_rows_of_a_table() -> None:
    torch.manual_seed(4)
    model = Placed()
    graph, weights = read_exported(exported(model, 5, 3))
    assert "arange" not in graph.model_dump_json()
    x = torch.randn(4, 5, 3)
    found = graph_outputs(graph, np.frombuffer(weights, dtype="<f8"), x.numpy().astype(float))
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


class Parted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        c, d, e = (a * b).split([1, 2, 4], dim=1)
        f, g = e.split(3, dim=1)
        h = torch.cat([(part * (k + 1)).unsqueeze(1) for k, part in enumerate(c.expand(1, 2, 3).unbind(1))], dim=1) + d
        return self.head(h.sum(1) + f.mean(1) * g[:, 0])


def test_parts_of_a_tensor_are_slices() -> None:
    torch.manual_seed(5)
    model, x = Parted(), torch.randn(1, 7, 6)
    out = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), out)
    graph, weights = read_exported(out.getvalue())
    found = graph_outputs(graph, np.frombuffer(weights, dtype="<f8"), x.numpy().astype(float))
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("model", [Placed(2), Placed(by_value=True), Placed(offset=1)])
def test_any_other_look_up_is_refused(model: nn.Module) -> None:
    with pytest.raises(ExportRefused) as refused:
        read_exported(exported(model, 5, 3))
    assert refused.value.remedy


class TwoLogits(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: exported(Dropping(), WIDTH), "dropout"),
        (lambda: exported(Batched().eval(), WIDTH), "batch_norm"),
        (lambda: exported(Random(), WIDTH), "rand_like"),
        (lambda: exported(Constant(), WIDTH), "constant"),
        (lambda: exported(Perceptron(), WIDTH, batch=4), "exactly one record"),
        (lambda: exported(Perceptron(), WIDTH, batch=4, dynamic_shapes=({0: torch.export.Dim("n")},)), "not fixed"),
        (lambda: exported(nn.Sequential(nn.Linear(WIDTH, 1), nn.ReLU(inplace=True)), WIDTH), "relu_"),
        (lambda: exported(Perceptron().to(torch.bfloat16), WIDTH, dtype=torch.bfloat16), "float32 or float64"),
        (lambda: b"", "no whole .pt2"),
        (lambda: b"PK\x03\x04" + bytes(100), "no whole .pt2"),
    ],
)  # fmt: skip
def test_what_is_not_listed_is_refused_with_the_remedy(data: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ExportRefused, match=message) as refused:
        read_exported(data())
    assert refused.value.remedy


def altered(change: Callable[[dict[str, Any], dict[str, Any]], None], raw: dict[str, bytes] | None = None) -> bytes:
    """A good file whose graph and weights' list were changed by hand."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported(Perceptron().eval(), WIDTH))) as good, zipfile.ZipFile(out, "w") as bad:
        members = {info.filename: good.read(info) for info in good.infolist()}
        graph = next(name for name in members if name.endswith("models/model.json"))
        listed = next(name for name in members if name.endswith("model_weights_config.json"))
        documents = json.loads(members[graph]), json.loads(members[listed])
        change(documents[0]["graph_module"], documents[1]["config"])
        members[graph], members[listed] = (json.dumps(document).encode() for document in documents)
        root = graph.partition("/")[0]
        members |= {f"{root}/{name}": content for name, content in (raw or {}).items()}
        for name, content in members.items():
            bad.writestr(name, content)
    return out.getvalue()


class Boom:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle was opened",))


def _target(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda graph, _weights: graph["graph"]["nodes"][0].update(target=name)


def _weights(**change: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _graph, weights: next(iter(weights.values())).update(**change)


def _huge(_graph: dict[str, Any], weights: dict[str, Any]) -> None:
    first = next(iter(weights.values()))["tensor_meta"]
    first["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]
    first["strides"] = [{"as_int": 10**6}, {"as_int": 1}]


def _argument(value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda graph, _weights: graph["graph"]["nodes"][1]["inputs"][1].update(arg=value)


def test_numbers_that_no_machine_holds_are_refused() -> None:
    """Found by changing good files at random: JSON's infinity, a size beyond the address space, a broken stream."""
    good = exported(Placed(), 5, 3)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    graph = next(name for name in members if name.endswith("models/model.json"))
    document = json.loads(members[graph])
    (arange,) = (node for node in document["graph_module"]["graph"]["nodes"] if "arange" in node["target"])
    arange["inputs"][0]["arg"] = {"as_int": float("inf")}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(document) if name == graph else content)
    with pytest.raises(ExportRefused, match="OverflowError"):
        read_exported(out.getvalue())
    broken = bytearray(out.getvalue())
    start = broken.index(graph.encode()) + len(graph)
    broken[start : start + 40] = bytes([0xFF]) * 40
    with pytest.raises(ExportRefused, match="no whole"):
        read_exported(bytes(broken))


def test_the_pickled_sample_inputs_are_never_opened() -> None:
    data = altered(lambda _graph, _weights: None, {"data/sample_inputs/model.pt": pickle.dumps(Boom())})
    graph, _ = read_exported(data)
    assert len(graph.nodes) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_target("torch.ops.aten.rand_like.default"), "rand_like"),
        (_target("os.system"), "os.system"),
        (_target("torch.ops.higher_order.cond"), "cond"),
        (_target("torch.ops.aten.linear.default.__globals__"), "not on the list"),
        (_weights(use_pickle=True), "pickled"),
        (_weights(path_name="weight_1"), "share|another length"),
        (_weights(path_name="../../etc/passwd"), "another form"),
        (_huge, "more than 50000000 parameters"),
        (_argument({"as_device": {"type": "cuda"}}), "not taken|another form"),
        (_argument({"as_string": "x" * 99}), "may have"),
        (_argument({"as_tensor": {"name": "never_made"}}), "another form"),
        (_argument({"as_ints": [2**70]}), "may have|another form"),
        (lambda graph, _w: graph["graph"]["nodes"].extend(graph["graph"]["nodes"] * 600), "more than 2000 nodes"),
        (lambda graph, _w: graph["signature"]["output_specs"].append({}), "another form"),
        (lambda graph, _w: graph.pop("graph"), "another form"),
    ],
)
def test_a_file_made_by_hand_is_refused(change: Callable[[dict[str, Any], dict[str, Any]], None], message: str) -> None:
    with pytest.raises(ExportRefused, match=message):
        read_exported(altered(change))


def test_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ExportRefused, match="not a finite number"):
        read_exported(altered(lambda _g, _w: None, {"data/weights/weight_0": np.full(48, np.nan, "<f4").tobytes()}))
