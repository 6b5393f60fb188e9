"""What FLamby published for Fed-Heart-Disease and Fed-TCGA-BRCA, and what its DP example's noise is worth.

Means over its five seeds, computed from the result files of owkin/FLamby at edacf54 (MIT licence; Ogier du Terrail et
al. 2022): flamby/dp_example/results_fed_heart_disease.csv (accuracy, mean over hospitals, delta 1e-4) and
flamby/results/results_benchmark_fed_*/*_seed42..46.csv (mean over centres, pooled test).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.parameters import Mechanism

DELTA = 1e-4
DP_ACCURACY: dict[float | None, tuple[float, float]] = {
    None: (0.7125, 0.0238),
    10.0: (0.7004, 0.0549),
    5.0: (0.7036, 0.0487),
    1.0: (0.6853, 0.0548),
    0.1: (0.6056, 0.1213),
}
"""By its nominal epsilon: mean and standard deviation over its seeds."""
HEART_ACCURACY = {
    "pooled training": (0.7353, 0.7953),
    "FedAvg": (0.6850, 0.7480),
    "FedAdam": (0.7256, 0.7787),
    "FedYogi": (0.7314, 0.7787),
}
"""Mean over hospitals, pooled test; no privacy."""
BRCA_CONCORDANCE = {"pooled training": 0.7041, "FedAvg": 0.7353, "FedAdam": 0.8421}
"""Pooled test of its fixed split; Cox regression, no privacy."""

ROUNDS, UPDATES, BATCH = 15, 100, 4
TRAINING = {"cleveland": 199, "budapest": 172, "zurich-basel": 30, "long-beach": 85}
"""Its training rows; `run.py` checks them against the files."""


def recomputed(nominal: float) -> list[dict[str, Any]]:
    """For each hospital: the noise that the example calibrates, the steps it calibrates for and runs, and the epsilons.

    The example asks Opacus for the noise of `ROUNDS` epochs, at a sampling rate of one over the number of batches; its
    accountant was the Renyi one when the results were made. It then runs ROUNDS x UPDATES steps. Two epsilons follow:
    `poisson`, as if each step's batch were a Poisson sample as the calibration assumes; and `as_run`: the batches come
    from the data loader that was there before, shuffled batches of `BATCH`, so that each patient is in one step of
    every pass, and what holds without amplification is the plain Gaussian composed over the passes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.utils import get_noise_multiplier

        rows = []
        for name, count in TRAINING.items():
            batches = math.ceil(count / BATCH)
            planned = int(ROUNDS * batches)
            sigma = get_noise_multiplier(
                target_epsilon=nominal, target_delta=DELTA, sample_rate=1 / batches, steps=planned, accountant="rdp"
            )
            steps = ROUNDS * UPDATES
            rows.append(
                {
                    "hospital": name,
                    "sigma": sigma,
                    "planned": planned,
                    "run": steps,
                    "poisson": epsilon(Mechanism(sigma, 1 / batches, steps, DELTA)),
                    "as_run": gaussian_epsilon(sigma / math.sqrt(math.ceil(steps / batches)), DELTA),
                }
            )
    return rows
