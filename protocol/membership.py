"""The membership audit of a candidate: what a researcher asks, what the plan fixes, what came of it.

Each site attacks the candidate with its own patients, members (trained on) and non-members (held out), and gives one
noised histogram of attack scores for either under the secure sum. A patient is one count in one cell, so zeroing a
patient moves the vector by 1 in L2. It is charged to both groups of patients, beside the training and the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.evaluation import Interval, Kind
from protocol.identifiers import Frozen

MOST_SCORED = 10_000
"""Patients of a group that one site scores at most, drawn at random: for what a site can afford, not for privacy."""

PREDICTIONS: Mapping[Kind, Literal["chance", "residual", "quality"]] = {
    "classification": "chance",
    "survival": "chance",
    "regression": "residual",
    "segmentation": "quality",
}
"""How the attack reads what a model of the kind predicts (privacy.auditing.membership.Prediction)."""


class MembershipAudit(Frozen):
    """mode auto: where the plan's held-out patients are so many that the noise alone does not blur the answer; a figure
    that can say nothing is not worth a patient's budget. epsilon: over all `attempts`, at the study's delta."""

    mode: Literal["auto", "on", "off"] = "auto"
    epsilon: Annotated[float, Field(gt=0, le=100)] = 0.5
    bins: Annotated[int, Field(ge=4, le=100, multiple_of=2)] = 10
    attempts: Annotated[int, Field(ge=1, le=20)] = 2


class Audit(Frozen):
    """What is attacked before a release."""

    membership: MembershipAudit = MembershipAudit()


class PlannedMembership(Frozen):
    """noise_multiplier: sigma of each count. epsilon: of a patient, member or not, over all attempts;
    epsilon_worst_site: if all others collude."""

    noise_multiplier: Annotated[float, Field(gt=0)]
    epsilon: Annotated[float, Field(gt=0)]
    epsilon_worst_site: Annotated[float, Field(gt=0)]


class MembershipReport(Frozen):
    """What the summed histograms say, or why there are none. Intervals are of 95 %.

    attack: loss, a small loss speaks for a member (Yeom et al. 2018). auc: of telling members from non-members, 0.5 for
    a coin. found_at_1, found_at_10: the share of members found by an attacker who is wrong about 1 and 10 % of the
    non-members. advantage: the largest difference of both shares over all thresholds, 0 for a coin.
    """

    ran: bool
    reason: str | None = None
    attack: Literal["loss"] = "loss"
    members: int = 0
    non_members: int = 0
    bins: int = 0
    auc: Interval | None = None
    found_at_1: Interval | None = None
    found_at_10: Interval | None = None
    advantage: Interval | None = None

    @model_validator(mode="after")
    def _whole(self) -> MembershipReport:
        measured = (self.auc, self.found_at_1, self.found_at_10, self.advantage)
        if any((figure is None) is self.ran for figure in measured) or (self.reason is None) is not self.ran:
            raise ValueError("a membership audit that ran has all its figures; one that did not has a reason")
        return self


def audit_figures(report: MembershipReport) -> tuple[tuple[str, Interval], ...]:
    """(name, value) of everything that an audit that ran has found; nothing for one that did not."""
    named = (
        ("attack AUC (0.5: a coin)", report.auc),
        ("members found at 1 % false alarms", report.found_at_1),
        ("members found at 10 % false alarms", report.found_at_10),
        ("attacker's advantage (0: a coin)", report.advantage),
    )
    return tuple((name, figure) for name, figure in named if figure is not None)
