"""The comparison that only a demonstration can make, since it owns every clinic's folder: the released model, each
clinic alone and a pooled model, all judged on the same held-out patients. No part of the product does this.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from privacy.accounting.calibration import noise_multiplier_for
from privacy.dpsgd.noise import standard_gaussian
from privacy.entropy import KeyStream
from protocol.proposal import MINIMUM_TRAINS_ALONE
from protocol.study import StudySpec

logging.getLogger("absl").setLevel(logging.ERROR)  # the accountant's numerical notes are not for people
Matrix = NDArray[np.float64]
ONE_CLASS = "all held-out patients of this hospital have the same outcome"
TOO_FEW = f"fewer than {MINIMUM_TRAINS_ALONE} patients: a hospital that small does not train alone"
NOT_LOGISTIC = "computed for logistic regression only"


@dataclass(frozen=True)
class Clinic:
    """One clinic's encoded records: inputs (n, D), outcomes (n,), patient index (n,), held-out flag per patient."""

    name: str
    x: Matrix
    y: Matrix
    patient: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    @property
    def test(self) -> NDArray[np.bool_]:
        return self.held_out[self.patient]

    @property
    def patients(self) -> int:
        return int((~self.held_out).sum())


def read_clinic(name: str, home: Path) -> Clinic:
    """The newest snapshot in a clinic's own folder."""
    with sqlite3.connect(f"file:{home / 'site.db'}?mode=ro", uri=True) as database:
        (digest,) = database.execute("SELECT digest FROM snapshot ORDER BY rowid DESC LIMIT 1").fetchone()
    with np.load(home / "snapshots" / f"{digest.removeprefix('sha256:')}.npz", allow_pickle=False) as arrays:
        return Clinic(
            name,
            arrays["x"].astype(np.float64),
            arrays["y"].astype(np.float64),
            arrays["patient"].astype(np.int64),
            arrays["held_out"].astype(bool),
        )


def auc(y: Matrix, scores: Matrix) -> tuple[float | None, str | None]:
    """(AUC, None), or (None, why it is undefined)."""
    if len(np.unique(y)) < 2:
        return None, ONE_CLASS
    return float(roc_auc_score(y, scores)), None


def scores(weights: dict[str, Matrix], x: Matrix) -> Matrix:
    """The released parameters' logits, (n,)."""
    layers = len(weights) // 2
    for layer in range(layers):
        x = x @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        if layer < layers - 1:
            x = np.tanh(x)
    return x[:, 0]


def alone(clinic: Clinic, spec: StudySpec) -> tuple[Matrix, float]:
    """(w, b) of one clinic training alone under the study's own recipe, epsilon and delta (its full noise)."""
    training, privacy = spec.training, spec.privacy
    sigma = noise_multiplier_for(privacy.epsilon, privacy.delta, training.sampling_rate, training.rounds)
    stream = KeyStream(secrets.token_bytes(32))
    x = np.c_[clinic.x[~clinic.test], np.ones(int((~clinic.test).sum()))]
    y = clinic.y[~clinic.test]
    owner = np.unique(clinic.patient[~clinic.test], return_inverse=True)[1]
    count = int(owner.max()) + 1
    records = np.bincount(owner, minlength=count)
    w, velocity, average = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    kept = 0
    for step in range(training.rounds):
        per_record = x * (1 / (1 + np.exp(-(x @ w))) - y)[:, None]
        gradients = np.zeros((count, x.shape[1]))
        np.add.at(gradients, owner, per_record)
        gradients /= records[:, None]
        norms = np.linalg.norm(gradients, axis=1)
        gradients *= np.minimum(1, training.clip / np.maximum(norms, 1e-12))[:, None]
        chosen = stream.uniform53(count) < training.sampling_rate
        noisy = gradients[chosen].sum(axis=0) + sigma * training.clip * standard_gaussian(x.shape[1], stream)
        velocity = training.momentum * velocity + noisy / (training.sampling_rate * count)
        w = w - training.learning_rate * velocity
        if step >= training.rounds * (1 - training.average_last):
            average, kept = average + w, kept + 1
    w = average / kept if kept else w
    return w[:-1], float(w[-1])


def compare(homes: dict[str, Path], model: Path, spec: StudySpec) -> dict[str, Any]:
    """AUCs over all held-out patients: released, each clinic alone (mean and list), pooled without privacy."""
    clinics = [read_clinic(name, home) for name, home in homes.items()]
    weights = load(model.read_bytes())
    x = np.concatenate([clinic.x[clinic.test] for clinic in clinics])
    y = np.concatenate([clinic.y[clinic.test] for clinic in clinics])
    value, reason = auc(y, scores(weights, x))
    result: dict[str, Any] = {"auc": value, "held_out": len(y), "auc_per_site": _per_site(clinics, weights)}
    if reason:
        result["auc_reason"] = reason
    result.update(_alone(clinics, spec, x, y))
    pooled_x = np.concatenate([clinic.x[~clinic.test] for clinic in clinics])
    pooled_y = np.concatenate([clinic.y[~clinic.test] for clinic in clinics])
    pooled = LogisticRegression(C=30.0, max_iter=5000).fit(pooled_x, pooled_y)
    result["auc_pooled_nonprivate"], why = auc(y, pooled.decision_function(x))
    if why:
        result["auc_pooled_nonprivate_reason"] = why
    return result


def _per_site(clinics: Sequence[Clinic], weights: dict[str, Matrix]) -> list[dict[str, Any]]:
    rows = []
    for clinic in clinics:
        value, reason = auc(clinic.y[clinic.test], scores(weights, clinic.x[clinic.test]))
        row: dict[str, Any] = {"name": clinic.name, "held_out": int(clinic.test.sum()), "auc": value}
        rows.append({**row, "reason": reason} if reason else row)
    return rows


def _alone(clinics: Sequence[Clinic], spec: StudySpec, x: Matrix, y: Matrix) -> dict[str, Any]:
    if spec.model.architecture != "logistic_regression":
        return {"auc_local_mean": None, "auc_local_mean_reason": NOT_LOGISTIC, "auc_local": []}
    rows: list[dict[str, Any]] = []
    for clinic in clinics:
        if clinic.patients < MINIMUM_TRAINS_ALONE:
            rows.append({"name": clinic.name, "auc": None, "reason": TOO_FEW})
            continue
        w, b = alone(clinic, spec)
        value, reason = auc(y, x @ w + b)
        rows.append({"name": clinic.name, "auc": value, **({"reason": reason} if reason else {})})
    values = [row["auc"] for row in rows if row["auc"] is not None]
    mean = float(np.mean(values)) if values else None
    result: dict[str, Any] = {"auc_local_mean": mean, "auc_local": rows}
    if mean is None:
        result["auc_local_mean_reason"] = "no hospital trains alone"
    return result


def read_spec(path: Path) -> StudySpec:
    """The spec as it was proposed (JSON)."""
    return StudySpec.model_validate(json.loads(path.read_text()))
