"""The example of docs/MODELS.md, from its own lines to a trained and released model: a network of MONAI as a graph."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from typer.testing import CliRunner

from coordinator.client.cli import app
from coordinator.releases.onnx_exported import scan_graph
from coordinator.releases.onnx_graph import IR_VERSION, OPSET, Graph
from coordinator.releases.onnx_model import tensors
from privacy.dpsgd import private_gradients
from privacy.local.graph_layers import OwnOperator, layered_module
from privacy.local.graph_network import graph_model
from privacy.local.patients import Group
from protocol.exported import read_exported
from protocol.graph import ExportedGraph, ExportRefused, initial_values, read_graph

torch.set_num_threads(1)
# torch's own use of its own class, within run_decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
DOCUMENT = Path(__file__).parents[2] / "docs" / "MODELS.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """What the document's lines leave: model.pt2, and the module itself."""
    pytest.importorskip("monai")
    folder = tmp_path_factory.mktemp("example")
    block = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]
    assert '"model.pt2"' in block
    names: dict[str, Any] = {}
    torch.manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(block.replace('"model.pt2"', repr(str(folder / "model.pt2"))), names)
    return folder, names["model"]


@pytest.fixture(scope="module")
def graph(example: tuple[Path, nn.Module]) -> ExportedGraph:
    folder, _ = example
    given = [
        "model",
        "pack",
        str(folder / "model.pt2"),
        "--out",
        str(folder / "graph.json"),
        "--keep-weights",
        "--json",
    ]
    packed = CliRunner().invoke(app, given, catch_exceptions=False)
    assert json.loads(packed.stdout)["input"] == [1, 32, 32]
    return read_graph((folder / "graph.json").read_bytes())


def test_it_trains_through_layers_of_torch_s_own(
    example: tuple[Path, nn.Module], graph: ExportedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32, as at a site: float64 puts a value of the third patient's on the other side of a ReLU.
    model = example[1].float()
    layered = layered_module(graph)
    assert layered is not None
    assert not any(isinstance(part, OwnOperator) for part in layered.modules())
    vector = np.array(initial_values(graph))
    random = np.random.default_rng(1)
    x, y = random.normal(size=(5, 1, 32, 32)).astype(np.float32), np.array([0, 1, 1, 0, 1], dtype=np.float32)
    patients, clip = np.array([0, 1, 1, 2, 3]), 0.5
    expected = np.zeros(vector.size)
    for patient in range(4):
        model.zero_grad()
        logits = model(torch.from_numpy(x[patients == patient]))[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y[patients == patient])).backward()
        own = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().numpy()
        expected += own * min(1.0, clip / float(np.linalg.norm(own)))
    monkeypatch.setattr(private_gradients, "module_gradients", pytest.fail)  # vmap is out of reach
    found = graph_model(graph, "logistic", 1).gradient_sum(vector, Group(x, y, patients, 4), clip)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-2


def test_the_released_file_answers_as_monai_does(example: tuple[Path, nn.Module], graph: ExportedGraph) -> None:
    model = example[1].double()
    outer, vector = Graph(), np.array(initial_values(graph))
    output = scan_graph(outer, graph, tensors(graph, graph.input, vector), "x")
    made = helper.make_graph(
        outer.nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["patients", 1, 32, 32])],
        [helper.make_tensor_value_info(output, TensorProto.DOUBLE, ["patients", None])],
        outer.constants,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    x = np.random.default_rng(2).normal(size=(3, 1, 32, 32)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, model(torch.from_numpy(x).double()).detach().numpy(), atol=1e-4)


def test_its_default_norm_is_refused_with_the_remedy(tmp_path: Path) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.DenseNet(2, 1, 1, init_features=4, growth_rate=2, block_config=(2,), bn_size=2)
    program = torch.export.export(model.eval(), (torch.zeros(1, 1, 16, 16),)).run_decompositions({})
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ExportRefused, match="batch_norm") as refused:
        read_exported((tmp_path / "model.pt2").read_bytes())
    assert "GroupNorm" in refused.value.remedy
