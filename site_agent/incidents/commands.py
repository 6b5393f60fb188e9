"""cloister-site incidents …: report one, which freezes this site's part at once; see what stands; end it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

app = typer.Typer(no_args_is_help=True, help="Incidents: a report freezes this site's part at once.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("report")
def report_incident(
    kind: Annotated[str, typer.Argument(help="security, data-breach, integrity or basis-invalidated.")],
    study: Annotated[str | None, typer.Option("--study", help="The study that it is about, if not this site.")] = None,
    aware_at: Annotated[
        str | None, typer.Option("--aware-at", help="Since when known, YYYY-MM-DDTHH:MM:SSZ; else now.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Stop here at once, and tell the coordinator: now if it can be reached, else the agent does."""
    import os

    from protocol.errors import CloisterError
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database, transaction
    from site_agent.incidents.report import deliver_reports, report
    from site_agent.keystore import load_keys

    settings = load_settings(SiteHome.resolve(home))
    keys, engine = load_keys(settings.home), open_database(settings.home)
    with transaction(engine) as session:
        row = report(
            session, site=settings.site, key=keys.identity, kind=kind, study=study, aware_at=aware_at,
            now=system_clock(), entropy=os.urandom,
        )  # fmt: skip
    try:
        with CoordinatorClient(settings, keys) as client:
            deliver_reports(engine, client)
        told = "the coordinator was told"
    except CloisterError as error:
        told = f"the coordinator was not told yet ({error.code}); the agent will tell it"
    document = {"incident": row.incident, "scope": row.scope, "about": row.about, "told": told}
    text = f"{row.incident}: this site takes part in nothing that touches {row.scope} {row.about}; {told}."
    typer.echo(json.dumps(document, indent=2) if as_json else text)


@app.command("list")
def list_incidents(home: Home = None, as_json: Json = False) -> None:
    """What this site reported, and what its own copy of the log says is open."""
    from site_agent.database import open_database, transaction
    from site_agent.incidents.facts import LogReader
    from site_agent.incidents.report import every

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        matters = LogReader(settings).matters(session)
        own = [
            {
                "incident": row.incident,
                "kind": row.kind,
                "about": f"{row.scope} {row.about}",
                "told_by_log": matters.told(row.incident),
                "closed_in_log": matters.closed(row.incident),
                "ended_at": row.ended_at,
            }
            for row in every(session)
        ]
        logged = [
            {"incident": name, "kind": one.kind, "about": f"{one.scope} {one.about}", "aware_at": one.aware_at}
            for name, one in matters.open().items()
        ]
    document: dict[str, Any] = {"reported_here": own, "open_in_log": logged}
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for row_ in own:
        state = f"ended {row_['ended_at']}" if row_["ended_at"] else "closed in the log" if row_["closed_in_log"] else (
            "open" if row_["told_by_log"] else "NOT IN THE LOG YET"
        )  # fmt: skip
        typer.echo(f"reported here  {row_['incident']}  {row_['kind']}  {row_['about']}  {state}")
    for one_ in logged:
        typer.echo(f"open in log    {one_['incident']}  {one_['kind']}  {one_['about']}  since {one_['aware_at']}")
    if not own and not logged:
        typer.echo("No incident stands.")


@app.command("end")
def end_incident(
    incident: Annotated[str, typer.Argument(help="The incident, as `cloister-site incidents list` shows it.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Agree here that a report of this site is over, once the log tells that two people closed it."""
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.incidents.facts import LogReader
    from site_agent.incidents.report import end

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        row = end(session, LogReader(settings).matters(session), incident, now=system_clock())
    document = {"incident": row.incident, "ended_at": row.ended_at}
    typer.echo(json.dumps(document, indent=2) if as_json else f"{row.incident} is over here.")
