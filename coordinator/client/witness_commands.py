"""cloister audit witness …: an auditor cosigns the log, where hospitals are few."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit

app = typer.Typer(no_args_is_help=True, help="Cosign the log as an auditor, where fewer than four sites do.")

Folder = Annotated[Path, typer.Argument(help="The witness's folder: its key and what it has seen.")]


@app.command("init")
def init(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", help="The auditor's name, which stands in the log's policy.")],
    key: Annotated[str, typer.Option("--key", help="ml-dsa-44, or ed25519.")] = "ml-dsa-44",
    as_json: Json = False,
) -> None:
    """Make a witness: a key that never leaves its folder. Print the verifier key for the administrator."""
    from coordinator.client.audit_witness import make_witness

    made = make_witness(folder, name, key)
    emit(
        {"folder": str(folder), "name": made.vkey.name, "key": made.vkey.text},
        as_json=as_json,
        text=f"The witness is in {folder}. Give its verifier key to the coordinator's administrator, who runs\n"
        f"  cloister-coordinator witness join {name} --key VKEY\n{made.vkey.text}",
    )


@app.command("run")
def run(
    folder: Folder,
    log_key: Annotated[str | None, typer.Option("--log-key", help="The log's key; the first time.")] = None,
    witness_policy: Annotated[
        Path | None, typer.Option("--witness-policy", help="Or the policy that you trust, from a site.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="The coordinator, where you have no account.")
    ] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="Its certificate authority (PEM), with --address.")] = None,
    follow: Annotated[float | None, typer.Option(min=1, help="Again every so many seconds, until an alarm.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Read what is new, hold it against all that was seen, keep it, and cosign it. A log that lies is not cosigned."""
    import time

    from coordinator.client.audit_bundle import read_policy
    from coordinator.client.audit_watch import connect
    from coordinator.client.audit_witness import open_witness, take_part
    from protocol.note import VerifierKey

    witness = open_witness(folder)
    pinned = read_policy(witness_policy) if witness_policy else None
    key = VerifierKey.parse(log_key) if log_key else None
    with connect(home, address, ca) as connection:
        while True:
            done = take_part(witness, connection, log=key, policy=pinned, clock=lambda: int(time.time()))
            emit(
                {**done.turn.document(), "cosigned": done.size},
                as_json=as_json,
                text=f"{done.turn.size} entries, {done.turn.new_entries} of them new; cosigned as {witness.vkey.name}",
            )
            if follow is None:
                return
            time.sleep(follow)
