"""cloister evidence …: record documents that somebody vouches for, list them, revoke them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.drafts import commands
from coordinator.client.options import Home, Json
from coordinator.terminal import emit, table

if TYPE_CHECKING:
    from protocol.evidence import EvidenceRecord

app = typer.Typer(no_args_is_help=True, help="Evidence: agreements, assessments, tests, with their dates.")
app.add_typer(commands.app, name="draft")
MAX_FILE = 64 << 20


@app.command("import")
def import_records(
    file: Annotated[Path, typer.Argument(help="A YAML file with a list named records; documents lie beside it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and the documents; send nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Record evidence from a file. A document never leaves this machine: its SHA-256 does."""
    from coordinator.client.account import open_account

    records = read_records(file)
    if dry_run:
        document: list[dict[str, Any]] = [{"digest": r.digest, **r.model_dump(mode="json")} for r in records]
    else:
        with open_account(home).connect() as connection:
            document = connection.post("/v1/evidence", {"records": [r.model_dump(mode="json") for r in records]})
    said = "would be recorded" if dry_run else "on record"
    emit(document, as_json=as_json, text=f"{_listed(document)}\n{len(document)} {said}.")


@app.command("list")
def list_records(
    about: Annotated[str | None, typer.Option("--about", help="A site, a study or a release's digest.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List what is on record, and until when it counts."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = connection.get("/v1/evidence")
    shown = [row for row in rows if about is None or row["subject"] == about]
    emit(shown, as_json=as_json, text=_listed(shown))


@app.command()
def revoke(
    digest: Annotated[str, typer.Argument(help="The record's digest, as `cloister evidence list` shows it.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a record count no longer, from now on. The gates that rest on it shut again."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        connection.delete(f"/v1/evidence/{digest}")
    emit({"digest": digest, "revoked": True}, as_json=as_json, text=f"{digest} is revoked.")


def read_records(file: Path) -> list[EvidenceRecord]:
    """The records of a YAML file. A record names its document (`document`, a path beside the file) or its SHA-256
    (`file`). Raises Malformed naming the record and the field, or a document that is missing or over 64 MiB."""
    from protocol.errors import Malformed
    from protocol.papers import FORM
    from protocol.papers import read_records as records_of
    from protocol.strict_yaml import load_yaml

    try:
        loaded = load_yaml(file.read_bytes()).value
    except OSError as error:
        raise Malformed(f"{file} can't be read ({error.strerror}).", "Name a YAML file with evidence.") from None
    if not isinstance(loaded, dict) or set(loaded) != {"records"}:
        raise Malformed(f"{file} has no list named records.", FORM)
    return records_of(loaded["records"], lambda name, number: _digest_of(file.parent / name, number))


def _digest_of(path: Path, number: int) -> str:
    from protocol.canonical import sha256_hex
    from protocol.errors import Malformed

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Malformed(
            f"Record {number}: its document can't be read ({error.strerror}).", "Put it beside the file."
        ) from None
    if len(content) > MAX_FILE:
        raise Malformed(f"Record {number}: its document is over 64 MiB.", "Give its SHA-256 as `file` instead.")
    return sha256_hex(content)


def _listed(rows: list[dict[str, Any]]) -> str:
    return table(
        ("kind", "about", "issued", "expires", "digest", ""),
        [
            (
                row["kind"],
                row["subject"][:24],
                row["issued"],
                row["expires"] or "-",
                row["digest"],
                "revoked" if row.get("revoked_at") else "",
            )
            for row in rows
        ],
    )
