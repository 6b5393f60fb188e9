"""A graph's operators on many records at once.

A graph is of one record. Here each of its values has a further axis, the first, along which the records lie, and every
operator is written so that it can't reach that axis: a place among the axes is moved up by one, a shape gets the number
of records in front. What has no rule of its own runs under torch.vmap, which keeps the axis out of reach as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from privacy.local.graph_operators import OPERATORS, Node, Shape, plain_arguments, run_node, tensors_of

Run = Callable[[Mapping[str, Tensor]], Tensor]
"""Tensors by the graph's names, records first -> the node's value, records first."""


@dataclass(frozen=True)
class _Call:
    """A node with its arguments by their kinds. names: argument -> the tensor's name. shapes: argument -> shape of one
    record's. result: shape of one record's value."""

    node: Node
    plain: dict[str, Any]
    names: dict[str, str]
    shapes: dict[str, Shape]
    result: Shape

    def axis(self, name: str, axes: int, default: int = 0) -> int:
        """An axis of one record's tensor as that of many."""
        return int(self.plain.get(name, default)) % axes + 1


def batched(node: Node, shapes: Mapping[str, Shape], result: Shape) -> Run:
    """What computes the node for many records; all its tensors must have the records first. shapes: of one record's
    tensors by name. result: of one record's value."""
    names = {argument.name: argument.value for argument in node.arguments if argument.kind == "tensor"}
    own = {argument: shapes[name] for argument, name in names.items()}
    rule = _RULES.get(node.operator)
    run = None if rule is None else rule(_Call(node, plain_arguments(node), names, own, result))
    return run or _mapped(node)


def _mapped(node: Node) -> Run:
    names = tuple(dict.fromkeys(tensors_of(node)))

    def run(values: Mapping[str, Tensor]) -> Tensor:
        one = torch.vmap(lambda *tensors: run_node(node, dict(zip(names, tensors, strict=True))))
        found: Tensor = one(*(values[name] for name in names))
        return found

    return run


_Rule = Callable[[_Call], Run | None]


def _on_self(compute: Callable[[Tensor], Tensor], name: str) -> Run:
    return lambda values: compute(values[name])


def _elementwise(call: _Call) -> Run | None:
    return _on_self(partial(OPERATORS[call.node.operator], **call.plain), call.names["self"])


def _reshaped(call: _Call) -> Run | None:
    shape = call.result
    return _on_self(lambda x: x.reshape(x.shape[0], *shape), call.names["self"])


def _expanded(call: _Call) -> Run | None:
    shape, more = call.result, len(call.result) - len(call.shapes["self"])
    return _on_self(lambda x: _lined_up(x, more).expand(x.shape[0], *shape), call.names["self"])


def _transposed(call: _Call) -> Run | None:
    first, last = (1, 2) if len(call.shapes["self"]) == 2 else (1, 1)
    return _on_self(lambda x: x.transpose(first, last), call.names["self"])


def _permuted(call: _Call) -> Run | None:
    axes = len(call.shapes["self"])
    order = [0, *(place % axes + 1 for place in call.plain["dims"])]
    return _on_self(lambda x: x.permute(order), call.names["self"])


def _exchanged(call: _Call) -> Run | None:
    first, second = (call.axis(name, len(call.shapes["self"])) for name in ("dim0", "dim1"))
    return _on_self(lambda x: x.transpose(first, second), call.names["self"])


def _along_axis(call: _Call) -> Run | None:
    """select, slice, softmax: one axis is named."""
    plain = {**call.plain, "dim": call.axis("dim", len(call.shapes["self"]))}
    return _on_self(partial(OPERATORS[call.node.operator], **plain), call.names["self"])


def _reduced(call: _Call) -> Run | None:
    axes = len(call.shapes["self"])
    # torch takes no axis for all of them: the records' must not be among these.
    places = [place % axes + 1 for place in call.plain["dim"] or range(axes)]
    plain = {**call.plain, "dim": places}
    return _on_self(partial(OPERATORS[call.node.operator], **plain), call.names["self"])


def _joined(call: _Call) -> Run | None:
    names = tensors_of(call.node)
    place = call.axis("dim", len(call.result))
    return lambda values: torch.cat([values[name] for name in names], dim=place)


def _lined_up(tensor: Tensor, missing: int) -> Tensor:
    """Further axes of 1 after the records, so that the last axes of two tensors meet."""
    return tensor.reshape(tensor.shape[0], *[1] * missing, *tensor.shape[1:]) if missing > 0 else tensor


def _combined(call: _Call) -> Run | None:
    compute = partial(OPERATORS[call.node.operator], **call.plain)
    if "other" not in call.names:
        return _on_self(compute, call.names["self"])
    return _two(compute, call, "other")


def _two(compute: Callable[[Tensor, Tensor], Tensor], call: _Call, second: str) -> Run:
    left, right = call.names["self"], call.names[second]
    more = len(call.shapes[second]) - len(call.shapes["self"])
    return lambda values: compute(_lined_up(values[left], more), _lined_up(values[right], -more))


def _product(second: str) -> _Rule:
    def rule(call: _Call) -> Run | None:
        if min(len(call.shapes["self"]), len(call.shapes[second])) < 2:
            return None
        return _two(torch.matmul, call, second)

    return rule


def _attention(call: _Call) -> Run | None:
    if len({len(call.shapes[name]) for name in ("query", "key", "value")}) != 1:
        return None
    compute, names = partial(OPERATORS[call.node.operator], **call.plain), call.names
    return lambda values: compute(values[names["query"]], values[names["key"]], values[names["value"]])


def _layer_norm(call: _Call) -> Run | None:
    # Weights that are values of a record's own have no such rule in torch.
    if "weight" in call.names or "bias" in call.names:
        return None
    return _on_self(partial(OPERATORS[call.node.operator], **call.plain), call.names["input"])


def _merged(given: str, axes: int) -> _Rule:
    """Operators over (N, C, ...) that treat each of the N apart: the records' N lie one after the other."""

    def rule(call: _Call) -> Run | None:
        if len(call.names) != 1 or len(call.shapes[given]) < axes:
            return None
        compute, inner = partial(OPERATORS[call.node.operator], **call.plain), call.result[0]
        return _on_self(lambda x: compute(x.flatten(0, 1)).unflatten(0, (x.shape[0], inner)), call.names[given])

    return rule


_RULES: Mapping[str, _Rule] = {
    **{
        f"{name}.default": _elementwise
        for name in (
            "contiguous", "alias", "clone", "relu", "tanh", "sigmoid", "silu", "exp", "gelu", "elu", "leaky_relu",
        )
    },
    **dict.fromkeys(
        ("view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "unsqueeze.default", "squeeze.dim"),
        _reshaped,
    ),
    "t.default": _transposed,
    "expand.default": _expanded,
    "permute.default": _permuted,
    "transpose.int": _exchanged,
    **dict.fromkeys(("select.int", "slice.Tensor", "softmax.int", "log_softmax.int"), _along_axis),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), _reduced),
    "cat.default": _joined,
    **dict.fromkeys(("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"), _combined),
    "mm.default": _product("mat2"),
    "bmm.default": _product("mat2"),
    "matmul.default": _product("other"),
    "scaled_dot_product_attention.default": _attention,
    "layer_norm.default": _layer_norm,
    "group_norm.default": _merged("input", 2),
    "instance_norm.default": _merged("input", 3),
    **{f"{kind}_pool{axes}d.default": _merged("self", axes + 2)
       for kind in ("max", "avg", "adaptive_avg") for axes in (1, 2, 3)},
}  # fmt: skip
