"""cloister-coordinator witness …: an auditor who cosigns the log while sites are few."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.operator_options import Home, Json, opened
from coordinator.terminal import emit, table

if TYPE_CHECKING:
    from sqlmodel import Session

    from protocol.witness_policy import WitnessPolicy

witness = typer.Typer(no_args_is_help=True, help="An auditor as a witness of the log, where sites are few.")


@witness.command("join")
def witness_join(
    name: Annotated[str, typer.Argument(help="The auditor's name, as they gave it to their key.")],
    key: Annotated[
        str | None, typer.Option(help="The verifier key that `cloister audit witness init` printed.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="Or a file that holds it.")] = None,
    home: Home = None,
) -> None:
    """Take an auditor into the witness policy, while fewer than four sites are enrolled."""
    from coordinator.audit.auditors import join
    from coordinator.database import transaction
    from protocol.errors import Malformed

    if (key is None) == (key_file is None):
        raise Malformed("An auditor joins by one verifier key.", "Give --key or --key-file.")
    text = key if key_file is None else key_file.read_text(encoding="utf-8")
    appliance = opened(home)
    with transaction(appliance.engine) as session:
        policy = join(session, appliance, name, text or "", site_witnesses=_site_witnesses(session))
    typer.echo(_policy_in_words(policy))


@witness.command("remove")
def witness_remove(name: str, home: Home = None) -> None:
    """Take an auditor out of the witness policy."""
    from coordinator.audit.auditors import remove
    from coordinator.database import transaction

    appliance = opened(home)
    with transaction(appliance.engine) as session:
        policy = remove(session, appliance, name, site_witnesses=_site_witnesses(session))
    typer.echo(_policy_in_words(policy))


@witness.command("list")
def witness_list(home: Home = None, as_json: Json = False) -> None:
    """List the auditors who are witnesses."""
    from coordinator.audit.repository import LogRepository
    from coordinator.database import reading

    appliance = opened(home)
    with reading(appliance.engine) as session:
        auditors = LogRepository(session, appliance.settings.origin).auditors()
        rows = [{"name": row.name, "joined_at": row.joined_at, "key": row.key} for row in auditors]
    emit(rows, as_json=as_json, text=table(("name", "joined"), [(row["name"], row["joined_at"]) for row in rows]))


def _site_witnesses(session: Session) -> list[str]:
    from coordinator.sites.repository import SiteRepository

    return [row.witness for row in SiteRepository(session).active() if row.witness]


def _policy_in_words(policy: WitnessPolicy | None) -> str:
    if policy is None:
        return "No site is enrolled: the policy begins with the first."
    return f"{len(policy.witnesses)} witnesses, of whom {policy.quorum} must cosign."
