"""From a noised sum to statistics with 95 % intervals: post-processing only.

The intervals speak of the cohort's own patients and cover the noise, whose size is known; they say nothing about other
patients. Each holds by itself with 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_count
from privacy.statistics.queries import Query, vector_length

Z = 1.959963984540054


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval, all within what is possible."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """One query's figures: one for count and mean; one for each bin (patients in it); one for each probability."""

    query: Query
    figures: tuple[Figure, ...]


def answers(queries: Sequence[Query], total: Float64, *, noise_std: float, patients: int) -> tuple[Answer, ...]:
    """total: (length,) as summed over all sites. noise_std: of each coordinate, as it was added by all contributors.
    patients: of all contributors, public. Raises ParameterError."""
    require_count("the number of patients", patients, 1)
    if total.shape != (vector_length(queries),) or not bool(np.isfinite(total).all()):
        raise ParameterError("The sum does not fit the queries.", "Take both from one plan.")
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ParameterError("The noise must be finite and at least 0.", "Take it from the plan.")
    found, start = [], 0
    for query in queries:
        part = total[start : start + query.length]
        start += query.length
        if query.kind == "mean":
            half = (query.high - query.low) / 2
            unit = half / patients
            middle = query.low + half
            figures = [figure_within(middle + float(part[0]) * unit, Z * noise_std * unit, query.low, query.high)]
        elif query.kind == "quantiles":
            figures = [_quantile(query, part, p, noise_std, patients) for p in query.probabilities]
        else:
            figures = [figure_within(float(value), Z * noise_std, 0.0, float(patients)) for value in part]
        found.append(Answer(query, tuple(figures)))
    return tuple(found)


def figure_within(value: float, reach: float, low: float, high: float) -> Figure:
    """value +- reach, all kept to [low, high]."""

    def within(x: float) -> float:
        return min(high, max(low, x))

    return Figure(within(value), within(value - reach), within(value + reach))


def _quantile(query: Query, counts: Float64, probability: float, noise_std: float, patients: int) -> Figure:
    """The p-quantile by linear interpolation within a bin, and the bins that the noise leaves possible.

    Let c(t) be the patients below an edge t. If the quantile lies in a bin, c <= p N at its lower and c >= p N at its
    upper edge. Each noised c is tested at 2.5 % on its side; the interval is the span of the bins that pass both.
    """
    edges = np.array(query.edges)
    below = np.concatenate([[0.0], np.cumsum(counts)]) - probability * patients
    reach = Z * noise_std * np.sqrt(np.arange(edges.size))
    # From above c(t) = N minus the bins beyond, with noise of its own: the better of the two at each edge.
    above = (1 - probability) * patients - np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
    other = reach[::-1]
    difference = np.where(reach <= other, below, above)
    allowed = np.minimum(reach, other)
    possible = np.flatnonzero((difference[:-1] <= allowed[:-1]) & (difference[1:] >= -allowed[1:]))
    clean = np.maximum.accumulate(difference)
    clean[0], clean[-1] = -probability * patients, (1 - probability) * patients
    clean = np.clip(np.maximum.accumulate(clean), clean[0], clean[-1])
    value = float(np.interp(0.0, clean, edges))
    if possible.size == 0:  # noise beyond both tests: nothing is excluded
        return Figure(value, float(edges[0]), float(edges[-1]))
    low, high = float(edges[possible[0]]), float(edges[possible[-1] + 1])
    return Figure(min(high, max(low, value)), low, high)
