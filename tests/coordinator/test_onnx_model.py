"""The ONNX file computes what the schema's encoding and the parameters say, for raw clinical values."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.releases.onnx_model import build, tensors
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.model import (
    DiscreteTimeSurvival,
    LogisticRegression,
    Model,
    MultilayerPerceptron,
    loss_of,
    parameter_count,
)
from site_agent.releases.self_check import forward

SCHEMA = DatasetSchema(
    name="heart",
    features=(
        Feature(name="age", kind="number", unit="years", minimum=0, maximum=120, center=55, scale=10, impute=55),
        Feature(name="pain", kind="category", levels=(1, 2, 3, 4), impute=4),
        Feature(name="vessels", kind="integer", minimum=0, maximum=3, center=1, scale=1),
        Feature(name="sex", kind="category", levels=("f", "m")),
    ),
    label=LabelRule(name="disease", column="num", operator=">", value=0),
)
MODELS = [
    LogisticRegression(architecture="logistic_regression"),
    MultilayerPerceptron(architecture="mlp", hidden=(5, 3)),
    DiscreteTimeSurvival(architecture="discrete_time_survival", intervals=4),
    DiscreteTimeSurvival(architecture="discrete_time_survival", intervals=3, hidden=(5,)),
]


def reference(model: Model, vector: np.ndarray, inputs: np.ndarray) -> float:
    weights = tensors(model, SCHEMA.width, vector)
    layers = len(weights) // 2
    for layer in range(layers):
        inputs = weights[f"layers.{layer}.weight"] @ inputs + weights[f"layers.{layer}.bias"]
        inputs = np.tanh(inputs) if layer < layers - 1 else 1 / (1 + np.exp(-inputs))
    lived = 1.0
    for chance in inputs:
        lived *= 1 - chance
    return 1 - lived


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.one_of(st.none(), st.floats(0, 120)),
    st.one_of(st.none(), st.integers(0, 3)),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_raw_values_give_the_encoded_prediction(
    model: Model,
    age: float | None,
    pain: int | None,
    vessels: int,
    sex: int,
    seed: int,
) -> None:
    vector = np.random.default_rng(seed).normal(size=parameter_count(model, SCHEMA.width))
    record = {
        "age": age,
        "pain": None if pain is None else (1, 2, 3, 4)[pain],
        "vessels": vessels,
        "sex": ("f", "m")[sex],
    }
    raw = np.array([[np.nan if age is None else age, np.nan if pain is None else pain, vessels, sex]], dtype=float)
    session = onnxruntime.InferenceSession(build(model, SCHEMA, vector))
    (output,) = session.run(None, {"features": raw})
    inputs = np.array(SCHEMA.encode(record))
    assert output[0, 0] == pytest.approx(reference(model, vector, inputs), abs=1e-12)
    assert forward(tensors(model, SCHEMA.width, vector), inputs, loss_of(model)) == pytest.approx(
        output[0, 0], abs=1e-12
    )


def test_the_file_is_reproducible_and_holds_no_weights_of_another_shape() -> None:
    model = MODELS[0]
    vector = np.arange(parameter_count(model, SCHEMA.width), dtype=float)
    assert build(model, SCHEMA, vector) == build(model, SCHEMA, vector)
    with pytest.raises(ValueError, match="does not fit"):
        build(model, SCHEMA, vector[:-1])
    with pytest.raises(ValueError, match="does not fit"):
        build(model, SCHEMA, np.full_like(vector, np.nan))
