"""cloister-site log …"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
REASONS = ("coordinator-restored", "coordinator-replaced", "false-alarm", "auditor-cleared")
REMEDY = (
    "Ask the federation's auditor; once it was looked into: cloister-site log acknowledge ALARM "
    f"--reason {'|'.join(REASONS)}."
)


@app.command("check")
def check(as_json: Json = False, home: Home = None) -> None:
    """Check the log against all that this site has seen, and cosign it. Exit code 2: an alarm stands."""
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
    if any(alarm.acknowledged_at is None for alarm in alarms):
        raise typer.Exit(ALARMED)


@app.command("acknowledge")
def acknowledge(
    alarm: Annotated[int, typer.Argument(min=1, help="The alarm's number, as cloister-site log check shows it.")],
    reason: Annotated[str, typer.Option("--reason", help=f"One of {', '.join(REASONS)}.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Go on after an alarm was looked into. Its evidence stays, and any other contradiction is a new alarm."""
    from protocol.errors import Malformed
    from protocol.timestamp import timestamp
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.witness import repository

    if reason not in REASONS:
        raise Malformed(f"{reason[:40]!r} is not a reason.", f"Use one of {', '.join(REASONS)}.")
    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        row = repository.acknowledge(session, alarm, reason, at=timestamp(system_clock()))
        document = describe(row)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(f"acknowledged: {alarm_line(document)}")


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
        "alarm": alarm.id,
        "code": alarm.code,
        "detail": alarm.detail,
        "raised_at": alarm.raised_at,
        "acknowledged_at": alarm.acknowledged_at,
        "reason": alarm.reason,
        "held": alarm.held_note.decode() if alarm.held_note else None,
        "served": alarm.served_note.decode(),
    }


def show_alarms(alarms: tuple[LogAlarm, ...]) -> None:
    """Print alarms, one a line."""
    for alarm in alarms:
        typer.echo(alarm_line(describe(alarm)))


def alarm_line(alarm: Mapping[str, Any]) -> str:
    """One alarm in a line: its number, and whether it stands."""
    since = alarm["acknowledged_at"]
    state = "ALARM" if since is None else f"acknowledged {since} ({alarm['reason']}), alarm"
    return f"{state} {alarm['alarm']} of {alarm['raised_at']} {alarm['code']}: {alarm['detail']}"
