"""What an evaluation measures and what it reports: one closed document for each kind of outcome.

Every kind rests on one histogram over the held-out patients, summed over the sites: a patient is one count in one cell,
so zeroing a patient moves the histogram by 1 in L2. How the cells lie is said by `cells`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema, MaskLabel, NumberLabel, SurvivalLabel
from protocol.identifiers import Frozen

Kind = Literal["classification", "survival", "regression", "segmentation"]
HEADLINES: dict[Kind, str] = {"classification": "AUC", "survival": "AUC", "regression": "RMSE", "segmentation": "Dice"}
"""The short name of the first of `figures`."""
LOWER_IS_BETTER: frozenset[Kind] = frozenset({"regression"})
"""Kinds whose first figure is an error."""
_GROUPS: dict[Kind, int] = {"classification": 2, "survival": 3, "regression": 2, "segmentation": 1}


class Interval(Frozen):
    """A reported value with its 95 % interval, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @property
    def told(self) -> str:
        """For a person: the value and its interval, or why there is none."""
        if self.value is None:
            return f"undefined ({self.reason or 'no reason given'})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


class SubgroupFigure(Frozen):
    """How well the model does for one declared subgroup, by what `measured` tells of all. patients: of it
    among the held out, as the noised counts have it; None where they are too few to tell anything of."""

    group: Annotated[str, Field(max_length=160)]
    patients: int | None
    value: Interval


class _Measured(Frozen):
    """mode exact is outside the guarantee, and says so. bins: equal parts of the measured range (see `cells`).
    subgroups: one for each subgroup of each declared column."""

    mode: Literal["noised", "exact"]
    outside_guarantee: bool
    held_out: int
    bins: int
    subgroups: tuple[SubgroupFigure, ...] = ()


class ClassificationReport(_Measured):
    """Cells: `bins` parts of the score in [0, 1] for patients of label 0, then for those of label 1.

    accuracy: at 0.5. calibration_error: expected, over groups of scores.
    """

    kind: Literal["classification"] = "classification"
    auc: Interval
    accuracy: Interval
    calibration_error: Interval


class SurvivalReport(_Measured):
    """Cells: `bins` parts of the predicted chance of the event before the horizon, for patients who lived to the
    horizon, then for those who had the event before it, then for those who were lost from sight before it.

    auc: among the first two groups alone. auc_if_lost_lived, auc_if_lost_died: with the third added to one of them, so
    that a reader sees how much the lost ones matter. lost: their share. predicted: mean predicted chance of all;
    observed_least, observed_most: the share with the event if none, or all, of the lost had it.
    """

    kind: Literal["survival"] = "survival"
    auc: Interval
    auc_if_lost_lived: Interval
    auc_if_lost_died: Interval
    lost: Interval
    predicted: Interval
    observed_least: Interval
    observed_most: Interval


class RegressionReport(_Measured):
    """Cells: 2 `bins` parts of the residual (prediction minus value) from -limit to limit, in the label's unit; a
    residual beyond counts in the outermost cell. A patient's residual is the mean over the patient's records.

    mae, rmse, bias: mean absolute, root mean squared and mean residual, in `unit`. skill: 1 - rmse^2 / spread^2, where
    spread is the dictionary's constant: R2 against a public spread, for that of the held-out patients isn't measured.
    outermost: share of the two outermost cells, whose residuals may be larger than they count.
    """

    kind: Literal["regression"] = "regression"
    unit: str
    limit: float
    spread: float
    mae: Interval
    rmse: Interval
    bias: Interval
    skill: Interval
    outermost: Interval


class SegmentationReport(_Measured):
    """Cells: `bins` parts of a patient's Dice score in [0, 1] (the mean over the patient's images).

    dice: its mean over patients. above_half: the share of patients with a score of at least 0.5.
    """

    kind: Literal["segmentation"] = "segmentation"
    dice: Interval
    above_half: Interval


EvaluationReport = Annotated[
    ClassificationReport | SurvivalReport | RegressionReport | SegmentationReport, Field(discriminator="kind")
]
_REPORTS: TypeAdapter[EvaluationReport] = TypeAdapter(EvaluationReport)


def read_report(text: str | bytes) -> EvaluationReport:
    """The report in JSON. Raises pydantic's ValidationError for any other document."""
    return _REPORTS.validate_json(text)


def kind_of(dataset: DatasetSchema) -> Kind:
    """What the outcome of this schema is measured by."""
    if isinstance(dataset.label, SurvivalLabel):
        return "survival"
    if isinstance(dataset.label, MaskLabel):
        return "segmentation"
    return "regression" if isinstance(dataset.label, NumberLabel) else "classification"


def cells(kind: Kind, bins: int) -> int:
    """Length of the histogram: the cells of each group of patients, or of each sign of the residual, one after
    another."""
    return _GROUPS[kind] * bins


def residual_limit(label: NumberLabel) -> float:
    """The largest residual that is told from larger ones, in the label's unit."""
    return CLIP_DEVIATIONS * label.scale


def measured(report: EvaluationReport) -> tuple[Literal["auc", "skill", "dice"], Interval]:
    """The measure by which models are compared and a release is judged, the larger the better, and its value."""
    match report:
        case RegressionReport():
            return "skill", report.skill
        case SegmentationReport():
            return "dice", report.dice
        case ClassificationReport() | SurvivalReport():
            return "auc", report.auc


def figures(report: EvaluationReport) -> tuple[tuple[str, Interval], ...]:
    """(name, value) of everything the report holds, the most telling one first, those of subgroups last."""
    name = {"auc": "AUC", "skill": "skill", "dice": "Dice"}[measured(report)[0]]
    return *_of_all(report), *((f"{name}, {one.group}{_counted(one)}", one.value) for one in report.subgroups)


def _counted(one: SubgroupFigure) -> str:
    return "" if one.patients is None else f" (about {one.patients} patients)"


def _of_all(report: EvaluationReport) -> tuple[tuple[str, Interval], ...]:
    match report:
        case ClassificationReport():
            return (
                ("AUC", report.auc),
                ("accuracy at 0.5", report.accuracy),
                ("expected calibration error", report.calibration_error),
            )
        case SurvivalReport():
            return (
                ("AUC at the horizon, of patients whose outcome is known", report.auc),
                ("AUC if the lost had no event", report.auc_if_lost_lived),
                ("AUC if the lost had the event", report.auc_if_lost_died),
                ("share lost from sight before the horizon", report.lost),
                ("mean predicted chance of the event", report.predicted),
                ("observed share if the lost had no event", report.observed_least),
                ("observed share if the lost had the event", report.observed_most),
            )
        case RegressionReport():
            # A researcher wrote the unit, and it may be read in a terminal.
            shown = "".join(character for character in report.unit if character.isprintable())
            unit = f" ({shown})" if shown else ""
            return (
                (f"root mean squared error{unit}", report.rmse),
                (f"mean absolute error{unit}", report.mae),
                (f"mean error{unit}", report.bias),
                ("skill (R2 against the dictionary's spread)", report.skill),
                (f"share with an error near or beyond {report.limit:g}", report.outermost),
            )
        case SegmentationReport():
            return ("mean Dice score", report.dice), ("share with a Dice score of at least 0.5", report.above_half)
