"""Schemas of images and sequences, the dictionaries that describe them, and the networks that fit them."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from protocol.architectures import NetworkModel, misfit
from protocol.dataset import DatasetSchema, MaskLabel, NumberLabel, SurvivalLabel
from protocol.dictionary import parse_dictionary
from protocol.errors import Malformed
from protocol.evaluation import kind_of
from protocol.model import (
    MAX_PARAMETERS,
    MultilayerPerceptron,
    label_misfit,
    model_misfit,
    parameter_count,
    parameter_shapes,
)
from protocol.statistics import Statistic, resolve

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


MASKS = (
    IMAGES.replace("- {name: finding, role: label, type: category, levels: [0, 1]}", "- {name: outline, role: mask}")
    .replace('label: {name: pneumonia, operator: "==", value: 1}', "label: {name: nodule, kind: mask}")
)  # fmt: skip


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
        ({"architecture": "unet", "widths": (512, 512)}, (1, 2048, 2048), "numbers of one record"),
        ({"architecture": "cnn", "widths": (64,)}, (1, 2048, 2048), "numbers of one record"),
        ({"architecture": "gru", "hidden": 512}, (1, 100_000), "numbers of one record"),
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
        {"architecture": "cnn", "intervals": 2},
        {"architecture": "cnn", "loss": "hazard"},
        {"architecture": "cnn", "loss": "hazard", "intervals": 51},
        {"architecture": "unet", "loss": "squared"},
    ],
)
def test_a_network_outside_the_caps_is_refused(fields):
    with pytest.raises(ValidationError):
        network(**fields)


def test_a_dictionary_describes_masks():
    dictionary = parse(MASKS)
    label = dictionary.schema.label
    assert isinstance(label, MaskLabel)
    assert (label.name, label.column, label.operator, label.value) == ("nodule", "outline", ">", 0)
    assert dictionary.mask_column is not None
    assert kind_of(dictionary.schema) == "segmentation"
    assert DatasetSchema.model_validate_json(dictionary.schema.model_dump_json()) == dictionary.schema
    other = parse(MASKS.replace("kind: mask}", 'kind: mask, operator: "==", value: 2}')).schema.label
    assert isinstance(other, MaskLabel)
    assert (other.operator, other.value) == ("==", 2)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("role: mask", "role: ignore", "0 columns have the role mask"),
        ("role: mask", "role: mask, type: integer", "takes no type"),
        ("kind: mask}", 'operator: "==", value: 1}', "1 columns have the role mask"),
        ("kind: mask}", "kind: mask, value: 1}", "or neither"),
        ("kind: mask}", 'kind: mask, operator: "==", value: high}', "or neither"),
        ("kind: mask}", "kind: mask, center: 1, scale: 1}", "or neither"),
        ("- {name: pid, role: patient_id}", "- {name: pid, role: patient_id}\n"
         "  - {name: sick, role: label, type: category, levels: [0, 1]}", "none the role label"),
    ],
)  # fmt: skip
def test_masks_that_contradict_the_rest_are_refused(old, new, told):
    assert old in MASKS
    with pytest.raises(Malformed, match=told):
        parse(MASKS.replace(old, new))


def test_masks_are_of_images():
    label = MaskLabel(kind="mask", name="nodule", column="outline")
    with pytest.raises(ValidationError, match="image alone"):
        DatasetSchema(name="vitals", sequence=parse(SEQUENCES).schema.sequence, label=label)


def test_only_a_unet_learns_masks_and_it_learns_nothing_else():
    unet, cnn = network(architecture="unet"), network(architecture="cnn")
    mask, rule = parse(MASKS).schema.label, parse(IMAGES).schema.label
    assert label_misfit(unet, mask) is None
    assert label_misfit(cnn, rule) is None
    assert "unet" in (label_misfit(unet, rule) or "")
    assert "unet" in (label_misfit(cnn, mask) or "")


def test_a_networks_loss_goes_with_the_kind_of_label():
    rule = parse(IMAGES).schema.label
    number = NumberLabel(kind="number", name="ef", column="ef", minimum=0, maximum=9, center=5, scale=1)
    survival = SurvivalLabel(name="death", column="dead", operator="==", value=1, time="months", edges=(1, 2))
    for label, fields in ((rule, {}), (number, {"loss": "squared"}), (survival, {"loss": "hazard", "intervals": 2})):
        for other in ({}, {"loss": "squared"}, {"loss": "hazard", "intervals": 2}, {"loss": "hazard", "intervals": 3}):
            fits = label_misfit(network(architecture="cnn", **other), label) is None
            assert fits == (other == fields)


def test_a_unet_needs_sides_that_halve():
    assert misfit(network(architecture="unet", widths=(4, 8, 8)), (1, 12, 16)) is None
    assert "multiples of 4" in (misfit(network(architecture="unet", widths=(4, 8, 8)), (1, 10, 16)) or "")


def test_a_mask_is_no_column_to_ask_statistics_of():
    with pytest.raises(Malformed, match="no column nodule"):
        resolve(parse(MASKS).schema, Statistic(kind="count", column="nodule", level=1))
    assert resolve(parse(IMAGES).schema, Statistic(kind="count", column="pneumonia", level=1)).start is None
