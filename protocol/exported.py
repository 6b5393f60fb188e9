"""A model that a researcher brings without code: the graph of a torch.export file (.pt2), read as data.

A .pt2 file is a zip archive. Its graph is JSON, its weights are raw numbers, and its sample inputs are a pickle. The
pickle is never opened; weights that are pickled are refused; so is whatever is not on the list below. What is kept of
the graph is its operators, their arguments and the tensors' shapes: no name, path or stack trace of the researcher's.

The model is exported with one record, so no size in it is symbolic and no operator can reach another record: a site
runs it on each record by itself. Pure.
"""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import zipfile
from array import array
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from protocol.errors import CloisterError
from protocol.identifiers import Frozen
from protocol.model import MAX_PARAMETERS

MAX_NODES = 2000
MAX_GRAPH_BYTES = 8 << 20
MAX_FILES = 10_000
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 24
"""Numbers in the input, and in any one intermediate value of one record (the site checks the latter)."""

_KINDS: Mapping[str, str] = {"t": "tensor", "T": "tensors", "i": "int", "I": "ints", "f": "float", "b": "bool",
                             "n": "none", "s": "text"}  # fmt: skip
_OPERATORS = """
linear.default input:t weight:t bias:tn | addmm.default self:t mat1:t mat2:t | mm.default self:t mat2:t
matmul.default self:t other:t | bmm.default self:t mat2:t | t.default self:t
permute.default self:t dims:I | transpose.int self:t dim0:i dim1:i | contiguous.default self:t
view.default self:t size:I | reshape.default self:t shape:I | flatten.using_ints self:t start_dim:i end_dim:i
unflatten.int self:t dim:i sizes:I | unsqueeze.default self:t dim:i | squeeze.dim self:t dim:i
select.int self:t dim:i index:i | slice.Tensor self:t dim:i start:in end:in step:i | cat.default tensors:T dim:i
add.Tensor self:t other:tif alpha:if | sub.Tensor self:t other:tif alpha:if | mul.Tensor self:t other:tif
div.Tensor self:t other:tif | mean.dim self:t dim:I keepdim:b | sum.dim_IntList self:t dim:I keepdim:b
relu.default self:t | tanh.default self:t | sigmoid.default self:t | silu.default self:t | exp.default self:t
gelu.default self:t approximate:s | elu.default self:t alpha:if | leaky_relu.default self:t negative_slope:if
softmax.int self:t dim:i | log_softmax.int self:t dim:i
layer_norm.default input:t normalized_shape:I weight:tn bias:tn eps:f cudnn_enable:b
group_norm.default input:t num_groups:i weight:tn bias:tn eps:f cudnn_enabled:b
conv1d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
conv2d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
conv3d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
max_pool1d.default self:t kernel_size:I stride:I padding:I dilation:I ceil_mode:b
max_pool2d.default self:t kernel_size:I stride:I padding:I dilation:I ceil_mode:b
avg_pool1d.default self:t kernel_size:I stride:I padding:I ceil_mode:b count_include_pad:b
avg_pool2d.default self:t kernel_size:I stride:I padding:I ceil_mode:b count_include_pad:b
adaptive_avg_pool1d.default self:t output_size:I | adaptive_avg_pool2d.default self:t output_size:I
scaled_dot_product_attention.default query:t key:t value:t attn_mask:n dropout_p:f is_causal:b scale:fn
"""


def _listed(text: str) -> dict[str, dict[str, frozenset[str]]]:
    found: dict[str, dict[str, frozenset[str]]] = {}
    for entry in text.replace("|", "\n").strip().splitlines():
        operator, *arguments = entry.split()
        pairs = (argument.split(":") for argument in arguments)
        found[operator] = {name: frozenset(_KINDS[kind] for kind in kinds) for name, kinds in pairs}
    return found


OPERATORS: Mapping[str, Mapping[str, frozenset[str]]] = _listed(_OPERATORS)
"""ATen operators that a graph may hold -> each argument and the kinds of value that it may have."""
_TEXTS = frozenset({"none", "tanh"})
_REMEDIES = {
    "batch_norm": "It normalises over patients, which couples them: use GroupNorm or LayerNorm.",
    "dropout": "It draws random numbers: leave dropout out, or export after model.eval() without it.",
    "relu_": "Give the layer inplace=False and export again.",
}
_FLOATS = {7: ("f", 4), 8: ("d", 8)}
_DEFAULT_REMEDY = "Export the model with torch.export.export(model.eval(), (one_record,)) and torch.export.save."
_Size = Annotated[int, Field(ge=1, le=MAX_PARAMETERS)]
_Value = Annotated[str, Field(pattern=r"^[pn][0-9]{1,5}$|^x$")]


class ExportRefused(CloisterError):
    """The file is no exported model that a site would train."""

    code = "export-refused"


class GraphArgument(Frozen):
    """One argument: `value` is of the `kind`; a tensor is named p0, p1 ... (parameters), x (input) or n0, n1 ..."""

    name: Annotated[str, Field(pattern=r"^[a-z_0-9]{1,40}$")]
    kind: Literal["tensor", "tensors", "int", "ints", "float", "bool", "none", "text"]
    value: bool | int | float | str | tuple[int, ...] | tuple[str, ...] | None


class GraphNode(Frozen):
    """The value n<place> = operator(arguments)."""

    operator: Annotated[str, Field(pattern=r"^[a-z0-9_]+\.[A-Za-z0-9_]+$")]
    arguments: tuple[GraphArgument, ...]


class ExportedGraph(Frozen):
    """A model as data. input: the shape of one record. parameters: shapes, in wire order. output: the one logit."""

    architecture: Literal["exported_graph"] = "exported_graph"
    input: Annotated[tuple[_Size, ...], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    parameters: Annotated[tuple[tuple[_Size, ...], ...], Field(min_length=1, max_length=MAX_NODES)]
    nodes: Annotated[tuple[GraphNode, ...], Field(min_length=1, max_length=MAX_NODES)]
    output: _Value

    @property
    def parameter_count(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.parameters)


def read_exported(data: bytes) -> tuple[ExportedGraph, bytes]:
    """(graph, its weights as one float64 little-endian vector in the order of `parameters`) of a .pt2 file.

    Raises ExportRefused for anything else, naming operator, argument or size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Reader(archive).read()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, struct.error) as error:
        raise _refused(f"The file is no whole .pt2 archive ({type(error).__name__}).") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise _refused(f"The file's description of the model has another form ({type(error).__name__}).") from None


def check_graph(graph: ExportedGraph) -> None:
    """What a site checks of a graph that comes in a plan: every operator and argument on the list, every value made
    before it is used, no more than 50 million parameters. Raises ExportRefused."""
    if graph.parameter_count > MAX_PARAMETERS or math.prod(graph.input) > MAX_ELEMENTS:
        raise _refused(
            f"The model has {graph.parameter_count} parameters and {math.prod(graph.input)} inputs; at most "
            f"{MAX_PARAMETERS} and {MAX_ELEMENTS} are taken.", "Export a smaller model.",
        )  # fmt: skip
    known = {"x", *(f"p{place}" for place in range(len(graph.parameters)))}
    for place, node in enumerate(graph.nodes):
        allowed = OPERATORS.get(node.operator)
        if allowed is None:
            raise _forbidden(node.operator)
        names = [argument.name for argument in node.arguments]
        if len(set(names)) != len(names):
            raise _refused(f"Operator {node.operator} is given an argument twice.")
        for argument in node.arguments:
            if argument.kind not in allowed.get(argument.name, ()) or not _fits(argument, known):
                raise _refused(f"Operator {node.operator}: the argument {argument.name} is not one that it may have.")
        known.add(f"n{place}")
    if graph.output not in known or not graph.output.startswith("n"):
        raise _refused("The graph's output is not one of its own values.")


def _fits(argument: GraphArgument, known: set[str]) -> bool:
    value = argument.value
    match argument.kind:
        case "tensor":
            return isinstance(value, str) and value in known
        case "tensors":
            return isinstance(value, tuple) and 0 < len(value) <= 64 and all(item in known for item in value)
        case "ints":
            return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_size, value))
        case "int":
            return _is_size(value)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "bool":
            return isinstance(value, bool)
        case "text":
            return value in _TEXTS
        case "none":
            return value is None


def _is_size(value: object) -> bool:
    # A slice to the end is written with the largest 64-bit number.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


class _Reader:
    """One archive, checked before any of it is unpacked."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        infos = archive.infolist()
        if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > 8 * MAX_PARAMETERS + 2 * MAX_GRAPH_BYTES:
            raise _refused("The file unpacks to more than any model that is taken.", "Export a smaller model.")
        self._members = {info.filename.partition("/")[2]: info for info in infos}
        if len(self._members) != len(infos):
            raise _refused("The file holds one name twice.")

    def read(self) -> tuple[ExportedGraph, bytes]:
        model = self._json("models/model.json")["graph_module"]
        weights = self._json("data/weights/model_weights_config.json")["config"]
        if self._json("data/constants/model_constants_config.json")["config"]:
            raise _refused("The model holds constants.", "Make them parameters, or plain numbers in its code.")
        inside, signature = model["graph"], model["signature"]
        parameters, names = self._inputs(signature)
        shapes = tuple(_shape(weights[name]["tensor_meta"], f"parameter {place}") for place, name in
                       enumerate(parameters))  # fmt: skip
        if sum(math.prod(shape) for shape in shapes) > MAX_PARAMETERS:
            raise _refused(f"The model has more than {MAX_PARAMETERS} parameters.", "Export a smaller model.")
        given = next(name for name, own in names.items() if own == "x")
        record = _shape(inside["tensor_values"][given], "the input")
        if len(record) < 2 or record[0] != 1:
            raise _refused("The model was not exported with exactly one record.", _DEFAULT_REMEDY)
        if len(inside["nodes"]) > MAX_NODES:
            raise _refused(f"The graph has more than {MAX_NODES} nodes.", "Export a smaller model.")
        nodes = []
        for node in inside["nodes"]:
            nodes.append(_node(node, names))
            (output,) = node["outputs"]
            names[output["as_tensor"]["name"]] = f"n{len(nodes) - 1}"
        graph = ExportedGraph(
            input=record[1:], parameters=shapes, nodes=tuple(nodes), output=self._output(signature, names)
        )
        check_graph(graph)
        paths = [weights[name]["path_name"] for name in parameters]
        if len(set(paths)) != len(paths):
            raise _refused("Two parameters share their numbers.", "Give each its own.")
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
                raise _refused(
                    f"The graph takes a {str(kind)[:40]}; a model takes one tensor and has parameters.",
                    "Leave buffers and constants out: batch normalisation has some and is refused anyway.",
                )
        if inputs != 1:
            raise _refused(f"The graph takes {inputs} tensors, not one.", _DEFAULT_REMEDY)
        return parameters, names

    def _output(self, signature: Any, names: Mapping[str, str]) -> str:
        (spec,) = signature["output_specs"]
        if set(spec) != {"user_output"}:
            raise _refused("The graph changes one of its inputs or buffers.", "Let it return one tensor alone.")
        return names[spec["user_output"]["arg"]["as_tensor"]["name"]]

    def _json(self, name: str) -> Any:
        info = self._members[name]
        if info.file_size > MAX_GRAPH_BYTES:
            raise _refused(f"The graph's description is over {MAX_GRAPH_BYTES} bytes.", "Export a smaller model.")
        return json.loads(self._archive.read(info))

    def _weights(self, entry: Any, count: int) -> bytes:
        if entry["use_pickle"] is not False:
            raise _refused("The model's weights are pickled, which could run code.", _DEFAULT_REMEDY)
        code, size = _FLOATS[entry["tensor_meta"]["dtype"]]
        info = self._members[f"data/weights/{entry['path_name']}"]
        if info.file_size != count * size:
            raise _refused("A parameter's file has another length than its shape.")
        values = array(code)
        values.frombytes(self._archive.read(info))
        wide = array("d", values)
        if not all(map(math.isfinite, wide)):
            raise _refused("A parameter is not a finite number.", "Initialise the model before it is exported.")
        if sys.byteorder == "big":
            wide.byteswap()
        return wide.tobytes()


def _shape(meta: Any, what: str) -> tuple[int, ...]:
    sizes = [size.get("as_int") for size in meta["sizes"]]
    if meta["dtype"] not in _FLOATS:
        raise _refused(f"The type of {what} is not float32 or float64.", "Export the model in float32.")
    if not all(isinstance(size, int) and size >= 1 for size in sizes) or len(sizes) > MAX_DIMENSIONS:
        raise _refused(f"The shape of {what} is not fixed.", "Export with one record and without dynamic shapes.")
    strides = [stride.get("as_int") for stride in meta["strides"]]
    contiguous = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
    loose = any(size > 1 and have != want for size, have, want in zip(sizes, strides, contiguous, strict=True))
    if loose or meta["storage_offset"].get("as_int") != 0:
        raise _refused(f"The numbers of {what} do not lie in order.", "Make the parameters contiguous.")
    return tuple(sizes)


def _node(node: Any, names: Mapping[str, str]) -> GraphNode:
    operator = str(node["target"]).removeprefix("torch.ops.aten.")
    if operator not in OPERATORS:
        raise _forbidden(operator)
    arguments = []
    for given in node["inputs"]:
        ((tag, content),) = given["arg"].items()
        kind: str
        value: Any
        match tag:
            case "as_tensor":
                kind, value = "tensor", names[content["name"]]
            case "as_tensors":
                kind, value = "tensors", tuple(names[item["name"]] for item in content)
            case "as_ints":
                kind, value = "ints", tuple(content)
            case "as_int" | "as_float" | "as_bool":
                kind, value = tag.removeprefix("as_"), content
            case "as_string":
                kind, value = "text", content
            case "as_none":
                kind, value = "none", None
            case _:
                raise _refused(f"Operator {operator}: an argument of a kind that is not taken.")
        arguments.append(GraphArgument.model_validate({"name": given["name"], "kind": kind, "value": value}))
    return GraphNode(operator=operator, arguments=tuple(arguments))


def _forbidden(operator: str) -> ExportRefused:
    shown = operator if len(operator) <= 80 and operator.isprintable() else "of another kind"
    remedy = next((text for part, text in _REMEDIES.items() if part in operator), None)
    return _refused(f"The graph holds the operator {shown}, which is not on the list.", remedy or
                    f"Use these: {', '.join(sorted(OPERATORS))}.")  # fmt: skip


def _refused(message: str, remedy: str = _DEFAULT_REMEDY) -> ExportRefused:
    return ExportRefused(message, remedy)
