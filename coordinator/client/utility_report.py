"""A simulated curve for a person: text, a table with one line for each run, and a picture."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordinator.client.simulation import Simulated
from coordinator.client.utility_curve import ATTACKED, AUDITED, OWN_DATA, Curve, Point
from coordinator.terminal import table
from protocol.evaluation import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE, TABLE = "utility.png", "utility.csv"
_COLUMNS = (
    "epsilon", "delta", "noise_multiplier", "epsilon_worst_site", "seed", "measure", "measured", "reported",
    "reported_low", "reported_high", "rounds", "attempts", "rounds_undone", "chosen_entry", "attack_auc",
    "membership_advantage", "membership_advantage_low", "membership_advantage_high", "audit_epsilon_at_least",
    "failure",
)  # fmt: skip


def curve_text(curve: Curve) -> str:
    """The utility at each epsilon, then what checks, tuning, the membership audit and the audit of the sum came to."""
    rows = [
        (
            _named(point),
            None if point.epsilon is None else f"{point.plan.epsilon_worst_site:.2f}",
            None if point.epsilon is None else f"{point.plan.noise_multiplier:.3f}",
            None if point.mean is None else f"{point.mean:.4f}",
            None if point.deviation is None else f"{point.deviation:.4f}",
            _reported(point),
            f"{sum(run.failure is None for run in point.runs)} of {len(point.runs)}",
        )
        for point in curve.points
    ]
    head = (
        "epsilon", "worst site", "noise", curve.points[0].measure, "sd", "the study's own interval", "ended well",
    )  # fmt: skip
    failures = sorted({run.failure for point in curve.points for run in point.runs if run.failure})
    limit = curve.spec.privacy.epsilon_worst_site
    over = [f"{p.epsilon:g}" for p in curve.points if p.epsilon and limit and p.plan.epsilon_worst_site > limit]
    refuted = ", ".join(f"{epsilon:g}" for epsilon in curve.refuted)
    return "\n".join(
        [
            f"{curve.spec.study}: {curve.says}; delta {curve.spec.privacy.delta:g}",
            table(head, rows),
            "",
            _also(curve),
            *(f"failed: {failure}" for failure in failures),
            *([f"above the study's limit for a site's worst case ({limit:g}): {', '.join(over)}"] if over else []),
            *([f"REFUTED by the audit: epsilon {refuted}. Propose nothing with this software."] if refuted else []),
            ATTACKED,
            *([AUDITED] if curve.audited else []),
            OWN_DATA,
        ]
    )


def _also(curve: Curve) -> str:
    """A second table, with the columns that this study has."""
    spec = curve.spec
    columns: list[tuple[str, list[str | None]]] = [("epsilon", [_named(point) for point in curve.points])]
    if spec.training.checks is not None:
        columns.append((f"rounds undone of {spec.training.rounds}", [_undone(point) for point in curve.points]))
    if spec.tuning is not None:
        columns.append(("entry chosen (runs)", [_chosen(point) for point in curve.points]))
    told = [None if point.attacked is None else f"{point.attacked:.3f}" for point in curve.points]
    columns.append(("attack AUC", told))
    if any(point.plan.membership is not None for point in curve.points):
        columns.append(("advantage, as the study would tell", [_advantage(point) for point in curve.points]))
    if curve.audited:
        columns.append(("epsilon by the audit", [_audited(point) for point in curve.points]))
    return table([name for name, _ in columns], list(zip(*(cells for _, cells in columns), strict=True)))


def _named(point: Point) -> str:
    return "no noise" if point.epsilon is None else f"{point.epsilon:g}"


def _undone(point: Point) -> str:
    return f"{np.mean([run.undone for run in point.runs]):.1f}"


def _chosen(point: Point) -> str | None:
    counts = Counter(run.selection.chosen for run in point.runs if run.selection is not None)
    return ", ".join(f"{entry} ({count})" for entry, count in counts.most_common()) or None


def _advantage(point: Point) -> str | None:
    """The mean over the runs in which the study's own audit ran."""
    found = [_advantage_of(run) for run in point.runs]
    ran = np.array([figure for figure in found if figure is not None])
    return None if not ran.size else "{:.3f} ({:.3f} to {:.3f})".format(*ran.mean(axis=0))


def _advantage_of(run: Simulated) -> tuple[float, float, float] | None:
    if run.membership is None or not run.membership.ran or run.membership.advantage is None:
        return None
    told = run.membership.advantage
    if told.value is None or told.low is None or told.high is None:
        return None
    return told.value, told.low, told.high


def _audited(point: Point) -> str | None:
    if point.audited is None:
        return None
    found = point.audited
    return f"at least {found.epsilon_lower:.2f} of {point.plan.epsilon:.2f} ({found.design.confidence:.0%})"


def _reported(point: Point) -> str | None:
    if point.epsilon is None or not point.reported:
        return None
    _, low, high = np.mean(np.array(point.reported), axis=0)
    return f"{low:.3f} to {high:.3f}"


def curve_csv(curve: Curve) -> str:
    """One line for each run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in curve.points:
        private = point.epsilon is not None
        for seed, run in enumerate(point.runs):
            told = figures(run.report)[0][1] if run.report else None
            writer.writerow(
                [
                    point.epsilon if private else "inf",
                    curve.spec.privacy.delta if private else "",
                    point.plan.noise_multiplier if private else 0,
                    point.plan.epsilon_worst_site if private else "",
                    seed,
                    point.measure,
                    run.measured,
                    *((told.value, told.low, told.high) if told else ("", "", "")),
                    run.rounds,
                    run.attempts,
                    run.undone,
                    run.selection.chosen if run.selection else "",
                    run.attacked,
                    *(_advantage_of(run) or ("", "", "")),
                    point.audited.epsilon_lower if point.audited else "",
                    run.failure or "",
                ]
            )
    return out.getvalue()


def curve_picture(curve: Curve) -> bytes:
    """PNG: mean and standard deviation over the seeds of what is measured, against epsilon, and without noise; where
    the sum was audited, beside it what the audit found against what is claimed."""
    from matplotlib.figure import Figure

    panels = 2 if curve.audited else 1
    figure = Figure(figsize=(7.0 + 4.6 * (panels - 1), 4.4), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, width_ratios=(7.0, 4.6)[:panels])[0]
    _draw_utility(axes[0], curve)
    if curve.audited:
        _draw_audit(axes[1], curve)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_utility(axes: Axes, curve: Curve) -> None:
    shown = [point for point in curve.points if point.epsilon is not None and point.mean is not None]
    axes.errorbar(
        [point.epsilon or 0.0 for point in shown],
        [point.mean or 0.0 for point in shown],
        yerr=[point.deviation or 0.0 for point in shown],
        marker="o",
        capsize=3,
        label=f"private (mean and sd of {len(curve.points[0].runs)} seeds)",
    )
    plain = curve.points[-1].mean
    if plain is not None:
        axes.axhline(plain, linestyle="--", color="grey", label=f"the same without noise ({plain:.3f})")
    if shown:
        _scale(axes, shown)
    axes.set_xlabel(f"epsilon of the released model (delta {curve.spec.privacy.delta:g}, one patient)")
    axes.set_ylabel(f"{curve.points[0].measure}, held-out patients")
    axes.set_title(f"{curve.spec.study}: {curve.spec.model.architecture}\n{curve.says}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)


def _draw_audit(axes: Axes, curve: Curve) -> None:
    shown = [point for point in curve.points if point.audited is not None]
    claimed = [point.plan.epsilon for point in shown]
    found = [point.audited.epsilon_lower for point in shown if point.audited is not None]
    axes.plot(claimed, claimed, linestyle="--", color="grey", label="claimed")
    confidence = shown[0].audited.design.confidence if shown[0].audited is not None else 0.0
    axes.plot(claimed, found, marker="^", linestyle="-", label=f"audited: at least ({confidence:.0%})")
    _scale(axes, shown)
    axes.set_xlabel("epsilon claimed")
    axes.set_ylabel("epsilon")
    axes.set_title("a bound above the claim would refute it", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)


def _scale(axes: Axes, shown: list[Point]) -> None:
    axes.set_xscale("log")
    axes.set_xticks([point.epsilon or 0.0 for point in shown], [f"{point.epsilon:g}" for point in shown])
    axes.minorticks_off()


def write_curve(curve: Curve, out: Path) -> tuple[Path, Path]:
    """Write picture and table into the folder, which is made; each appears whole or not at all. OSError."""
    contents = {PICTURE: curve_picture(curve), TABLE: curve_csv(curve).encode()}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        partial = out / f".{name}.partial"
        try:
            partial.write_bytes(data)
            partial.replace(out / name)
        finally:
            partial.unlink(missing_ok=True)
    return out / PICTURE, out / TABLE
