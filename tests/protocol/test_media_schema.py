"""Schemas of images and sequences, the dictionaries that describe them, and the networks that fit them."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from protocol.architectures import NetworkModel, misfit
from protocol.dataset import DatasetSchema
from protocol.dictionary import parse_dictionary
from protocol.errors import Malformed
from protocol.model import MAX_PARAMETERS, MultilayerPerceptron, model_misfit, parameter_count, parameter_shapes

IMAGES = """\
dictionary: 1
name: chest-films
file: {patient_id: pid}
columns:
  - {name: pid, role: patient_id}
  - {name: film, role: file, on_bad: drop}
  - {name: finding, role: label, type: category, levels: [0, 1]}
image: {name: film, channels: 1, height: 64, width: 48, low: -1000, high: 400, center: 0.5, scale: 0.25}
label: {name: pneumonia, operator: "==", value: 1}
"""
SEQUENCE = """\
sequence:
  name: vitals
  length: 48
  interval: 3600
  channels:
    - {name: pulse, unit: 1/min, minimum: 20, maximum: 250, center: 80, scale: 20, impute: 80}
    - {name: spo2, unit: "%", minimum: 50, maximum: 100, center: 96, scale: 3, outside: missing}
"""
SEQUENCES = IMAGES.replace(next(line for line in IMAGES.splitlines() if line.startswith("image")) + "\n", SEQUENCE)


def parse(text: str):
    return parse_dictionary(text.encode())


def network(**fields: object) -> NetworkModel:
    return TypeAdapter(NetworkModel).validate_python(fields)


def test_a_dictionary_describes_images():
    dictionary = parse(IMAGES)
    schema = dictionary.schema
    assert (schema.shape, schema.width, schema.columns) == ((1, 64, 48), 3072, ("film",))
    assert dictionary.file_column is not None
    assert dictionary.file_column.name == "film"
    assert DatasetSchema.model_validate_json(schema.model_dump_json()) == schema


def test_a_dictionary_describes_sequences():
    schema = parse(SEQUENCES).schema
    assert (schema.shape, schema.columns) == ((2, 48), ("pulse", "spo2"))
    assert schema.digest != parse(SEQUENCES.replace("interval: 3600", "interval: 1800")).schema.digest


def test_the_window_is_in_the_digest_and_the_manifest_is_not():
    assert parse(IMAGES.replace("high: 400", "high: 300")).schema.digest != parse(IMAGES).schema.digest
    assert parse(IMAGES.replace("on_bad: drop", "on_bad: refuse")).schema.digest == parse(IMAGES).schema.digest


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("role: file, on_bad: drop", "role: ignore", "0 columns have the role file"),
        ("role: file, on_bad: drop", "role: file, type: number", "takes no type"),
        ("image: {name: film", "images: {name: film", "images"),
        ("low: -1000, high: 400", "low: 400, high: 400", "low < high"),
        ("scale: 0.25", "scale: 0", "scale"),
        ("height: 64, width: 48", "height: 2048, width: 2048, fit: crop", "fit"),
        ("channels: 1, height: 64, width: 48", "channels: 16, height: 1024, width: 1024", "more than"),
        ("- {name: pid, role: patient_id}", "- {name: pid, role: patient_id}\n"
         "  - {name: age, role: feature, type: number, minimum: 0, maximum: 1, center: 0, scale: 1}", "or one image"),
        ("image: {name: film", SEQUENCE + "image: {name: film", "columns have the role file"),
    ],
)  # fmt: skip
def test_a_dictionary_that_contradicts_itself_is_refused(old, new, told):
    assert old in IMAGES
    with pytest.raises(Malformed, match=told):
        parse(IMAGES.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: spo2", "name: pulse", "one name"),
        ("impute: 80", "impute: 300", "imputation"),
        ("length: 48", "length: 3000000", "length"),
        ("interval: 3600", "interval: 0", "interval"),
        ("minimum: 20, maximum: 250", "minimum: 20, maximum: 20", "below"),
    ],
)
def test_a_sequence_that_contradicts_itself_is_refused(old, new, told):
    assert old in SEQUENCES
    with pytest.raises(Malformed, match=told):
        parse(SEQUENCES.replace(old, new))


def test_resnet_18_has_the_published_size():
    """11,689,512 parameters of the network for ImageNet, less the 513,000 of its head, plus those of ours."""
    model = network(architecture="resnet", stem="large")
    assert parameter_count(model, (3, 224, 224)) == 11_689_512 - 513_000 + 513


def test_the_flat_vector_has_every_tensor_once():
    model = network(architecture="transformer", patch=4, width=16, heads=2, layers=1, feedforward=8)
    shapes = parameter_shapes(model, (3, 8, 8))
    assert len({name for name, _ in shapes}) == len(shapes)
    assert sum(math.prod(shape) for _, shape in shapes) == parameter_count(model, (3, 8, 8))
    assert dict(shapes)["embed.weight"] == (16, 48)
    assert dict(shapes)["position.weight"] == (4, 16)


@pytest.mark.parametrize(
    ("fields", "shape", "told"),
    [
        ({"architecture": "cnn", "widths": (8,) * 6}, (1, 63, 64), "at least 64"),
        ({"architecture": "cnn"}, (2, 48), "takes an image, and the data set holds a sequence"),
        ({"architecture": "gru"}, (5,), "takes a sequence, and the data set holds a table"),
        ({"architecture": "transformer", "patch": 5}, (2, 48), "does not divide"),
        ({"architecture": "transformer", "patch": 1}, (1, 64, 64), "at most 1024"),
    ],
)
def test_a_network_that_does_not_fit_the_records_is_refused_with_the_reason(fields, shape, told):
    reason = misfit(network(**fields), shape)
    assert reason is not None
    assert told in reason


def test_a_model_of_too_many_parameters_is_refused():
    model = network(architecture="resnet", widths=(1024,) * 5, blocks=4)
    reason = model_misfit(model, (3, 224, 224))
    assert reason is not None
    assert str(MAX_PARAMETERS) in reason


def test_a_table_model_takes_no_image():
    assert model_misfit(MultilayerPerceptron(architecture="mlp", hidden=(4,)), (1, 8, 8)) is not None
    assert model_misfit(MultilayerPerceptron(architecture="mlp", hidden=(4,)), (8,)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "cnn", "widths": (6,)},
        {"architecture": "cnn", "widths": ()},
        {"architecture": "cnn_1d", "kernel": 4},
        {"architecture": "transformer", "patch": 1, "width": 64, "heads": 3},
        {"architecture": "gru", "hidden": 10**9},
        {"architecture": "cnn", "widths": (8,), "batch_norm": True},
    ],
)
def test_a_network_outside_the_caps_is_refused(fields):
    with pytest.raises(ValidationError):
        network(**fields)
