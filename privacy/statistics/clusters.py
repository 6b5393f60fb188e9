"""Lloyd's k-means (1982) from noised sums, as in SuLQ (Blum et al. 2005) and DPLloyd (McSherry 2009, Su et al. 2016).

A patient is a point: the means over their records of the axes' values, each scaled from its range to [-1, 1]. In one
step a patient adds (a, b x) to the cell of the nearest centre and nothing to the others; a^2 + m b^2 = 1 for m axes, so
the vector's L2 norm is at most 1 whatever the data. Centres are the coordinator's choice and need not be trusted: the
bound holds for any. The first centres come from the plan's digest, never from patients.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.noise import add_gaussian
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.errors import ParameterError
from privacy.local.patients import Group
from privacy.statistics.answers import Figure, Z, figure_within
from privacy.statistics.queries import Query, patient_vectors

TYPICAL_COORDINATE = 0.225
"""How far a centre's coordinate is assumed to lie from the middle of its range when count and sum share the noise:
the value that Su et al. 2016 use for data scaled to [-1, 1]."""
START = 0.5
"""First centres lie within the middle half of each range: a dictionary's range is wider than most patients."""
_CANDIDATES = 64
_LABEL = b"cloister/initial-centers/v1\0"


@dataclass(frozen=True)
class Weights:
    """a: of a patient's count, b: of each of their m coordinates.

    The noise s of every coordinate of the sum moves a centre c of n patients by about (s / n) sqrt(m / b^2 + |c|^2 /
    a^2) in all; with |c| = r sqrt(m) this is least, subject to a^2 + m b^2 = 1, at a^2 / b^2 = r sqrt(m).
    """

    count: float
    coordinate: float

    @classmethod
    def of(cls, axes: int) -> Weights:
        """For m = `axes` >= 1 coordinates."""
        if axes < 1:
            raise ParameterError("There is nothing to cluster by.", "Name at least one column.")
        share = TYPICAL_COORDINATE * math.sqrt(axes)
        coordinate = 1.0 / math.sqrt(axes + share)
        return cls(coordinate * math.sqrt(share), coordinate)


@dataclass(frozen=True)
class Cluster:
    """patients: nearest to the centre in the last step. center: their mean, one figure for each axis in its own unit;
    None where the noise leaves open whether there are any."""

    patients: Figure
    center: tuple[Figure, ...] | None


def initial_centers(clusters: int, axes: int, seed: str) -> Float64:
    """(k, m) within +-START, spread out: each is, of 64 candidates drawn uniformly by a stream keyed with `seed`, the
    one farthest from those before it (Gonzalez 1985). The same for everybody who knows the seed."""
    stream = KeyStream(hashlib.sha256(_LABEL + seed.encode()).digest())
    chosen = np.empty((0, axes))
    for _ in range(clusters):
        candidates = (2.0 * stream.uniform53(_CANDIDATES * axes).reshape(_CANDIDATES, axes) - 1.0) * START
        if chosen.size == 0:
            best = 0
        else:
            gaps = candidates[:, np.newaxis, :] - chosen[np.newaxis, :, :]
            best = int((gaps**2).sum(axis=2).min(axis=1).argmax())
        chosen = np.vstack([chosen, candidates[best]])
    return chosen


def cluster_vectors(points: Float64, centers: Float64) -> Float64:
    """(P, m) points, (k, m) centres -> (P, k (1 + m)): each point's (a, b x) in the cell of its nearest centre, of
    equally near ones the first; cell by cell, the count before the coordinates. Coordinates are kept to [-1, 1].
    Raises ParameterError for shapes that do not fit and for centres that are not finite."""
    if points.ndim != 2 or centers.ndim != 2 or points.shape[1] != centers.shape[1] or centers.shape[0] < 1:
        raise ParameterError("The centres do not fit the points.", "Take both from one plan.")
    if not bool(np.isfinite(centers).all()):
        raise ParameterError("A centre is not finite.", "Ask with other centres.")
    (patients, axes), clusters = points.shape, centers.shape[0]
    weights = Weights.of(axes)
    distances = ((points[:, np.newaxis, :] - centers[np.newaxis, :, :]) ** 2).sum(axis=2)
    nearest = distances.argmin(axis=1)
    vectors = np.zeros((patients, clusters, 1 + axes))
    rows = np.arange(patients)
    vectors[rows, nearest, 0] = weights.count
    vectors[rows, nearest, 1:] = weights.coordinate * np.clip(points, -1.0, 1.0)
    return vectors.reshape(patients, clusters * (1 + axes))


def private_cluster_sum(
    group: Group, axes: Sequence[Query], centers: Float64, *, noise_std: float, entropy: Entropy
) -> Float64:
    """(k (1 + m),) the sum of all patients' vectors plus N(0, noise_std^2). axes: means of the clustered columns.
    noise_std: the site's share of sigma. Raises ParameterError."""
    points = patient_vectors(group, axes)
    # The bound holds by construction; clipping keeps it where an encoded value is no number.
    total: Float64 = clip_gradients(cluster_vectors(points, centers), 1.0).gradients.sum(axis=0)
    add_gaussian(total, noise_std, KeyStream.fresh(entropy))
    return total


def next_centers(total: Float64, centers: Float64, *, noise_std: float) -> Float64:
    """(k, m): the noised mean of each cell, kept to [-1, 1]. A cell that may be empty, its count within the noise's
    95 %, keeps its centre. noise_std: of each coordinate of the sum. Raises ParameterError."""
    counts, sums, weights = _cells(total, centers)
    moved = centers.copy()
    for cell in range(centers.shape[0]):
        if counts[cell] > _doubtful(weights, noise_std):
            moved[cell] = np.clip(sums[cell] / counts[cell], -1.0, 1.0)
    return moved


def clusters(
    total: Float64, centers: Float64, axes: Sequence[Query], *, noise_std: float, patients: int
) -> tuple[Cluster, ...]:
    """What the last step's sum says. centers: those that patients were assigned to. The intervals cover the noise of
    this sum with 95 % each; they do not speak of where another start would have led. A centre's takes the noise of the
    count into account to first order. Raises ParameterError."""
    counts, sums, weights = _cells(total, centers)
    found = []
    for cell in range(centers.shape[0]):
        size = figure_within(float(counts[cell]), Z * noise_std / weights.count, 0.0, float(patients))
        if counts[cell] <= _doubtful(weights, noise_std):
            found.append(Cluster(size, None))
            continue
        means = sums[cell] / counts[cell]
        center = []
        for mean, axis in zip(means, axes, strict=True):
            spread = math.hypot(1.0 / weights.coordinate, float(mean) / weights.count)
            half = (axis.high - axis.low) / 2
            value, reach = axis.low + half + half * float(mean), half * Z * noise_std * spread / float(counts[cell])
            center.append(figure_within(value, reach, axis.low, axis.high))
        found.append(Cluster(size, tuple(center)))
    return tuple(found)


def _doubtful(weights: Weights, noise_std: float) -> float:
    """A count at or below which the cell may be empty."""
    return max(Z * noise_std / weights.count, 0.5)


def _cells(total: Float64, centers: Float64) -> tuple[Float64, Float64, Weights]:
    """((k,) counts, (k, m) sums of coordinates, weights)."""
    k, axes = centers.shape
    if total.shape != (k * (1 + axes),) or not bool(np.isfinite(total).all()):
        raise ParameterError("The sum does not fit the centres.", "Take both from one plan.")
    weights = Weights.of(axes)
    cells = total.reshape(k, 1 + axes)
    return cells[:, 0] / weights.count, cells[:, 1:] / weights.coordinate, weights
