"""cloister incident …: open one, which freezes; say what was done; close it, with a second person."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit, table

app = typer.Typer(no_args_is_help=True, help="Incidents: each freezes a study, a site or everything.")
Name = Annotated[str, typer.Argument(help="The incident, as `cloister incident list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="In words; erasable, and never in the log.")]
_TIME = "YYYY-MM-DDTHH:MM:SSZ"


@app.command("open")
def open_incident(
    kind: Annotated[str, typer.Argument(help="security, data-breach, integrity or basis-invalidated.")],
    description: Annotated[str, typer.Option("--description", help="What happened; erasable, and never in the log.")],
    study: Annotated[str | None, typer.Option("--study", help="The study that it is about.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="The site that it is about.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="It is about the whole federation.")] = False,
    aware_at: Annotated[str | None, typer.Option("--aware-at", help=f"Since when known, {_TIME}; else now.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Freeze a study, a site or everything, from the next attempt on. One person alone may."""
    from coordinator.client.account import open_account
    from protocol.errors import Malformed
    from protocol.incident import EVERYTHING, KINDS

    if kind not in KINDS:
        raise Malformed(f"There is no kind {kind[:40]!r}.", f"One of {', '.join(KINDS)}.")
    named = [("study", study), ("site", site), ("federation", EVERYTHING if everything else None)]
    about = [(scope, name) for scope, name in named if name is not None]
    if len(about) != 1:
        raise Malformed("An incident is about one thing.", "Give one of --study, --site and --everything.")
    body = {"kind": kind, "scope": about[0][0], "about": about[0][1], "description": description, "aware_at": aware_at}
    with open_account(home).connect() as connection:
        row = connection.post("/v1/incidents", {name: value for name, value in body.items() if value is not None})
    text = (
        f"{row['incident']} is open: {row['scope']} {row['about']} is frozen.\n"
        f"The authority is to be told until {row['authority_due']} (GDPR Art. 33(1)), those concerned until "
        f"{row['individuals_due']} at the latest (45 CFR 164.404(b))."
    )
    emit(row, as_json=as_json, text=text)


@app.command()
def update(
    incident: Name,
    reason: Reason,
    authority: Annotated[
        str | None, typer.Option("--authority", help=f"When the authority was told, {_TIME}, or not-required.")
    ] = None,
    individuals: Annotated[
        str | None, typer.Option("--individuals", help=f"When those concerned were told, {_TIME}, or not-required.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say what became of the duties to tell. A compliance officer does."""
    from coordinator.client.account import open_account

    settled = {name: said for name, said in (("authority", authority), ("individuals", individuals)) if said}
    with open_account(home).connect() as connection:
        row = connection.post(f"/v1/incidents/{incident}/updates", {"settled": settled, "reason": reason})
    emit(row, as_json=as_json, text=_listed([row]))


@app.command()
def close(
    incident: Name,
    outcome: Annotated[str, typer.Option("--outcome", help="resolved or false-alarm.")],
    reason: Reason,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say that it is over. Two people in two roles must, one a compliance officer, neither who opened it."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        row = connection.post(f"/v1/incidents/{incident}/closings", {"outcome": outcome, "reason": reason})
    waits = f"{incident} stays open until a second person in another role says so."
    emit(row, as_json=as_json, text=f"{incident} is closed." if row["state"] == "closed" else waits)


@app.command("list")
def list_incidents(
    all_: Annotated[bool, typer.Option("--all", help="Closed ones, too.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List open incidents, what they freeze, and how long is left to tell whom."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = connection.get("/v1/incidents")
    shown = [row for row in rows if all_ or row["state"] == "open"]
    late = [row["incident"] for row in shown if row["overdue"]]
    warning = f"\nwarning: overdue: {', '.join(late)}" if late else ""
    emit(shown, as_json=as_json, text=(_listed(shown) if shown else "No incident is open.") + warning)


def _listed(rows: list[dict[str, Any]]) -> str:
    return table(
        ("incident", "kind", "freezes", "state", "aware at", "authority", "those concerned"),
        [
            (
                row["incident"],
                row["kind"],
                f"{row['scope']} {row['about']}",
                row["state"],
                row["aware_at"],
                row["authority"] or left(row["authority_due"], row["state"]),
                row["individuals"] or left(row["individuals_due"], row["state"]),
            )
            for row in rows
        ],
    )


def left(due: str, state: str, *, now: datetime | None = None) -> str:
    """How long is left until `due`, in whole hours up to three days and whole days after; overdue by how long."""
    from datetime import UTC

    from protocol.timestamp import moment

    if state != "open":
        return "-"
    span = moment(due) - (now or datetime.now(UTC))
    hours = int(abs(span).total_seconds() // 3600)
    size = f"{hours} h" if hours <= 72 else f"{hours // 24} d"
    return f"{size} left" if span.total_seconds() >= 0 else f"OVERDUE by {size}"
