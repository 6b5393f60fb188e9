"""Each listed operator: the shape foretold, what the site's interpreter computes, and what the ONNX file does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save

from coordinator.releases.onnx_exported import TABLE, scan_graph
from coordinator.releases.onnx_graph import IR_VERSION, OPSET, Graph
from coordinator.releases.onnx_model import build, tensors
from privacy.local.graph_network import graph_outputs
from protocol.dataset import DatasetSchema, Feature, LabelRule, NumberLabel
from protocol.errors import Malformed, VerificationFailed
from protocol.graph import ExportedGraph
from protocol.graph_shapes import measure
from protocol.media import ImageInput, SequenceChannel, SequenceInput
from protocol.release import ReleaseSubject
from site_agent.releases.self_check import check
from site_agent.serving.predictor import Predictor
from tests.graph_cases import CASES, Values, X, ints, node
from tests.releases import Maker

torch.set_num_threads(1)


def scanned(graph: ExportedGraph, vector: np.ndarray) -> onnxruntime.InferenceSession:
    """The graph alone as an ONNX file: x (N, *input) float32 -> outputs (N, J) double."""
    outer = Graph()
    output = scan_graph(outer, graph, tensors(graph, graph.input, vector), "x")
    proto = helper.make_model(
        helper.make_graph(
            outer.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["patients", *graph.input])],
            [helper.make_tensor_value_info(output, TensorProto.DOUBLE, ["patients", None])],
            outer.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString())


@pytest.mark.parametrize(("operator", "shape", "parameters", "arguments"), CASES, ids=[case[0] for case in CASES])
def test_every_operator_means_one_thing_everywhere(
    operator: str, shape: tuple[int, ...], parameters: tuple[tuple[int, ...], ...], arguments: Values
) -> None:
    flat = node("reshape.default", {"self": ("tensor", "n0"), "shape": ints(1, -1)})
    graph = ExportedGraph(input=shape, parameters=parameters, nodes=(node(operator, arguments), flat), output="n1")
    cost = measure(graph)
    random = np.random.default_rng(1)
    vector, x = random.normal(size=graph.parameter_count), random.normal(size=(3, *shape)).astype(np.float32)
    expected = graph_outputs(graph, vector, x)
    assert expected.shape == (3, cost.outputs)
    assert math.prod(cost.values[0]) == cost.outputs
    (found,) = scanned(graph, vector).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # One at a time it says the same: the released file does not let patients meet either.
    (single,) = scanned(graph, vector).run(None, {"x": x[1:2]})
    np.testing.assert_allclose(single, found[1:2], atol=1e-6)


@pytest.mark.parametrize(("operator", "shape", "parameters", "arguments"), CASES, ids=[case[0] for case in CASES])
def test_the_foretold_shape_is_torch_s_own(
    operator: str, shape: tuple[int, ...], parameters: tuple[tuple[int, ...], ...], arguments: Values
) -> None:
    flat = node("reshape.default", {"self": ("tensor", "n0"), "shape": ints(1, -1)})
    graph = ExportedGraph(input=shape, parameters=parameters, nodes=(node(operator, arguments), flat), output="n1")
    values: dict[str, Any] = {f"p{place}": torch.empty(size, device="meta") for place, size in enumerate(parameters)}
    values["x"] = torch.empty((1, *shape), device="meta")
    given = {}
    for name, (kind, value) in arguments.items():
        given[name] = values[value] if kind == "tensor" else [values[v] for v in value] if kind == "tensors" else value
    family, _, overload = operator.partition(".")
    named = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    result = getattr(getattr(torch.ops.aten, family), overload)(**named)
    assert measure(graph).values[0] == tuple(result.shape)


def test_the_cases_reach_every_operator() -> None:
    assert {case[0] for case in CASES} == set(TABLE)


@pytest.mark.parametrize(
    "label",
    [
        LabelRule(name="disease", column="num", operator=">", value=0),
        NumberLabel(kind="number", name="p", column="q", minimum=0, maximum=300, center=120, scale=20),
    ],
    ids=["yes-no", "number"],
)
def test_a_released_graph_takes_raw_values(label: LabelRule | NumberLabel) -> None:
    schema = DatasetSchema(
        name="heart",
        features=(
            Feature(name="age", kind="number", minimum=0, maximum=120, center=55, scale=10, impute=55),
            Feature(name="sex", kind="category", levels=("f", "m")),
        ),
        label=label,
    )
    number = isinstance(label, NumberLabel)
    graph = ExportedGraph(
        loss="squared" if number else "logistic",
        input=(3,),
        parameters=((1, 3), (1,)),
        nodes=(node("linear.default", CASES[0][3]),),
        output="n0",
    )
    vector = np.array([0.5, -1.0, 2.0, 0.25])
    session = onnxruntime.InferenceSession(build(graph, schema, vector))
    raw = np.array([[70.0, 1.0], [np.nan, 0.0]])
    (found,) = session.run(None, {"features": raw})
    inputs = np.array([schema.encode({"age": 70.0, "sex": "m"}), schema.encode({"age": None, "sex": "f"})])
    output = inputs @ vector[:3] + vector[3]
    expected = 120 + 20 * output if number else 1 / (1 + np.exp(-output))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    assert session.get_outputs()[0].name == ("value" if number else "probability")


def test_a_graph_that_divides_by_zero_answers_nothing_rather_than_no_number() -> None:
    feature = Feature(name="age", kind="number", minimum=0, maximum=120, center=60, scale=10)
    label = NumberLabel(kind="number", name="p", column="q", minimum=0, maximum=300, center=120, scale=20)
    schema = DatasetSchema(name="heart", features=(feature,), label=label)
    divide = node("div.Tensor", {"self": ("tensor", "p0"), "other": X})
    graph = ExportedGraph(loss="squared", input=(1,), parameters=((1, 1),), nodes=(divide,), output="n0")
    subject = ReleaseSubject.model_validate_json(Maker().files()["subject.json"]).model_copy(
        update={"dataset": schema, "model": graph}
    )
    predictor = Predictor(build(graph, schema, np.ones(1)), subject)
    assert predictor.predict([{"age": 70}]) == [pytest.approx(140.0)]
    with pytest.raises(Malformed, match="no number"):
        predictor.predict([{"age": 70}, {"age": 60}])


MEDIA = [
    {
        "image": ImageInput(name="film", channels=1, height=6, width=8, low=0, high=255, center=0.5, scale=0.25),
        "kernel": (2, 1, 3, 3),
        "operator": "conv2d.default",
        "left": (2, 3),
    },
    {
        "sequence": SequenceInput(
            name="vitals", length=8, interval=60,
            channels=(SequenceChannel(name="pulse", minimum=20, maximum=250, center=80, scale=20, impute=80),),
        ),
        "kernel": (2, 1, 3),
        "operator": "conv1d.default",
        "left": (2,),
    },
]  # fmt: skip


@pytest.mark.parametrize("case", MEDIA, ids=["image", "sequence"])
def test_a_graph_for_images_or_sequences_is_released_and_checked_against_the_interpreter(case: dict[str, Any]) -> None:
    schema = DatasetSchema(
        name="heart",
        image=case.get("image"),
        sequence=case.get("sequence"),
        label=LabelRule(name="disease", column="num", operator=">", value=0),
    )
    graph = ExportedGraph(
        input=schema.shape,
        parameters=(case["kernel"], (2,), (1, 2)),
        nodes=(
            node(case["operator"], {"input": X, "weight": ("tensor", "p0"), "bias": ("tensor", "p1")}),
            node("relu.default", {"self": ("tensor", "n0")}),
            node("mean.dim", {"self": ("tensor", "n1"), "dim": ints(*case["left"])}),
            node("linear.default", {"input": ("tensor", "n2"), "weight": ("tensor", "p2")}),
        ),
        output="n3",
    )
    vector = np.random.default_rng(2).normal(size=graph.parameter_count)
    subject = ReleaseSubject.model_validate_json(Maker().files()["subject.json"]).model_copy(
        update={"dataset": schema, "model": graph}
    )
    weights, other = save(tensors(graph, schema.shape, vector)), save(tensors(graph, schema.shape, 2 * vector))
    onnx_file = build(graph, schema, vector)
    assert check(subject, weights, onnx_file) < 1e-4
    with pytest.raises(VerificationFailed, match="different predictions"):
        check(subject, other, onnx_file)
