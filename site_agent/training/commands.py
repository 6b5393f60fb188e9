"""cloister-site budget …"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from protocol.timestamp import timestamp
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
    from site_agent.training.generation import REMEDY, standing

    settings = load_settings(SiteHome.resolve(home))
    limits = load_governance(settings.home)
    with transaction(open_database(settings.home)) as session:
        behind = standing(session).behind
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
        "behind": behind,
        "limit": {"epsilon": limits.epsilon_limit, "delta": limits.delta_limit},
        "cohorts": cohorts,
        "studies": lines,
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    if behind:
        typer.echo(f"LEDGER BEHIND: it was put back from a backup and knows too little. {REMEDY}")
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


@app.command("acknowledge-restore")
def acknowledge_restore(
    lost_epsilon: Annotated[
        float | None,
        typer.Option("--lost-epsilon", min=0, help="What studies granted after the backup may cost one patient."),
    ] = None,
    lost_delta: Annotated[float | None, typer.Option("--lost-delta", min=0, help="Likewise, delta.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Go on with a ledger that was put back from a backup: what was open counts as spent, in full and for good."""
    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.training.budget_store import BudgetStore
    from site_agent.training.generation import acknowledge
    from site_agent.training.states import AttemptRefused, Budget

    engine = open_database(load_settings(SiteHome.resolve(home)).home)
    if not yes:
        typer.confirm("Count every open study of this site as spent to its last step?", abort=True)
    lost = None
    if lost_epsilon is not None or lost_delta is not None:
        lost = Budget(lost_epsilon or 0.0, lost_delta or 0.0)
    with contextlib.suppress(AttemptRefused):  # that it is behind is why we are here; the keys are erased first
        BudgetStore(engine).require_sound()
    charged, studies = acknowledge(engine, at=timestamp(system_clock()), lost=lost)
    if as_json:
        document = {"lost": {"epsilon": charged.epsilon, "delta": charged.delta}, "studies": list(studies)}
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"spent to the last step: {', '.join(studies) or 'no open study'}")
    typer.echo(f"charged to every patient: epsilon {charged.epsilon:.4g}, delta {charged.delta:.2g}")
