"""cloister-site studies … and governance …"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import Malformed
from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from site_agent.consent.plans import SignedPlan
    from site_agent.consent.review import Review
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.keystore import SiteKeys
    from site_agent.settings import SiteSettings

app = typer.Typer(no_args_is_help=True, help="See, grant, refuse and withdraw from studies.")
governance_app = typer.Typer(no_args_is_help=True, help="Say under which law and limits this hospital takes part.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Study = Annotated[str, typer.Argument(help="The study's identifier.")]
REASONS = ("purpose", "legal-basis", "privacy-budget", "data-quality", "capacity", "other")


class _Desk:
    """What every command here opens: the site's settings, keys and database."""

    def __init__(self, home: Path | None) -> None:
        import logging

        from site_agent.database import open_database
        from site_agent.keystore import load_keys

        logging.getLogger("absl").setLevel(logging.ERROR)  # the accountant's numerical notes are not for people
        self.settings: SiteSettings = load_settings(SiteHome.resolve(home))
        self.keys: SiteKeys = load_keys(self.settings.home)
        self.engine: Engine = open_database(self.settings.home)

    def client(self) -> CoordinatorClient:
        from site_agent.coordinator_client import CoordinatorClient

        return CoordinatorClient(self.settings, self.keys)

    def review(self, signed: SignedPlan) -> Review:
        from site_agent.clock import system_clock
        from site_agent.consent.governance import load_governance
        from site_agent.consent.review import review
        from site_agent.database import transaction

        governance = load_governance(self.settings.home)
        with transaction(self.engine) as session:
            return review(session, self.settings, self.keys, governance, signed, now=system_clock())

    def find(self, client: CoordinatorClient, study: str) -> SignedPlan:
        from site_agent.consent.plans import find_plan
        from site_agent.policy.federation import settle

        found = find_plan(client.studies(), study, self.settings.coordinator)
        settle(self.settings.home, self.settings.coordinator, client.policy_bundle, found.plan.packs)
        return found

    def deliver(self, client: CoordinatorClient) -> bool:
        """Send what waits; False, said on stderr, when the coordinator can't be reached: the agent sends it later."""
        from site_agent.consent.delivery import deliver
        from site_agent.coordinator_client import CoordinatorUnreachable

        try:
            deliver(self.engine, client)
        except CoordinatorUnreachable as error:
            typer.echo(f"recorded here; the agent will tell the coordinator later: {error.message}", err=True)
            return False
        return True


@app.command("list")
def list_studies(as_json: Json = False, home: Home = None) -> None:
    """The studies that this site is invited to, and what it answered."""
    from sqlmodel import select

    from site_agent.consent.report import one_line
    from site_agent.consent.tables import StudyGrant
    from site_agent.database import transaction

    desk = _Desk(home)
    with desk.client() as client:
        invited = client.studies()
    with transaction(desk.engine) as session:
        answers = {row.plan_digest: row.state for row in session.exec(select(StudyGrant))}
    rows = [
        {
            "study": str(item.get("study")),
            "state": str(item.get("state")),
            "plan_digest": str(item.get("plan_digest")),
            "answer": answers.get(str(item.get("plan_digest")), "open"),
            "shut_out": item.get("shut_out") is True,
        }
        for item in invited
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo("This site is invited to no study.")
    for row in rows:
        out = "; SHUT OUT: this site is invited to no more rounds" if row["shut_out"] else ""
        typer.echo(one_line(f"{row['study']:30} {row['state']:12} your answer: {row['answer']}{out}"))


@app.command("review")
def review_study(study: Study, as_json: Json = False, home: Home = None) -> None:
    """Show a study's plan, what changed since the last one granted, what it costs, and this site's own decision."""
    from site_agent.consent.report import review_document, review_text

    desk = _Desk(home)
    with desk.client() as client:
        found = desk.review(desk.find(client, study))
    if as_json:
        typer.echo(json.dumps(review_document(found, desk.settings.site), indent=2))
    else:
        typer.echo(review_text(found, desk.settings.site))


@app.command("grant")
def grant_study(
    study: Study,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    plan: Annotated[str | None, typer.Option("--plan", help="Grant only the plan with this digest.")] = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option("--evidence", help="RULE=REFERENCE of what a held rule asks for; it stays at this site."),
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Grant a study: its budget is set aside and the consent signed with the site's key."""
    from site_agent.clock import system_clock
    from site_agent.consent.grant import GrantDenied, grant, why_not
    from site_agent.consent.report import review_text

    desk = _Desk(home)
    attached = _evidence(evidence or [])
    with desk.client() as client:
        found = desk.review(desk.find(client, study))
        if plan is not None and plan != found.signed.digest:
            raise GrantDenied(
                f"The coordinator now shows the plan {found.signed.digest}, not the one that was named.",
                "Review it with cloister-site studies review; it is another plan than the one you read.",
            )
        if not found.grantable(attached):
            raise GrantDenied(*why_not(found, attached))
        if not yes:
            typer.echo(review_text(found, desk.settings.site))
            typer.confirm("Grant this plan in the name of the hospital?", abort=True)
        key, site = desk.keys.identity, desk.settings.site
        row = grant(desk.engine, found, key=key, site=site, evidence=attached, now=system_clock())
        delivered = desk.deliver(client)
    _answered(study, row.plan_digest, "granted", delivered, as_json)


@app.command("refuse")
def refuse_study(
    study: Study,
    reason: Annotated[str, typer.Option("--reason", help=f"One of {', '.join(REASONS)}.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Refuse a study; only the reason's code leaves the site."""
    from site_agent.clock import system_clock
    from site_agent.consent.grant import refuse

    code = _reason(reason)
    desk = _Desk(home)
    with desk.client() as client:
        found = desk.review(desk.find(client, study))
        key, site = desk.keys.identity, desk.settings.site
        row = refuse(desk.engine, found, key=key, site=site, reason=code, now=system_clock())
        delivered = desk.deliver(client)
    _answered(study, row.plan_digest, "refused", delivered, as_json)


@app.command("withdraw")
def withdraw_study(
    study: Study,
    reason: Annotated[str, typer.Option("--reason", help=f"One of {', '.join(REASONS)}.")] = "other",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Withdraw from a study: nothing more is computed for it, at once and for good."""
    from site_agent.clock import system_clock
    from site_agent.consent.grant import withdraw

    code = _reason(reason)
    desk = _Desk(home)
    if not yes:
        typer.confirm(f"Withdraw this hospital from {study}? A withdrawal is final.", abort=True)
    key, site = desk.keys.identity, desk.settings.site
    row = withdraw(desk.engine, study, key=key, site=site, reason=code, now=system_clock())
    with desk.client() as client:
        delivered = desk.deliver(client)
    _answered(study, row.plan_digest, "withdrawn", delivered, as_json)


@app.command("rounds")
def rounds(
    study: Study,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest first.")] = 20,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what this hospital's round gate decided about a study's attempts, and why."""
    from site_agent.consent.report import one_line
    from site_agent.database import open_database, transaction
    from site_agent.training.round_gate import decisions, why_lapsed

    with transaction(open_database(load_settings(SiteHome.resolve(home)).home)) as session:
        rows = decisions(session, study, limit)
    if as_json:
        told = [{**row.model_dump(exclude={"id"}), "document": json.loads(row.document or "null")} for row in rows]
        typer.echo(json.dumps(told, indent=2))
        return
    for row in rows:
        typer.echo(f"{row.at}  {row.phase} {row.round}, attempt {row.attempt}: {row.outcome}")
        document = json.loads(row.document or "{}")
        for finding in document.get("findings", []):
            typer.echo(one_line(f"  {finding['rule']} ({finding['effect']}): {finding['message']} {finding['remedy']}"))
        if lapsed := document.get("lapsed"):
            message, remedy = why_lapsed(lapsed, row.study)
            typer.echo(one_line(f"  not as when it was granted: {', '.join(lapsed)}. {message} {remedy}"))
        if "unreadable" in document:
            typer.echo(one_line(f"  {document['message']} {document['remedy']}"))
    if not rows:
        typer.echo(f"No attempt of {study} has reached this site's round gate.")


@governance_app.command("set")
def set_governance(
    jurisdiction: Annotated[str, typer.Option("--jurisdiction", help="EU, US or other.")],
    hipaa_role: Annotated[
        str, typer.Option("--hipaa-role", help="covered-entity, business-associate, hybrid-component or none.")
    ],
    collection_purpose: Annotated[
        str, typer.Option("--collection-purpose", help="The code under which the data was collected.")
    ],
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Of the data: health (default), genetic, biometric, other.")
    ] = None,
    direct_identifier: Annotated[
        list[str] | None, typer.Option("--direct-identifier", help="A column that identifies a person.")
    ] = None,
    epsilon_limit: Annotated[
        float | None, typer.Option("--epsilon-limit", help="What one patient's data may cost over all studies.")
    ] = None,
    delta_limit: Annotated[float | None, typer.Option("--delta-limit", help="Likewise, delta.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", help="NAME=VALUE: a policy parameter, stricter only.")
    ] = None,
    home: Home = None,
) -> None:
    """Write governance.toml: what this hospital says of its law, its data and its limits."""
    from pydantic import ValidationError

    from site_agent.consent.governance import Governance, save_governance

    settings = load_settings(SiteHome.resolve(home))
    said: dict[str, Any] = {
        "jurisdiction": jurisdiction,
        "hipaa_role": hipaa_role,
        "collection_purpose": collection_purpose,
        "categories": tuple(category or ["health"]),
        "direct_identifiers": tuple(direct_identifier or []),
        "epsilon_limit": epsilon_limit,
        "delta_limit": delta_limit,
        "parameters": parse_parameters(parameter or []),
    }
    try:
        governance = Governance.model_validate({name: value for name, value in said.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        option = "--" + str(wrong["loc"][0]).replace("_", "-")
        raise Malformed(f"{option}: {wrong['msg']}.", "See cloister-site governance set --help.") from None
    save_governance(settings.home, governance)
    typer.echo(f"written to {settings.home.path / 'governance.toml'}")


@governance_app.command("show")
def show_governance(home: Home = None) -> None:
    """Print governance.toml as this program understands it."""
    from site_agent.consent.governance import load_governance

    typer.echo(load_governance(load_settings(SiteHome.resolve(home)).home).to_toml())


def _answered(study: str, plan_digest: str, answer: str, delivered: bool, as_json: bool) -> None:
    if as_json:
        document = {"study": study, "plan_digest": plan_digest, "answer": answer, "delivered": delivered}
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(f"{study}: {answer} (plan {plan_digest})")


def _reason(value: str) -> Any:
    if value not in REASONS:
        raise Malformed(f"{value[:40]!r} is not a reason.", f"Use one of {', '.join(REASONS)}.")
    return value


def _evidence(items: list[str]) -> dict[str, str]:
    return dict(_assigned(item, str, "--evidence") for item in items)


def parse_parameters(items: list[str]) -> dict[str, Any]:
    """NAME=VALUE each, the value as JSON has it. Raises Malformed."""
    return dict(_assigned(item, json.loads, "--parameter") for item in items)


def _assigned(item: str, read: Callable[[str], Any], option: str) -> tuple[str, Any]:
    name, _, value = item.partition("=")
    wrong = Malformed(f"{option} takes NAME=VALUE.", "Give a name, an equals sign and a value, with no space between.")
    if not name or not value:
        raise wrong
    try:
        return name, read(value)
    except ValueError:
        raise wrong from None
