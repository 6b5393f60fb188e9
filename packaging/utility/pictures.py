"""The curves as SVG, the same bytes for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "cloister"
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib.figure import Figure  # noqa: E402 - after the backend is chosen
from measures import summary  # noqa: E402
from tables import values  # noqa: E402

LINES = {
    "pooled DP": ("pooled patients, same ε", "black", "--", "s"),
    "distributed t=0": ("distributed DP, t = 0", "#08519c", "-", "o"),
    "distributed t=1": ("distributed DP, t = 1", "#4292c6", "-", "o"),
    "distributed t=2": ("distributed DP, t = 2", "#9ecae1", "-", "o"),
    "local fedavg": ("local DP-SGD, FedAvg", "#e6550d", "-", "^"),
    "alone": ("each site alone", "#a63603", ":", "v"),
}
LEVELS = {
    "federated, no noise": ("federated, no noise", "#08519c"),
    "logistic regression, no noise": ("pooled, no noise", "grey"),
}


def curves(problem: dict[str, Any], who: str, path: Path) -> None:
    """Mean and standard deviation over seeds against epsilon, judged on `who`."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, problem, who)
    axes.set_title(f"{problem['title']} ({problem['seeds']} seeds)", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, path)


def grid(problem: dict[str, Any], path: Path) -> None:
    """One panel for each hospital."""
    figure = Figure(figsize=(9.6, 2.6 * -(-len(problem["patients"]) // 2)), layout="constrained")
    names = list(problem["patients"])
    panels = figure.subplots(-(-len(names) // 2), 2, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        draw(axes, problem, name, chosen=("distributed t=1", "alone", "pooled DP"))
        axes.set_title(f"{name}: {problem['patients'][name]} patients", fontsize=9)
    panels[0].legend(fontsize=7, loc="lower right")
    save(figure, path)


def draw(axes: Any, problem: dict[str, Any], who: str, chosen: tuple[str, ...] = tuple(LINES)) -> None:
    """Lines for the chosen arms, levels for what has no noise."""
    arms = problem["arms"]
    for number, arm in enumerate(chosen):
        label, colour, dash, mark = LINES[arm]
        points = []
        for epsilon in arms[arm]:
            mean, spread, count = summary(values(problem, arm, epsilon, who))
            if count > 1:
                points.append((float(epsilon) * 1.02 ** (number - len(chosen) / 2), mean, spread))
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(
                x, y, yerr=error, label=label, color=colour, linestyle=dash, marker=mark, capsize=2, markersize=4
            )
    for arm, (label, colour) in LEVELS.items():
        if arm in arms:
            mean, _, count = summary(values(problem, arm, "none", who))
            if count:
                axes.axhline(mean, color=colour, linewidth=0.8, linestyle="-.", label=label)
    axes.set_xscale("log")
    ticks = [float(epsilon) for epsilon in arms["pooled DP"]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("ε of the released model (one patient)", fontsize=8)
    axes.set_ylabel(problem["measure"], fontsize=8)
    axes.grid(alpha=0.3)


def save(figure: Figure, path: Path) -> None:
    """Without a date, so that nothing changes that did not change."""
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
