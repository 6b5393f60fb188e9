"""From the summed histograms of attack scores to what the membership audit says of the candidate. Pure."""

from __future__ import annotations

import hashlib

import numpy as np

from coordinator.rounds.evaluation import interval_of, noise_std_of
from coordinator.rounds.optimiser import to_bytes
from privacy.auditing.membership import report
from privacy.entropy import Float64
from privacy.evaluation.histogram import ScoreHistogram
from privacy.evaluation.metrics import evaluate
from protocol.membership import MembershipReport
from protocol.study import StudyPlan

TELLING, TELLING_MORE = 0.1, 0.01


def membership_report(plan: StudyPlan, cohort: tuple[str, ...], counts: Float64) -> MembershipReport:
    """counts: (2 bins,) as decoded, non-members first. Intervals are seeded with the counts, as the evaluation's are.

    Raises PrivacyError for counts that are not finite.
    """
    histogram = ScoreHistogram(counts, noise_std_of(plan.secure_sum("membership", cohort)))
    members, non_members = plan.scored(cohort)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(to_bytes(counts)).digest(), "big"))
    found = report(histogram, members=members, non_members=non_members, at=(TELLING, TELLING_MORE))
    return MembershipReport(
        ran=True,
        members=members,
        non_members=non_members,
        bins=histogram.bins,
        auc=interval_of(evaluate(histogram, rng, groups=1).auc),
        found_at_1=interval_of(found.true_positive_rates[TELLING_MORE]),
        found_at_10=interval_of(found.true_positive_rates[TELLING]),
        advantage=interval_of(found.advantage),
    )
