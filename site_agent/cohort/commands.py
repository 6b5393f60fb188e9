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
    from site_agent.cohort.add import keep, prepare, read_dictionary, register
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
