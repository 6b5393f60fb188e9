"""cloister-site policy …: the packs that the federation decides by, beside this site's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from site_agent.policy.federation import Compared

app = typer.Typer(no_args_is_help=True, help="The federation's packs: compare them with this site's own, accept them.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("show")
def show(
    policy: Annotated[str | None, typer.Argument(help="A policy's digest; the one in force when left out.")] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Fetch a set of packs, verify who signed for it, and compare it with this site's own. Keeps nothing."""
    _, compared = _fetched(home, policy)
    document = _document(compared)
    typer.echo(json.dumps(document, indent=2) if as_json else _text(document, compared))


@app.command("accept")
def accept(
    policy: Annotated[str, typer.Argument(help="The policy's digest, as `policy show` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Accept a set whose parameters or rules a person has to read. This site's own packs keep deciding beside it; a set
    with a laxer rule than this site's own is refused all the same."""
    from site_agent.policy.federation import adopt

    data, compared = _fetched(home, policy)
    document = _document(compared)
    if not yes:
        typer.echo(_text(document, compared))
        typer.confirm("Accept these packs in the name of the hospital?", abort=True)
    adopt(load_settings(SiteHome.resolve(home)).home, data, compared, accepted=True)
    typer.echo(json.dumps({**document, "accepted": True}, indent=2) if as_json else f"{policy} is accepted.")


@app.command("dry-run")
def dry_run(
    packs: Annotated[
        Path | None, typer.Argument(help="A folder of packs, in the place of this site's own; left out: those.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", help="NAME=VALUE: a policy parameter, stricter only.")
    ] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="Only consent, round, serving or retention.")] = None,
    about: Annotated[str | None, typer.Option("--about", help="Only a study's, or release:NAME's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many decisions.")] = 1000,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take this hospital's past decisions again under other packs: which would have come out differently, and why.
    Changes nothing, and nothing leaves."""
    from policies.replay import in_words, replay
    from protocol.errors import Malformed
    from site_agent.consent.commands import parse_parameters
    from site_agent.consent.governance import load_governance, local_policy
    from site_agent.database import open_database, transaction
    from site_agent.policy.decisions import judging, past

    settings = load_settings(SiteHome.resolve(home))
    if packs is not None and not packs.is_dir():
        raise Malformed(f"{packs} is no folder.", "Name a folder of packs (*.yaml).")
    said = load_governance(settings.home)
    tried = said.model_copy(update={"parameters": {**said.parameters, **parse_parameters(parameter or [])}})
    policy = local_policy(settings.home, tried, packs)
    with transaction(open_database(settings.home)) as session:
        report = replay(past(session, gate=gate, about=about, limit=limit), policy, judging)
    typer.echo(json.dumps(report, indent=2) if as_json else in_words(report))


def _fetched(home: Path | None, policy: str | None) -> tuple[bytes, Compared]:
    from protocol.errors import VerificationFailed
    from protocol.signing import VerifyingKey
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.keystore import load_keys
    from site_agent.policy.federation import compare_with_own

    settings = load_settings(SiteHome.resolve(home))
    with CoordinatorClient(settings, load_keys(settings.home)) as client:
        data = client.policy_bundle(policy)
    compared = compare_with_own(data, VerifyingKey.from_text(settings.coordinator))
    if policy is not None and compared.found.set.policy != policy:
        raise VerificationFailed(
            "The coordinator shows another policy than the one that was named.", "Accept nothing; report it."
        )
    return data, compared


def _document(compared: Compared) -> dict[str, Any]:
    found, leaning = compared.found, compared.leaning
    return {
        "policy": found.set.policy,
        "set": found.set.digest,
        "number": found.set.number,
        "origin": found.set.origin,
        "activated_at": found.activation.activated_at,
        "signed_by": [{"person": vote.person, "role": vote.role.value} for vote in found.votes],
        "laxer": list(leaning.laxer),
        "moved_laxer": list(leaning.settings),
        "to_be_read": list(leaning.unordered),
    }


def _text(document: dict[str, Any], compared: Compared) -> str:
    signed = ", ".join(f"{one['person']} ({one['role']})" for one in document["signed_by"])
    lines = [
        f"Policy {document['policy']}, set {document['number']}, in force since {document['activated_at']}",
        f"Signed for by: {signed or 'nobody, it came with the package'}",
        "Compared with this site's own packs:",
        compared.words,
    ]
    if document["laxer"]:
        lines.append("LAXER than this site's own: it is refused.")
    elif compared.needs_a_person:
        lines.append(f"To be read and accepted here: cloister-site policy accept {document['policy']}")
    return "\n".join(lines)
