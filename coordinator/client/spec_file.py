"""A study's YAML file: read strictly, and everything that is wrong with it said at once, by line, field and remedy."""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from protocol import exploration as exploration_documents
from protocol import proposal as proposal_documents
from protocol import statistics as statistics_documents
from protocol import study as study_documents
from protocol.dataset import DatasetSchema
from protocol.dictionary import parse_dictionary
from protocol.errors import CloisterError, Malformed
from protocol.graph import ExportedGraph, ExportRefused, read_graph
from protocol.graph_shapes import measure
from protocol.strict_yaml import Path as YamlPath
from protocol.strict_yaml import YamlDocument, YamlValue, load_yaml
from protocol.study_kind import AnySpec, spec_from

LIMIT = 1 << 20
_BOUNDS = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "of at least"),
           "less_than": ("lt", "below"), "less_than_equal": ("le", "of at most")}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. line: from 1 in the spec, or None where the whole file is meant."""

    line: int | None
    field: str
    message: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"line": self.line, "field": self.field, "message": self.message, "remedy": self.remedy}

    def text(self) -> str:
        """Two lines for a person."""
        where = f"line {self.line}: " if self.line else ""
        what = f"{self.field}: " if self.field else ""
        return f"{where}{what}{self.message}\n    remedy: {self.remedy}"


class SpecInvalid(CloisterError):
    """The file is not a valid study; `facts` holds every problem."""

    code = "study-invalid"

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        told = "\n  ".join(problem.text() for problem in problems)
        super().__init__(f"{path} is not a valid study:\n  {told}", "Correct these fields and validate again.")
        self.problems = problems
        self.facts = {"problems": [problem.to_dict() for problem in problems]}


@dataclass(frozen=True)
class SpecFile:
    """A valid spec and where its fields stand."""

    path: Path
    document: YamlDocument
    spec: AnySpec

    def problem(self, field: str, message: str, remedy: str) -> Problem:
        """A problem at a field of this file, written with dots."""
        return Problem(self.document.line(tuple(field.split("."))), field, message, remedy)


def load_spec(path: Path) -> SpecFile:
    """Read a spec. `dataset: {dictionary: FILE}` and `model: {graph: FILE}` are resolved against the spec's folder, or
    stand there whole.

    Raises SpecInvalid with every problem, Malformed for what is no YAML text at all, OSError.
    """
    try:
        document = load_yaml(read_limited(path), limit=LIMIT)
    except Malformed as error:
        named = str(path) in error.message
        raise Malformed(error.message if named else f"{path}, {error.message}", error.remedy) from None
    if not isinstance(document.value, dict):
        raise SpecInvalid(path, (Problem(1, "", "a study is a mapping", "Begin with study: NAME."),))
    value, problems = dict(document.value), list[Problem]()
    graph = _graph(path, document, value.get("model"), problems)
    if graph is not None:
        value["model"] = graph.model_dump(mode="json")
    schema = _dataset(path, document, value.get("dataset"), problems)
    if schema is not None:
        value["dataset"] = schema.model_dump(mode="json")
    try:
        spec = spec_from(value)
    except ValidationError as error:
        skip = {problem.field.partition(".")[0] for problem in problems}
        problems += [
            _problem(document, item)
            for item in error.errors(include_url=False, include_input=False)
            if not (item["loc"] and item["loc"][0] in skip)
        ]
        spec = None
    if problems or spec is None:
        raise SpecInvalid(path, tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return SpecFile(path, document, spec)


def read_limited(path: Path) -> bytes:
    """The bytes of a plain file of at most 1 MiB. Raises Malformed, OSError."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Malformed(f"{path} is not a plain file.", "Name the YAML file of the study.")
    if status.st_size > LIMIT:
        raise Malformed(
            f"{path} has {status.st_size} bytes; a study has at most {LIMIT}.", "Check that it is the file."
        )
    with path.open("rb") as file:
        data = file.read(LIMIT + 1)
    if b"\0" in data:
        raise Malformed(f"{path} is a binary file.", "Name the YAML file of the study.")
    return data


def _graph(path: Path, document: YamlDocument, value: YamlValue, problems: list[Problem]) -> ExportedGraph | None:
    """The graph of the named file; None where the model is named by its architecture or the file can't be read."""
    if not isinstance(value, dict) or "graph" not in value:
        return None
    where: YamlPath = ("model", "graph")
    named = value["graph"]
    if set(value) != {"graph"} or not isinstance(named, str):
        message = "names a graph and more besides, or no file name"
        problems.append(Problem(document.line(where), "model", message, "Write graph: FILE.json alone."))
        return None
    file = path.parent / named
    try:
        graph = read_graph(read_limited(file))
        measure(graph)
    except (Malformed, ExportRefused) as error:
        problems.append(Problem(document.line(where), "model.graph", f"{named}: {error.message}", error.remedy))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "Name the file that `cloister model pack` made, relative to the study's file."
        problems.append(Problem(document.line(where), "model.graph", f"{file} can't be read: {reason}", remedy))
    else:
        return graph
    return None


def _dataset(path: Path, document: YamlDocument, value: YamlValue, problems: list[Problem]) -> DatasetSchema | None:
    """The schema of the named dictionary; None where the schema stands inline or can't be read."""
    if not isinstance(value, dict) or "dictionary" not in value:
        return None
    where: YamlPath = ("dataset", "dictionary")
    named = value["dictionary"]
    if set(value) != {"dictionary"} or not isinstance(named, str):
        problems.append(
            Problem(
                document.line(where), "dataset", "names a dictionary and more besides, or no file name",
                "Write dictionary: FILE.yaml alone, or the schema itself.",
            )
        )  # fmt: skip
        return None
    file = path.parent / named
    try:
        return parse_dictionary(read_limited(file)).schema
    except Malformed as error:
        problems.append(Problem(document.line(where), "dataset.dictionary", f"{named}: {error.message}", error.remedy))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        problems.append(
            Problem(
                document.line(where), "dataset.dictionary", f"{file} can't be read: {reason}",
                "Name the data dictionary relative to the study's file.",
            )
        )  # fmt: skip
    return None


def _problem(document: YamlDocument, item: ErrorDetails) -> Problem:
    place = tuple(part for part in item["loc"] if isinstance(part, str | int))
    line = document.line(place)
    kept = [str(part) for index, part in enumerate(place) if place[: index + 1] in document.lines]
    missing = item["type"] == "missing"
    field = ".".join([*kept, str(place[-1])] if missing and place else kept)
    message = item["msg"].removeprefix("Value error, ")
    return Problem(line, field, message, _remedy(item, place))


def _remedy(item: ErrorDetails, place: tuple[str | int, ...]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    name = str(place[-1]) if place else "the study"
    if kind == "missing":
        return f"Add the field {name}."
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, _field_names(), n=1)
        return f"Remove it, or did you mean {near[0]}?" if near else "Remove it: there is no such field here."
    if kind in _BOUNDS:
        key, word = _BOUNDS[kind]
        return f"Give a value {word} {context.get(key)}."
    if kind == "literal_error":
        return f"Use {context.get('expected')}."
    if kind == "string_pattern_mismatch":
        return "Use lower-case letters, digits and hyphens for a name; letters, digits and ._:/+- for a code."
    if kind in ("float_type", "float_parsing", "int_type", "int_parsing"):
        return "Give a number, unquoted."
    if kind in ("string_type", "tuple_type", "dict_type", "model_type", "model_attributes_type"):
        return "Give a value of that form; see the example study in the documentation."
    return "Correct the field as the message says."


def _field_names() -> list[str]:
    names: set[str] = set()
    documents = (proposal_documents, study_documents, exploration_documents, statistics_documents)
    for value in (value for module in documents for value in vars(module).values()):
        if isinstance(value, type) and issubclass(value, BaseModel):
            names |= set(value.model_fields)
    return sorted(names)
