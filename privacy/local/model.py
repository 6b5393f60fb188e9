"""What a model must answer so that a site can train and evaluate it privately, and what it may use of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from privacy.dpsgd.per_patient import average_by_patient
from privacy.entropy import Float64
from privacy.local.patients import Group
from privacy.parameters import require_count


@dataclass(frozen=True)
class Hardware:
    """device: torch's name of it. memory: bytes that one micro-batch may use, above the model; what does not fit is
    computed in several, to the same sum. half: whether forward passes run in bfloat16 (norms stay float32). Raises
    ParameterError.
    """

    device: str = "cpu"
    memory: int = 1 << 30
    half: bool = False

    def __post_init__(self) -> None:
        require_count("the memory of a micro-batch", self.memory, 1)


CPU = Hardware()


@dataclass(frozen=True)
class PatientScores:
    """One entry per patient who is counted. scores: (n,) float64 in [0, 1]. labels: (n,) of 0 .. groups - 1.

    groups 2: the outcome, 0 or 1. groups 3: 2 is an outcome that nobody knows. groups 1: the score itself says how well
    the patient was predicted.
    """

    scores: Float64
    labels: Float64
    groups: int = 2


class LocalModel(Protocol):
    """A model family with its sizes fixed. P is the length of its flat vector."""

    @property
    def parameters(self) -> int:
        """P."""

    @property
    def uses_torch(self) -> bool:
        """Whether `gradient_sum` loads torch, so that the process can set its threads and its allocator first."""

    def gradient_sum(self, parameters: Float64, group: Group, clip: float, hardware: Hardware = CPU) -> Float64:
        """(P,) float64: the sum over all patients of the group of their loss's gradient, each averaged over the
        patient's records and clipped to L2 norm `clip`; zeros for nobody. A patient whose gradient is not finite
        counts as 0. It fails by what the vector or the arrays' shapes are, never by what a patient holds.

        Raises ParameterError for parameters (P,) that do not fit.
        """

    def scores(self, parameters: Float64, group: Group, hardware: Hardware = CPU) -> PatientScores:
        """A score per patient; one that is no number counts as 0.5. Raises ParameterError as above."""


def scores_by_patient(scores: Float64, outcomes: Float64, group: Group, groups: int = 2) -> PatientScores:
    """(R,) scores in [0, 1] and (R,) outcomes, 0, 1 or NaN for unknown -> the mean score over a patient's records, and
    the label of at least half of them. A patient with a record of unknown outcome is unknown: of 3 groups in the
    third, of 2 left out.

    A score that is no number (the parameters overflow) counts as 0.5: an error would tell, without noise, that there
    is such a record.
    """
    unknown = np.isnan(outcomes)
    rows = np.stack([np.nan_to_num(scores, nan=0.5).clip(0.0, 1.0), np.where(unknown, 0.0, outcomes)], axis=1)
    means = average_by_patient(rows, group.patient, group.patients)
    lost = np.bincount(group.patient[unknown], minlength=group.patients) > 0
    labels = np.where(lost, 2.0, (means[:, 1] >= 0.5).astype(np.float64)) if groups > 1 else np.zeros(group.patients)
    kept = (np.bincount(group.patient, minlength=group.patients) > 0) & (labels < groups)
    return PatientScores(means[kept, 0], labels[kept], groups)
