"""A researcher's graph, run by this program's own table of operators: nothing is compiled, imported or generated.

The graph is interpreted node by node on one record at a time (torch.func.vmap over the gradient), so whatever its
operators do, no record's output depends on another patient's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privacy.dpsgd.module_gradients import module_gradients
from privacy.dpsgd.per_patient import Index
from privacy.entropy import Float64
from protocol.exported import MAX_ELEMENTS, OPERATORS, ExportedGraph, ExportRefused, GraphArgument, check_graph


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


_TABLE: dict[str, Callable[..., Any]] = {
    **{name: getattr(getattr(torch.ops.aten, name.partition(".")[0]), name.partition(".")[2]) for name in OPERATORS},
    "scaled_dot_product_attention.default": _attention,
}


class ExportedNetwork(nn.Module):
    """The graph as a torch module (float64) over (1, *input) -> (1, 1). Parameters p0, p1 ... in wire order.

    Raises ExportRefused for a graph that is not on the list, does not fit together, has an intermediate value of more
    than 2^24 numbers, or another output than one logit, and for a vector of another length. Nothing is allocated before
    that is known.
    """

    def __init__(self, graph: ExportedGraph, parameters: Float64) -> None:
        super().__init__()
        check_graph(graph)
        if parameters.shape != (graph.parameter_count,) or not bool(np.isfinite(parameters).all()):
            raise ExportRefused(
                f"The model's vector is not {graph.parameter_count} finite numbers.", "Send the graph's own."
            )
        self._graph = graph
        _try_shapes(graph)
        start = 0
        for place, shape in enumerate(graph.parameters):
            size = math.prod(shape)
            values = torch.from_numpy(parameters[start : start + size].copy()).reshape(shape)
            self.register_parameter(f"p{place}", nn.Parameter(values))
            start += size

    def forward(self, x: Tensor) -> Tensor:
        """One record, (1, *input) -> (1, 1)."""
        return _run(self._graph, dict(self.named_parameters()), x)[self._graph.output]


def _run(
    graph: ExportedGraph, parameters: dict[str, Tensor], x: Tensor, seen: Callable[[Tensor], None] = lambda _value: None
) -> dict[str, Tensor]:
    values = {**parameters, "x": x}
    for place, node in enumerate(graph.nodes):
        arguments = {argument.name: _value(argument, values) for argument in node.arguments}
        value = _TABLE[node.operator](**arguments)
        seen(value)
        values[f"n{place}"] = value
    return values


def _value(argument: GraphArgument, values: dict[str, Tensor]) -> Any:
    if argument.kind == "tensor":
        return values[str(argument.value)]
    if argument.kind == "tensors":
        assert isinstance(argument.value, tuple)
        return [values[str(name)] for name in argument.value]
    return list(argument.value) if isinstance(argument.value, tuple) else argument.value


def _try_shapes(graph: ExportedGraph) -> None:
    """Run the graph on shapes alone: torch's meta device holds no numbers."""

    def bounded(value: Any) -> None:
        if not isinstance(value, Tensor) or value.numel() > MAX_ELEMENTS:
            raise ExportRefused(
                f"The graph makes a value of more than {MAX_ELEMENTS} numbers of one record.", "Use a smaller model."
            )

    parameters = {
        f"p{place}": torch.empty(shape, dtype=torch.float64, device="meta")
        for place, shape in enumerate(graph.parameters)
    }
    record = torch.empty((1, *graph.input), dtype=torch.float64, device="meta")
    try:
        output = _run(graph, parameters, record, bounded)[graph.output]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise ExportRefused(
            f"The graph's operators do not fit together ({type(error).__name__}).", "Export the model again."
        ) from None
    if tuple(output.shape) != (1, 1):
        raise ExportRefused(
            f"The graph's output has the shape {tuple(output.shape)}, not (1, 1).", "Let the model return one logit."
        )


def exported_gradients(
    graph: ExportedGraph, parameters: Float64, x: Float64, y: Float64, patients: Index, count: int, device: str = "cpu"
) -> Float64:
    """(count, parameters) float64: each patient's mean over its records of the log-loss's gradient.

    x: (R, *input). y: (R,) of 0 and 1. patients: (R,) in 0..count-1. Raises ExportRefused, ParameterError.
    """
    module = ExportedNetwork(graph, parameters)
    if count == 0:
        return np.zeros((0, parameters.size))

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(output[:, 0], label)

    records, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    return module_gradients(module.to(device), loss, records, labels, patients, count)
