"""cloister-site evidence …: what the hospital has on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from site_agent.evidence.tables import SiteEvidence

app = typer.Typer(no_args_is_help=True, help="Evidence: the hospital's agreements, tests and trainings, with dates.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A YAML file with a list named records; documents lie beside it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and the documents; keep nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Keep evidence from a file. A document stays where it is: its SHA-256 is kept, and goes out with a statement."""
    from protocol.errors import Malformed
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.evidence.files import read_papers
    from site_agent.evidence.record import import_records

    settings = load_settings(SiteHome.resolve(home))
    papers = read_papers(file, settings.site)
    if not papers.records or papers.safeguards is not None:
        raise Malformed(f"{file} is no list of records.", "Give records alone; `cloister-site attest` takes the rest.")
    engine = open_database(settings.home)
    if dry_run:
        rows: list[dict[str, Any]] = [{"digest": r.digest, **r.model_dump(mode="json")} for r in papers.records]
    else:
        with transaction(engine) as session:
            rows = [_shown(row) for row in import_records(session, settings.site, papers.records, now=system_clock())]
    said = "would be kept" if dry_run else "on record; `cloister-site attest` tells the coordinator, or the agent does"
    _emit(rows, as_json, f"{_listed(rows)}\n{len(rows)} {said}.")


@app.command("list")
def list_records(home: Home = None, as_json: Json = False) -> None:
    """List what is on record here, and until when it counts."""
    from site_agent.database import open_database, transaction
    from site_agent.evidence.repository import SiteEvidenceRepository

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        rows = [_shown(row) for row in SiteEvidenceRepository(session).all()]
    _emit(rows, as_json, _listed(rows) if rows else "Nothing is on record.")


@app.command()
def revoke(
    digest: Annotated[str, typer.Argument(help="The record's digest, as `cloister-site evidence list` shows it.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a record count no longer, from now on. The gates that rest on it shut again."""
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.evidence.record import revoke as revoke_record

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        row = _shown(revoke_record(session, digest, now=system_clock()))
    _emit(row, as_json, f"{digest} is revoked.")


def attest(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file with the part attestation, and records; without it, what was "
            "attested last is attested again."
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Attest this hospital's safeguards as of today, and send the signed statement of all its papers."""
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database, transaction
    from site_agent.evidence.files import read_papers
    from site_agent.evidence.record import attest as attest_these
    from site_agent.evidence.record import attest_again, import_records
    from site_agent.evidence.statement import send
    from site_agent.keystore import load_keys

    settings = load_settings(SiteHome.resolve(home))
    papers = read_papers(file, settings.site).whole() if file is not None else None
    engine, now = open_database(settings.home), system_clock()
    with transaction(engine) as session:
        if papers is None:
            attest_again(session, now=now)
        else:
            import_records(session, settings.site, papers.records, now=now)
            attest_these(session, papers.safeguards, now=now)
    keys = load_keys(settings.home)
    with CoordinatorClient(settings, keys) as client:
        receipt = send(settings, keys, engine, client, system_clock)
    text = f"attested; the coordinator took the statement of {receipt.made_at}, its clock {receipt.clock_skew:g} s off"
    for digest in receipt.not_counted:
        text += f"\n  {digest} was revoked at the coordinator and does not count"
    _emit(receipt.model_dump(mode="json"), as_json, text)


def _shown(row: SiteEvidence) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(row.record)
    return {"digest": row.digest, **told, "recorded_at": row.recorded_at, "revoked_at": row.revoked_at}


def _emit(document: object, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(document, indent=2) if as_json else text)


def _listed(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{row['kind']:24} {row['scope']:11} {row['issued']}  {row['expires'] or 'no expiry':10}  {row['digest']}"
        f"{'  revoked' if row.get('revoked_at') else ''}"
        for row in rows
    )
