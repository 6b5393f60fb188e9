"""A model that a researcher brings without code: a graph of listed operators, as data. Pure.

A graph is of one record: its input has a leading axis of 1, no size in it is symbolic, and whoever runs it runs it on
each record by itself, so that no operator can reach another patient's values. There is no loop, no branch and no
operator that writes in place or draws random numbers; a value is made before it is used.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from protocol.canonical import canonical, parse
from protocol.errors import CloisterError
from protocol.identifiers import Frozen

MAX_PARAMETERS = 50_000_000
MAX_NODES = 2000
MAX_DIMENSIONS = 8
MAX_DOCUMENT = 400_000
"""Bytes of a graph's canonical JSON, initial weights included: it travels in the plan that every site signs."""
LARGEST_WEIGHT = 1e4
_PACK = "Make it with `cloister model pack`."
DEFAULT_REMEDY = (
    "Export the model with torch.export.export(model.eval(), (one_record,)).run_decompositions({}), then call"
    " torch.export.save."
)

_KINDS: Mapping[str, str] = {"t": "tensor", "T": "tensors", "i": "int", "I": "ints", "f": "float", "b": "bool",
                             "n": "none", "s": "text"}  # fmt: skip
_OPERATORS = """
linear.default input:t weight:t bias:tn | addmm.default self:t mat1:t mat2:t | mm.default self:t mat2:t
matmul.default self:t other:t | bmm.default self:t mat2:t | t.default self:t
permute.default self:t dims:I | transpose.int self:t dim0:i dim1:i | contiguous.default self:t
expand.default self:t size:I | alias.default self:t | clone.default self:t | prelu.default self:t weight:t
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
instance_norm.default input:t weight:tn bias:tn running_mean:n running_var:n use_input_stats:b momentum:f eps:f \
cudnn_enabled:b
conv1d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
conv2d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
conv3d.default input:t weight:t bias:tn stride:I padding:I dilation:I groups:i
max_pool1d.default self:t kernel_size:I stride:I padding:I dilation:I ceil_mode:b
max_pool2d.default self:t kernel_size:I stride:I padding:I dilation:I ceil_mode:b
max_pool3d.default self:t kernel_size:I stride:I padding:I dilation:I ceil_mode:b
avg_pool1d.default self:t kernel_size:I stride:I padding:I ceil_mode:b count_include_pad:b
avg_pool2d.default self:t kernel_size:I stride:I padding:I ceil_mode:b count_include_pad:b
avg_pool3d.default self:t kernel_size:I stride:I padding:I ceil_mode:b count_include_pad:b
adaptive_avg_pool1d.default self:t output_size:I | adaptive_avg_pool2d.default self:t output_size:I
adaptive_avg_pool3d.default self:t output_size:I
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
TEXTS = frozenset({"none", "tanh"})
REMEDIES = {
    "batch_norm": "It normalises over patients, which couples them: use GroupNorm or LayerNorm.",
    "dropout": "It draws random numbers: leave it out, or export model.eval() and call .run_decompositions({}).",
    "arange": "Whole numbers may only look up rows of a table (torch.nn.Embedding), as the places of a series.",
    "embedding": "Categories come as columns of 0 and 1: multiply them with the table. Places may be looked up.",
    "_.": "It writes in place: give the layer inplace=False, or call .run_decompositions({}) before it is saved.",
}
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

    operator: Annotated[str, Field(pattern=r"^[a-z0-9_]+\.[A-Za-z0-9_]+$", max_length=80)]
    arguments: Annotated[tuple[GraphArgument, ...], Field(max_length=16)]


class ExportedGraph(Frozen):
    """A model as data. input: the shape of one record. parameters: shapes, in wire order. output: (1, J), what `loss`
    takes (see `privacy.local.outcome`).

    initial: the first weights, float32 little-endian in wire order, base64; left out, they are drawn as those of every
    other model are. They come from the researcher and are public: nothing that other patients taught is protected here.
    """

    architecture: Literal["exported_graph"] = "exported_graph"
    loss: Literal["logistic", "hazard", "squared"] = "logistic"
    input: Annotated[tuple[_Size, ...], Field(min_length=1, max_length=MAX_DIMENSIONS - 1)]
    parameters: Annotated[
        tuple[Annotated[tuple[_Size, ...], Field(max_length=MAX_DIMENSIONS)], ...],
        Field(min_length=1, max_length=MAX_NODES),
    ]
    nodes: Annotated[tuple[GraphNode, ...], Field(min_length=1, max_length=MAX_NODES)]
    output: _Value
    initial: Annotated[str, StringConstraints(max_length=MAX_DOCUMENT)] | None = None

    @property
    def parameter_count(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.parameters)

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each parameter in wire order. A vector that scales a normalisation is a weight, another
        vector a bias: that is what they begin as, 1 and 0."""
        scales = {
            argument.value
            for node in self.nodes
            if node.operator in ("layer_norm.default", "group_norm.default", "instance_norm.default")
            for argument in node.arguments
            if argument.name == "weight"
        }
        return [
            (f"parameters.{place}.{'weight' if len(shape) > 1 or f'p{place}' in scales else 'bias'}", shape)
            for place, shape in enumerate(self.parameters)
        ]


def read_graph(data: bytes) -> ExportedGraph:
    """The graph in a packed file's JSON. Raises ExportRefused for anything else, Malformed for no JSON; the operators
    are checked by `protocol.graph_shapes.measure`."""
    document = parse(data, limit=2 * MAX_DOCUMENT)
    try:
        return ExportedGraph.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refused(f"The file is no packed graph: {where or 'document'}: {first['msg']}.", _PACK) from None


def initial_values(graph: ExportedGraph) -> list[float] | None:
    """The researcher's first weights, or None. Raises ExportRefused unless they are as many numbers as the graph has
    parameters, none of them beyond LARGEST_WEIGHT."""
    if graph.initial is None:
        return None
    values = array("f")
    try:
        values.frombytes(base64.b64decode(graph.initial, validate=True))
    except (binascii.Error, ValueError):
        raise refused("The initial weights are no base64 of float32 numbers.", _PACK) from None
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != graph.parameter_count or not all(abs(value) <= LARGEST_WEIGHT for value in values):
        raise refused(
            f"The initial weights are not {graph.parameter_count} numbers of at most {LARGEST_WEIGHT:g}.", _PACK
        )
    return values.tolist()


def with_initial(graph: ExportedGraph, weights: bytes) -> ExportedGraph:
    """The graph with first weights: float64 little-endian in wire order, kept in single precision. Raises ExportRefused
    for other bytes, and where the plan could not carry them."""
    if 4 * len(weights) // 6 > MAX_DOCUMENT:
        raise refused(
            f"The weights of {graph.parameter_count} parameters are too long for a plan.",
            "Leave --keep-weights out: the first weights are drawn then.",
        )
    wide = array("d")
    wide.frombytes(weights)
    if sys.byteorder == "big":
        wide.byteswap()
    single = array("f", wide)
    if sys.byteorder == "big":
        single.byteswap()
    brought = graph.model_copy(update={"initial": base64.b64encode(single.tobytes()).decode()})
    initial_values(brought)
    return brought


def check_operators(graph: ExportedGraph) -> None:
    """Every operator and argument on the list, every value made before it is used, no more than 50 million parameters,
    a document of at most 400 kB. Raises ExportRefused."""
    if graph.parameter_count > MAX_PARAMETERS:
        raise refused(
            f"The model has {graph.parameter_count} parameters; at most {MAX_PARAMETERS} are taken.",
            "Export a smaller model.",
        )
    known = {"x", *(f"p{place}" for place in range(len(graph.parameters)))}
    for place, node in enumerate(graph.nodes):
        allowed = OPERATORS.get(node.operator)
        if allowed is None:
            raise forbidden(node.operator)
        names = [argument.name for argument in node.arguments]
        if len(set(names)) != len(names):
            raise refused(f"Operator {node.operator} is given an argument twice.")
        for argument in node.arguments:
            if argument.kind not in allowed.get(argument.name, ()) or not _fits(argument, known):
                raise refused(f"Operator {node.operator}: the argument {argument.name} is not one that it may have.")
        known.add(f"n{place}")
    if graph.output not in known or not graph.output.startswith("n"):
        raise refused("The graph's output is not one of its own values.")
    initial_values(graph)
    if (size := len(canonical(graph.model_dump(mode="json")))) > MAX_DOCUMENT:
        raise refused(
            f"The graph is {size} bytes long; a plan carries at most {MAX_DOCUMENT}.",
            "Leave the initial weights out, or export a model of fewer operators.",
        )


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
            return value in TEXTS
        case "none":
            return value is None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


def forbidden(operator: str) -> ExportRefused:
    """The refusal of an operator that is not on the list, with what to use instead."""
    shown = operator if len(operator) <= 80 and operator.isprintable() else "of another kind"
    remedy = next((text for part, text in REMEDIES.items() if part in operator), None)
    return refused(
        f"The graph holds the operator {shown}, which is not on the list.",
        remedy or f"Use these: {', '.join(sorted(OPERATORS))}.",
    )


def refused(message: str, remedy: str = DEFAULT_REMEDY) -> ExportRefused:
    """A refusal with its remedy."""
    return ExportRefused(message, remedy)
