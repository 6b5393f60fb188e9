"""cloister study results: what an exploration found, each number with the interval of its noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit, table

if TYPE_CHECKING:
    from protocol.exploration import Estimated, ExplorationResult

COLUMNS = ("what", "column", "of", "value", "low", "high", "unit")


def results(
    study: Annotated[str, typer.Argument(help="The exploration, as `cloister study list` shows it.")],
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table to a new file.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what an exploration found. Every number is noised; its interval covers the noise with 95 %."""
    from coordinator.client.account import open_account
    from protocol.canonical import digest
    from protocol.errors import VerificationFailed
    from protocol.exploration import ExplorationResult
    from protocol.identifiers import require_name

    name = require_name(study, "The study's name")
    with open_account(home).connect() as connection:
        document = connection.get(f"/v1/studies/{name}/results")
    if digest(document["result"]) != document["result_digest"]:
        raise VerificationFailed(
            "The results shown do not have the digest that the coordinator names.",
            "Trust none of them; compare with exploration.completed in the log (`cloister audit query`).",
        )
    found = ExplorationResult.model_validate(document["result"])
    lines = [results_text(found), f"result {document['result_digest']}"]
    if csv is not None:
        write_csv(csv, rows_of(found))
        lines.append(f"The table is in {csv}.")
    emit(document, as_json=as_json, text="\n".join(lines))


def rows_of(found: ExplorationResult) -> list[tuple[str, str, str, float | None, float | None, float | None, str]]:
    """The table: one row for each number, as in COLUMNS."""
    rows: list[tuple[str, str, str, float | None, float | None, float | None, str]] = []
    for answer in found.statistics:
        asked = answer.statistic
        for of, figure in zip(answer.names, answer.figures, strict=True):
            rows.append((asked.kind, asked.column, of, *_numbers(figure), answer.unit))
    for number, cluster in enumerate(found.clusters, 1):
        rows.append((f"cluster {number}", "", "size", *_numbers(cluster.patients), "patients"))
        for column, figure in (cluster.center or {}).items():
            rows.append((f"cluster {number}", column, "mean", *_numbers(figure), ""))
        if cluster.center is None:
            rows.append((f"cluster {number}", "", "perhaps nobody, by the noise", None, None, None, ""))
    return rows


def results_text(found: ExplorationResult) -> str:
    """For a person."""
    shown = [
        (what, column, of, *("" if number is None else f"{number:.4g}" for number in numbers), unit)
        for what, column, of, *numbers, unit in rows_of(found)
    ]
    lines = [
        f"{found.study}: sums over {found.patients} training patients, noised; epsilon {found.epsilon:.4f} at delta "
        f"{found.delta:g} for all of it",
        "low and high: the 95 % interval of the noise, for these patients and each number by itself; of rare values "
        "the interval is what counts",
        table(COLUMNS, shown),
    ]
    if found.clusters:
        lines.append(
            f"clusters: {found.patients_clustered} patients in the last step; where another start would have led is "
            "not known"
        )
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write the table. Raises Refused where there is a file already, OSError."""
    import csv

    from protocol.errors import Refused

    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
    except FileExistsError:
        raise Refused(f"There is a file {path} already.", "Name a new one.") from None


def _numbers(figure: Estimated) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high
