"""cloister review …: models that were trained on patients who withdrew; a privacy officer decides about each."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit, table

app = typer.Typer(no_args_is_help=True, help="Reviews of models after patients withdrew.")


@app.command("list")
def list_reviews(
    all_: Annotated[bool, typer.Option("--all", help="Closed ones, too.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the models that wait for a decision: none of them is released or served."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = [row for row in connection.get("/v1/reviews") if all_ or row["state"] == "open"]
    head = ("review", "study", "site", "patients said", "opened at", "grounds")
    cells = [
        (row["review"], row["study"], row["site"], row["causes"], row["opened_at"], row["grounds"] or row["state"])
        for row in rows
    ]
    emit(rows, as_json=as_json, text=table(head, cells) if rows else "No review is open.")


@app.command()
def close(
    review: Annotated[str, typer.Argument(help="The review, as `cloister review list` shows it.")],
    ground: Annotated[
        list[str],
        typer.Option(
            "--ground",
            help="art-17-3-b, -c, -d or -e, art-21-6, reliance, model-withdrawn or trained-again; may be given again.",
        ),
    ],
    reason: Annotated[str, typer.Option("--reason", help="In words; erasable, and never in the log.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Decide that the model may stay, and on which ground, or that it is gone. A compliance officer does."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        row = connection.post(f"/v1/reviews/{review}/closing", {"grounds": ground, "reason": reason})
    emit(row, as_json=as_json, text=f"{review} is closed on {row['grounds']}.")
