"""What a graph costs for one record: shapes, numbers held, multiplications. Nothing is computed, so that a graph of any
size is refused for a few kilobytes of arithmetic. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocol.graph import ExportedGraph, ExportRefused, GraphNode, check_operators, refused
from protocol.operator_call import Call, Shape, Unfit
from protocol.operator_shapes import RULES, attention_scores

MAX_ELEMENTS = 1 << 25
"""Numbers that one record's values may hold together: 128 MiB of float32."""
MAX_MULTIPLICATIONS = 1 << 35
"""Of one record's forward pass; a ResNet-50 at 224 pixels has 2^32."""


@dataclass(frozen=True)
class GraphCost:
    """values: the shape of each of the graph's values, n0, n1 ..., leading axis of 1 included. elements: numbers in all
    of them together. multiplications: of one record's forward pass. outputs: J of the output (1, J)."""

    values: tuple[Shape, ...]
    elements: int
    multiplications: int
    outputs: int


def measure(graph: ExportedGraph) -> GraphCost:
    """The cost of a graph, whose every operator is checked first. Raises ExportRefused naming the node for operators
    that do not fit together, values or multiplications over the caps, and an output that is not (1, J)."""
    check_operators(graph)
    shapes: dict[str, Shape] = {f"p{place}": shape for place, shape in enumerate(graph.parameters)}
    shapes["x"] = (1, *graph.input)
    elements, work, values = math.prod(graph.input), 0, list[Shape]()
    for place, node in enumerate(graph.nodes):
        try:
            call = Call.of(node, shapes)
            shape, cost = RULES[node.operator](call)
            held = attention_scores(call) if node.operator == "scaled_dot_product_attention.default" else 0
        except Unfit as error:
            raise _misfit(place, node, str(error)) from None
        if len(shape) > 8 or any(size < 1 for size in shape):
            raise _misfit(place, node, "its value would be empty or have more than 8 axes")
        elements, work = elements + math.prod(shape) + held, work + cost
        if elements > MAX_ELEMENTS:
            raise _misfit(place, node, f"one record's values hold more than {MAX_ELEMENTS} numbers")
        if work > MAX_MULTIPLICATIONS:
            raise _misfit(place, node, f"one record takes more than {MAX_MULTIPLICATIONS} multiplications")
        shapes[f"n{place}"] = shape
        values.append(shape)
    output = shapes[graph.output]
    if len(output) != 2 or output[0] != 1:
        raise refused(f"The graph's output has the shape {output}, not (1, J).", "Let the model return one row.")
    return GraphCost(tuple(values), elements, work, output[1])


def _misfit(place: int, node: GraphNode, why: str) -> ExportRefused:
    return refused(f"Operator {place} of the graph ({node.operator}): {why}.", "Export a smaller or simpler model.")
