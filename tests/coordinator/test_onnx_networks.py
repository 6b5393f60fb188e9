"""The ONNX file of every network computes what torch does, from raw values, and the site's self-check sees to it."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.numpy import save

from coordinator.releases.onnx_model import build, tensors
from coordinator.rounds.optimiser import initial_point
from privacy.architectures.catalogue import build as build_module
from protocol.architectures import NetworkModel
from protocol.dataset import DatasetSchema, Feature, LabelRule, MaskLabel, NumberLabel, SurvivalLabel
from protocol.errors import Malformed, VerificationFailed
from protocol.evaluation import ClassificationReport, Interval
from protocol.media import ImageInput, SequenceChannel, SequenceInput
from protocol.model import LogisticRegression, ModelSpec, label_misfit, parameter_count, parameter_shapes
from protocol.release import EpsilonStatement, ReleaseSubject
from site_agent.cohort.sequences import filled, normalise
from site_agent.releases.self_check import check, media_probes
from site_agent.serving.app import create_app
from site_agent.serving.predictor import Predictor

torch.set_num_threads(1)
LABEL = LabelRule(name="sick", column="finding", operator="==", value=1)
NUMBER = NumberLabel(kind="number", name="ejection", column="ef", unit="%", minimum=5, maximum=90, center=50, scale=12)


def image(channels: int, height: int, width: int) -> DatasetSchema:
    window = {"low": -1000.0, "high": 400.0, "center": 0.5, "scale": 0.25}
    film = ImageInput(name="film", channels=channels, height=height, width=width, **window)
    return DatasetSchema(name="films", image=film, label=LABEL)


def sequence(channels: int, length: int) -> DatasetSchema:
    rows = tuple(
        SequenceChannel(name=f"c{n}", minimum=0, maximum=200, center=70 + n, scale=20, impute=70)
        for n in range(channels)
    )
    vitals = SequenceInput(name="vitals", channels=rows, length=length, interval=60)
    return DatasetSchema(name="vitals", sequence=vitals, label=LABEL)


CASES: list[tuple[dict[str, Any], DatasetSchema]] = [
    ({"architecture": "cnn", "widths": (4, 16)}, image(1, 9, 8)),
    ({"architecture": "resnet", "widths": (4, 8), "blocks": 2}, image(3, 8, 8)),
    ({"architecture": "resnet", "widths": (8, 16), "blocks": 1, "stem": "large"}, image(1, 24, 17)),
    ({"architecture": "cnn", "widths": (8,), "loss": "squared"}, image(1, 8, 8)),
    ({"architecture": "resnet", "widths": (4, 8), "blocks": 1, "loss": "hazard", "intervals": 3}, image(1, 8, 8)),
    ({"architecture": "gru", "hidden": 4, "loss": "hazard", "intervals": 2}, sequence(2, 5)),
    ({"architecture": "transformer", "patch": 2, "width": 8, "layers": 1, "loss": "squared"}, sequence(2, 6)),
    ({"architecture": "unet", "widths": (4, 8)}, image(2, 8, 6)),
    ({"architecture": "unet", "widths": (4, 4, 8)}, image(1, 8, 12)),
    ({"architecture": "cnn_1d", "widths": (4, 8), "kernel": 5}, sequence(3, 13)),
    ({"architecture": "gru", "hidden": 5, "layers": 2}, sequence(3, 7)),
    ({"architecture": "gru", "hidden": 4}, sequence(1, 5)),
    ({"architecture": "transformer", "patch": 2, "width": 8, "heads": 2, "layers": 2}, sequence(3, 8)),
    ({"architecture": "transformer", "patch": 4, "width": 8, "heads": 4, "layers": 1}, image(2, 8, 12)),
]  # fmt: skip
NAMES = [f"{fields['architecture']}-{fields.get('loss', 'logistic')}-{schema.name}{n}" for n, (fields, schema) in
         enumerate(CASES)]  # fmt: skip
every_network = pytest.mark.parametrize(("fields", "schema"), CASES, ids=NAMES)


def spec(fields: dict[str, Any]) -> NetworkModel:
    return TypeAdapter(ModelSpec).validate_python(fields)


def vector(fields: dict[str, Any], schema: DatasetSchema, seed: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    parts = [
        random.normal(scale=0.4, size=shape) + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
        for name, shape in parameter_shapes(spec(fields), schema.shape)
    ]
    return np.concatenate([part.ravel() for part in parts])


def raw_records(schema: DatasetSchema, count: int = 6, seed: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    low, high = (-1300, 700) if schema.image else (0, 200)  # an image may lie out of its window
    return random.uniform(low, high, size=(count, *schema.shape))


def by_torch(fields: dict[str, Any], schema: DatasetSchema, parameters: np.ndarray, records: np.ndarray) -> np.ndarray:
    module = build_module(fields["architecture"], schema.shape, spec(fields).model_dump(exclude={"architecture"}))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters).float(), module.parameters())
    if schema.image is not None:
        encoded = ((np.clip(records, -1000, 400) + 1000) / 1400 - 0.5) / 0.25
    else:
        assert schema.sequence is not None
        encoded = np.stack([normalise(record, schema.sequence) for record in records])
    with torch.no_grad():
        outputs = module(torch.from_numpy(encoded).float()).double()
    if fields.get("loss") == "hazard":
        return (1 - (1 - torch.sigmoid(outputs)).prod(dim=1, keepdim=True)).numpy()
    return outputs.numpy() * 12 + 50 if fields.get("loss") == "squared" else torch.sigmoid(outputs).numpy()


def subject(fields: dict[str, Any], schema: DatasetSchema) -> ReleaseSubject:
    """A release of the network; its label is of the kind that the network learns."""
    if fields.get("loss") == "squared":
        schema = schema.model_copy(update={"label": NUMBER})
    if fields.get("loss") == "hazard":
        edges = tuple(float(edge) for edge in range(1, fields["intervals"] + 1))
        survival = SurvivalLabel(name="death", column="dead", operator="==", value=1, time="months", edges=edges)
        schema = schema.model_copy(update={"label": survival})
    if fields["architecture"] == "unet":
        schema = schema.model_copy(update={"label": MaskLabel(kind="mask", name="tumour", column="mask")})
    nothing = Interval(value=None, reason="made up")
    digest = "sha256:" + "0" * 64
    return ReleaseSubject(
        release="r-1", study="films", plan_digest=digest, model=spec(fields), dataset=schema, files=(),
        epsilon=EpsilonStatement(
            unit="patient", adjacency="zero-out", epsilon=1, delta=1e-5, epsilon_worst_site=2,
            epsilon_cohort_to_date={},
            epsilon_evaluation=None, epsilon_evaluation_worst_site=None, steps_charged=1, rounds_executed=1, attempts=1,
            sampling="", accountant="", trust="",
        ),
        evaluation=ClassificationReport(
            mode="noised", outside_guarantee=False, held_out=11, bins=10, auc=nothing, accuracy=nothing,
            calibration_error=nothing,
        ),
        intended_use="test", use_mode="research", submitter="somebody", recipients=("a-site",), packs={},
    )  # fmt: skip


@every_network
def test_the_file_computes_what_torch_does(fields, schema):
    parameters, records = vector(fields, schema), raw_records(schema)
    about = subject(fields, schema)
    predictor = Predictor(build(spec(fields), about.dataset, parameters), about)
    found, wanted = predictor.outputs(records), by_torch(fields, schema, parameters, records)
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-5 if fields.get("loss") != "squared" else 12e-5)


@every_network
def test_the_self_check_accepts_the_pair_and_no_other(fields, schema):
    parameters = vector(fields, schema)
    weights = save(tensors(spec(fields), schema.shape, parameters))
    about = subject(fields, schema)
    assert label_misfit(about.model, about.dataset.label) is None
    assert check(about, weights, build(spec(fields), about.dataset, parameters)) <= 1e-5
    changed = parameters.copy()
    changed[-1] += 0.5
    with pytest.raises(VerificationFailed, match="different predictions"):
        check(about, weights, build(spec(fields), schema, changed))


@every_network
def test_the_first_model_is_the_plans_and_can_learn(fields, schema):
    """Scales of normalisations are 1, biases 0; matrices and kernels are drawn, the same for the same plan."""
    model, digest = spec(fields), "sha256:" + "1" * 64
    first = initial_point(model, schema.shape, digest)
    assert first.weights.size == parameter_count(model, schema.shape)
    assert (first.weights == initial_point(model, schema.shape, digest).weights).all()
    assert (first.weights != initial_point(model, schema.shape, "sha256:" + "2" * 64).weights).any()
    for name, tensor in tensors(model, schema.shape, first.weights).items():
        if tensor.ndim == 1:
            assert (tensor == (1.0 if name.endswith(".weight") else 0.0)).all(), name
        else:
            assert 0.02 < tensor.std() < 2.0, name
    scores = by_torch(fields, schema, first.weights, raw_records(schema, 20))
    assert np.ptp(scores) > 1e-4


def test_no_pickle_and_no_custom_operator_is_in_the_file():
    fields, schema = CASES[1]
    proto = onnx.load_from_string(build(spec(fields), schema, vector(fields, schema)))
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert proto.graph.input[0].name == "image"


def test_a_predictor_refuses_what_is_no_image():
    fields, schema = CASES[0]
    predictor = Predictor(build(spec(fields), schema, vector(fields, schema)), subject(fields, schema))
    good = np.zeros((2, 1, 9, 8))
    assert len(predictor.run(good)) == 2
    bad = good.copy()
    bad[1, 0, 0, 0] = np.nan
    for rows in (bad, good[:, :, :8], good[0], good[:0], np.zeros((2, 72))):
        with pytest.raises(Malformed):
            predictor.run(rows)
    assert predictor.predict([{"film": good[0].tolist()}]) == predictor.run(good[:1])
    for record in ({}, {"film": [1, 2]}, {"film": good[0].tolist(), "age": 1}, {"film": "x"}, {"film": [["a"]]}):
        with pytest.raises(Malformed, match="Record 1"):
            predictor.predict([record])


def test_a_predictor_fills_a_sequence_as_training_did():
    fields, schema = {"architecture": "gru", "hidden": 4}, sequence(1, 5)
    parameters = vector(fields, schema)
    predictor = Predictor(build(spec(fields), schema, parameters), subject(fields, schema))
    assert schema.sequence is not None
    gaps = np.array([[np.nan, 90.0, np.nan, np.nan, 50.0]])
    whole = filled(gaps, schema.sequence)
    assert whole.tolist() == [[70, 90, 90, 90, 50]]
    np.testing.assert_allclose(
        predictor.predict([{"c0": [None, 90, None, None, 50]}]),
        by_torch(fields, schema, parameters, whole[np.newaxis])[:, 0],
        atol=1e-6,
    )
    with pytest.raises(Malformed, match="c0 has a value outside"):
        predictor.predict([{"c0": [0, 0, 0, 0, 1000]}])


def test_a_file_is_scored_as_it_was_trained_on():
    fields, schema = {"architecture": "gru", "hidden": 4}, sequence(1, 5)
    predictor = Predictor(build(spec(fields), schema, vector(fields, schema)), subject(fields, schema))
    text = b"time,channel,value\n60,c0,90\n240,c0,50\n"
    assert predictor.predict_file(text) == predictor.predict([{"c0": [None, 90, None, None, 50]}])[0]
    with pytest.raises(Malformed, match="can't be used"):
        predictor.predict_file(b"GIF89a")


def test_a_networks_masks_come_as_rows_of_pixels():
    fields, schema = next((fields, schema) for fields, schema in CASES if fields["architecture"] == "unet")
    predictor = Predictor(build(spec(fields), schema, vector(fields, schema)), subject(fields, schema))
    record = raw_records(schema, 1)
    assert predictor.output_shape == (8, 6)
    (mask,) = predictor.run(record)
    assert np.array(mask).shape == (8, 6)
    assert (np.array(mask) == predictor.outputs(record)[0]).all()
    assert predictor.predict([{"film": record[0].tolist()}]) == [mask]


async def ask(predictor: Predictor, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=create_app(predictor, lambda: None, lambda _: None))
    async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
        return await client.request(method, path, **options)


def test_images_are_served_as_tensors_values_and_files():
    fields, schema = CASES[0]
    predictor = Predictor(build(spec(fields), schema, vector(fields, schema)), subject(fields, schema))
    told = asyncio.run(ask(predictor, "GET", "/v2/models/films")).json()
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 9, 8]}]
    assert told["parameters"]["input"]["low"] == -1000
    records = raw_records(schema, 2)
    wanted = predictor.run(records)
    tensor = {"name": "image", "shape": [2, 1, 9, 8], "datatype": "FP32", "data": records.ravel().tolist()}
    answer = asyncio.run(ask(predictor, "POST", "/v2/models/films/infer", json={"inputs": [tensor]})).json()
    assert answer["outputs"][0]["shape"] == [2, 1]
    np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, atol=1e-7)
    named = {"records": [{"film": record.tolist()} for record in records]}
    assert asyncio.run(ask(predictor, "POST", "/v1/predict", json=named)).json()["probabilities"] == wanted
    out = io.BytesIO()
    np.save(out, records[0])
    file = asyncio.run(ask(predictor, "POST", "/v1/predict-file", content=out.getvalue()))
    assert file.json()["probability"] == pytest.approx(wanted[0], abs=1e-6)
    bad = asyncio.run(ask(predictor, "POST", "/v1/predict-file", content=b"GIF89a"))
    assert bad.status_code == 400
    assert "not an .npy, PNG, JPEG or DICOM file" in bad.json()["error"]
    flat = {**tensor, "shape": [2, 72]}
    assert asyncio.run(ask(predictor, "POST", "/v2/models/films/infer", json={"inputs": [flat]})).status_code == 400


def test_a_table_takes_no_file():
    schema = DatasetSchema(
        name="table", features=(Feature(name="a", kind="number", minimum=0, maximum=1, center=0, scale=1),), label=LABEL
    )
    model = LogisticRegression(architecture="logistic_regression")
    about = subject(CASES[0][0], CASES[0][1]).model_copy(update={"model": model, "dataset": schema})
    predictor = Predictor(build(model, schema, np.zeros(2)), about)
    assert asyncio.run(ask(predictor, "POST", "/v1/predict-file", content=b"1")).status_code == 400


def test_a_network_of_real_size_passes_its_self_check():
    """Rounding grows with depth; records that are constant would make it grow beyond any bound."""
    fields, schema = {"architecture": "unet"}, image(1, 64, 64)
    first = initial_point(spec(fields), schema.shape, "sha256:" + "1" * 64).weights
    weights = save(tensors(spec(fields), schema.shape, first))
    about = subject(fields, schema)
    assert check(about, weights, build(spec(fields), schema, first)) < 1e-4
    probes = media_probes(schema)
    assert (probes.std(axis=(1, 2, 3)) > 10).all()
    assert (probes >= -1000).all()
    assert (probes <= 400).all()


def test_transposed_images_do_not_pass():
    """A file that reads height as width is a build fault that the probes must find."""
    fields, _ = CASES[0]
    square = image(1, 8, 8)
    parameters = vector(fields, square)
    named = tensors(spec(fields), square.shape, parameters)
    turned = {name: tensor.swapaxes(-1, -2) if tensor.ndim == 4 else tensor for name, tensor in named.items()}
    wrong = build(spec(fields), square, np.concatenate([tensor.ravel() for tensor in turned.values()]))
    with pytest.raises(VerificationFailed, match="different"):
        check(subject(fields, square), save(named), wrong)
