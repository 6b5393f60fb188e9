"""The model families a site computes with: chosen by name from the plan, never code from the wire.

Parameters are one flat float64 vector in the order of protocol.model.parameter_shapes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from privacy.entropy import Float64
from protocol.errors import Malformed
from protocol.model import LogisticRegression, MultilayerPerceptron, parameter_count, parameter_shapes

if TYPE_CHECKING:
    from torch import nn

Model = LogisticRegression | MultilayerPerceptron


def tensors(model: Model, inputs: int, parameters: Float64) -> dict[str, Float64]:
    """(D,) -> the named tensors, as views. Raises Malformed for another length or values that are not finite."""
    expected = parameter_count(model, inputs)
    if parameters.shape != (expected,) or not bool(np.isfinite(parameters).all()):
        raise Malformed(
            f"The model's vector is not {expected} finite numbers.", "Send the vector that the plan's model has."
        )
    named: dict[str, Float64] = {}
    start = 0
    for name, shape in parameter_shapes(model, inputs):
        size = int(np.prod(shape))
        named[name] = parameters[start : start + size].reshape(shape)
        start += size
    return named


def probabilities(model: Model, inputs: int, parameters: Float64, x: Float64) -> Float64:
    """(R, inputs) -> (R,) in [0, 1]: the predicted probability of label 1."""
    named = tensors(model, inputs, parameters)
    layers = len(named) // 2
    values = x
    for layer in range(layers):
        values = values @ named[f"layers.{layer}.weight"].T + named[f"layers.{layer}.bias"]
        if layer < layers - 1:
            values = np.tanh(values)
    logits = values[:, 0]
    decay = np.exp(-np.abs(logits))  # of a value <= 0 only, so that no logit overflows
    result: Float64 = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return result


def torch_module(model: MultilayerPerceptron, inputs: int, parameters: Float64) -> nn.Module:
    """The network as a torch module (float64), whose parameters stand in the vector's order."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [inputs, *model.hidden, 1]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers[:-1]:
                x = torch.tanh(layer(x))
            result: torch.Tensor = self.layers[-1](x)
            return result

    module = Network().to(torch.float64)
    named = {name: torch.from_numpy(value.copy()) for name, value in tensors(model, inputs, parameters).items()}
    module.load_state_dict(named)
    return module
