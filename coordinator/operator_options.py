"""What every `cloister-coordinator` command takes: where the coordinator is, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coordinator.appliance import Appliance

Home = Annotated[
    Path | None, typer.Option("--home", help="The coordinator's folder.", envvar="CLOISTER_COORDINATOR_HOME")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def home_of(home: Path | None) -> Path:
    """The folder that was named, or the default one."""
    from coordinator.settings import default_home

    return home if home is not None else default_home()


def opened(home: Path | None) -> Appliance:
    """The coordinator there. Raises CloisterError where there is none."""
    from coordinator.appliance import open_appliance

    return open_appliance(home_of(home))
