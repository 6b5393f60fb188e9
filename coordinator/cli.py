"""`cloister-coordinator`: what the coordinator's operator runs, on the coordinator's machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from coordinator.audit.commands import witness
from coordinator.operator_options import Home, Json, home_of, opened
from coordinator.terminal import emit, run, table
from protocol.identifiers import Role

if TYPE_CHECKING:
    from protocol.enrolment import Token

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
people = typer.Typer(no_args_is_help=True, help="People: invite, list, confirm, change, disable.")
sites = typer.Typer(no_args_is_help=True, help="Sites: invite, list, revoke.")
retention = typer.Typer(no_args_is_help=True, help="What is kept until when, and the erasure of what must go.")
governance = typer.Typer(no_args_is_help=True, help="What the organisation that runs the coordinator says of itself.")
app.add_typer(people, name="people")
app.add_typer(sites, name="sites")
app.add_typer(witness, name="witness")
app.add_typer(governance, name="governance")
app.add_typer(retention, name="retention")


@app.callback()
def about() -> None:
    """Run a Cloister coordinator."""


@app.command()
def init(
    address: Annotated[str, typer.Option(help="HOST:PORT at which sites and people reach the coordinator.")],
    home: Home = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to bind, if it differs.")] = None,
    database: Annotated[str | None, typer.Option(help="postgresql+psycopg:// URL; SQLite in the home if none.")] = None,
    name: Annotated[str | None, typer.Option(help="The log's name; made up if none.")] = None,
    administrator: Annotated[str, typer.Option(help="The first administrator's name.")] = "administrator",
    as_json: Json = False,
) -> None:
    """Make a new coordinator and print its first administrator's one-time token."""
    from coordinator.initialise import initialise

    made = initialise(
        home_of(home), address=address, listen=listen, database=database, name=name, administrator=administrator
    )
    emit(
        {
            "home": str(made.settings.home),
            "address": made.settings.address,
            "origin": made.settings.origin,
            "ca": made.fingerprint,
            "administrator": administrator,
            "token": made.token.to_text(),
        },
        as_json=as_json,
        text=f"The coordinator is in {made.settings.home}; it will be reached at {made.settings.address}.\n"
        f"CA fingerprint: {made.fingerprint}\n"
        f"One-time token of the administrator {administrator} (24 hours, for `cloister login TOKEN`):\n"
        f"{made.token.to_text()}",
    )


@app.command()
def serve(home: Home = None) -> None:
    """Serve sites and people over TLS 1.3 until stopped."""
    from coordinator.appliance import open_appliance
    from coordinator.logs import configure_logs
    from coordinator.server import serve as run_server

    configure_logs()
    appliance = open_appliance(home_of(home), migrate=True)
    run_server(appliance, ready=lambda: typer.echo(f"ready at https://{appliance.settings.address}"))


@app.command()
def migrate(home: Home = None) -> None:
    """Bring the database to this program's version."""
    from coordinator.appliance import open_appliance

    open_appliance(home_of(home), migrate=True)
    typer.echo("The database is up to date.")


@app.command()
def status(home: Home = None, as_json: Json = False) -> None:
    """Show whether it is being served, how large the log is, and who is enrolled."""
    from coordinator.status import describe

    document = describe(opened(home))
    emit(document, as_json=as_json, text="\n".join(f"{key}: {value}" for key, value in document.items()))


@governance.command("set")
def governance_set(
    country: Annotated[str, typer.Option(help="Where the coordinator runs: ISO 3166 alpha-2, such as DE.")],
    contact: Annotated[str, typer.Option(help="Whom people and authorities reach.")],
    security: Annotated[str, typer.Option(help="Where the technical and organisational measures are described.")],
    backup_tested: Annotated[str, typer.Option(help="When a backup was last restored in a test: YYYY-MM-DD.")],
    subprocessor: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:notified][:objected][:baa] of a processor that the coordinator engages; repeatable."),
    ] = None,
    home: Home = None,
) -> None:
    """Write governance.toml. Without it the gates that ask for these facts stay shut."""
    from pydantic import ValidationError

    from coordinator.governance import Governance, save_governance
    from coordinator.settings import load_settings
    from protocol.errors import Malformed

    settings = load_settings(home_of(home))
    flags = {"notified", "objected", "baa"}
    engaged = []
    for text in subprocessor or []:
        name, *told = text.split(":")
        if set(told) - flags or len(set(told)) != len(told):
            raise Malformed(f"--subprocessor {text[:60]}: unknown flag.", "Use notified, objected and baa.")
        engaged.append({"name": name, **dict.fromkeys(told, True)})
    try:
        said = Governance.model_validate(
            {
                "country": country,
                "contact": contact,
                "security": security,
                "backup_tested": backup_tested,
                "subprocessors": engaged,
            }
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        option = "--" + str(wrong["loc"][0]).replace("_", "-")
        raise Malformed(f"{option}: {wrong['msg']}.", "See cloister-coordinator governance set --help.") from None
    save_governance(settings.home, said)
    typer.echo(f"written to {settings.home / 'governance.toml'}")


@governance.command("show")
def governance_show(home: Home = None) -> None:
    """Print governance.toml as this program understands it."""
    from coordinator.governance import load_governance
    from coordinator.settings import load_settings
    from protocol.errors import Malformed

    said = load_governance(load_settings(home_of(home)).home)
    if said is None:
        raise Malformed("Nothing was said yet.", "Run `cloister-coordinator governance set`.")
    typer.echo(said.to_toml())


@retention.command("plan")
def retention_plan(home: Home = None, as_json: Json = False) -> None:
    """Show what is held, what must go, and why the rest stays. Exit code 1: something is due, or stuck."""
    from coordinator.retention.report import lines, planned

    document = planned(opened(home))
    emit(document, as_json=as_json, text="\n".join(lines(document)))
    if any(row["standing"] in ("due", "stuck") for row in document["holdings"]):
        raise typer.Exit(1)


@retention.command("run")
def retention_run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; erase nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Erase what the retention gate lets go, for good; the log tells of it."""
    from coordinator.policy.active import policy_in_force
    from coordinator.retention.purge import run as erase
    from coordinator.retention.report import planned, ran, run_lines, would_run

    appliance = opened(home)
    document = would_run(planned(appliance)) if dry_run else ran(erase(appliance, policy_in_force(appliance)))
    emit(document, as_json=as_json, text="\n".join(run_lines(document)))


@people.command("add")
def people_add(
    name: str,
    role: Annotated[Role, typer.Option(help="What the person may do.")],
    organisation: Annotated[
        str | None, typer.Option(help="Whom the person works for: a study may ask for reviewers from several.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="The site of a data steward or of a site's IT.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="The person's `sub` at the identity provider, which signs them in.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Invite a person and print the one-time token for `cloister login`."""
    from coordinator.database import transaction
    from coordinator.people.accounts import invite
    from coordinator.people.federated_sign_in import bind

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        token = invite(session, appliance, name, role, organisation=organisation, site=site)
        if subject is not None:
            bind(session, appliance, name, subject)
    _print_token(token, as_json)


@people.command("list")
def people_list(home: Home = None, as_json: Json = False) -> None:
    """List people, their roles and states."""
    from coordinator.database import reading
    from coordinator.people.repository import PersonRepository

    appliance, fields = opened(home), ("name", "role", "site", "status", "registered_at", "certified_at")
    with reading(appliance.engine) as session:
        rows = [{field: getattr(row, field) for field in fields} for row in PersonRepository(session).all()]
    emit(
        rows,
        as_json=as_json,
        text=table(("name", "role", "site", "status", "registered", "confirmed"), [list(row.values()) for row in rows]),
    )


@people.command("provider")
def people_provider(
    issuer: Annotated[str, typer.Option(help="The identity provider's https address, as its tokens name it.")],
    client_id: Annotated[str, typer.Option(help="What the provider calls this coordinator.")],
    secret_file: Annotated[Path, typer.Option(help="A file with the client's secret.")],
    ca: Annotated[Path | None, typer.Option(help="The authority (PEM) that vouches for it; else the system's.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A value of `amr` that tells of a second factor; repeatable.")
    ] = None,
    home: Home = None,
) -> None:
    """Let people sign in through the organisation's OpenID provider, those whose subject `people add` binds."""
    from coordinator.people.identity_provider import save_identity_provider
    from coordinator.settings import load_settings

    settings = load_settings(home_of(home))
    secret = secret_file.read_text(encoding="utf-8").strip()
    save_identity_provider(
        settings.home, issuer=issuer, client_id=client_id, secret=secret, ca=ca, multi_factor=tuple(method or ())
    )
    typer.echo(f"People may sign in through {issuer}. Let it send them back to:")
    typer.echo(f"https://{settings.address}/v1/people/federated/callback")


@people.command("confirm")
def people_confirm(
    name: str,
    shared: Annotated[bool, typer.Option(help="Others were found to use the account: shut the gates to it.")] = False,
    home: Home = None,
) -> None:
    """Confirm that a person still needs their role, and alone uses their account."""
    from coordinator.database import transaction
    from coordinator.people.reviews import certify

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        person = certify(session, appliance, name, by=None, shared=shared)
    typer.echo(f"{name} is confirmed as {person.role}{', on a shared account' if shared else ''}.")


@people.command("role")
def people_role(
    name: str,
    role: Annotated[Role, typer.Option(help="What the person may do from now on.")],
    site: Annotated[str | None, typer.Option(help="The site of a data steward or of a site's IT.")] = None,
    home: Home = None,
) -> None:
    """Give a person another role; their session ends."""
    from coordinator.database import transaction
    from coordinator.people.reviews import change_role

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        change_role(session, appliance, name, role, site=site)
    typer.echo(f"{name} is a {role.value} now.")


@people.command("disable")
def people_disable(name: str, home: Home = None) -> None:
    """Disable a person at once."""
    from coordinator.database import transaction
    from coordinator.people.accounts import disable

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        disable(session, appliance, name)
    typer.echo(f"{name} is disabled.")


@sites.command("invite")
def sites_invite(name: str, home: Home = None, as_json: Json = False) -> None:
    """Invite a site and print the one-time token for `cloister-site enrol`."""
    from coordinator.database import transaction
    from coordinator.sites.enrolment import invite

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        token = invite(session, appliance, name)
    _print_token(token, as_json)


@sites.command("list")
def sites_list(home: Home = None, as_json: Json = False) -> None:
    """List sites and their certificates."""
    from coordinator.database import reading
    from coordinator.sites.repository import SiteRepository

    with reading(opened(home).engine) as session:
        rows = [
            {"name": row.name, "status": row.status, "enrolled_at": row.enrolled_at, "not_after": row.not_after}
            for row in SiteRepository(session).all()
        ]
    emit(
        rows, as_json=as_json,
        text=table(("name", "status", "enrolled", "certificate until"), [list(row.values()) for row in rows]),
    )  # fmt: skip


@sites.command("revoke")
def sites_revoke(name: str, home: Home = None) -> None:
    """Revoke a site: its next request is refused."""
    from coordinator.database import transaction
    from coordinator.sites.enrolment import revoke

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        revoke(session, appliance, name)
    typer.echo(f"{name} is revoked.")


def _print_token(token: Token, as_json: bool) -> None:
    command = "cloister login" if token.kind == "person" else "cloister-site enrol"
    emit(
        {"name": token.name, "kind": token.kind, "token": token.to_text()},
        as_json=as_json,
        text=f"One-time token for {token.name} (24 hours, for `{command} TOKEN`):\n{token.to_text()}",
    )


def main() -> NoReturn:
    """The entry point of `cloister-coordinator`."""
    os.umask(0o077)  # whatever is written, the database and its side files too, is the coordinator's user's alone
    run(app)


if __name__ == "__main__":
    main()
