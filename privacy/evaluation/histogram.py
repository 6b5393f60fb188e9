"""The labelled score histogram: one count per held-out patient, so zeroing one patient moves it by 1 in L2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_count

SENSITIVITY = 1.0
"""L2 sensitivity under zero-out adjacency."""
MOST_BINS = 1000


def check_bins(bins: int) -> None:
    """Raises ParameterError unless `bins` is even, so that 0.5 is an edge, and 2 to 1000."""
    require_count("the number of bins", bins, 2)
    if bins % 2 or bins > MOST_BINS:
        raise ParameterError(f"{bins} bins are odd or more than {MOST_BINS}.", "Use an even number, such as 20.")


def score_histogram(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.generic], bins: int) -> Float64:
    """(P,) scores in [0, 1] and (P,) labels 0 or 1 -> (2 bins,) float64: counts of label 0, then of label 1.

    One score per patient. Bin b holds b/bins <= score < (b+1)/bins, the last one 1 as well. Raises ParameterError
    for a score or label out of range, without naming it.
    """
    check_bins(bins)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ParameterError("Scores and labels must be vectors of one length.", "Give one score per patient.")
    values = scores.astype(np.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ParameterError("A score is not a number from 0 to 1.", "Check the model's output.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ParameterError("A label is neither 0 nor 1.", "Check the label's derivation in the dictionary.")
    # In float32, 0.5 - eps times bins may round up to the edge; float64 scores keep to their side of 0.5.
    index = np.minimum((values * bins).astype(np.int64), bins - 1) + bins * labels.astype(np.int64)
    return np.bincount(index, minlength=2 * bins).astype(np.float64)


@dataclass(frozen=True)
class ScoreHistogram:
    """A histogram summed over sites. counts: (2 bins,) float64, negative where noise made it so.

    noise_std: standard deviation of the noise on each count, as it was in fact added by all contributors
    (`SecureSumParameters.sum_std`); 0 for a declared exact histogram. Raises ParameterError.
    """

    counts: Float64
    noise_std: float

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or self.counts.size % 2 or not bool(np.isfinite(self.counts).all()):
            raise ParameterError("A histogram needs finite counts, one half for each label.", "Check the sum.")
        check_bins(self.counts.size // 2)
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ParameterError("The noise of a histogram must be finite and at least 0.", "Take it from the plan.")

    @property
    def bins(self) -> int:
        """Bins per label."""
        return self.counts.size // 2

    @property
    def negatives(self) -> Float64:
        """(bins,) counts of label 0."""
        return self.counts[: self.bins]

    @property
    def positives(self) -> Float64:
        """(bins,) counts of label 1."""
        return self.counts[self.bins :]
