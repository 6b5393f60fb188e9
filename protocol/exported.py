"""A torch.export file (.pt2), read as data.

A .pt2 file is a zip archive. Its graph is JSON, its weights are raw numbers, and its sample inputs are a pickle. The
pickle is never opened; weights that are pickled are refused; so is whatever `protocol.graph` does not list. What is
kept of the graph is its operators, their arguments and the tensors' shapes: no name, path or stack trace of the
researcher's.

The model is exported with one record, so no size in it is symbolic and no operator can reach another record. Pure.
"""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import zipfile
import zlib
from array import array
from collections.abc import Mapping
from typing import Any

from protocol.exported_rewrites import REWRITTEN, Rewrites, target
from protocol.graph import (
    DEFAULT_REMEDY,
    MAX_DIMENSIONS,
    MAX_NODES,
    MAX_PARAMETERS,
    OPERATORS,
    ExportedGraph,
    GraphArgument,
    GraphNode,
    check_operators,
    forbidden,
    refused,
)

MAX_GRAPH_BYTES = 8 << 20
MAX_FILES = 10_000
_FLOATS = {7: ("f", 4), 8: ("d", 8)}
_TO_THE_END = 1 << 31
"""A slice to the end is written with the largest 64-bit number."""


def read_exported(data: bytes) -> tuple[ExportedGraph, bytes]:
    """(graph, its weights as one float64 little-endian vector in the order of `parameters`) of a .pt2 file.

    Raises ExportRefused for anything else, naming operator, argument or size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(archive).read()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, struct.error) as error:
        raise refused(f"The file is no whole .pt2 archive ({type(error).__name__}).") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise refused(f"The file's description of the model has another form ({type(error).__name__}).") from None


class _Reader:
    """One archive, checked before any of it is unpacked."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        infos = archive.infolist()
        if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > 8 * MAX_PARAMETERS + 2 * MAX_GRAPH_BYTES:
            raise refused("The file unpacks to more than any model that is taken.", "Export a smaller model.")
        self._members = {info.filename.partition("/")[2]: info for info in infos}
        if len(self._members) != len(infos):
            raise refused("The file holds one name twice.")

    def read(self) -> tuple[ExportedGraph, bytes]:
        model = self._json("models/model.json")["graph_module"]
        weights = self._json("data/weights/model_weights_config.json")["config"]
        if self._json("data/constants/model_constants_config.json")["config"]:
            raise refused("The model holds constants.", "Make them parameters, or plain numbers in its code.")
        inside, signature = model["graph"], model["signature"]
        if len(inside["nodes"]) > MAX_NODES:
            raise refused(f"The graph has more than {MAX_NODES} nodes.", "Export a smaller model.")
        for node in inside["nodes"]:
            if target(node) not in REWRITTEN:
                _operator(node)
        parameters, names = self._inputs(signature)
        shapes = tuple(_shape(weights[name]["tensor_meta"], f"parameter {place}") for place, name in
                       enumerate(parameters))  # fmt: skip
        if sum(math.prod(shape) for shape in shapes) > MAX_PARAMETERS:
            raise refused(f"The model has more than {MAX_PARAMETERS} parameters.", "Export a smaller model.")
        given = next(name for name, own in names.items() if own == "x")
        record = _shape(inside["tensor_values"][given], "the input")
        if len(record) < 2 or record[0] != 1:
            raise refused("The model was not exported with exactly one record.", DEFAULT_REMEDY)
        rewrites = Rewrites(inside["tensor_values"], names)
        for node in inside["nodes"]:
            if not rewrites.takes(node):
                (output,) = node["outputs"]
                rewrites.add(_node(node, names), output["as_tensor"]["name"])
        graph = ExportedGraph(
            input=record[1:], parameters=shapes, nodes=tuple(rewrites.nodes), output=self._output(signature, names)
        )
        check_operators(graph)
        paths = [weights[name]["path_name"] for name in parameters]
        if len(set(paths)) != len(paths):
            raise refused("Two parameters share their numbers.", "Give each its own.")
        return graph, b"".join(
            self._weights(weights[name], math.prod(shape)) for name, shape in zip(parameters, shapes, strict=True)
        )

    def _inputs(self, signature: Any) -> tuple[list[str], dict[str, str]]:
        """The parameters' keys in wire order, and the graph's names -> ours."""
        parameters, names, inputs = list[str](), dict[str, str](), 0
        for spec in signature["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "parameter":
                names[content["arg"]["name"]] = f"p{len(parameters)}"
                parameters.append(content["parameter_name"])
            elif kind == "user_input" and set(content["arg"]) == {"as_tensor"}:
                names[content["arg"]["as_tensor"]["name"]] = "x"
                inputs += 1
            else:
                raise refused(
                    f"The graph takes a {str(kind)[:40]}; a model takes one tensor and has parameters.",
                    "Leave buffers and constants out: batch normalisation has some and is refused anyway.",
                )
        if inputs != 1:
            raise refused(f"The graph takes {inputs} tensors, not one.", DEFAULT_REMEDY)
        return parameters, names

    def _output(self, signature: Any, names: Mapping[str, str]) -> str:
        (spec,) = signature["output_specs"]
        if set(spec) != {"user_output"}:
            raise refused("The graph changes one of its inputs or buffers.", "Let it return one tensor alone.")
        return names[spec["user_output"]["arg"]["as_tensor"]["name"]]

    def _json(self, name: str) -> Any:
        info = self._members[name]
        if info.file_size > MAX_GRAPH_BYTES:
            raise refused(f"The graph's description is over {MAX_GRAPH_BYTES} bytes.", "Export a smaller model.")
        return json.loads(self._archive.read(info))

    def _weights(self, entry: Any, count: int) -> bytes:
        if entry["use_pickle"] is not False:
            raise refused("The model's weights are pickled, which could run code.", DEFAULT_REMEDY)
        code, size = _FLOATS[entry["tensor_meta"]["dtype"]]
        info = self._members[f"data/weights/{entry['path_name']}"]
        if info.file_size != count * size:
            raise refused("A parameter's file has another length than its shape.")
        values = array(code)
        values.frombytes(self._archive.read(info))
        wide = array("d", values)
        if not all(map(math.isfinite, wide)):
            raise refused("A parameter is not a finite number.", "Initialise the model before it is exported.")
        if sys.byteorder == "big":
            wide.byteswap()
        return wide.tobytes()


def _shape(meta: Any, what: str) -> tuple[int, ...]:
    sizes = [size.get("as_int") for size in meta["sizes"]]
    if meta["dtype"] not in _FLOATS:
        raise refused(f"The type of {what} is not float32 or float64.", "Export the model in float32.")
    if not all(isinstance(size, int) and size >= 1 for size in sizes) or len(sizes) > MAX_DIMENSIONS:
        raise refused(f"The shape of {what} is not fixed.", "Export with one record and without dynamic shapes.")
    strides = [stride.get("as_int") for stride in meta["strides"]]
    contiguous = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
    loose = any(size > 1 and have != want for size, have, want in zip(sizes, strides, contiguous, strict=True))
    if loose or meta["storage_offset"].get("as_int") != 0:
        raise refused(f"The numbers of {what} do not lie in order.", "Make the parameters contiguous.")
    return tuple(sizes)


def _operator(node: Any) -> str:
    operator = target(node)
    if operator not in OPERATORS:
        raise forbidden(operator)
    return operator


def _node(node: Any, names: Mapping[str, str]) -> GraphNode:
    operator, arguments = _operator(node), list[GraphArgument]()
    for given in node["inputs"]:
        if given["name"] == "memory_format":
            # How numbers lie in memory; they are the same.
            continue
        ((tag, content),) = given["arg"].items()
        kind: str
        value: Any
        match tag:
            case "as_tensor":
                kind, value = "tensor", names[content["name"]]
            case "as_tensors":
                kind, value = "tensors", tuple(names[item["name"]] for item in content)
            case "as_int" if given["name"] == "end" and content >= _TO_THE_END:
                kind, value = "none", None
            case "as_ints":
                kind, value = "ints", tuple(content)
            case "as_int" | "as_float" | "as_bool":
                kind, value = tag.removeprefix("as_"), content
            case "as_string":
                kind, value = "text", content
            case "as_none":
                kind, value = "none", None
            case _:
                raise refused(f"Operator {operator}: an argument of a kind that is not taken.")
        arguments.append(GraphArgument.model_validate({"name": given["name"], "kind": kind, "value": value}))
    return GraphNode(operator=operator, arguments=tuple(arguments))
