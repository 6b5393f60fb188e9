"""cloister study simulate: what a study's model would be worth, before anybody is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.client.options import Json
from coordinator.terminal import emit

if TYPE_CHECKING:
    from coordinator.client.simulated_patients import Source
    from protocol.exploration import ExplorationSpec


def simulate(
    spec: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE.csv[:DICTIONARY]",
            help="Patients of your own: one file for each site, or one that is dealt over all sites; "
            "of images and sequences .npz files.",
        ),
    ] = None,
    synthetic: Annotated[
        int | None, typer.Option("--synthetic", metavar="N", help="Make N patients up from the dictionary's ranges.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, each with its own split and noise.")] = 5,
    epsilons: Annotated[str, typer.Option("--epsilons", help="The points of the curve.")] = "0.5,1,2,4,8",
    missing: Annotated[
        float, typer.Option("--missing", help="How likely a site's answer is lost in an attempt.")
    ] = 0.0,
    audit: Annotated[
        bool, typer.Option("--audit", help="Audit the sum at each epsilon too: an empirical lower bound of it.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for utility.png and utility.csv.")] = None,
    as_json: Json = False,
) -> None:
    """Run a study in this process and draw its utility against epsilon. Uses no network and no ledger.

    Checks, tuning and the membership audit run as the study declares them. An exploration is run at its own epsilon:
    each answer stands beside the truth.

    Use your own or made-up patients only: a simulation protects nobody.
    """
    from coordinator.client.simulated_patients import from_tables
    from coordinator.client.simulated_patients import synthetic as make_up
    from coordinator.client.simulation import SimulationRefused
    from coordinator.client.spec_file import load_spec
    from coordinator.client.utility_curve import make_curve, parse_epsilons
    from coordinator.client.utility_report import curve_text, write_curve

    file = load_spec(spec)
    wanted = parse_epsilons(epsilons)
    if (synthetic is None) == (not data):
        raise SimulationRefused(
            "No patients are named, or two kinds of them.", "Give --data FILE.csv for each site, or --synthetic N."
        )
    source = make_up(file.spec, synthetic) if synthetic is not None else from_tables(file, data or [])
    if file.spec.kind == "exploration":
        if audit:
            raise SimulationRefused("An exploration has no step to audit.", "Leave --audit out.")
        _explore(file.spec, source, seeds=seeds, missing=missing, out=out, as_json=as_json)
        return
    with _progress(None, quiet=as_json) as (told, expected):
        curve = make_curve(
            file.spec, source, epsilons=wanted, seeds=seeds, missing=missing, audit=audit, told=told, expected=expected
        )
    document, lines = curve.to_dict(), [curve_text(curve)]
    if out is not None:
        picture, table = write_curve(curve, out)
        document |= {"picture": str(picture), "table": str(table)}
        lines.append(f"The picture is in {picture}, the table in {table}.")
    emit(document, as_json=as_json, text="\n".join(lines))
    if curve.refuted or all(run.failure for point in curve.points for run in point.runs):
        raise typer.Exit(1)


def _explore(
    spec: ExplorationSpec, source: Source, *, seeds: int, missing: float, out: Path | None, as_json: bool
) -> None:
    """An exploration at its own epsilon: each answer beside the truth, and how often its interval held."""
    from coordinator.client.exploration_simulation import explore_simulated
    from coordinator.client.results import COLUMNS, write_csv

    with _progress(seeds, quiet=as_json) as (told, _):
        explored = explore_simulated(spec, source, seeds=seeds, missing=missing, told=told)
    lines = [explored.text()]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "exploration.csv", explored.rows(), (*COLUMNS, "exact", "mean_error", "held"))
        lines.append(f"The table is in {out / 'exploration.csv'}.")
    emit(explored.to_dict(), as_json=as_json, text="\n".join(lines))
    if all(run.failure for run in explored.runs):
        raise typer.Exit(1)


@contextmanager
def _progress(rounds: int | None, *, quiet: bool) -> Iterator[tuple[Callable[[str, int], None], Callable[[int], None]]]:
    """On a terminal a bar, else a line for each epsilon, on stderr: (what runs and how much of it was done just now,
    how much there will be)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=rounds)
        said = ""

        def told(what: str, done: int) -> None:
            nonlocal said
            bar.update(task, advance=done, description=what)
            if what != said and not console.is_terminal:
                console.print(f"simulating: {what}", highlight=False)
            said = what

        yield told, lambda steps: bar.update(task, total=steps)
