"""What a model learns and how it is judged, by the kind of outcome: the loss, the score of a record, its outcome.

logistic: y is 0 or 1; one output, the log-odds of 1; binary cross-entropy.

hazard: discrete-time survival (Brown 1975; Gensheimer and Narasimhan 2019). y = 2 k + e, where a patient lived
through k of the J intervals and e says whether the event came in the next one; 2 J where it never came. J outputs: the
log-odds of the event in each interval for one who lived to its beginning. The loss is the sum of the binary
cross-entropies over the intervals in which the patient was at risk, so it depends on no other patient.

squared: y is a number in units of the dictionary's scale; one output, its prediction; half the squared difference. A
record is judged by its residual, cut to +-3 and laid over [0, 1]; a prediction that is no number has the largest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from privacy.entropy import Float64
from privacy.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["logistic", "hazard", "squared"]
LIMIT = 3.0
"""A residual is told from larger ones up to here, in units of the scale."""


def groups_of(loss: Loss) -> int:
    """How many groups of patients the evaluation counts apart (see `privacy.local.model.PatientScores`)."""
    return {"logistic": 2, "hazard": 3, "squared": 1}[loss]


def scores(loss: Loss, outputs: Float64, y: Float64) -> Float64:
    """(R, J) outputs -> (R,) in [0, 1]: the predicted probability of label 1, or of the event before the last
    interval's end; for squared, the residual. NaN where the outputs of the others are none."""
    if loss == "squared":
        residuals = np.nan_to_num(outputs[:, 0] - y, nan=LIMIT)
        return np.asarray((np.clip(residuals, -LIMIT, LIMIT) / LIMIT + 1.0) / 2.0)
    chances = sigmoid(outputs)
    if loss == "logistic":
        return chances[:, 0]
    result: Float64 = 1.0 - np.prod(1.0 - chances, axis=1)
    return result


def outcomes(loss: Loss, y: Float64, intervals: int) -> Float64:
    """(R,) labels -> (R,) what the score predicts: 0 or 1, or NaN where nobody knows because a patient was lost from
    sight before the last interval's end; for squared 0 throughout."""
    if loss == "logistic":
        return y
    if loss == "squared":
        return np.zeros(y.shape)
    events = np.mod(y, 2)
    result: Float64 = np.where(events == 1, 1.0, np.where(y >= 2 * intervals, 0.0, np.nan))
    return result


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


class TorchOutcome:
    """The same for torch: `loss` (outputs, targets) of r records -> (r,), `score`, `targets`, `outcomes`, as
    `privacy.local.torch_model.TorchModel` takes them."""

    def __init__(self, loss: Loss, outputs: int) -> None:
        self._kind, self._outputs = loss, outputs

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of TorchModel that go with the outcome, beside loss and score."""
        fit = self.fit if self._kind == "squared" else None
        return {"targets": self.targets, "outcomes": self.outcomes, "groups": groups_of(self._kind), "fit": fit}

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(r, J), targets -> (r,)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self._kind == "squared":
            return (output[:, 0] - target) ** 2 / 2
        if self._kind == "logistic":
            return binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")
        events, at_risk = target.unbind(dim=1)
        return binary_cross_entropy_with_logits(output, events, weight=at_risk, reduction="none").sum(1)

    def score(self, output: Tensor) -> Tensor:
        """(r, J) -> (r,) in [0, 1]."""
        import torch

        chances = torch.sigmoid(output)
        return chances[:, 0] if self._kind != "hazard" else 1.0 - torch.prod(1.0 - chances, dim=1)

    def fit(self, output: Tensor, target: Tensor) -> Tensor:
        """(r, 1), (r,) -> (r,): the residual, laid over [0, 1]."""
        residual = (output[:, 0] - target).nan_to_num(nan=LIMIT)
        return (residual.clamp(-LIMIT, LIMIT) / LIMIT + 1.0) / 2.0

    def targets(self, y: Float64) -> Tensor:
        """What `loss` takes for the labels."""
        import torch

        labels = np.stack(hazard_targets(y, self._outputs), axis=1) if self._kind == "hazard" else y
        return torch.from_numpy(np.ascontiguousarray(labels)).float()

    def outcomes(self, y: Float64) -> Float64:
        """What `score` predicts."""
        return outcomes(self._kind, np.asarray(y, dtype=np.float64), self._outputs)
