"""What one attempt takes of a site's patients: a clipped, noised sum of gradients, or a noised histogram of scores.

Only the noised vector may leave the site: no batch size, no loss, no count of refused gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from privacy.auditing.membership import Prediction, attack_counts
from privacy.dpsgd.noise import add_gaussian
from privacy.dpsgd.noise_grid import noise_grid
from privacy.dpsgd.sampling import poisson_sample
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.errors import ParameterError
from privacy.local.model import CPU, Hardware, LocalModel
from privacy.local.patients import Group
from privacy.local.subgroups import Banding, subgroup_of

if TYPE_CHECKING:
    from privacy.local.ranks import Ranks


def clipped_gradient_sum(
    group: Group,
    model: LocalModel,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    entropy: Entropy,
    hardware: Hardware = CPU,
    ranks: Ranks | None = None,
) -> Float64:
    """(P,) float64: the sum over a fresh Poisson sample of patients of their gradients, each averaged over the
    patient's records and clipped to L2 norm `clip`. Secret until noise is added. ranks: this site's other processes,
    which take their part of the sample.

    Raises ParameterError for parameters that do not fit.
    """
    chosen = poisson_sample(group.patients, sampling_rate, KeyStream.fresh(entropy))
    if ranks is not None:
        return ranks.gradient_sum(model, parameters, group, chosen, clip, hardware)
    return model.gradient_sum(parameters, group.select(chosen), clip, hardware)


def private_gradient_sum(
    group: Group,
    model: LocalModel,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    noise_std: float,
    entropy: Entropy,
    hardware: Hardware = CPU,
    ranks: Ranks | None = None,
) -> Float64:
    """The clipped sum plus N(0, noise_std^2) on every coordinate; noise is added to an empty sample too.

    noise_std: the site's share, sigma C / sqrt(K - t), above 0. The sum before the noise and the result are rounded to
    the grid of `privacy.dpsgd.noise_grid`: patients are clipped a little lower, relatively by 1e-9 or so, so that the
    rounded sum's sensitivity is `clip`. Raises ParameterError.
    """
    grid = noise_grid(model.parameters, clip, noise_std, np.float64)
    total = clipped_gradient_sum(
        group,
        model,
        parameters,
        clip=clip if grid is None else grid.clip,
        sampling_rate=sampling_rate,
        entropy=entropy,
        hardware=hardware,
        ranks=ranks,
    )
    if grid is not None:
        grid.round_(total)
    if model.uses_torch:
        # Loaded already, and its vector functions draw four times faster.
        import torch

        from privacy.dpsgd.tensor_noise import TensorNoise

        TensorNoise(KeyStream.fresh(entropy)).add_(torch.from_numpy(total), noise_std)
    else:
        add_gaussian(total, noise_std, KeyStream.fresh(entropy))
    if grid is not None:
        grid.round_(total)
    return total


def score_histogram(
    group: Group,
    model: LocalModel,
    parameters: Float64,
    *,
    cells: int,
    noise_std: float | None,
    entropy: Entropy,
    hardware: Hardware = CPU,
    subgroups: Sequence[Banding] = (),
) -> Float64:
    """(cells (1 + subgroups),) float64: how many held-out patients score in each of cells / groups equal parts of
    [0, 1], one group of them after another; then the same for each subgroup of each banding. At most one count per
    patient in the first, and in each banding's, so the L2 sensitivity is sqrt(1 + bandings). noise_std: this site's
    share; None: exact. Raises ParameterError for cells that the model's groups do not divide, and for records in which
    a banding lies nowhere.
    """
    found = model.scores(parameters, group, hardware)
    bins, rest = divmod(cells, found.groups)
    if rest or bins < 1:
        raise ParameterError(f"{cells} cells hold no {found.groups} groups.", "Take the cells from the plan.")
    place = np.minimum((found.scores * bins).astype(np.int64), bins - 1) + bins * found.labels.astype(np.int64)
    parts = [np.bincount(place, minlength=cells)]
    for banding in subgroups:
        level = subgroup_of(group, banding)
        if level.shape != place.shape:
            raise ParameterError("Some patients are not scored.", "Ask for subgroups of patients who all have a score.")
        parts.append(np.bincount(place + cells * level, minlength=cells * banding.groups))
    histogram = np.concatenate(parts).astype(np.float64)
    if noise_std is not None:
        add_gaussian(histogram, noise_std, KeyStream.fresh(entropy))
    return histogram


def membership_histogram(
    members: Group,
    non_members: Group,
    model: LocalModel,
    parameters: Float64,
    *,
    prediction: Prediction,
    bins: int,
    most: int,
    noise_std: float,
    entropy: Entropy,
    hardware: Hardware = CPU,
) -> Float64:
    """(2 bins,) float64: the loss attack's scores of at most `most` non-members, then of as many members, drawn at
    random where there are more; one count a patient, so the L2 sensitivity is 1. noise_std: this site's share, above 0.
    """
    halves = [
        attack_counts(prediction, model.scores(parameters, _drawn(group, most, entropy), hardware), bins)
        for group in (non_members, members)
    ]
    histogram = np.concatenate(halves)
    add_gaussian(histogram, noise_std, KeyStream.fresh(entropy))
    return histogram


def _drawn(group: Group, most: int, entropy: Entropy) -> Group:
    """At most `most` patients. Whom the draw takes does not depend on what any of them holds."""
    if group.patients <= most:
        return group
    chosen = np.zeros(group.patients, dtype=bool)
    chosen[np.argsort(KeyStream.fresh(entropy).uniform53(group.patients), kind="stable")[:most]] = True
    return group.select(chosen)
