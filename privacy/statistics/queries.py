"""What each patient adds to a set of statistics: one vector whose L2 norm is bounded by the queries alone.

Values are read from records as training sees them, so they are imputed and kept to the schema's scaled range. A
patient's records are averaged. The neighbouring data set has one patient's vector replaced by zero, and the number of
patients is public (privacy.accounting.events), so a mean needs no noised count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.noise import add_gaussian
from privacy.dpsgd.per_patient import average_by_patient
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.errors import ParameterError
from privacy.local.patients import Group

Kind = Literal["count", "mean", "histogram", "quantiles"]
MOST_BINS = 200


@dataclass(frozen=True)
class Query:
    """One statistic of one column.

    The column is `inputs` encoded inputs from `start` on: one for a number, whose value is input * scale + center; one
    for each level of a category, whose value is the level's place. start None: the label, taken likewise. edges: J + 1
    rising ends of the bins of a number (bin j holds edges[j] <= v < edges[j + 1], the first and last also what lies
    beyond); empty for a category and for a 0-or-1 label. count: how many patients have `level`. Raises ParameterError.
    """

    kind: Kind
    start: int | None
    inputs: int = 1
    scale: float = 1.0
    center: float = 0.0
    low: float = 0.0
    high: float = 1.0
    edges: tuple[float, ...] = ()
    level: int | None = None
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.edges) == 1 or any(later <= earlier for earlier, later in pairwise(self.edges)):
            raise ParameterError("The edges of a histogram must rise.", "Correct the query.")
        wrong = {
            "count": self.level is None or bool(self.edges) or not 0 <= self.level < self._levels,
            "mean": not self.low < self.high,
            "histogram": not 2 <= self.length <= MOST_BINS,
            "quantiles": not self.edges or not self.probabilities or not all(0 < p < 1 for p in self.probabilities),
        }[self.kind]
        if wrong:
            raise ParameterError(f"A query for {self.kind} lacks what it needs.", "Correct the query.")

    @property
    def _levels(self) -> int:
        return self.inputs if self.start is not None else 2

    @property
    def length(self) -> int:
        """Coordinates of a patient's vector."""
        if self.kind in ("count", "mean"):
            return 1
        return len(self.edges) - 1 if self.edges else self._levels

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of a patient's part: a mean's value is scaled to [-1, 1]; a histogram's fractions are at
        least 0 and sum to 1."""
        return 1.0

    def rows(self, x: Float64, y: Float64) -> Float64:
        """(R, D) inputs and (R,) labels -> (R, length), each row's L2 norm at most `sensitivity`."""
        if self.kind == "mean":
            half = (self.high - self.low) / 2
            scaled = (self._values(x, y) - (self.low + half)) / half
            bounded: Float64 = np.clip(scaled, -1.0, 1.0)[:, np.newaxis]
            return bounded
        if self.edges:
            place = np.searchsorted(np.array(self.edges[1:-1]), self._values(x, y), side="right")
        else:
            place = self._values(x, y).astype(np.int64)
        if self.kind == "count":
            matches: Float64 = (place == self.level).astype(np.float64)[:, np.newaxis]
            return matches
        rows = np.zeros((x.shape[0], self.length))
        rows[np.arange(x.shape[0]), np.clip(place, 0, self.length - 1)] = 1.0
        return rows

    def _values(self, x: Float64, y: Float64) -> Float64:
        if self.start is None:
            label: Float64 = y * self.scale + self.center
            return label
        if self.inputs > 1:
            levels: Float64 = x[:, self.start : self.start + self.inputs].argmax(axis=1).astype(np.float64)
            return levels
        values: Float64 = x[:, self.start] * self.scale + self.center
        return values


def vector_length(queries: Sequence[Query]) -> int:
    """Coordinates of all queries together."""
    return sum(query.length for query in queries)


def sensitivity(queries: Sequence[Query]) -> float:
    """L2 sensitivity of the sum of all queries to one patient, under zero-out adjacency."""
    return math.sqrt(math.fsum(query.sensitivity**2 for query in queries))


def patient_vectors(group: Group, queries: Sequence[Query]) -> Float64:
    """(patients, length): the mean over each patient's records, L2 norm at most `sensitivity(queries)`."""
    if not queries:
        raise ParameterError("There is no query.", "Ask for at least one statistic.")
    rows = np.concatenate([query.rows(group.x, group.y) for query in queries], axis=1)
    return average_by_patient(rows, group.patient, group.patients)


def private_statistics(group: Group, queries: Sequence[Query], *, noise_std: float, entropy: Entropy) -> Float64:
    """(length,) the sum over all of a site's patients plus N(0, noise_std^2). noise_std: the site's share of sigma
    times `sensitivity(queries)`. Raises ParameterError.
    """
    # The bound holds by construction; clipping keeps it where an encoded value is no number.
    total: Float64 = clip_gradients(patient_vectors(group, queries), sensitivity(queries)).gradients.sum(axis=0)
    add_gaussian(total, noise_std, KeyStream.fresh(entropy))
    return total
