"""A researcher's graph, run by this program's own table of operators: nothing is compiled, imported or generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from privacy.errors import ParameterError

Shape = tuple[int, ...]


class Argument(Protocol):
    """One argument of a node: a tensor's name, several of them, a number, or a word."""

    @property
    def name(self) -> str:
        """The operator's own name for it."""

    @property
    def kind(self) -> str:
        """tensor, tensors, int, ints, float, bool, none or text."""

    @property
    def value(self) -> Any:
        """Of the kind."""


class Node(Protocol):
    """The value n<place> = operator(arguments)."""

    @property
    def operator(self) -> str:
        """An operator of OPERATORS."""

    @property
    def arguments(self) -> Sequence[Argument]:
        """What it takes."""


class Graph(Protocol):
    """A graph of one record: tensors are named p0, p1 ... (parameters), x (the input) or n0, n1 ... (nodes)."""

    @property
    def input(self) -> Sequence[int]:
        """Shape of one record."""

    @property
    def parameters(self) -> Sequence[Sequence[int]]:
        """Their shapes, in wire order."""

    @property
    def nodes(self) -> Sequence[Node]:
        """In the order in which they run."""

    @property
    def output(self) -> str:
        """The name of the output."""


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(Q K' scale) V, written out: torch's fused kernels have no rule for gradients of single records."""
    if attn_mask is not None or dropout_p != 0.0:
        raise ValueError("attention takes no mask and no dropout")
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return torch.softmax(scores, dim=-1) @ value


def _instance_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: None = None,
    running_var: None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Tensor:
    """torch's own, with the arguments that torch has no defaults for."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise ValueError("a record is normalised by its own values")
    found: Tensor = torch.ops.aten.instance_norm.default(input, weight, bias, None, None, True, 0.0, eps, False)
    return found


_NAMES = """
linear.default addmm.default mm.default matmul.default bmm.default t.default permute.default transpose.int
contiguous.default expand.default alias.default reshape.default flatten.using_ints unflatten.int unsqueeze.default
squeeze.dim select.int slice.Tensor cat.default add.Tensor sub.Tensor mul.Tensor div.Tensor mean.dim sum.dim_IntList
relu.default tanh.default sigmoid.default silu.default exp.default gelu.default elu.default leaky_relu.default
softmax.int log_softmax.int layer_norm.default group_norm.default conv1d.default conv2d.default conv3d.default
max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default
adaptive_avg_pool2d.default clone.default prelu.default max_pool3d.default avg_pool3d.default
adaptive_avg_pool3d.default
"""
OPERATORS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(getattr(torch.ops.aten, name.partition(".")[0]), name.partition(".")[2])
        for name in _NAMES.split()
    },
    # A view of what does not lie in order fails in torch; the numbers are the same.
    "view.default": lambda self, size: self.reshape(size),
    "instance_norm.default": _instance_norm,
    "scaled_dot_product_attention.default": _attention,
}


def tensors_of(node: Node) -> tuple[str, ...]:
    """The names of the tensors that a node takes, in their order, one as often as it stands there."""
    found: list[str] = []
    for argument in node.arguments:
        if argument.kind == "tensor":
            found.append(argument.value)
        elif argument.kind == "tensors":
            found.extend(argument.value)
    return tuple(found)


def plain_arguments(node: Node) -> dict[str, Any]:
    """A node's arguments that are no tensors: numbers, lists of them, words, None."""
    return {
        argument.name: list(argument.value) if isinstance(argument.value, tuple) else argument.value
        for argument in node.arguments
        if argument.kind not in ("tensor", "tensors")
    }


def run_node(node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """The node's value for one record, from the values by their names."""
    arguments = plain_arguments(node)
    for argument in node.arguments:
        if argument.kind == "tensor":
            arguments[argument.name] = values[argument.value]
        elif argument.kind == "tensors":
            arguments[argument.name] = [values[name] for name in argument.value]
    found: Tensor = OPERATORS[node.operator](**arguments)
    return found


def require_listed(graph: Graph) -> None:
    """Raises ParameterError for an operator that is not in the table."""
    unknown = [node.operator for node in graph.nodes if node.operator not in OPERATORS]
    if unknown:
        raise ParameterError(f"The graph holds {len(unknown)} operators that are not listed.", "Check the graph.")


def shapes_of(graph: Graph) -> dict[str, Shape]:
    """The shape of each tensor of one record by its name, found by torch's own rules without computing anything."""
    values = {
        name: torch.empty(shape, device="meta")
        for name, shape in {
            "x": (1, *graph.input),
            **{f"p{place}": tuple(shape) for place, shape in enumerate(graph.parameters)},
        }.items()
    }
    for place, node in enumerate(graph.nodes):
        values[f"n{place}"] = run_node(node, values)
    return {name: tuple(value.shape) for name, value in values.items()}
