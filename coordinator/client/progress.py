"""Progress of a running study: sites joining, rounds, epsilon spent, the norm of the noisy mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

POLL_SECONDS = 0.5
ENDED = frozenset({"candidate", "completed", "failed", "stopped"})


def watch(fetch: Callable[[], dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Poll until the study has ended; its last status. On a terminal a bar, else a line per change, on stderr."""
    console = Console(stderr=True, quiet=quiet)
    document = fetch()
    planned = int(document["rounds"]["planned"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("keys", total=planned)
        said = ""
        while True:
            line = progress_line(document)
            bar.update(task, completed=int(document["rounds"]["committed"]), description=line)
            if line != said and not console.is_terminal:
                console.print(line, highlight=False)
            said = line
            if document["state"] in ENDED:
                return document
            time.sleep(POLL_SECONDS)
            document = fetch()


def progress_line(document: dict[str, Any]) -> str:
    """One line of where a study stands."""
    if waits := document.get("waiting"):
        return f"waits ({waits['reason']}): {waits['detail']}. {waits['remedy']}"
    state, done, spent = document["state"], document["rounds"], document["privacy"]["epsilon_spent"]
    if state == "keys":
        joined = [site["name"] for site in document["sites"] if site["joined"]]
        granted = [site["name"] for site in document["sites"] if site["answer"] == "grant"]
        return f"keys: {len(joined)} of {len(granted)} sites have joined{': ' + ', '.join(joined) if joined else ''}"
    latest = done["latest"]
    norm = f", norm of the noisy mean {latest['norm']:.4g}" if latest and latest["norm"] is not None else ""
    return (
        f"{state}: round {done['committed']} of {done['planned']}, epsilon {spent:.4f} of "
        f"{document['epsilon']:.4f}{norm}"
    )


def run_lines(document: dict[str, Any]) -> list[str]:
    """The runs of a tuned study that were scored so far, the chosen one marked once there is a candidate."""
    selection = ((document.get("candidate") or {}).get("epsilon") or {}).get("selection")
    lines = []
    for run in document.get("runs") or []:
        changes = ", ".join(f"{name} {_told(value)}" for name, value in run["changes"].items())
        score = "undefined" if run["score"] is None else f"{run['score']:.3f}"
        chosen = " (chosen)" if selection is not None and run["entry"] == selection["chosen"] else ""
        lines.append(f"run {run['run']}: entry {run['entry']} ({changes}), noised score {score}{chosen}")
    return lines


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part) for part in value.values())
    return f"{value:g}"
