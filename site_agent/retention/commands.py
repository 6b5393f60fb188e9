"""cloister-site retention …: what lies here of studies, and its erasure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from site_agent.retention.purge import Judged, SiteRetention

app = typer.Typer(no_args_is_help=True, help="What lies here of studies until when, its wiping, and leaving.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("plan")
def show_plan(as_json: Json = False, home: Home = None) -> None:
    """Show models, serving logs and studies' scratch, and what becomes of each. Exit code 1: something is due."""
    rows = [_row(one) for one in _retention(home).plan()]
    typer.echo(json.dumps(rows, indent=2) if as_json else _text(rows) or "Nothing lies here.")
    if any(row["goes"] for row in rows):
        raise typer.Exit(1)


@app.command("run")
def run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; erase nothing.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Erase models past their day, old serving logs, and the scratch of studies that are over."""
    retention = _retention(home)
    gone = [one for one in retention.plan() if one.goes] if dry_run else retention.run()
    rows = [_row(one) for one in gone]
    said = "would go" if dry_run else "gone"
    typer.echo(json.dumps(rows, indent=2) if as_json else f"{_text(rows)}\n{len(rows)} {said}".lstrip())


@app.command("wipe")
def wipe(
    study: Annotated[str, typer.Argument(help="A study that is over here.")], as_json: Json = False, home: Home = None
) -> None:
    """Wipe a study's training scratch, look again, and attest it as evidence."""
    report = _retention(home).wipe(study)
    told = f"{study}: wiped; nothing of it is left but the ledger and the answers. Evidence {report['evidence']}"
    typer.echo(json.dumps(report, indent=2) if as_json else told)


@app.command("leave")
def leave_federation(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep installed models; needs evidence of kind infeasibility.")
    ] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Leave the federation: destroy what lies here of it, and tell the coordinator, which then revokes this site."""
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient, CoordinatorUnreachable
    from site_agent.database import open_database
    from site_agent.keystore import load_keys
    from site_agent.retention.leave import deliver, forecast, leave

    settings = load_settings(SiteHome.resolve(home))
    engine = open_database(settings.home)
    told = forecast(settings, engine, keep_models=keep_models)
    typer.echo(
        f"{told.models} models, {told.snapshots} snapshots and {told.scratch} items of studies' scratch will be "
        f"destroyed; {told.retained} models stay.",
        err=True,
    )
    if not yes and not typer.confirm("This can't be undone. Leave?"):
        raise typer.Exit(1)
    departure = leave(settings, engine, system_clock, keep_models=keep_models)
    delivered = True
    try:
        with CoordinatorClient(settings, load_keys(settings.home)) as client:
            deliver(engine, client)
    except CoordinatorUnreachable as error:
        delivered = False
        typer.echo(f"the coordinator does not know yet, run this again: {error.message}", err=True)
    document = {"left_at": departure.left_at, "retained": departure.retained, "delivered": delivered}
    typer.echo(
        json.dumps(document, indent=2) if as_json else f"{settings.site} has left; {departure.retained} retained"
    )


def _retention(home: Path | None) -> SiteRetention:
    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.retention.purge import SiteRetention

    settings = load_settings(SiteHome.resolve(home))
    return SiteRetention(settings, open_database(settings.home), system_clock)


def _row(one: Judged) -> dict[str, Any]:
    held = one.holding
    return {
        "class": held.record_class.value,
        "about": held.about,
        "items": held.items,
        "bytes": held.size,
        "until": held.until.isoformat() if held.until else None,
        "standing": one.standing.value,
        "goes": one.goes,
        "why": [f"{found.message} ({found.rule})" for found in one.decision.findings],
    }


def _text(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{row['standing']:5} {row['class']:12} {row['about']:40} {row['items']:6} items"
        f"{'  until ' + row['until'] if row['until'] else ''}"
        for row in rows
    )
