"""Where the numbers in the studies' comments come from: the recipe in plain numpy, over random splits.

    python packaging/demo/recipe.py [--data FOLDER] [--splits 20]

A simulation for whoever judges the recipe. It looks at all patients without privacy, so nothing in the product runs it
and no hyper-parameter is searched with it: the recipe is the one for some hundred rows, the same for every data set.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from privacy.accounting.calibration import noise_multiplier_for
from protocol.dictionary import parse_dictionary
from site_agent.cohort.tabular import read_table

Matrix = NDArray[np.float64]
HERE = Path(__file__).resolve().parent
ROUNDS, RETRIES, RATE, CLIP, MOMENTUM, DELTA, COLLUDERS = 60, 6, 0.25, 0.25, 0.9, 1e-4, 1
CONFIGURATIONS: list[tuple[float | None, float]] = [(1, 1), (1, 2), (1, 4), (1, 8), (3, 2), (None, 2)]


def read(kind: str, sources: list[datasets.Source]) -> list[tuple[Matrix, Matrix]]:
    """(inputs with a column of ones, outcomes) of each site."""
    dictionary = parse_dictionary((HERE / kind / "dictionary.yaml").read_bytes())
    sites = []
    for source in sources:
        table = read_table(source.table, dictionary, lambda identity: identity.encode())
        x = np.array(table.x).reshape(-1, table.width)
        sites.append((np.c_[x, np.ones(len(x))], np.array(table.y, dtype=np.float64)))
    return sites


def train(sites: list[tuple[Matrix, Matrix]], rng: np.random.Generator, noise: float, rate: float) -> Matrix:
    """The averaged weights; `noise`: the standard deviation of the noise in the sum."""
    width = sites[0][0].shape[1]
    expected = RATE * sum(len(y) for _, y in sites)
    w, velocity, average = np.zeros(width), np.zeros(width), np.zeros(width)
    for step in range(ROUNDS):
        total = rng.normal(0, noise, width) if noise else np.zeros(width)
        for x, y in sites:
            drawn = rng.random(len(y)) < RATE
            error = 1 / (1 + np.exp(-x[drawn] @ w)) - y[drawn]
            norm = np.abs(error) * np.linalg.norm(x[drawn], axis=1)
            total += x[drawn].T @ (error * np.minimum(1, CLIP / np.maximum(norm, 1e-12)))
        velocity = MOMENTUM * velocity + total / expected
        w = w - rate * velocity
        if step >= ROUNDS // 2:
            average += w
    return average / (ROUNDS - ROUNDS // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = options.data.resolve().name if options.data else "wisconsin"
        sources = datasets.heart_disease(options.data) if options.data else datasets.wisconsin(Path(folder))
        sites = read(kind, sources)
    multiplier = {
        epsilon: noise_multiplier_for(epsilon, DELTA, RATE, ROUNDS + RETRIES)
        for epsilon in {epsilon for epsilon, _ in CONFIGURATIONS if epsilon}
    }
    share = np.sqrt(len(sites) / (len(sites) - COLLUDERS))  # what a tolerated colluder costs, with everybody present
    found: dict[str, list[float]] = {}
    for split in range(options.splits):
        rng = np.random.default_rng(split)
        orders = [rng.permutation(len(y)) for _, y in sites]
        quarter = [-(-len(order) // 4) for order in orders]
        test = [(x[o[:q]], y[o[:q]]) for (x, y), o, q in zip(sites, orders, quarter, strict=True)]
        rest = [(x[o[q:]], y[o[q:]]) for (x, y), o, q in zip(sites, orders, quarter, strict=True)]
        x_test, y_test = np.vstack([x for x, _ in test]), np.concatenate([y for _, y in test])
        x_rest, y_rest = np.vstack([x for x, _ in rest]), np.concatenate([y for _, y in rest])
        pooled = LogisticRegression(C=30, max_iter=3000, fit_intercept=False).fit(x_rest, y_rest)
        found.setdefault("pooled, no privacy", []).append(roc_auc_score(y_test, x_test @ pooled.coef_[0]))
        for epsilon, rate in CONFIGURATIONS:
            noise = multiplier[epsilon] * CLIP * share if epsilon else 0.0
            w = train(rest, np.random.default_rng([split, 1]), noise, rate)
            name = f"epsilon {epsilon or 'none'}, learning rate {rate}"
            found.setdefault(name, []).append(roc_auc_score(y_test, x_test @ w))
    for name, values in found.items():
        print(f"{name:32} AUC {np.mean(values):.4f} (sd {np.std(values, ddof=1):.4f})")


if __name__ == "__main__":
    main()
