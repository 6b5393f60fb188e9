"""The ways to train that are compared, through the product's own code: contribution, grid, modular sum, optimiser.

Noise here is seeded, so that a figure can be reproduced; it protects nobody. Masks are left out: they cancel.
"""

from __future__ import annotations

import hashlib

import numpy as np

from coordinator.rounds.optimiser import ModelPoint, candidate_weights, step
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.federated.local_training import LocalTraining, local_delta
from privacy.federated.server_optimiser import ServerOptimiser, mean_delta
from privacy.local.contribution import clipped_gradient_sum, private_gradient_sum
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.parameters import Grid, plan_grid, site_noise_std
from privacy.secagg.field import decode_centred
from privacy.secagg.quantization import quantize
from protocol.training import Training

RETRIES = 6
"""A: attempts beyond the rounds that a study's noise is calibrated for."""
DELTA = 1e-4
RECIPE = Training(rounds=60, sampling_rate=0.25, clip=0.25, learning_rate=2.0, momentum=0.9, average_last=0.5)
LOCAL_STEPS = 5
LOCAL_ROUNDS = RECIPE.rounds // LOCAL_STEPS
LOCAL_RATE = 5.0
"""The best of 2, 5 and 20 for local DP-SGD on six Wisconsin splits at epsilon 1: a choice in its favour, of little
weight. The servers' learning rates below are the best of .03, .1, .3 and 1 likewise."""
SERVERS = {
    "fedavg": ServerOptimiser("fedavg"),
    "fedadam": ServerOptimiser("fedadam", learning_rate=0.3, beta1=0.9, beta2=0.99, tau=1e-3),
    "fedyogi": ServerOptimiser("fedyogi", learning_rate=0.3, beta1=0.9, beta2=0.99, tau=1e-3),
}


def seeded(*parts: object) -> Entropy:
    """Bytes that repeat with the parts."""
    return KeyStream(hashlib.sha256(repr(parts).encode()).digest()).bytes


def _point(network: Network) -> ModelPoint:
    zeros = np.zeros(network.parameters)
    return ModelPoint(0, zeros, zeros, zeros, 0)


def distributed(network: Network, sites: dict[str, Group], sigma: float, tolerated: int, entropy: Entropy) -> Float64:
    """Every site adds sigma C / sqrt(K - t), rounded onto the plan's grid and summed modulo 2^32; all are present.

    tolerated 0 trusts every site to add its share, which no study does: its grid is that of 1.
    """
    count = len(sites)
    std = site_noise_std(sigma, RECIPE.clip, count, tolerated)
    patients = sum(group.patients for group in sites.values())
    grid = plan_grid(RECIPE.clip, count, max(1, tolerated), patients, sigma).grid
    return _rounds(network, sites, entropy, std, grid)


def federated(network: Network, sites: dict[str, Group], entropy: Entropy) -> Float64:
    """The same recipe without noise: sampling and clipping only."""
    return _rounds(network, sites, entropy, None, None)


def _rounds(
    network: Network, sites: dict[str, Group], entropy: Entropy, std: float | None, grid: Grid | None
) -> Float64:
    batch = RECIPE.sampling_rate * sum(group.patients for group in sites.values())
    point = _point(network)
    for _ in range(RECIPE.rounds):
        total = np.zeros(network.parameters)
        words = np.zeros(network.parameters, dtype=np.uint32)
        for group in sites.values():
            vector = _contribution(group, network, point.weights, std, entropy)
            if grid is None:
                total += vector
            else:
                words += quantize(vector, grid, KeyStream.fresh(entropy))
        point = step(point, total if grid is None else decode_centred(words, grid), batch, RECIPE)
    return candidate_weights(point)


def _contribution(group: Group, network: Network, weights: Float64, std: float | None, entropy: Entropy) -> Float64:
    common = {"clip": RECIPE.clip, "sampling_rate": RECIPE.sampling_rate, "entropy": entropy}
    if std is None:
        return clipped_gradient_sum(group, network, weights, **common)
    return private_gradient_sum(group, network, weights, noise_std=std, **common)


def alone(network: Network, group: Group, sigma: float, entropy: Entropy) -> Float64:
    """One site by itself with its full noise."""
    return _rounds(network, {"alone": group}, entropy, sigma * RECIPE.clip, None)


def local(network: Network, sites: dict[str, Group], sigma: float, server: str, entropy: Entropy) -> Float64:
    """Local DP-SGD: `LOCAL_ROUNDS` rounds of `LOCAL_STEPS` private steps at each site, full noise in each."""
    optimiser = SERVERS[server]
    state = optimiser.start(np.zeros(network.parameters))
    counts = {name: group.patients for name, group in sites.items()}
    total = np.zeros(network.parameters)
    for number in range(LOCAL_ROUNDS):
        deltas = {}
        for name, group in sites.items():
            training = LocalTraining(
                steps=LOCAL_STEPS,
                learning_rate=LOCAL_RATE,
                clip=RECIPE.clip,
                sampling_rate=RECIPE.sampling_rate,
                noise_multiplier=sigma,
                expected_batch=RECIPE.sampling_rate * group.patients,
            )
            deltas[name] = local_delta(group, network, state.weights, training, entropy=entropy)
        state = optimiser.step(state, mean_delta(deltas, counts))
        if number >= LOCAL_ROUNDS // 2:
            total += state.weights
    return total / (LOCAL_ROUNDS - LOCAL_ROUNDS // 2)
