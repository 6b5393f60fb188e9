"""Model families as data: names, shapes and the order in which parameters stand in the flat vector.

The flat vector is what crosses: float64, little-endian, tensors in the order of `parameter_shapes`, row-major.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from protocol.identifiers import Frozen

MAX_PARAMETERS = 50_000_000


class LogisticRegression(Frozen):
    """sigmoid(w . x + b), binary cross-entropy."""

    architecture: Literal["logistic_regression"]


class MultilayerPerceptron(Frozen):
    """tanh hidden layers, one logit, binary cross-entropy."""

    architecture: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=4)]


Model = LogisticRegression | MultilayerPerceptron
ModelSpec = Annotated[Model, Field(discriminator="architecture")]


def layer_widths(model: Model, inputs: int) -> tuple[int, ...]:
    """(inputs, hidden ..., outputs)."""
    return (inputs, *(model.hidden if isinstance(model, MultilayerPerceptron) else ()), 1)


def loss_of(model: Model) -> Literal["logistic"]:
    """What is minimised, by the name that `privacy.local.network` gives it."""
    return "logistic"


def parameter_shapes(model: Model, inputs: int) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of each tensor in wire order; weights are (out, in) as in torch.nn.Linear."""
    widths = layer_widths(model, inputs)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for layer in range(len(widths) - 1):
        shapes.append((f"layers.{layer}.weight", (widths[layer + 1], widths[layer])))
        shapes.append((f"layers.{layer}.bias", (widths[layer + 1],)))
    return shapes


def parameter_count(model: Model, inputs: int) -> int:
    """Length of the flat vector."""
    return sum(math.prod(shape) for _, shape in parameter_shapes(model, inputs))
