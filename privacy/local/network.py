"""Fully connected networks: their outputs, their scores, and the clipped sum of their patients' gradients.

Parameters are one flat float64 vector: for each layer the weight (out, in) row by row, then the bias (out,).
A network without hidden layers has its gradients in closed form, in float64; the others go through torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from privacy.dpsgd.per_patient import Index, average_by_patient, check_records, logistic_gradients
from privacy.dpsgd.step import clipped_sum
from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.local.model import CPU, Hardware, PatientScores, scores_by_patient
from privacy.local.patients import Array, Group
from privacy.parameters import require_count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from privacy.local.torch_model import TorchModel

Loss = Literal["logistic", "hazard"]
"""logistic: y is 0 or 1; one output, the log-odds of 1; binary cross-entropy.

hazard: discrete-time survival (Brown 1975; Gensheimer and Narasimhan 2019). y = 2 k + e, where a patient lived
through k of the J intervals and e says whether the event came in the next one; 2 J where it never came. J outputs: the
log-odds of the event in each interval for one who lived to its beginning. The loss is the sum of the binary
cross-entropies over the intervals in which the patient was at risk, so it depends on no other patient.
"""


@dataclass(frozen=True)
class Network:
    """Layers of the given widths (inputs, hidden ..., outputs), tanh between them. Raises ParameterError."""

    widths: tuple[int, ...]
    loss: Loss

    def __post_init__(self) -> None:
        require_count("the number of layers", len(self.widths) - 1, 1)
        for width in self.widths:
            require_count("a layer's width", width, 1)
        if self.loss == "logistic" and self.widths[-1] != 1:
            raise ParameterError("A logistic network has one output.", "Correct the model.")

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
        interval's end. NaN where the parameters overflow."""
        chances = sigmoid(self.logits(parameters, x))
        if self.loss == "logistic":
            return chances[:, 0]
        result: Float64 = 1.0 - np.prod(1.0 - chances, axis=1)
        return result

    def outcomes(self, y: Float64) -> Float64:
        """(R,) labels -> (R,) what `chances` predicts: 0 or 1, or NaN where nobody knows because a patient was lost
        from sight before the last interval's end."""
        if self.loss == "logistic":
            return y
        events = np.mod(y, 2)
        result: Float64 = np.where(events == 1, 1.0, np.where(y >= 2 * self.outputs, 0.0, np.nan))
        return result

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
            return scores_by_patient(self.chances(parameters, group.x), self.outcomes(group.y), group)

    def _gradients(self, parameters: Float64, x: Float64, y: Float64, patients: Index, count: int) -> Float64:
        if self.loss == "logistic":
            return logistic_gradients(parameters, x, y, patients, count)
        events, at_risk = hazard_targets(y, self.outputs)
        residual = at_risk * (sigmoid(self.logits(parameters, x)) - events)
        weights = (residual[:, :, np.newaxis] * x[:, np.newaxis, :]).reshape(x.shape[0], -1)
        return average_by_patient(np.concatenate([weights, residual], axis=1), patients, count)

    @cached_property
    def _in_torch(self) -> TorchModel:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        from privacy.local.torch_model import TorchModel

        def loss(output: Tensor, label: Tensor) -> Tensor:
            if self.loss == "logistic":
                return binary_cross_entropy_with_logits(output[:, 0], label, reduction="none")
            events, at_risk = label.unbind(dim=1)
            return binary_cross_entropy_with_logits(output, events, weight=at_risk, reduction="none").sum(1)

        def targets(y: Array) -> Tensor:
            labels = y if self.loss == "logistic" else np.stack(hazard_targets(y, self.outputs), axis=1)
            return torch.from_numpy(np.ascontiguousarray(labels)).float()

        def score(output: Tensor) -> Tensor:
            chances = torch.sigmoid(output)
            return chances[:, 0] if self.loss == "logistic" else 1.0 - torch.prod(1.0 - chances, dim=1)

        return TorchModel(self.module, loss, score, targets=targets, outcomes=self.outcomes)

    def module(self) -> nn.Module:
        """The network in torch (float32), whose parameters stand in the vector's order."""
        from torch import nn

        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(self.widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1])


def hazard_targets(y: Float64, intervals: int) -> tuple[Float64, Float64]:
    """(R,) labels 2 k + e -> (events, at risk), each (R, J) of 0 and 1. Raises ParameterError for another label."""
    lived, event = np.divmod(y, 2)
    if not bool(np.isin(event, (0.0, 1.0)).all() and (y >= 0).all() and (y <= 2 * intervals).all()):
        raise ParameterError("A survival label does not fit the model's intervals.", "Use the schema's own encoding.")
    number = np.arange(intervals)[np.newaxis, :]
    events = ((number == lived[:, np.newaxis]) & (event == 1)[:, np.newaxis]).astype(np.float64)
    return events, (number < lived[:, np.newaxis]).astype(np.float64) + events


def sigmoid(logits: Float64) -> Float64:
    """1 / (1 + exp(-z)), elementwise, without overflow."""
    decay = np.exp(-np.abs(logits))  # of a value <= 0 only
    result: Float64 = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return result
