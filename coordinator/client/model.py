"""cloister model …: a model of one's own, from a torch.export file to what a study carries. No torch, no account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.options import Json
from coordinator.terminal import emit

if TYPE_CHECKING:
    from protocol.graph import ExportedGraph

app = typer.Typer(no_args_is_help=True, help="A model of your own, as data: pack it, check it.")
LARGEST_FILE = 450 << 20
LOSSES = {"yes-no": "logistic", "survival": "hazard", "number": "squared"}


@app.command()
def pack(
    exported: Annotated[Path, typer.Argument(help="The file that torch.export.save wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The graph to write; a study names it as model: {graph: FILE}.")],
    outcome: Annotated[str, typer.Option("--outcome", help="What it predicts: yes-no, survival or number.")] = "yes-no",
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Begin with the file's weights. Everybody can read them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a torch.export file as data and write its graph. Nothing in it is run or unpickled."""
    from protocol.canonical import canonical
    from protocol.exported import read_exported
    from protocol.graph import refused, with_initial
    from protocol.graph_shapes import measure

    if outcome not in LOSSES:
        raise refused(f"There is no outcome {outcome[:40]!r}.", f"Give one of {', '.join(LOSSES)}.")
    graph, weights = read_exported(_read(exported, LARGEST_FILE))
    graph = graph.model_copy(update={"loss": LOSSES[outcome]})
    if keep_weights:
        graph = with_initial(graph, weights)
    measure(graph)
    _write(out, canonical(graph.model_dump(mode="json")))
    told = describe(graph)
    emit({**told, "file": str(out)}, as_json=as_json, text=f"{_text(told)}\nThe graph is in {out}.")


@app.command()
def check(
    graph: Annotated[Path, typer.Argument(help="A graph that `cloister model pack` wrote.")], as_json: Json = False
) -> None:
    """Say what a packed graph holds and costs, or why no site would train it."""
    from protocol.graph import MAX_DOCUMENT, read_graph

    told = describe(read_graph(_read(graph, 2 * MAX_DOCUMENT)))
    emit(told, as_json=as_json, text=_text(told))


def describe(graph: ExportedGraph) -> dict[str, Any]:
    """JSON. Raises ExportRefused for a graph that no site would train."""
    from collections import Counter

    from protocol.canonical import digest
    from protocol.graph_shapes import measure

    cost = measure(graph)
    return {
        "input": list(graph.input),
        "outputs": cost.outputs,
        "outcome": next(name for name, loss in LOSSES.items() if loss == graph.loss),
        "parameters": graph.parameter_count,
        "multiplications": cost.multiplications,
        "numbers_held": cost.elements,
        "brings_weights": graph.initial is not None,
        "operators": dict(sorted(Counter(node.operator for node in graph.nodes).items())),
        "digest": digest(graph.model_dump(mode="json")),
    }


def _text(told: dict[str, Any]) -> str:
    operators = ", ".join(f"{name} x{count}" for name, count in told["operators"].items())
    begins = "the file's, public with the plan" if told["brings_weights"] else "drawn from the plan's digest"
    return "\n".join(
        [
            f"input       one record of shape {told['input']}; {told['outputs']} outputs ({told['outcome']})",
            f"parameters  {told['parameters']}; first weights {begins}",
            f"one record  {told['multiplications']} multiplications, {told['numbers_held']} numbers held",
            f"operators   {operators}",
            "private     yes: a site keeps its records apart, so no layer can reach another patient",
            f"digest      {told['digest']}",
        ]
    )


def _write(path: Path, data: bytes) -> None:
    """A new file, whole or not at all."""
    from protocol.graph import refused

    if path.exists():
        raise refused(f"{path} exists.", "Choose another name, or remove it first.")
    fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise refused(f"{path} can't be written ({error.strerror}).", "Name a folder that you may write to.") from None


def _read(path: Path, most: int) -> bytes:
    from protocol.graph import refused

    try:
        if not path.is_file() or os.stat(path).st_size > most:
            raise refused(f"{path} is no regular file of at most {most} bytes.", "Name the right file.")
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise refused(f"{path} can't be read ({error.strerror}).", "Name an existing file.") from None
