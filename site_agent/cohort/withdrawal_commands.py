"""cloister-site cohort …: leave out patients who withdrew; say up to when everything they asked for is entered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

app = typer.Typer(no_args_is_help=True, help="Patients who withdrew: left out from then on.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def withdraw(
    file: Annotated[Path, typer.Argument(help="A text file: one patient's identifier a line, as in the data set.")],
    ground: Annotated[
        str, typer.Option("--ground", help="consent-withdrawn, objection, erasure or authorization-revoked.")
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Leave these patients out from the next round on, and of every data set that is added later.

    Their identifiers are kept as keyed hashes, here alone. Snapshots that hold them are made anew without them and the
    old files deleted. Where a study had charged one of them, the coordinator is told so, without a number: a review of
    its model opens there.
    """
    import os

    from protocol.errors import CloisterError
    from site_agent.clock import system_clock
    from site_agent.cohort.leaving_out import apply_withdrawals
    from site_agent.cohort.registration import register_pending
    from site_agent.cohort.withdrawal import deliver_notices, hashes_of, read_identifiers, record
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database
    from site_agent.keystore import load_keys

    settings = load_settings(SiteHome.resolve(home))
    keys, engine = load_keys(settings.home), open_database(settings.home)
    recorded = record(
        engine, hashes_of(keys.secret, read_identifiers(file)), ground=ground, site=settings.site, key=keys.identity,
        now=system_clock(), entropy=os.urandom,
    )  # fmt: skip
    replaced = apply_withdrawals(engine, settings.home, secret=keys.secret, now=system_clock())
    try:
        with CoordinatorClient(settings, keys) as client:
            deliver_notices(engine, client)
            register_pending(engine, client, system_clock)
        told = True
    except CloisterError:
        told = False  # the agent tells it, and keeps trying
    document: dict[str, Any] = {
        "listed": recorded.listed,
        "new": recorded.new,
        "snapshots_replaced": replaced,
        "studies_to_review": list(recorded.studies),
        "coordinator_told": told,
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"{recorded.listed} listed, {recorded.new} of them new; {replaced} snapshots made anew without them")
    if recorded.studies:
        typer.echo(f"they took part in {', '.join(recorded.studies)}: a review of each opens at the coordinator")
    if not told:
        typer.echo("the coordinator can't be reached now; the agent will tell it")


@app.command("attest-withdrawals")
def attest_withdrawals(
    through: Annotated[
        str | None, typer.Option("--through", help="Up to when, YYYY-MM-DDTHH:MM:SSZ; left out, now.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say that every withdrawal, objection and revocation received up to a time is entered here. Rounds ask for it."""
    from protocol.timestamp import timestamp
    from site_agent.clock import system_clock
    from site_agent.cohort.withdrawal import attest
    from site_agent.database import open_database, transaction

    settings = load_settings(SiteHome.resolve(home))
    now = system_clock()
    said = through or timestamp(now)
    with transaction(open_database(settings.home)) as session:
        attest(session, said, now=now)
    typer.echo(json.dumps({"through": said}) if as_json else f"everything received up to {said} is entered")


@app.command()
def withdrawals(home: Home = None, as_json: Json = False) -> None:
    """Show how many withdrew, up to when the list is complete, and what the coordinator was told."""
    from site_agent.cohort.withdrawal import attested_through, unapplied, waiting_notices, withdrawn
    from site_agent.database import open_database, transaction

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        document: dict[str, Any] = {
            "patients": len(withdrawn(session)),
            "complete_through": attested_through(session),
            "snapshots_to_replace": len(unapplied(session)),
            "notices": [
                {"review": row.review, "study": row.study, "made_at": row.made_at, "delivered": row.delivered}
                for row in waiting_notices(session)
            ],
        }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(
        f"{document['patients']} patients withdrew; complete through {document['complete_through'] or 'NEVER SAID'}"
    )
    if document["snapshots_to_replace"]:
        typer.echo(f"{document['snapshots_to_replace']} snapshots still hold them: start the agent, or withdraw again")
    for notice in document["notices"]:
        state = "told" if notice["delivered"] else "not told yet"
        typer.echo(f"{notice['review']}  {notice['study']}  {notice['made_at']}  {state}")
