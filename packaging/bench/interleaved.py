"""One row: two pieces of work, run in turns in this process, and what the one costs beside the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

TURNS = 5


def row(
    name: str, ours: Callable[[], object], floor: Callable[[], object], times: int, goal: float, of: str,
    *, floor_times: int | None = None, turns: int = TURNS, warm: bool = True, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The median over turns of ours over floor, in seconds of CPU for one of `times` (floor: of `floor_times`).

    One of each that does not count goes before, unless not `warm`.
    """
    if warm:
        ours()
        floor()
    taken = [(cpu_seconds(ours) / times, cpu_seconds(floor) / (floor_times or times)) for _ in range(turns)]
    ratio = statistics.median(mine / least for mine, least in taken)
    return {
        "name": name,
        "ratio": ratio,
        "of": of,
        "goal": goal,
        "holds": ratio <= goal,
        **more,
        "cpu_seconds": {"ours": [mine for mine, _ in taken], "floor": [least for _, least in taken]},
    }


def cpu_seconds(work: Callable[[], object]) -> float:
    """What this process computed for while it did the work."""
    before = time.process_time()
    work()
    return time.process_time() - before
