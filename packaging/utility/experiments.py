"""One seed of one problem: every arm at every epsilon, judged on the same test patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import arms
import numpy as np
import pooled
from cohorts import Problem, Split, Test
from measures import accuracy, judge, together
from sklearn.linear_model import LogisticRegression

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import epsilon as epsilon_of
from privacy.entropy import Entropy, Float64
from privacy.local.network import Network
from privacy.parameters import Mechanism, site_noise_multiplier
from protocol.proposal import MINIMUM_TRAINS_ALONE

EPSILONS = (0.5, 1.0, 2.0, 3.0, 8.0)
TOLERATED = (0, 1, 2)
GOAL = 0.005
NONE = "none"
"""In place of an epsilon: without noise."""
Seed = dict[str, dict[str, dict[str, float]]]
"""arm -> epsilon -> whom it is judged on -> value."""


@dataclass(frozen=True)
class Calibration:
    """distributed: at T + A steps, as a study's noise is; own: at T steps, for a site or a pool that has no retries, by
    the product's calibration; pool: the same by the yardstick's own."""

    distributed: dict[float, float]
    own: dict[float, float]
    pool: dict[float, float]


def calibrate(epsilons: tuple[float, ...]) -> Calibration:
    """Noise multipliers by epsilon, at DELTA."""
    rate, steps = arms.RECIPE.sampling_rate, arms.RECIPE.rounds
    return Calibration(
        {e: noise_multiplier_for(e, arms.DELTA, rate, steps + arms.RETRIES) for e in epsilons},
        {e: noise_multiplier_for(e, arms.DELTA, rate, steps) for e in epsilons},
        {e: pooled.noise_for(e, arms.DELTA, rate, steps) for e in epsilons},
    )


def promises(calibration: Calibration, sites: int) -> list[dict[str, Any]]:
    """For each epsilon: sigma, what T steps alone would cost, and a site's worst case by how many are tolerated."""
    rate, steps = arms.RECIPE.sampling_rate, arms.RECIPE.rounds + arms.RETRIES
    rows = []
    for target, sigma in calibration.distributed.items():
        worst = {
            str(t): epsilon_of(Mechanism(site_noise_multiplier(sigma, sites, t), rate, steps, arms.DELTA))
            for t in TOLERATED
        }
        rows.append(
            {
                "epsilon": target,
                "sigma": sigma,
                "released": epsilon_of(Mechanism(sigma, rate, steps, arms.DELTA)),
                "executed": epsilon_of(Mechanism(sigma, rate, arms.RECIPE.rounds, arms.DELTA)),
                "worst": worst,
            }
        )
    return rows


def run_seed(problem: Problem, calibration: Calibration, seed: int, repeats: int) -> Seed:
    """repeats: noise draws of the two arms that the goal compares, averaged; the other arms have one."""
    split, network = problem.split(seed), problem.network
    found: Seed = {}

    def keep(arm: str, epsilon: float | None, models: list[Float64]) -> None:
        values = [_judged(network, model, split) for model in models]
        mean = {who: float(np.mean([value[who] for value in values])) for who in values[0]}
        found.setdefault(arm, {})[NONE if epsilon is None else f"{epsilon:g}"] = mean

    for epsilon, sigma in calibration.distributed.items():
        for tolerated in TOLERATED:
            count = repeats if tolerated == 0 else 1
            keep(
                f"distributed t={tolerated}",
                epsilon,
                [
                    arms.distributed(
                        network,
                        split.training,
                        sigma,
                        tolerated,
                        arms.seeded(problem.name, seed, epsilon, tolerated, r),
                    )
                    for r in range(count)
                ],
            )
        pool = calibration.pool[epsilon]
        keep(
            "pooled DP", epsilon, [_pooled(problem, split, pool, [seed, int(epsilon * 10), r]) for r in range(repeats)]
        )
        own = calibration.own[epsilon]
        for server in arms.SERVERS:
            entropy = arms.seeded(problem.name, seed, epsilon, server)
            keep(f"local {server}", epsilon, [arms.local(network, split.training, own, server, entropy)])
        found.setdefault("alone", {})[f"{epsilon:g}"] = _alone(problem, split, own, seed, epsilon)
    keep("federated, no noise", None, [arms.federated(network, split.training, arms.seeded(problem.name, seed))])
    keep("pooled, no noise", None, [_pooled(problem, split, 0.0, [seed, 0, 0])])
    if network.loss == "logistic":
        keep("logistic regression, no noise", None, [_regression(split)])
    return found


def _judged(network: Network, model: Float64, split: Split) -> dict[str, float]:
    sites = {who: judge(network, model, test) for who, test in split.test.items()} if len(split.test) > 1 else {}
    return {"all": judge(network, model, together(split.test)), **sites}


def _alone(problem: Problem, split: Split, sigma: float, seed: int, epsilon: float) -> dict[str, float]:
    """all: the mean over sites of each site's model on everybody's test patients; by name: on the site's own."""
    everybody, network = together(split.test), problem.network
    values, own = [], {}
    for name, group in split.training.items():
        if group.patients < MINIMUM_TRAINS_ALONE:
            continue  # the design: so small a site does not train alone
        model = arms.alone(network, group, sigma, arms.seeded(problem.name, seed, epsilon, "alone", name))
        values.append(judge(network, model, everybody))
        if name in split.test:
            own[name] = judge(network, model, split.test[name])
    return {"all": float(np.mean(values)), **own}


def _together(split: Split) -> tuple[Float64, Float64]:
    groups = split.training.values()
    return np.concatenate([group.x for group in groups]), np.concatenate([group.y for group in groups])


def _pooled(problem: Problem, split: Split, sigma: float, seed: list[int]) -> Float64:
    x, y = _together(split)
    recipe, network = arms.RECIPE, problem.network
    return pooled.train(
        x,
        y,
        0 if network.loss == "logistic" else network.outputs,
        rounds=recipe.rounds,
        rate=recipe.sampling_rate,
        clip=recipe.clip,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        sigma=sigma,
        random=np.random.default_rng([*seed, 5]),
    )


def _regression(split: Split) -> Float64:
    x, y = _together(split)
    fitted = LogisticRegression(C=30.0, max_iter=5000).fit(x, y)
    return np.concatenate([fitted.coef_[0], fitted.intercept_])


def concordances(problem: Problem, split: Split, calibration: Calibration, seeds: int) -> list[dict[str, Any]]:
    """On one fixed split, everybody's test patients together, as FLamby judges; sampling and noise vary."""
    rows: list[dict[str, Any]] = []
    network, tests = problem.network, together(split.test)

    def keep(arm: str, epsilon: float | None, models: list[Float64]) -> None:
        found = [judge(network, model, tests) for model in models]
        rows.append({"arm": arm, "epsilon": epsilon, "values": found})

    def entropy(seed: int, epsilon: float | None) -> Entropy:
        return arms.seeded("flamby brca", seed, epsilon)

    for epsilon, sigma in calibration.distributed.items():
        runs = [arms.distributed(network, split.training, sigma, 1, entropy(s, epsilon)) for s in range(seeds)]
        keep("distributed DP, t=1", epsilon, runs)
        pool = calibration.pool[epsilon]
        keep("pooled DP", epsilon, [_pooled(problem, split, pool, [s, int(epsilon * 10), 9]) for s in range(seeds)])
    runs = [arms.federated(network, split.training, entropy(s, None)) for s in range(seeds)]
    keep("federated, no noise", None, runs)
    keep("pooled, no noise", None, [_pooled(problem, split, 0.0, [s, 0, 9]) for s in range(seeds)])
    return rows


def accuracies(network: Network, split: Split, calibration: Calibration, seeds: int) -> list[dict[str, Any]]:
    """On one fixed split, as FLamby judges: accuracy, mean over hospitals and over all test patients; noise varies."""
    rows: list[dict[str, Any]] = []

    def keep(arm: str, epsilon: float | None, models: list[Float64]) -> None:
        tests = split.test.values()
        rows.append(
            {
                "arm": arm,
                "epsilon": epsilon,
                "mean": [float(np.mean([accuracy(network, model, test) for test in tests])) for model in models],
                "pooled": [accuracy(network, model, together(split.test)) for model in models],
            }
        )

    for epsilon, sigma in calibration.distributed.items():
        models = [
            arms.distributed(network, split.training, sigma, 1, arms.seeded("flamby", s, epsilon)) for s in range(seeds)
        ]
        keep("distributed DP, t=1", epsilon, models)
        own = calibration.own[epsilon]
        models = [
            arms.local(network, split.training, own, "fedavg", arms.seeded("flamby", s, epsilon)) for s in range(seeds)
        ]
        keep("local DP-SGD, FedAvg", epsilon, models)
    keep(
        "federated, no noise",
        None,
        [arms.federated(network, split.training, arms.seeded("flamby", s)) for s in range(seeds)],
    )
    keep("logistic regression on pooled rows, no noise", None, [_regression(split)])
    majority = np.zeros(network.parameters)
    majority[-1] = 1.0 if np.mean(_together(split)[1]) > 0.5 else -1.0
    keep("always the commoner outcome of all training rows", None, [majority])
    tests: list[Test] = list(split.test.values())
    best = [max(float(np.mean(test.y)), 1 - float(np.mean(test.y))) for test in tests]
    sizes = [len(test.y) for test in tests]
    pooled_best = float(np.average(best, weights=sizes))
    rows.append(
        {
            "arm": "always each hospital's own commoner outcome",
            "epsilon": None,
            "mean": [float(np.mean(best))],
            "pooled": [pooled_best],
        }
    )
    return rows
