"""cloister-site: what hospital IT runs. Commands import what they need when they run, so that --help stays quick."""

from __future__ import annotations

import json
import sys

import typer

from protocol.errors import CloisterError
from site_agent.cohort import commands as cohort_commands

app = typer.Typer(
    name="cloister-site",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A hospital's side of Cloister: patients' data stays here.",
)
app.add_typer(cohort_commands.app, name="datasets")


def main() -> None:
    """Run the command line. An error that a person can act on is one message and a remedy, never a traceback."""
    import click

    try:
        status = app(standalone_mode=False)
    except CloisterError as error:
        raise SystemExit(_tell(error.code, error.message, error.remedy)) from None
    except OSError as error:
        raise SystemExit(_tell("system", *_explain(error))) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(_tell("interrupted", "Interrupted.", "Run the command again.")) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def _tell(code: str, message: str, remedy: str) -> int:
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": {"code": code, "message": message, "remedy": remedy}}))
    typer.echo(f"error: {message}", err=True)
    if remedy:
        typer.echo(f"remedy: {remedy}", err=True)
    return 1


def _explain(error: OSError) -> tuple[str, str]:
    import errno

    place = f" ({error.filename})" if isinstance(error.filename, str) else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{place}.", "Free space and run the command again: nothing was half written."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"The system does not allow this{place}.", "Check who owns the file and the user you run as."
        case errno.EADDRINUSE:
            return "The port is in use.", "Stop the other program, or choose another port."
        case _:
            return f"The system refused: {error.strerror or type(error).__name__}{place}.", "Correct it and try again."
