"""cloister-site log …"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from site_agent.witness.tables import LogAlarm

app = typer.Typer(no_args_is_help=True, help="Check the federation's transparency log.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ALARMED = 2


@app.command("check")
def check(as_json: Json = False, home: Home = None) -> None:
    """Check the log against all that this site has seen, and cosign it. Exit code 2: there is an alarm."""
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database, transaction
    from site_agent.keystore import load_keys
    from site_agent.witness import repository
    from site_agent.witness.cycle import LogMisbehaved, Witness

    settings = load_settings(SiteHome.resolve(home))
    keys = load_keys(settings.home)
    engine = open_database(settings.home)
    document: dict[str, Any] = {}
    with CoordinatorClient(settings, keys) as client:
        try:
            turn = Witness(settings, keys, engine, client, system_clock).turn()
            document = {"size": turn.size, "new_entries": turn.new_entries, "cosigned": turn.cosigned}
        except LogMisbehaved as error:
            typer.echo(f"error: {error.message}\nremedy: {error.remedy}", err=True)
    with transaction(engine) as session:
        alarms = repository.alarms(session)
    if as_json:
        typer.echo(json.dumps({**document, "alarms": [describe(alarm) for alarm in alarms]}, indent=2))
    else:
        if document:
            typer.echo(
                f"{document['size']} entries, {document['new_entries']} of them new; consistent with this site's copy"
            )
        show_alarms(alarms)
    if alarms:
        raise typer.Exit(ALARMED)


@app.command("verify")
def verify(as_json: Json = False, home: Home = None) -> None:
    """Check this site's own copy of the log against the checkpoint it verified last. Needs no network."""
    from protocol.checkpoint import open_checkpoint
    from protocol.note import VerifierKey
    from site_agent.database import open_database, transaction
    from site_agent.witness import repository
    from site_agent.witness.mirror import Mirror

    settings = load_settings(SiteHome.resolve(home))
    log = VerifierKey.parse(settings.log)
    with transaction(open_database(settings.home)) as session:
        held = repository.held(session, log.name)
    size = 0
    if held is not None:
        size = held.head.size
        Mirror(settings.home.mirror).verify(size, open_checkpoint(held.note, log).root)
    if as_json:
        typer.echo(json.dumps({"size": size, "verified": True}))
    else:
        typer.echo(f"verified: all {size} entries hash to the root that {log.name} signed")


@app.command("repair")
def repair(home: Home = None) -> None:
    """Fetch a damaged copy of the log again; it must hash to what this site verified before."""
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database
    from site_agent.keystore import load_keys
    from site_agent.witness.cycle import Witness

    settings = load_settings(SiteHome.resolve(home))
    keys = load_keys(settings.home)
    with CoordinatorClient(settings, keys) as client:
        count = Witness(settings, keys, open_database(settings.home), client, system_clock).repair()
    typer.echo(f"{count} entries fetched again and verified")


def describe(alarm: LogAlarm) -> dict[str, Any]:
    """An alarm as JSON, with both signed notes: they are the evidence."""
    return {
        "code": alarm.code,
        "detail": alarm.detail,
        "raised_at": alarm.raised_at,
        "held": alarm.held_note.decode() if alarm.held_note else None,
        "served": alarm.served_note.decode(),
    }


def show_alarms(alarms: tuple[LogAlarm, ...]) -> None:
    """Print alarms, one a line."""
    for alarm in alarms:
        typer.echo(f"ALARM {alarm.raised_at} {alarm.code}: {alarm.detail}")
