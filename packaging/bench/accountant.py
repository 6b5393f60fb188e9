"""The product's accountant beside Opacus': how tight its epsilon is, and how long a forecast takes.

Five plans, from a federation's sixty rounds to ten thousand steps of central training. `accountant tightness` is the
worst plan's epsilon, at the ledger's interval, over that of Renyi accounting. `accountant forecast` is the CPU time of
all five forecasts over that of Opacus' PRV accountant for the same, in turns, each from nothing (no cached value).
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

Row = dict[str, Any]
DELTA = 1e-5
PLANS = ((6.0, 0.25, 65), (3.0, 0.25, 60), (2.0, 0.05, 500), (1.0, 0.01, 1000), (1.1, 256 / 60_000, 10_000))
TURNS = 7
TIGHTNESS_GOAL, FORECAST_GOAL = 0.93, 0.5


def rows() -> list[Row]:
    """ "accountant tightness" and "accountant forecast"."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    from privacy.accounting.epsilon import FORECAST_INTERVAL, LEDGER_INTERVAL, epsilon
    from privacy.parameters import Mechanism

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    def ours(plan: tuple[float, float, int], interval: float) -> float:
        return epsilon.__wrapped__(Mechanism(*plan, DELTA), interval)

    def theirs(accountant: Any, plan: tuple[float, float, int]) -> float:
        accountant.history = [plan]
        return float(accountant.get_epsilon(DELTA))

    tight, prv = [], []
    for plan in PLANS:
        renyi = theirs(RDPAccountant(), plan)
        tight.append(ours(plan, LEDGER_INTERVAL) / renyi)
        prv.append(theirs(PRVAccountant(), plan) / renyi)
    ratio = max(tight)
    times = [
        _turn(lambda plan: ours(plan, FORECAST_INTERVAL), lambda plan: theirs(PRVAccountant(), plan))
        for _ in range(1 + TURNS)
    ][1:]
    logging.disable(logging.NOTSET)
    forecast = statistics.median(times)
    return [
        {
            "name": "accountant tightness",
            "ratio": round(ratio, 4),
            "of": f"Renyi accounting's epsilon, where Opacus' PRV is {max(prv):.4f}",
            "goal": TIGHTNESS_GOAL,
            "holds": ratio <= TIGHTNESS_GOAL,
            "plans": [
                {"plan": list(plan), "ours": round(own, 4), "prv": round(other, 4)}
                for plan, own, other in zip(PLANS, tight, prv, strict=True)
            ],
            "peer": {"name": "Opacus PRVAccountant", "ratio": round(max(prv), 4)},
        },
        {
            "name": "accountant forecast",
            "ratio": round(forecast, 3),
            "of": "the CPU time of Opacus' PRV accountant, which is 1",
            "goal": FORECAST_GOAL,
            "holds": forecast <= FORECAST_GOAL,
            "range": [round(min(times), 3), round(max(times), 3)],
            "peer": {"name": "Opacus PRVAccountant", "ratio": 1.0},
        },
    ]


def _turn(ours: Callable[[Any], float], theirs: Callable[[Any], float]) -> float:
    """Our time over theirs for all plans, each pair one after the other."""
    mine = other = 0.0
    for plan in PLANS:
        start = time.process_time()
        ours(plan)
        middle = time.process_time()
        theirs(plan)
        mine += middle - start
        other += time.process_time() - middle
    return mine / other
