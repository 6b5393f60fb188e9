"""cloister-site datasets …"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from site_agent.cohort.quality import Quality

app = typer.Typer(no_args_is_help=True, help="Add and list this site's data sets.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("add")
def add(
    csv: Annotated[Path, typer.Argument(help="The file with the patients' rows, or the manifest of their files.")],
    dictionary: Annotated[Path, typer.Option("--dictionary", "-d", help="The data dictionary, YAML.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name than the dictionary's.")] = None,
    files: Annotated[
        Path | None, typer.Option("--files", help="The folder of a manifest's files, if not the manifest's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and summarise; write and send nothing.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Check a file against its data dictionary and register it as a snapshot."""
    from site_agent.clock import system_clock
    from site_agent.cohort.add import keep, prepare, read_dictionary
    from site_agent.cohort.registration import register
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database
    from site_agent.keystore import load_keys

    settings = load_settings(SiteHome.resolve(home))
    keys = load_keys(settings.home)
    engine = open_database(settings.home)
    with _progress(quiet=as_json) as told:
        prepared = prepare(engine, keys.secret, csv, read_dictionary(dictionary), name, files=files, told=told)
    registered = False
    if not dry_run:
        keep(engine, settings.home, prepared, system_clock)
        with CoordinatorClient(settings, keys) as client:
            register(engine, client, system_clock, prepared.snapshot.digest)
        registered = True
    snapshot = prepared.snapshot
    document: dict[str, Any] = {
        "name": snapshot.name,
        "snapshot": snapshot.digest,
        "schema_digest": snapshot.arrays.schema_digest,
        "registered": registered,
        **prepared.quality.to_document(),
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    _show(snapshot.name, snapshot.digest, prepared.quality)
    typer.echo("registered at the coordinator" if registered else "dry run: nothing was stored or sent")


@app.command("scan")
def scan_(
    name: Annotated[str, typer.Argument(help="The data set's name.")], home: Home = None, as_json: Json = False
) -> None:
    """Look for the 18 classes of identifiers in the newest snapshot, as the consent gate does. No value is shown."""
    from site_agent.clock import system_clock
    from site_agent.cohort.declaration import declared, newest
    from site_agent.cohort.identifier_patterns import MEANING
    from site_agent.cohort.identifier_scan import scan_snapshot
    from site_agent.database import open_database, transaction

    settings = load_settings(SiteHome.resolve(home))
    with transaction(open_database(settings.home)) as session:
        row = newest(session, name)
        said = declared(session, row.digest)
    found = scan_snapshot(settings.home, row, on=system_clock().date(), faces=None if said is None else said[0].faces)
    if as_json:
        columns = [
            {"column": item.column, "class": item.letter, "direct": item.direct, "by": item.by} for item in found.found
        ]
        typer.echo(json.dumps({"snapshot": row.digest, "columns": columns, **found.facts()}, indent=2))
        return
    for item in found.found:
        direct = "" if item.direct else " (a limited data set may hold it)"
        typer.echo(f"  {item.column}: {item.letter}, {MEANING[item.letter]}, by its {item.by}{direct}")
    typer.echo(f"ages of 90 and over are one category: {'yes' if found.ages_pooled else 'no'}")
    typer.echo(f"postal codes as the safe harbor allows: {'yes' if found.zip3_rule else 'no'}")
    for letter in sorted(found.unscanned):
        typer.echo(f"not told: {letter}, {MEANING[letter]}; declare it")
    if not found.found:
        typer.echo(f"no column of {name} has the name or form of an identifier")


@app.command("declare")
def declare_(
    name: Annotated[str, typer.Argument(help="The data set's name; its newest snapshot is meant.")],
    file: Annotated[Path, typer.Argument(help="The declaration, YAML; a list of consents lies beside it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and summarise; write nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Declare of a snapshot what no scan can see: codes, consents, authorization, claims. It stays at the hospital."""
    from site_agent.clock import system_clock
    from site_agent.cohort.declaration import consenting, declare, newest, read_declaration
    from site_agent.cohort.quality import at_least_cell
    from site_agent.database import open_database, transaction
    from site_agent.keystore import read_secret

    settings = load_settings(SiteHome.resolve(home))
    declaration = read_declaration(file)
    consents = None
    if declaration.consent is not None:
        consents = consenting(file.absolute().parent / declaration.consent.patients, read_secret(settings.home))
    with transaction(open_database(settings.home)) as session:
        snapshot = newest(session, name).digest
        row = declare(session, snapshot, declaration, consents, now=system_clock())
        without = None if row.without_consent is None else at_least_cell(row.without_consent)
        if dry_run:
            session.rollback()
    if as_json:
        document = {"snapshot": snapshot, "declared": not dry_run, "patients_without_consent": without}
        typer.echo(json.dumps(document, indent=2))
        return
    if without is not None:
        typer.echo(f"patients of the snapshot who are not on the list of consents: {without}")
    typer.echo("dry run: nothing was declared" if dry_run else f"declared of {name}, snapshot {snapshot}")


@app.command("list")
def list_(as_json: Json = False, home: Home = None) -> None:
    """Show the snapshots of this site, the newest first."""
    from sqlmodel import col, select

    from site_agent.cohort.tables import Snapshot
    from site_agent.database import open_database, transaction

    engine = open_database(load_settings(SiteHome.resolve(home)).home)
    with transaction(engine) as session:
        rows = session.exec(select(Snapshot).order_by(col(Snapshot.created_at).desc())).all()
    if as_json:
        typer.echo(json.dumps([row.model_dump(exclude={"schema_text"}) for row in rows], indent=2))
        return
    for row in rows:
        state = f"registered {row.registered_at}" if row.registered_at else "not registered yet"
        if row.replaced_by is not None:
            state = "replaced: patients of it withdrew"
        typer.echo(f"{row.name}  {row.digest[:19]}  {row.patients} patients, {row.held_out} held out, {state}")
    if not rows:
        typer.echo("No data set yet: cloister-site datasets add FILE.csv --dictionary DICTIONARY.yaml")


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """On a terminal a bar, else a line for each tenth of the files, on stderr. A table has none to count."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("reading files"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def told(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, visible=True)
            if not console.is_terminal and done * 10 // of != (done - 1) * 10 // of:
                console.print(f"read {done} of {of} files", highlight=False)

        yield told


def _show(name: str, digest: str, quality: Quality) -> None:
    typer.echo(f"{name}: snapshot {digest}")
    typer.echo(
        f"  {quality.rows_read} rows read, {quality.rows_dropped} dropped; {quality.records} records of "
        f"{quality.patients} patients, {quality.held_out} of them held out"
    )
    for column, reason, rows in quality.dropped:
        typer.echo(f"  dropped {rows} rows: column {column}: {reason}")
    for column, cells in quality.imputed.items():
        typer.echo(f"  column {column}: {cells} missing values take the dictionary's constant")
    if quality.held_out == 0:
        typer.echo("  too few patients to hold any out: this site trains, and takes no part in evaluation")
