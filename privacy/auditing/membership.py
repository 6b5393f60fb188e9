"""Membership inference against one model, at the site: who of its own patients would an attacker take for a member?

The site knows its members (patients that trained) and non-members (held-out patients of the same source). It scores
each with two attacks and counts the scores: two labelled histograms, non-members first, are all that leaves, noised
and charged, on its own or under the secure sum. Rates, intervals and advantage derive from them.

Sensitivity. A patient has one count in each attack's histogram, so one patient zeroed out moves a histogram by 1 in L2,
and a vector of k attacks by sqrt(k), provided that a patient's score depends on nobody else's records: the model under
attack is already private or is that release's own charge, and shadow models must be made without any patient who is
counted. Made of the site's other patients, shadow models would move every score at once, and no noise of this size
would cover it: make them from public or synthetic patients, or from patients of a charge of their own. A study has
neither, so what its sites send is the loss attack alone.
Training patients are charged for the members' half, held-out patients for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from privacy.accounting.gaussian import gaussian_multiplier_for
from privacy.dpsgd.noise import add_gaussian
from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError
from privacy.evaluation.histogram import SENSITIVITY, ScoreHistogram, score_histogram
from privacy.evaluation.intervals import Estimate
from privacy.local.model import PatientScores
from privacy.parameters import require_count, require_probability, site_noise_multiplier

LOGIT_REACH = 8.0
"""Logits beyond share the last bin of the loss attack."""
STD_REACH = 4.0
"""Standard deviations beyond share the last bin of the likelihood ratio attack."""
FEWEST_SHADOWS = 8
_SMALLEST_SPREAD = 1e-3

MOST_BLUR = 0.1
Prediction = Literal["chance", "residual", "quality"]

Fit = Callable[[Float64, Float64], Callable[[Float64], Float64]]
"""(records (R, D), labels (R,)) -> a model: (R, D) -> (R,) probabilities of label 1. Trains as the study did."""


def true_label_logit(probability: Float64, labels: Float64) -> Float64:
    """(P,) probabilities of label 1 and (P,) labels 0 or 1 -> (P,) log(p / (1 - p)) of the true label.

    The loss on a logit scale, on which it is nearly normal (Carlini et al. 2022, section V). For a patient of several
    records give the mean over the records. Probabilities count as within 1e-12 of 0 and 1.
    """
    if probability.ndim != 1 or labels.shape != probability.shape or not bool(((labels == 0) | (labels == 1)).all()):
        raise ParameterError("An attack needs one probability and one label of 0 or 1 a patient.", "Give both.")
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ParameterError("A probability is not a number from 0 to 1.", "Check the model's output.")
    true = np.clip(np.where(labels == 1, probability, 1.0 - probability), 1e-12, 1.0 - 1e-12)
    logits: Float64 = np.log(true) - np.log1p(-true)
    return logits


def loss_attack(logits: Float64) -> Float64:
    """(P,) -> (P,) in [0, 1]: a small loss speaks for a member (Yeom et al. 2018). The scale is fixed beforehand."""
    return _to_unit(logits, LOGIT_REACH)


def lira_attack(logits: Float64, shadow_logits: Float64) -> Float64:
    """(P,) and (S, P) -> (P,) in [0, 1]: how far each patient's logit lies above what models give that never saw the
    patient, in their standard deviations: the offline likelihood ratio attack (Carlini et al. 2022, section VI.C).

    shadow_logits: the same patients under S >= 8 models trained without any of them; see the module on sensitivity.
    """
    if shadow_logits.ndim != 2 or shadow_logits.shape[1:] != logits.shape or shadow_logits.shape[0] < FEWEST_SHADOWS:
        raise ParameterError(
            f"The attack needs at least {FEWEST_SHADOWS} shadow models' logits of the same patients.",
            "Train more shadow models.",
        )
    spread = np.maximum(shadow_logits.std(axis=0, ddof=1), _SMALLEST_SPREAD)
    return _to_unit((logits - shadow_logits.mean(axis=0)) / spread, STD_REACH)


def shadow_logits(
    fit: Fit, reference: tuple[Float64, Float64], targets: tuple[Float64, Float64], models: int, stream: KeyStream
) -> Float64:
    """(models, P) logits of the targets under models that `fit` trains, each on a random half of the reference.

    reference, targets: (records, labels), disjoint patients, one record each. Who the reference may be: see the module.
    """
    require_count("the number of shadow models", models, FEWEST_SHADOWS)
    x, y = reference
    if y.size < 2:
        raise ParameterError("Shadow models need at least two reference patients.", "Give a larger reference.")
    rows = []
    for _ in range(models):
        half = np.argsort(stream.uniform53(y.size))[: y.size // 2]
        rows.append(true_label_logit(fit(x[half], y[half])(targets[0]), targets[1]))
    return np.stack(rows)


def prediction_attack(prediction: Prediction, found: PatientScores) -> Float64:
    """The loss attack on what `LocalModel.scores` gives, (n,) -> (n,) in [0, 1], whatever is predicted: the better a
    patient is predicted, the nearer to 1.

    chance: the probability of the true outcome p, as sigmoid(logit(p) / 2), which tells small losses apart; 0.5 where
    nobody knows the outcome. residual: 1 for none, 0 for one at a limit. quality: the score itself.
    """
    if prediction == "quality":
        return found.scores
    if prediction == "residual":
        exact: Float64 = 1.0 - 2.0 * np.abs(found.scores - 0.5)
        return exact
    known = found.labels < 2
    logits = true_label_logit(found.scores, np.where(known, found.labels, 0.0))
    unit: Float64 = np.where(known, 1.0 / (1.0 + np.exp(-logits / 2.0)), 0.5)
    return unit


def attack_counts(prediction: Prediction, found: PatientScores, bins: int) -> Float64:
    """(bins,) exact counts of the patients by their attack score. Stays at the site."""
    scores = prediction_attack(prediction, found)
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    return np.bincount(place, minlength=bins).astype(np.float64)


def audit_multiplier(epsilon: float, delta: float, attempts: int) -> float:
    """Sigma of each count such that `attempts` histograms together cost (epsilon, delta)."""
    return gaussian_multiplier_for(epsilon, delta) * math.sqrt(attempts)


def noise_blur(multiplier: float, sites: int, tolerated: int, bins: int, non_members: int) -> float:
    """By how much the noise alone, at 95 %, moves the share of non-members above a threshold in the middle."""
    std = site_noise_multiplier(multiplier, sites, tolerated) * math.sqrt(sites)
    return NormalDist().inv_cdf(0.975) * std * math.sqrt(bins / 2) / max(1, non_members)


def worth_asking(multiplier: float, sites: int, tolerated: int, bins: int, non_members: int) -> bool:
    """Whether an audit can say anything: the noise alone blurs a share by at most `MOST_BLUR`."""
    return noise_blur(multiplier, sites, tolerated, bins, non_members) <= MOST_BLUR


def joint_sensitivity(attacks: int) -> float:
    """L2 sensitivity of `attacks` histograms of the same patients sent together."""
    require_count("the number of attacks", attacks, 1)
    return SENSITIVITY * math.sqrt(attacks)


def attack_histogram(scores: Float64, members: npt.NDArray[np.bool_], bins: int) -> Float64:
    """(P,) attack scores, (P,) -> (2 bins,) exact counts, non-members first. L2 sensitivity 1. Stays at the site."""
    return score_histogram(scores, members, bins)


def noised_histograms(histograms: list[Float64], noise_std: float, stream: KeyStream) -> Float64:
    """The attacks' histograms one behind the other, each count plus N(0, noise_std^2): what may leave.

    noise_std: the plan's noise multiplier times `joint_sensitivity(len(histograms))`, or this site's share of that
    under the secure sum. Raises ParameterError for noise of 0.
    """
    together = np.concatenate(histograms)
    add_gaussian(together, noise_std, stream)
    return together


@dataclass(frozen=True)
class MembershipReport:
    """What one attack's histogram says, each with a 95 % interval.

    true_positive_rates: {false positive rate: share of members an attacker finds who may be wrong about so many
    non-members}. advantage: the largest difference of both rates over all thresholds, 0 for a coin. finds_members:
    whether the advantage is above 0 beyond doubt.
    """

    members: int
    non_members: int
    true_positive_rates: dict[float, Estimate]
    advantage: Estimate

    @property
    def finds_members(self) -> bool:
        """Whether the interval of the advantage lies above 0. An undefined one proves nothing: False."""
        return self.advantage.low is not None and self.advantage.low > 0


def report(
    histogram: ScoreHistogram,
    *,
    members: int,
    non_members: int,
    at: tuple[float, ...] = (0.1, 0.01),
    confidence: float = 0.95,
) -> MembershipReport:
    """Rates and advantage of one attack. members, non_members: the public counts of the plan, over all sites summed.

    Intervals hold at once for all thresholds: half of the error goes to the noise, whose size is known, half to the
    sample of patients (Clopper and Pearson 1934), each shared among all rates (Bonferroni). They are wide where
    patients are few, and that is what so few patients can say. Raises ParameterError.
    """
    require_count("the number of members", members, 1)
    require_count("the number of non-members", non_members, 1)
    require_probability("the confidence", confidence, allow_one=False)
    for rate in at:
        require_probability("a false positive rate", rate, allow_one=False)
    bands = (histogram.bins - 1) * 4  # thresholds inside the range, two classes, noise and sampling
    false = _band(histogram.negatives, non_members, histogram.noise_std, (1 - confidence) / bands)
    true = _band(histogram.positives, members, histogram.noise_std, (1 - confidence) / bands)
    differences = true.value - false.value
    advantage = Estimate(
        _unit(float(differences.max())),
        _unit(float((true.low - false.high).max())),
        _unit(float((true.high - false.low).max())),
    )
    rates = {rate: _at(rate, false, true, non_members) for rate in at}
    return MembershipReport(members, non_members, rates, advantage)


@dataclass(frozen=True)
class _Band:
    """Share of a class at or above each threshold, rising from "nobody" to "everybody": (bins + 1,) each."""

    value: Float64
    low: Float64
    high: Float64


def _band(counts: Float64, patients: int, noise_std: float, error: float) -> _Band:
    tails = np.cumsum(counts[::-1])[:-1]
    reach = NormalDist().inv_cdf(1 - error / 2) * noise_std * np.sqrt(np.arange(1, tails.size + 1))
    fewest = np.clip(np.ceil(tails - reach - 1e-9), 0, patients)
    most = np.clip(np.floor(tails + reach + 1e-9), 0, patients)
    low = np.where(fewest > 0, beta.ppf(error / 2, np.maximum(fewest, 1), patients - fewest + 1), 0.0)
    high = np.where(most < patients, beta.ppf(1 - error / 2, most + 1, np.maximum(patients - most, 1)), 1.0)
    # Shares rise as the threshold falls: a bound for one threshold bounds all beyond it.
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high[::-1])[::-1]
    value = np.clip(np.maximum.accumulate(tails) / patients, 0.0, 1.0)
    return _Band(np.r_[0.0, value, 1.0], np.r_[0.0, low, 1.0], np.r_[0.0, high, 1.0])


def _at(rate: float, false: _Band, true: _Band, non_members: int) -> Estimate:
    if rate * non_members < 1:
        return Estimate.undefined(f"A false positive rate of {rate} is less than one of {non_members} non-members.")
    value = float(np.interp(rate, false.value, true.value))
    # Thresholds that are surely too strict bound the rate from below, those surely too lenient from above.
    low = float(true.low[false.high <= rate].max(initial=0.0))
    high = float(true.high[false.low >= rate].min(initial=1.0))
    return Estimate(value, min(low, value), max(high, value))


def _to_unit(values: Float64, reach: float) -> Float64:
    unit: Float64 = (np.clip(np.nan_to_num(values, nan=0.0), -reach, reach) + reach) / (2 * reach)
    return unit


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
