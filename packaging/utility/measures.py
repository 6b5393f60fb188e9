"""AUC, c-index and accuracy of a model on test patients, and intervals of what is averaged over seeds."""

from __future__ import annotations

import math

import numpy as np
from cohorts import Test
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from privacy.local.network import Network

Matrix = NDArray[np.float64]
UNDEFINED = math.nan


def auc(y: Matrix, scores: Matrix) -> float:
    """Mann and Whitney's statistic, ties counted half; NaN where there is one outcome only."""
    positive = y == 1
    count = int(positive.sum())
    if count in (0, len(y)):
        return UNDEFINED
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(y) - count)))


def concordance(time: Matrix, event: Matrix, risk: Matrix) -> float:
    """Harrell's c (Harrell et al. 1982): of the pairs whose order is known, the share in which who died first had the
    larger risk; NaN where no pair's is.

    A pair's order is known where the one who died did so before the other's time, or on the very day on which the other
    was last seen alive. Two deaths on one day are no pair, equal risks count half. Every pair is counted: O(n^2).
    """
    died = (event == 1)[:, None]
    known = died & ((time[:, None] < time[None, :]) | ((time[:, None] == time[None, :]) & (event == 0)[None, :]))
    pairs = int(known.sum())
    if not pairs:
        return UNDEFINED
    larger = risk[:, None] > risk[None, :]
    equal = risk[:, None] == risk[None, :]
    return float((known & larger).sum() + 0.5 * (known & equal).sum()) / pairs


def judge(network: Network, weights: Matrix, test: Test) -> float:
    """The problem's own measure."""
    scores = network.chances(weights, test.x)
    return auc(test.y, scores) if network.loss == "logistic" else concordance(test.time, test.event, scores)


def accuracy(network: Network, weights: Matrix, test: Test) -> float:
    """Share of patients whose outcome is on its side of 0.5."""
    return float(np.mean((network.chances(weights, test.x) > 0.5) == (test.y == 1)))


def together(tests: dict[str, Test]) -> Test:
    """All sites' test patients as one."""
    found = list(tests.values())
    return Test(*(np.concatenate([getattr(test, name) for test in found]) for name in ("x", "y", "time", "event")))


def summary(values: list[float]) -> tuple[float, float, int]:
    """(mean, standard deviation, number) of those that are defined."""
    defined = np.array([value for value in values if not math.isnan(value)])
    spread = float(defined.std(ddof=1)) if len(defined) > 1 else UNDEFINED
    return (float(defined.mean()) if len(defined) else UNDEFINED), spread, len(defined)


def paired(first: list[float], second: list[float]) -> tuple[float, float, float, int]:
    """(mean difference, low, high, number): 95 % by Student's t over the seeds in which both are defined."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, spread, number = summary(differences)
    if number < 2:
        return mean, UNDEFINED, UNDEFINED, number
    half = float(t.ppf(0.975, number - 1)) * spread / math.sqrt(number)
    return mean, mean - half, mean + half, number
