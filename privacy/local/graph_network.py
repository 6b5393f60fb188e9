"""A researcher's graph, run by this program's own table of operators: nothing is compiled, imported or generated.

The graph is interpreted node by node on one record at a time: gradients through torch.func.vmap over grad, scores
through torch.vmap. Whatever its operators do, no record's output or gradient depends on another patient's: vmap hands
the graph one record, and there is no axis of patients within it that an operator could reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.local.outcome import Loss, TorchOutcome
from privacy.local.torch_model import TorchModel


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


_NAMES = """
linear.default addmm.default mm.default matmul.default bmm.default t.default permute.default transpose.int
contiguous.default reshape.default flatten.using_ints unflatten.int unsqueeze.default squeeze.dim select.int
slice.Tensor cat.default add.Tensor sub.Tensor mul.Tensor div.Tensor mean.dim sum.dim_IntList relu.default tanh.default
sigmoid.default silu.default exp.default gelu.default elu.default leaky_relu.default softmax.int log_softmax.int
layer_norm.default group_norm.default conv1d.default conv2d.default conv3d.default max_pool1d.default max_pool2d.default
avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
"""
OPERATORS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(getattr(torch.ops.aten, name.partition(".")[0]), name.partition(".")[2])
        for name in _NAMES.split()
    },
    # A view of what does not lie in order fails in torch; the numbers are the same.
    "view.default": lambda self, size: self.reshape(size),
    "scaled_dot_product_attention.default": _attention,
}


class GraphNetwork(nn.Module):
    """The graph as a torch module (float32) over (1, *input) -> (1, J). Parameters p0, p1 ... in wire order (0).

    The graph must have been checked before (`protocol.graph_shapes.measure`); an operator that is not in the table
    raises ParameterError here all the same.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        unknown = [node.operator for node in graph.nodes if node.operator not in OPERATORS]
        if unknown:
            raise ParameterError(f"The graph holds {len(unknown)} operators that are not listed.", "Check the graph.")
        self._graph = graph
        for place, shape in enumerate(graph.parameters):
            self.register_parameter(f"p{place}", nn.Parameter(torch.zeros(tuple(shape))))

    def forward(self, x: Tensor) -> Tensor:
        """One record, (1, *input) -> (1, J)."""
        values: dict[str, Tensor] = dict(self.named_parameters())
        values["x"] = x
        for place, node in enumerate(self._graph.nodes):
            arguments = {argument.name: _value(argument, values) for argument in node.arguments}
            values[f"n{place}"] = OPERATORS[node.operator](**arguments)
        return values[self._graph.output]


def _value(argument: Argument, values: dict[str, Tensor]) -> Any:
    if argument.kind == "tensor":
        return values[argument.value]
    if argument.kind == "tensors":
        return [values[name] for name in argument.value]
    return list(argument.value) if isinstance(argument.value, tuple) else argument.value


def graph_outputs(graph: Graph, parameters: Float64, records: Float64) -> Float64:
    """(N, *input) encoded records -> (N, J) outputs, each record by itself. parameters: (P,) in wire order."""
    module, start = GraphNetwork(graph), 0
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.from_numpy(np.array(parameters[start : start + parameter.numel()]))
            parameter.copy_(values.reshape(parameter.shape))
            start += parameter.numel()
        found = [module(record.unsqueeze(0)) for record in torch.from_numpy(records.astype(np.float32))]
        return torch.cat(found).double().numpy()


def graph_model(graph: Graph, loss: Loss, outputs: int) -> TorchModel:
    """A checked graph with `outputs` outputs as a LocalModel, each record by itself."""
    outcome = TorchOutcome(loss, outputs)
    return TorchModel(lambda: GraphNetwork(graph), outcome.loss, outcome.score, engine="vmap", **outcome.arguments())
