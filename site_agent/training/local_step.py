"""What one attempt takes of this site's patients: a clipped, noised sum, or a noised histogram of scores.

Only the noised vector leaves these functions: no batch size, no loss, no count of refused gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.dpsgd.noise import add_gaussian
from privacy.dpsgd.per_patient import average_by_patient, logistic_gradients
from privacy.dpsgd.sampling import poisson_sample
from privacy.dpsgd.step import clipped_sum
from privacy.entropy import Entropy, Float64, KeyStream
from protocol.model import LogisticRegression, MultilayerPerceptron
from site_agent.training.architectures import Model, probabilities, torch_module

GRADIENT_ENTRIES = 1 << 24
"""At most so many gradient entries (float64) are held at once: 128 MiB."""


@dataclass(frozen=True)
class Group:
    """The records of one group of patients, numbered 0..patients-1. x: (R, D) float64. y: (R,) in {0, 1}.
    patient: (R,) int64, rising."""

    x: Float64
    y: Float64
    patient: npt.NDArray[np.int64]
    patients: int


@dataclass(frozen=True)
class Cohort:
    """A snapshot, parted once: patients that train, and patients that only evaluate."""

    training: Group
    held_out: Group


def part(x: Float64, y: Float64, patient: npt.NDArray[np.int64], held_out: npt.NDArray[np.bool_]) -> Cohort:
    """x: (R, D), y: (R,), patient: (R,) index into held_out: (patients,) bool."""
    return Cohort(_group(x, y, patient, ~held_out), _group(x, y, patient, held_out))


def _group(x: Float64, y: Float64, patient: npt.NDArray[np.int64], members: npt.NDArray[np.bool_]) -> Group:
    return _select(Group(x, y, patient, members.size), members)


def _select(group: Group, chosen: npt.NDArray[np.bool_]) -> Group:
    """The records of the chosen patients, renumbered, in the patients' order."""
    number = np.cumsum(chosen) - 1
    rows = np.flatnonzero(chosen[group.patient])
    rows = rows[np.argsort(group.patient[rows], kind="stable")]
    return Group(group.x[rows], group.y[rows], number[group.patient[rows]], int(chosen.sum()))


def private_gradient_sum(
    group: Group,
    model: Model,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    noise_std: float,
    entropy: Entropy,
    device: str = "cpu",
) -> Float64:
    """(D,) float64: the sum over a fresh Poisson sample of patients of their gradients, each averaged over the
    patient's records and clipped to L2 norm `clip`, plus N(0, noise_std^2). Noise is added to an empty sample too.

    noise_std: the site's share, sigma C / sqrt(K - t). Raises Malformed for parameters that do not fit.
    """
    inputs = group.x.shape[1]
    sample = _select(group, poisson_sample(group.patients, sampling_rate, KeyStream.fresh(entropy)))
    total = np.zeros(parameters.size)
    at_once = max(1, GRADIENT_ENTRIES // max(1, parameters.size))
    for start in range(0, max(1, sample.patients), at_once):
        block = _patients_from(sample, start, at_once)
        gradients = _gradients(block, model, inputs, parameters, device)
        total += clipped_sum(gradients, clip).total
    add_gaussian(total, noise_std, KeyStream.fresh(entropy))
    return total


def _patients_from(group: Group, start: int, count: int) -> Group:
    first, last = np.searchsorted(group.patient, [start, start + count])
    present = max(0, min(count, group.patients - start))
    return Group(group.x[first:last], group.y[first:last], group.patient[first:last] - start, present)


def _gradients(block: Group, model: Model, inputs: int, parameters: Float64, device: str) -> Float64:
    if isinstance(model, LogisticRegression):
        return logistic_gradients(parameters, block.x, block.y, block.patient, block.patients)
    return _torch_gradients(block, model, inputs, parameters, device)


def _torch_gradients(
    block: Group, model: MultilayerPerceptron, inputs: int, parameters: Float64, device: str
) -> Float64:
    module = torch_module(model, inputs, parameters)
    if block.patients == 0:
        return np.zeros((0, parameters.size))
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from privacy.dpsgd.module_gradients import module_gradients

    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(output[:, 0], label)

    x = torch.from_numpy(block.x).to(device)
    y = torch.from_numpy(block.y).to(device)
    return module_gradients(module.to(device), loss, x, y, block.patient, block.patients)


def score_histogram(
    group: Group, model: Model, parameters: Float64, *, bins: int, noise_std: float | None, entropy: Entropy
) -> Float64:
    """(2 bins,) float64: how many held-out patients score in each of `bins` equal parts of [0, 1], those of label 0
    first; one count per patient, so the L2 sensitivity is 1. noise_std: this site's share; None: exact.

    A patient's score is the mean over the records, and the label that of at least half of them. A record whose score
    is no number (the parameters overflow) scores 0.5: an error would tell, without noise, that there is such a record.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.nan_to_num(probabilities(model, group.x.shape[1], parameters, group.x), nan=0.5)
    rows = np.stack([scores, group.y], axis=1)
    means = average_by_patient(rows, group.patient, group.patients)
    place = np.minimum((means[:, 0] * bins).astype(np.int64), bins - 1) + bins * (means[:, 1] >= 0.5)
    histogram = np.bincount(place, minlength=2 * bins).astype(np.float64)
    if noise_std is not None:
        add_gaussian(histogram, noise_std, KeyStream.fresh(entropy))
    return histogram
