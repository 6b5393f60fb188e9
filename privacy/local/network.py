"""Fully connected networks: their outputs, their scores, and the clipped sum of their patients' gradients.

Parameters are one flat float64 vector: for each layer the weight (out, in) row by row, then the bias (out,).
A network without hidden layers has its gradients in closed form, in float64; the others go through torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from privacy.dpsgd.per_patient import (
    Index,
    average_by_patient,
    check_records,
    linear_gradients,
    logistic_gradients,
)
from privacy.dpsgd.step import clipped_sum
from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.local.model import CPU, Hardware, PatientScores, scores_by_patient
from privacy.local.outcome import Loss, TorchOutcome, groups_of, hazard_targets, outcomes, scores, sigmoid
from privacy.local.patients import Group
from privacy.parameters import require_count

if TYPE_CHECKING:
    from torch import nn

    from privacy.local.torch_model import TorchModel


@dataclass(frozen=True)
class Network:
    """Layers of the given widths (inputs, hidden ..., outputs), tanh between them. Raises ParameterError."""

    widths: tuple[int, ...]
    loss: Loss

    def __post_init__(self) -> None:
        require_count("the number of layers", len(self.widths) - 1, 1)
        for width in self.widths:
            require_count("a layer's width", width, 1)
        if self.loss != "hazard" and self.widths[-1] != 1:
            raise ParameterError(f"A network with a {self.loss} loss has one output.", "Correct the model.")

    @property
    def inputs(self) -> int:
        """D."""
        return self.widths[0]

    @property
    def outputs(self) -> int:
        """1, or the number of intervals."""
        return self.widths[-1]

    @property
    def linear(self) -> bool:
        """Whether there is no hidden layer."""
        return len(self.widths) == 2

    @property
    def parameters(self) -> int:
        """Length of the flat vector."""
        return sum((a + 1) * b for a, b in pairwise(self.widths))

    def layers(self, parameters: Float64) -> list[tuple[Float64, Float64]]:
        """(weight (out, in), bias (out,)) of each layer, as views. Raises ParameterError for another length or for
        values that are not finite."""
        if parameters.shape != (self.parameters,) or not bool(np.isfinite(parameters).all()):
            raise ParameterError(
                f"The model's vector is not {self.parameters} finite numbers.",
                "Send the vector that the plan's model has.",
            )
        found, start = [], 0
        for a, b in pairwise(self.widths):
            middle, end = start + a * b, start + a * b + b
            found.append((parameters[start:middle].reshape(b, a), parameters[middle:end]))
            start = end
        return found

    def logits(self, parameters: Float64, x: Float64) -> Float64:
        """(R, inputs) -> (R, outputs)."""
        layers = self.layers(parameters)
        values = x
        for number, (weight, bias) in enumerate(layers):
            values = values @ weight.T + bias
            if number < len(layers) - 1:
                values = np.tanh(values)
        return values

    def chances(self, parameters: Float64, x: Float64) -> Float64:
        """(R, inputs) -> (R,) in [0, 1]: the predicted probability of label 1, or of the event before the last
        interval's end. NaN where the parameters overflow. Raises ParameterError for a network that predicts a number.
        """
        if self.loss == "squared":
            raise ParameterError("A number has no chance.", "Take the network's logits.")
        return scores(self.loss, self.logits(parameters, x), np.zeros(x.shape[0]))

    def outcomes(self, y: Float64) -> Float64:
        """See `privacy.local.outcome.outcomes`."""
        return outcomes(self.loss, y, self.outputs)

    @property
    def uses_torch(self) -> bool:
        """Whether there is a hidden layer."""
        return not self.linear

    def gradient_sum(self, parameters: Float64, group: Group, clip: float, hardware: Hardware = CPU) -> Float64:
        """See LocalModel. Without a hidden layer it is in float64 and at any `hardware` on the CPU."""
        if not self.linear:
            return self._in_torch.gradient_sum(parameters, group, clip, hardware)
        self.layers(parameters)
        check_records(group.x, group.y, group.patient, group.patients)
        total = np.zeros(self.parameters)
        # A record's row, its patient's and the clipped one.
        for block in group.blocks(max(1, hardware.memory // (3 * 8 * self.parameters))):
            rows = self._gradients(parameters, block.x, block.y, block.patient, block.patients)
            total += clipped_sum(rows, clip).total
        return total

    def scores(self, parameters: Float64, group: Group, hardware: Hardware = CPU) -> PatientScores:
        """See LocalModel."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = scores(self.loss, self.logits(parameters, group.x), group.y)
        return scores_by_patient(found, self.outcomes(group.y), group, groups_of(self.loss))

    def _gradients(self, parameters: Float64, x: Float64, y: Float64, patients: Index, count: int) -> Float64:
        if self.loss != "hazard":
            closed = logistic_gradients if self.loss == "logistic" else linear_gradients
            return closed(parameters, x, y, patients, count)
        events, at_risk = hazard_targets(y, self.outputs)
        residual = at_risk * (sigmoid(self.logits(parameters, x)) - events)
        weights = (residual[:, :, np.newaxis] * x[:, np.newaxis, :]).reshape(x.shape[0], -1)
        return average_by_patient(np.concatenate([weights, residual], axis=1), patients, count)

    @cached_property
    def _in_torch(self) -> TorchModel:
        from privacy.local.torch_model import TorchModel

        outcome = TorchOutcome(self.loss, self.outputs)
        return TorchModel(self.module, outcome.loss, outcome.score, **outcome.arguments())

    def module(self) -> nn.Module:
        """The network in torch (float32), whose parameters stand in the vector's order."""
        from torch import nn

        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(self.widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1])
