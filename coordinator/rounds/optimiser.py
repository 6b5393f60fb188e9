"""From a noisy sum to the next model: post-processing only, so nothing here costs privacy. Pure.

The noisy sum is divided by the expected batch, a public constant of the plan, never by an actual one; momentum is
heavy-ball (Polyak 1964), and the released weights are the mean over the last rounds (Polyak and Juditsky 1992). In
local mode the sum is of the sites' changes of the model, noised before, and the plan's server rule follows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np

from privacy.entropy import Float64, KeyStream
from privacy.federated.server_optimiser import ServerOptimiser, ServerState
from protocol.canonical import sha256_hex
from protocol.graph import ExportedGraph, initial_values
from protocol.media import Shape
from protocol.model import ModelSpec, parameter_count, parameter_shapes
from protocol.study import StudyPlan
from protocol.training import ServerRule, Training

WIRE = np.dtype("<f8")
_INITIAL_LABEL = b"cloister/initial-weights/v1\0"


@dataclass(frozen=True)
class ModelPoint:
    """The model between two rounds: weights, velocity and averaged sum, each (D,) float64. rounds: those of this run.

    second: (D,), the second moment of a server rule once it has made a step; velocity is its first moment then. run:
    the place of the run among those of a tuned study, from 1. entry: of its grid, 0 where there is none.
    """

    rounds: int
    weights: Float64
    velocity: Float64
    average: Float64
    averaged: int
    second: Float64 | None = None
    run: int = 1
    entry: int = 0

    def vector(self) -> bytes:
        """What sites are sent: the weights, float64 little-endian."""
        return to_bytes(self.weights)

    @property
    def digest(self) -> str:
        """SHA-256 of `vector`."""
        return sha256_hex(self.vector())


def to_bytes(values: Float64) -> bytes:
    """(D,) float64 -> 8 D bytes, little-endian."""
    return values.astype(WIRE, copy=False).tobytes()


def from_bytes(data: bytes) -> Float64:
    """The inverse. ValueError unless 8 divides the length."""
    return np.frombuffer(data, dtype=WIRE).astype(np.float64)


def initial_point(model: ModelSpec, inputs: int | Shape, plan_digest: str) -> ModelPoint:
    """The first model, the same for everybody who knows the plan: zeros for a linear model; matrices of others
    begin uniform within sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), convolutions within sqrt(6 / fan in)
    (He et al. 2015), a normalisation's scales at 1, biases at 0. A graph may bring its own. inputs: the shape of one
    encoded record."""
    brought = initial_values(model) if isinstance(model, ExportedGraph) else None
    if brought is not None:
        weights = np.array(brought)
        return ModelPoint(0, weights, np.zeros_like(weights), np.zeros_like(weights), 0)
    shapes = parameter_shapes(model, inputs)
    weights = np.zeros(parameter_count(model, inputs))
    if len(shapes) > 2:
        stream = KeyStream(hashlib.sha256(_INITIAL_LABEL + plan_digest.encode()).digest())
        start = 0
        for name, shape in shapes:
            size = math.prod(shape)
            if len(shape) == 1:
                weights[start : start + size] = 1.0 if name.endswith(".weight") else 0.0
            else:
                bound = math.sqrt(6.0 / (sum(shape) if len(shape) == 2 else math.prod(shape[1:])))
                weights[start : start + size] = (2.0 * stream.uniform53(size) - 1.0) * bound
            start += size
    zeros = np.zeros_like(weights)
    return ModelPoint(0, weights, zeros, zeros, 0)


def expected_batch(plan: StudyPlan, cohort: tuple[str, ...]) -> float:
    """q times the patients that the plan's public counts leave for training at the cohort's sites."""
    sites = [plan.site(name) for name in cohort]
    return plan.spec.training.sampling_rate * sum(site.patients - site.held_out for site in sites)


def divisor(plan: StudyPlan, cohort: tuple[str, ...]) -> float:
    """What the cohort's sum is divided by: the expected batch, or in local mode the cohort's share of the patients, by
    which each site has weighted its change already."""
    return plan.patients_share(cohort) if plan.spec.training.server is not None else expected_batch(plan, cohort)


def next_point(plan: StudyPlan, point: ModelPoint, total: Float64, cohort: tuple[str, ...]) -> ModelPoint:
    """The model after a round with this noisy sum (D,) of the cohort. ValueError, PrivacyError for an unfit sum."""
    training = plan.spec.training
    if training.server is None:
        return step(point, total, divisor(plan, cohort), training)
    return server_step(point, total / divisor(plan, cohort), training, training.server)


def server_step(point: ModelPoint, mean_delta: Float64, training: Training, server: ServerRule) -> ModelPoint:
    """One round of local mode: the server's rule over the mean change. mean_delta: (D,). Raises ParameterError."""
    optimiser = ServerOptimiser(server.rule, server.rate, server.beta1, server.beta2, server.tau)
    state = optimiser.start(point.weights)
    if point.second is not None:
        state = ServerState(point.rounds, point.weights, point.velocity, point.second)
    after = optimiser.step(state, mean_delta)
    return _moved(point, training, after.weights, after.mean, after.second)


def step(point: ModelPoint, noisy_sum: Float64, batch: float, training: Training) -> ModelPoint:
    """One round: v <- momentum v + sum / batch; w <- w - rate v. The last rounds enter the average.

    noisy_sum: (D,). batch > 0. ValueError for another length or a sum that is not finite.
    """
    if noisy_sum.shape != point.weights.shape or not np.isfinite(noisy_sum).all():
        raise ValueError("the sum has another length than the model, or is not finite")
    velocity = training.momentum * point.velocity + noisy_sum / batch
    return _moved(point, training, point.weights - training.learning_rate * velocity, velocity, None)


def _moved(
    point: ModelPoint, training: Training, weights: Float64, velocity: Float64, second: Float64 | None
) -> ModelPoint:
    rounds = point.rounds + 1
    averaging = rounds > training.rounds - averaged_rounds(training)
    return replace(
        point,
        rounds=rounds,
        weights=weights,
        velocity=velocity,
        average=point.average + weights if averaging else point.average,
        averaged=point.averaged + int(averaging),
        second=second,
    )


def averaged_rounds(training: Training) -> int:
    """How many of the last rounds are averaged: the planned share of all rounds, rounded up, at least the last."""
    return max(1, math.ceil(training.average_last * training.rounds))


def candidate_weights(point: ModelPoint) -> Float64:
    """(D,) the averaged weights. ValueError before any round was averaged."""
    if point.averaged < 1:
        raise ValueError("no round has been averaged yet")
    result: Float64 = point.average / point.averaged
    return result
