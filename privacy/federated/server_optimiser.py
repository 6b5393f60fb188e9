"""What the server makes of the sites' deltas: FedAvg, FedAdam, FedYogi (Reddi et al. 2021, arXiv:2003.00295, Alg. 2).

All of it is post-processing of deltas that are private already. The adaptive rules divide by the root of a running
second moment, coordinate by coordinate; with noisy deltas that moment is mostly the noise's, so that they come close to
a fixed step of the server's learning rate: measure before preferring them (docs/UTILITY.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_positive

Rule = Literal["fedavg", "fedadam", "fedyogi"]


@dataclass(frozen=True)
class ServerState:
    """The model between two rounds, each (P,) float64: weights, the moving mean of deltas, and their second moment."""

    rounds: int
    weights: Float64
    mean: Float64
    second: Float64


@dataclass(frozen=True)
class ServerOptimiser:
    """A server rule and its constants; beta2 and tau belong to the adaptive ones. Raises ParameterError.

    learning_rate: eta > 0, 1 being plain averaging for fedavg. beta1: momentum over rounds in [0, 1), 0 for FedAvg as
    McMahan et al. (2017) have it. beta2 in [0, 1). tau > 0: added to the root, and the root of the first
    second moment. No bias correction, as in the paper.
    """

    rule: Rule
    learning_rate: float = 1.0
    beta1: float = 0.0
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.rule not in ("fedavg", "fedadam", "fedyogi"):
            raise ParameterError(f"There is no server rule {self.rule!r}.", "Use fedavg, fedadam or fedyogi.")
        require_positive("the server's learning rate", self.learning_rate)
        require_positive("tau", self.tau)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ParameterError(f"{name} must be in [0, 1) and is {value}.", f"Correct {name}.")

    def start(self, weights: Float64) -> ServerState:
        """The state before any round; weights: (P,), finite."""
        if weights.ndim != 1 or not bool(np.isfinite(weights).all()):
            raise ParameterError("The first model is not a vector of finite numbers.", "Correct the first model.")
        first = np.array(weights, dtype=np.float64)
        return ServerState(0, first, np.zeros_like(first), np.full_like(first, self.tau**2))

    def step(self, state: ServerState, delta: Float64) -> ServerState:
        """One round. delta: (P,), the sites' mean, from `mean_delta` or a secure sum. Raises ParameterError."""
        if delta.shape != state.weights.shape or not bool(np.isfinite(delta).all()):
            raise ParameterError(
                "The mean delta has another length than the model, or is not finite.", "Stop the round."
            )
        if self.rule == "fedavg":
            mean = self.beta1 * state.mean + delta
            return ServerState(state.rounds + 1, state.weights + self.learning_rate * mean, mean, state.second)
        mean = self.beta1 * state.mean + (1.0 - self.beta1) * delta
        square = np.square(delta)
        if self.rule == "fedadam":
            second = self.beta2 * state.second + (1.0 - self.beta2) * square
        else:
            second = state.second - (1.0 - self.beta2) * square * np.sign(state.second - square)
        weights = state.weights + self.learning_rate * mean / (np.sqrt(second) + self.tau)
        return ServerState(state.rounds + 1, weights, mean, second)


def mean_delta(deltas: Mapping[str, Float64], patients: Mapping[str, int]) -> Float64:
    """(P,): the mean of the sites' deltas, weighted by the plan's public counts of patients, in the order of names.

    Raises ParameterError, naming the site, for a delta that is not finite or has another length, and for a site without
    a count of at least 1. Only sites that answered enter; `patients` may name more.
    """
    if not deltas:
        raise ParameterError("No site sent a delta.", "Begin the round again.")
    names = sorted(deltas)
    length = deltas[names[0]].shape
    for name in names:
        if deltas[name].ndim != 1 or deltas[name].shape != length or not bool(np.isfinite(deltas[name]).all()):
            raise ParameterError(f"The delta of {name} does not fit, or is not finite.", f"Leave {name} out.")
        if patients.get(name, 0) < 1:
            raise ParameterError(f"The plan has no count of patients for {name}.", "Correct the plan.")
    whole = sum(patients[name] for name in names)
    total = np.zeros(length)
    for name in names:
        total += deltas[name] * (patients[name] / whole)
    return total
