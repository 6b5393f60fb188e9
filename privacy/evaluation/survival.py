"""How well a survival model's chances by the horizon are, from one histogram of three groups of patients.

Who is lost from sight before the horizon has no known outcome. Such patients are counted, in cells of their own, and
the metrics say how far they could move the answer, rather than assume why they left: the AUC is told without them, and
with all of them as survivors or as events; the observed share of events is told as the two ends between which it lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.evaluation.histogram import MOST_BINS
from privacy.evaluation.intervals import DRAWS, Estimate, Ratio, Simulation, too_few
from privacy.evaluation.metrics import auc_estimate, middles

LIVED, DIED, LOST = 0, 1, 2
GROUPS = 3


@dataclass(frozen=True)
class SurvivalEvaluation:
    """Of all held-out patients but `auc`, which is of those whose outcome at the horizon is known. See the module."""

    auc: Estimate
    auc_if_lost_lived: Estimate
    auc_if_lost_died: Estimate
    lost: Estimate
    predicted: Estimate
    observed_least: Estimate
    observed_most: Estimate


def evaluate_survival(
    counts: Float64, noise_std: float, rng: np.random.Generator, *, draws: int = DRAWS
) -> SurvivalEvaluation:
    """counts: (3 bins,) by group (LIVED, DIED, LOST) and by bin of the predicted chance of the event before the
    horizon. noise_std: of each count. The same seed gives the same intervals. Raises ParameterError."""
    if counts.ndim != 1 or counts.size % GROUPS or not counts.size or not bool(np.isfinite(counts).all()):
        raise ParameterError("A survival histogram has finite counts of three groups.", "Check the sum.")
    bins = counts.size // GROUPS
    if bins > MOST_BINS or not (math.isfinite(noise_std) and noise_std >= 0):
        raise ParameterError("A survival histogram has too many bins or no size of noise.", "Take both from the plan.")
    lived, died, lost = np.split(counts, GROUPS)
    merged = math.sqrt(2) * noise_std
    simulation = Simulation(counts, noise_std, GROUPS, rng, draws)
    total = float(counts.sum())
    nobody = too_few(total, math.sqrt(counts.size) * noise_std, "held-out patients")
    group = np.repeat(np.eye(GROUPS), bins, axis=1)  # [g]: 1 in the cells of group g

    def share(numerator: Float64) -> Estimate:
        if nobody:
            return Estimate.undefined(nobody)
        return simulation.ratio(Ratio(numerator, np.ones(counts.size)), total)

    return SurvivalEvaluation(
        auc=auc_estimate(lived, died, (noise_std, noise_std), rng, draws=draws),
        auc_if_lost_lived=auc_estimate(lived + lost, died, (merged, noise_std), rng, draws=draws),
        auc_if_lost_died=auc_estimate(lived, died + lost, (noise_std, merged), rng, draws=draws),
        lost=share(group[LOST]),
        predicted=share(np.tile(middles(bins), GROUPS)),
        observed_least=share(group[DIED]),
        observed_most=share(group[DIED] + group[LOST]),
    )
