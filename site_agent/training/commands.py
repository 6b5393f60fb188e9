"""cloister-site budget …"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from site_agent.settings import SiteHome, load_settings

app = typer.Typer(no_args_is_help=True, help="What this site's patients have been charged.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("show")
def show(as_json: Json = False, home: Home = None) -> None:
    """The privacy ledger: per snapshot what its most-used patient was charged, and every study's line."""
    from dataclasses import asdict

    from sqlmodel import col, select

    from site_agent.cohort.tables import Snapshot
    from site_agent.consent.governance import load_governance
    from site_agent.database import open_database, transaction
    from site_agent.training.budget_store import ledger, spent

    settings = load_settings(SiteHome.resolve(home))
    limits = load_governance(settings.home)
    with transaction(open_database(settings.home)) as session:
        lines = [asdict(line) for line in ledger(session)]
        cohorts = []
        for row in session.exec(select(Snapshot).order_by(col(Snapshot.created_at))):
            for held_out in (False, True):
                sums = spent(session, row.digest, held_out=held_out)
                cohorts.append(
                    {
                        "dataset": row.name,
                        "snapshot": row.digest,
                        "patients": "held-out" if held_out else "training",
                        "epsilon": sums.epsilon,
                        "delta": sums.delta,
                        "epsilon_remaining": max(0.0, limits.epsilon_limit - sums.epsilon),
                        "delta_remaining": max(0.0, limits.delta_limit - sums.delta),
                    }
                )
    document = {
        "limit": {"epsilon": limits.epsilon_limit, "delta": limits.delta_limit},
        "cohorts": cohorts,
        "studies": lines,
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(
        f"Limit for any patient over all studies: epsilon {limits.epsilon_limit:g}, delta {limits.delta_limit:g}"
    )
    for cohort in cohorts:
        typer.echo(
            f"  {cohort['dataset']:20} {cohort['patients']:9} epsilon {cohort['epsilon']:.4g} spent or set aside, "
            f"{cohort['epsilon_remaining']:.4g} left; delta {cohort['delta']:.2g}, {cohort['delta_remaining']:.2g} left"
        )
    for line in lines:
        kind = "held-out" if line["held_out"] else "training"
        state = (
            "given back" if line["released"] else f"{line['steps_charged']} of {line['steps_allowed']} steps charged"
        )
        exact = ", exact: outside the guarantee" if line["exact"] else ""
        typer.echo(f"  study {line['study']:20} {kind:9} epsilon {line['epsilon']:.4g}, {state}{exact}")
