"""cloister-site deployment …: what this clinic says of a model that it serves, and what its gate makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from policies.findings import Decision
    from site_agent.releases.install import Installed
    from site_agent.settings import SiteSettings

app = typer.Typer(no_args_is_help=True, help="Deployment: who oversees a served model, and what it is used for.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Study = Annotated[str, typer.Argument(help="The study whose model is served.")]


@app.command("set")
def set_deployment(
    study: Study,
    use: Annotated[str, typer.Option("--use", help="care (of patients) or research.")],
    log_days: Annotated[int, typer.Option("--log-days", help="How many days the serving log is kept.")],
    coordinator_country: Annotated[
        str, typer.Option("--coordinator-country", help="Where the coordinator runs by this hospital's own papers: DE.")
    ],
    oversight: Annotated[
        str | None, typer.Option("--oversight", help="Who oversees the model here; the name stays at this site.")
    ] = None,
    home: Home = None,
) -> None:
    """Say what a study's model is used for here. Training, plans and contacts are evidence: cloister-site evidence."""
    from pydantic import ValidationError

    from protocol.errors import Malformed
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.serving.deployment import DeploymentRecord, say

    settings = load_settings(SiteHome.resolve(home))
    try:
        record = DeploymentRecord.model_validate(
            {
                "study": study,
                "use": use,
                "oversight": oversight,
                "log_retention_days": log_days,
                "coordinator_country": coordinator_country,
            }
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        field = {"log_retention_days": "log-days"}.get(str(wrong["loc"][0]), str(wrong["loc"][0]).replace("_", "-"))
        option = field.upper() if field == "study" else f"--{field}"
        raise Malformed(f"{option}: {wrong['msg']}.", "See cloister-site deployment set --help.") from None
    with transaction(open_database(settings.home)) as session:
        say(session, record, now=system_clock())
    typer.echo(f"the model of {study} is used for {record.use} here")


@app.command("show")
def show(as_json: Json = False, home: Home = None) -> None:
    """Show what was said of each study's model. Exit code 1: the gate does not let the installed release be served."""
    from site_agent.database import open_database, transaction
    from site_agent.releases.install import installed
    from site_agent.serving.deployment import everything_said

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        rows = {row.study: {**json.loads(row.said), "said_at": row.said_at} for row in everything_said(session)}
    served = next((release for release in installed(settings.home) if release.current), None)
    decision = None if served is None else _decision(settings, served)
    document: dict[str, Any] = {"deployments": list(rows.values()), "gate": None}
    if served is not None and decision is not None:
        document["gate"] = {"release": served.subject.release, **decision.to_dict()}
    typer.echo(json.dumps(document, indent=2) if as_json else _text(document))
    if decision is not None and not decision.allowed:
        raise typer.Exit(1)


def _decision(settings: SiteSettings, served: Installed) -> Decision:
    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.releases.fetch import root_of
    from site_agent.releases.sealed import examine_folder
    from site_agent.serving.gate import gate_of

    sealed = examine_folder(served.folder, root_of(settings, installed=True))
    return gate_of(settings, open_database(settings.home), sealed, system_clock).decide()


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{row['study']}: for {row['use']}, overseen by {row['oversight'] or 'nobody'}, log kept "
        f"{row['log_retention_days']} days, coordinator in {row['coordinator_country']}"
        for row in document["deployments"]
    ] or ["Nothing was said yet: cloister-site deployment set STUDY …"]
    gate = document["gate"]
    if gate is not None:
        lines.append(f"the serving gate for {gate['release']}: {gate['outcome']}")
        lines += [f"  {item['pack']} {item['rule']}: {item['message']} {item['remedy']}" for item in gate["findings"]]
    return "\n".join(lines)
