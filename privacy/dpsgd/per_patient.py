"""One gradient per patient for linear and logistic regression, in closed form, without torch.

A patient's records are averaged to one gradient, so the patient is the unit of privacy however many records there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_count

Index = npt.NDArray[np.integer]


def check_records(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.generic], patients: Index, count: int
) -> None:
    """Raises ParameterError unless features (R, D), labels (R,) and patients (R,) in 0..count-1 fit together."""
    require_count("the number of patients", count, 0)
    if features.ndim < 2 or labels.shape[:1] != features.shape[:1] or patients.shape != features.shape[:1]:
        raise ParameterError(
            "Features, labels and patient indices do not have one entry per record.", "Check the cohort's arrays."
        )
    if not np.issubdtype(patients.dtype, np.integer):
        raise ParameterError("Patient indices must be whole numbers.", "Number the patients from 0.")
    if patients.size and not (int(patients.min()) >= 0 and int(patients.max()) < count):
        raise ParameterError(f"A patient index is outside 0 to {count - 1}.", "Number the patients from 0.")


def average_by_patient(rows: Float64, patients: Index, count: int) -> Float64:
    """(R, D) per record -> (count, D) per patient: the mean over a patient's records, 0 for one without any."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, patients, rows)
    records = np.bincount(patients, minlength=count)
    sums /= np.maximum(records, 1)[:, np.newaxis]
    return sums


def logistic_gradients(
    weights: Float64, features: Float64, labels: Float64, patients: Index, count: int, *, intercept: bool = True
) -> Float64:
    """Gradients of the mean log-loss over each patient's records: (count, D + 1), or (count, D) without intercept.

    weights: (D + 1,), the intercept last. features: (R, D). labels: (R,) in [0, 1]. patients: (R,) in 0..count-1.
    No regularisation: it does not depend on a patient, and the caller adds it after the noise. Raises ParameterError.
    """
    residual = _sigmoid(_scores(weights, features, labels, patients, count, intercept)) - labels
    return _outer(residual, features, patients, count, intercept)


def linear_gradients(
    weights: Float64, features: Float64, labels: Float64, patients: Index, count: int, *, intercept: bool = True
) -> Float64:
    """Gradients of half the mean squared error over each patient's records; shapes as in `logistic_gradients`."""
    residual = _scores(weights, features, labels, patients, count, intercept) - labels
    return _outer(residual, features, patients, count, intercept)


def _scores(
    weights: Float64, features: Float64, labels: Float64, patients: Index, count: int, intercept: bool
) -> Float64:
    check_records(features, labels, patients, count)
    width = features.shape[1]
    if features.ndim != 2 or labels.ndim != 1 or weights.shape != (width + int(intercept),):
        raise ParameterError(
            f"The weights must be a vector of {width + int(intercept)} for {width} features.", "Check the model."
        )
    scores: Float64 = features @ weights[:width]
    return scores + weights[width] if intercept else scores


def _outer(residual: Float64, features: Float64, patients: Index, count: int, intercept: bool) -> Float64:
    rows = residual[:, np.newaxis] * features
    if intercept:
        rows = np.concatenate([rows, residual[:, np.newaxis]], axis=1)
    return average_by_patient(rows, patients, count)


def _sigmoid(scores: Float64) -> Float64:
    # exp of a value <= 0 only, so that no score overflows.
    decay = np.exp(-np.abs(scores))
    result: Float64 = np.where(scores >= 0, 1.0, decay) / (1.0 + decay)
    return result
