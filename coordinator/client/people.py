"""`cloister people …`: who has an account, whose role has to be confirmed again, and the end of an account."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit, table

app = typer.Typer(no_args_is_help=True, help="People: review roles, confirm them, end an account.")


@app.command()
def review(
    overdue: Annotated[bool, typer.Option("--overdue", help="Only those whose confirmation is due.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show everybody's role and when it was last confirmed. A release by somebody who is overdue is denied."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = [row for row in connection.get("/v1/people") if row["overdue"] or not overdue]
    fields = ("name", "role", "site", "status", "certified_at", "certified_days")
    cells = [[*(row[field] for field in fields), _remark(row["overdue"], row["shared"])] for row in rows]
    head = ("name", "role", "site", "status", "confirmed", "days ago", "remark")
    emit(rows, as_json=as_json, text=table(head, cells))


@app.command()
def confirm(
    name: str,
    shared: Annotated[bool, typer.Option("--shared", help="Others were found to use the account.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Confirm that a person still needs their role, and alone uses their account."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        told = connection.post(f"/v1/people/{name}/certification", {"shared": shared})
    emit(told, as_json=as_json, text=f"{name} is confirmed as {told['role']}.")


@app.command()
def disable(name: str, home: Home = None) -> None:
    """End an account at once: its sessions end, and nothing signs it in any more."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        connection.post(f"/v1/people/{name}/disable")
    typer.echo(f"{name} is disabled.")


def _remark(overdue: bool, shared: bool) -> str:
    return ", ".join(text for text, holds in (("overdue", overdue), ("shared account", shared)) if holds)
