"""How the coordinator's and the people's commands speak: one clear line for an error, JSON where a machine reads."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from privacy.errors import PrivacyError
from protocol.errors import CloisterError

PASSPHRASE_VARIABLE = "CLOISTER_PASSPHRASE"  # noqa: S105 - a name, no secret


class NoPassphrase(CloisterError):
    """There is no passphrase to be had, or it is too short."""

    code = "no-passphrase"


def run(app: typer.Typer) -> NoReturn:
    """Run a Typer application; every foreseen error becomes "error: …" and "remedy: …" and exit status 1."""
    import click

    try:
        status = app(standalone_mode=False)
    except (CloisterError, PrivacyError) as error:
        _fail(error.code, error.message, error.remedy, facts=getattr(error, "facts", {}))
    except click.exceptions.Abort:
        _fail("aborted", "Stopped before the end.", "")
    except click.ClickException as error:
        if not _wants_json():
            error.show()
        else:
            _fail("usage", error.format_message(), "See --help.", status=error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", "Interrupted.", "", status=130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            "system", f"{where}{error.strerror or type(error).__name__}.", "Check the path, its rights and free space."
        )
    sys.exit(status if isinstance(status, int) else 0)


def emit(document: Any, *, as_json: bool, text: str) -> None:
    """Print `document` as JSON for a machine, or `text` for a person."""
    typer.echo(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) if as_json else text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned by spaces; an empty cell is a dash."""
    cells = [[str(cell) if cell not in (None, "") else "-" for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def read_passphrase(file: Path | None, prompt: str, *, confirm: bool = False) -> bytes:
    """A passphrase from the file's first line, the environment, or the terminal, in that order.

    Raises NoPassphrase when there is none.
    """
    if file is not None:
        text = file.read_text(encoding="utf-8").split("\n", 1)[0]
    elif PASSPHRASE_VARIABLE in os.environ:
        text = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty():
        text = getpass.getpass(f"{prompt}: ")
        if confirm and getpass.getpass("The same again: ") != text:
            raise NoPassphrase("The two passphrases differ.", "Run the command again.")
    else:
        text = ""
    if not text:
        raise NoPassphrase(
            "No passphrase was given.", f"Type it at a terminal, set {PASSPHRASE_VARIABLE}, or give --passphrase-file."
        )
    return text.encode("utf-8")


def _wants_json() -> bool:
    return "--json" in sys.argv[1:]


def _fail(code: str, message: str, remedy: str, *, status: int = 1, facts: Any = None) -> NoReturn:
    if _wants_json():
        body = {"code": code, "message": message, "remedy": remedy, **(facts or {})}
        typer.echo(json.dumps({"error": body}, allow_nan=False))
    else:
        typer.echo(f"error: {message}", err=True)
        if remedy:
            typer.echo(f"remedy: {remedy}", err=True)
    sys.exit(status)
