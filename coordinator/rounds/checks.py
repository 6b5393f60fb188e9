"""Whether the model of a check is kept or given up for the last one that passed: decided from noised scores. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.evaluation import EvaluationReport, Interval, RegressionReport, SegmentationReport, measured

COIN = 0.5


def headline(report: EvaluationReport) -> Interval:
    """The score by which models are compared: the larger, the better."""
    return measured(report)[1]


def floor_of(report: EvaluationReport) -> float:
    """What a model without any knowledge scores: what the first check is held against."""
    return 0.0 if isinstance(report, RegressionReport | SegmentationReport) else COIN


@dataclass(frozen=True)
class Verdict:
    """score: of the check. against: the last passed score, or the floor. fell: whether the model is given up."""

    score: Interval
    against: float
    fell: bool


def judge_check(report: EvaluationReport, passed: float | None, tolerance: float) -> Verdict:
    """passed: the score of the last check that passed. The score has fallen where even the upper end of its interval is
    more than `tolerance` below; a score that noise leaves undefined says nothing, and the model is kept."""
    score, against = headline(report), floor_of(report) if passed is None else passed
    return Verdict(score, against, score.high is not None and score.high < against - tolerance)
