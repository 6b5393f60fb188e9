"""What one attempt takes of a site's patients: a clipped, noised sum of gradients, or a noised histogram of scores.

Only the noised vector may leave the site: no batch size, no loss, no count of refused gradients.
"""

from __future__ import annotations

import numpy as np

from privacy.dpsgd.noise import add_gaussian
from privacy.dpsgd.per_patient import average_by_patient
from privacy.dpsgd.sampling import poisson_sample
from privacy.dpsgd.step import clipped_sum
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.local.network import Network
from privacy.local.patients import Group

GRADIENT_ENTRIES = 1 << 24
"""At most so many gradient entries (float64) are held at once: 128 MiB."""


def clipped_gradient_sum(
    group: Group,
    network: Network,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    entropy: Entropy,
    device: str = "cpu",
) -> Float64:
    """(P,) float64: the sum over a fresh Poisson sample of patients of their gradients, each averaged over the
    patient's records and clipped to L2 norm `clip`. Secret until noise is added.

    Raises ParameterError for parameters that do not fit.
    """
    sample = group.select(poisson_sample(group.patients, sampling_rate, KeyStream.fresh(entropy)))
    total = np.zeros(parameters.size)
    at_once = max(1, GRADIENT_ENTRIES // max(1, parameters.size))
    for start in range(0, max(1, sample.patients), at_once):
        block = sample.block(start, at_once)
        gradients = network.gradients(parameters, block.x, block.y, block.patient, block.patients, device)
        total += clipped_sum(gradients, clip).total
    return total


def private_gradient_sum(
    group: Group,
    network: Network,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    noise_std: float,
    entropy: Entropy,
    device: str = "cpu",
) -> Float64:
    """The clipped sum plus N(0, noise_std^2) on every coordinate; noise is added to an empty sample too.

    noise_std: the site's share, sigma C / sqrt(K - t), above 0. Raises ParameterError.
    """
    total = clipped_gradient_sum(
        group, network, parameters, clip=clip, sampling_rate=sampling_rate, entropy=entropy, device=device
    )
    add_gaussian(total, noise_std, KeyStream.fresh(entropy))
    return total


def patient_scores(group: Group, network: Network, parameters: Float64) -> tuple[Float64, Float64]:
    """(scores, labels), one entry per patient whose outcome is known: the mean score over its records, and the label
    of at least half of them. A record whose score is no number (the parameters overflow) scores 0.5: an error would
    tell, without noise, that there is such a record.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.nan_to_num(network.scores(parameters, group.x), nan=0.5)
    outcomes = network.outcomes(group.y)
    known = ~np.isnan(outcomes)
    rows = np.stack([scores[known], outcomes[known]], axis=1)
    means = average_by_patient(rows, group.patient[known], group.patients)
    seen = np.bincount(group.patient[known], minlength=group.patients) > 0
    return means[seen, 0], (means[seen, 1] >= 0.5).astype(np.float64)


def score_histogram(
    group: Group, network: Network, parameters: Float64, *, bins: int, noise_std: float | None, entropy: Entropy
) -> Float64:
    """(2 bins,) float64: how many held-out patients score in each of `bins` equal parts of [0, 1], those of label 0
    first; at most one count per patient, so the L2 sensitivity is 1. noise_std: this site's share; None: exact.
    """
    scores, labels = patient_scores(group, network, parameters)
    place = np.minimum((scores * bins).astype(np.int64), bins - 1) + bins * labels.astype(np.int64)
    histogram = np.bincount(place, minlength=2 * bins).astype(np.float64)
    if noise_std is not None:
        add_gaussian(histogram, noise_std, KeyStream.fresh(entropy))
    return histogram
