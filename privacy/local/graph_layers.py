"""A researcher's graph for the book-keeping engine: its parameters in layers, many records at once.

Every parameter must reach one operator only, by itself or through values that no record has a part in (a transpose, a
slice). Such an operator becomes a layer of torch's, which the engine knows; another one that takes one value of the
record's becomes an `OwnOperator`, which the engine differentiates by itself. The same operator with the same parameters
again, as in an unrolled loop, is the same layer again, whose books add up. A graph that shares a parameter otherwise,
or joins one with two values of the record's, is left to vmap. Operators without parameters run as
`privacy.local.graph_batches` says. The engine tries its books against plain autograd all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from privacy.local.graph_batches import Run, batched
from privacy.local.graph_operators import (
    Graph,
    Node,
    plain_arguments,
    require_listed,
    run_node,
    shapes_of,
    tensors_of,
)

_ACTIVATIONS: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    "relu.default": lambda _: nn.ReLU(),
    "tanh.default": lambda _: nn.Tanh(),
    "sigmoid.default": lambda _: nn.Sigmoid(),
    "silu.default": lambda _: nn.SiLU(),
    "gelu.default": lambda plain: nn.GELU(plain.get("approximate", "none")),
}


class OwnOperator(nn.Module):
    """An operator with parameters that is no layer of torch's: (R, *shape) -> (R, *shape of its value).

    nodes: what prepares the parameters, then the operator, each with the place of its value.
    """

    def __init__(self, nodes: Sequence[tuple[int, Node]], given: str, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._nodes, self._given = nodes, given
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Each record by itself."""
        values: dict[str, Tensor] = dict(self.named_parameters())
        *before, (_, last) = self._nodes
        for place, node in before:
            values[f"n{place}"] = run_node(node, values)
        found: Tensor = torch.vmap(lambda record: run_node(last, {**values, self._given: record}))(x)
        return found


class _Unused(nn.Module):
    """Parameters that the output does not depend on; their gradient is 0."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


@dataclass(frozen=True)
class _Layer:
    """A layer in the graph: the value that it takes, the one that it gives. apart: it takes (R, C, ...) where the
    graph's value is (R, 1, C, ...)."""

    module: nn.Module
    given: str
    apart: bool

    def run(self, values: Mapping[str, Tensor]) -> Tensor:
        """The layer's value."""
        x = values[self.given]
        found: Tensor = self.module(x.squeeze(1)).unsqueeze(1) if self.apart else self.module(x)
        return found


@dataclass(frozen=True)
class _Step:
    run: Run
    makes: str
    done: tuple[str, ...]


class LayeredGraph(nn.Module):
    """(R, *input) -> (R, J), float32. `parameters` come in wire order, whatever layer holds them."""

    def __init__(self, steps: Sequence[_Step], output: str, modules: Sequence[nn.Module], order: Mapping[int, int]):
        """order: id of a parameter -> its place on the wire."""
        super().__init__()
        self.layers = nn.ModuleList(modules)
        self._steps, self._output = steps, output
        self._wire = {name: order[id(parameter)] for name, parameter in super().named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """(R, *input) -> (R, J)."""
        values = {"x": x.unsqueeze(1)}
        for step in self._steps:
            values[step.makes] = step.run(values)
            for name in step.done:
                del values[name]
        return values[self._output].squeeze(1)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """See torch.nn.Module; in wire order."""
        found = dict(super().named_parameters("", recurse, remove_duplicate))
        for name in sorted(found, key=lambda name: self._wire[name]):
            yield (f"{prefix}.{name}" if prefix else name), found[name]


def layered_module(graph: Graph) -> nn.Module | None:
    """A module (R, *input) -> (R, J) that computes the graph for many records, `parameters()` in wire order and 0; or
    None where a parameter fits into no layer. A stack of linear layers and activations is a Sequential.

    The graph must have been checked before; an operator that is not in the table raises ParameterError.
    """
    require_listed(graph)
    return _Layering(graph).module()


class _Layering:
    """One graph on its way into layers."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shapes = shapes_of(graph)
        self._nodes = _needed(graph)
        self._own = {
            f"p{place}": nn.Parameter(torch.zeros(tuple(shape))) for place, shape in enumerate(graph.parameters)
        }
        self._layers: dict[Hashable, nn.Module] = {}
        # What each value that no record has a part in is made of: itself and all before it.
        self._made_of: dict[str, frozenset[str]] = {name: frozenset({name}) for name in self._own}
        for place, node in self._nodes.items():
            taken = tensors_of(node)
            if all(name in self._made_of for name in taken):
                parts = (self._made_of[name] for name in taken)
                self._made_of[f"n{place}"] = frozenset({f"n{place}"}).union(*parts)

    def module(self) -> nn.Module | None:
        if self._graph.output in self._made_of:
            return None
        runs: dict[int, Run | _Layer] = {}
        owner: dict[str, nn.Module] = {}
        for place, node in self._nodes.items():
            if f"n{place}" in self._made_of:
                continue
            cone = frozenset[str]().union(*(self._made_of.get(name, frozenset()) for name in tensors_of(node)))
            if not cone:
                runs[place] = batched(node, self._shapes, self._shapes[f"n{place}"])
                continue
            layer = self._layer(place, node, cone)
            if layer is None:
                return None
            runs[place] = layer
            for name in cone & self._own.keys():
                if owner.setdefault(name, layer.module) is not layer.module:
                    return None
        unused = {name: parameter for name, parameter in self._own.items() if name not in owner}
        return (None if unused else self._stack(runs)) or self._layered(runs, unused)

    def _layer(self, place: int, node: Node, cone: frozenset[str]) -> _Layer | None:
        given = {name for name in tensors_of(node) if name not in self._made_of}
        if len(given) != 1:
            return None
        (x,) = given
        known = self._linear(node, x, cone) or self._known(node, x, cone)
        if known is not None:
            return known
        before = sorted(int(name[1:]) for name in cone if name.startswith("n"))
        nodes = [(number, self._graph.nodes[number]) for number in (*before, place)]
        own = {name: self._own[name] for name in sorted(cone) if name in self._own}
        key = (node.operator, *((given.name, "x" if given.value == x else given.value) for given in node.arguments))
        return _Layer(self._layers.setdefault(key, OwnOperator(nodes, x, own)), x, apart=False)

    def _linear(self, node: Node, x: str, cone: frozenset[str]) -> _Layer | None:
        """x W^T + b as linear, or as a product with a transposed weight."""
        names = _names(node)
        match node.operator:
            case "linear.default":
                given, weight, bias = names["input"], names.get("weight"), names.get("bias")
            case "addmm.default":
                given, weight, bias = names["mat1"], self._turned(names["mat2"]), names["self"]
            case "mm.default" | "matmul.default":
                other = names["mat2" if node.operator == "mm.default" else "other"]
                given, weight, bias = names["self"], self._turned(other), None
            case _:
                return None
        if given != x or weight not in self._own or bias == weight or (bias is not None and bias not in self._own):
            return None
        if {name for name in cone if name in self._own} != {weight, bias} - {None}:
            return None
        outputs, inputs = self._shapes[weight]
        if bias is not None and self._shapes[bias] != (outputs,):
            return None
        layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        return self._filled(layer, weight, bias, x)

    def _turned(self, name: str) -> str | None:
        """The parameter of which `name` is the transpose."""
        if not name.startswith("n"):
            return None
        node = self._graph.nodes[int(name[1:])]
        plain, source = plain_arguments(node), _names(node).get("self")
        if source not in self._own or len(self._shapes[source]) != 2:
            return None
        match node.operator:
            case "t.default":
                turned = True
            case "permute.default":
                turned = [place % 2 for place in plain["dims"]] == [1, 0]
            case "transpose.int":
                turned = plain["dim0"] % 2 != plain["dim1"] % 2
            case _:
                turned = False
        return source if turned else None

    def _known(self, node: Node, x: str, cone: frozenset[str]) -> _Layer | None:
        """A convolution or a normalisation."""
        names, plain, shape = _names(node), plain_arguments(node), self._shapes[x]
        weight, bias = names.get("weight"), names.get("bias")
        if names.get("input") != x or weight is None or cone != {weight, bias} - {None} or weight == bias:
            return None
        if node.operator == "layer_norm.default":
            norm = nn.LayerNorm(plain["normalized_shape"], plain.get("eps", 1e-5), bias=bias is not None, device="meta")
            return self._filled(norm, weight, bias, x)
        # The engine wants a layer's first axis to be that of the records.
        if shape[0] != 1:
            return None
        if node.operator == "group_norm.default" and bias is not None:
            groups = nn.GroupNorm(plain["num_groups"], shape[1], plain.get("eps", 1e-5), device="meta")
            return self._filled(groups, weight, bias, x, apart=True)
        if node.operator == "instance_norm.default" and bias is not None and len(shape) in _INSTANCES:
            instances = _INSTANCES[len(shape)](shape[1], plain.get("eps", 1e-5), affine=True, device="meta")
            return self._filled(instances, weight, bias, x, apart=True)
        kind = _CONVOLUTIONS.get(node.operator)
        if kind is None:
            return None
        outputs, _, *kernel = self._shapes[weight]
        sizes = {
            name: _each(plain.get(name, [default]), len(kernel))
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        }
        layer = kind(shape[1], outputs, tuple(kernel), groups=plain.get("groups", 1), bias=bias is not None,
                     device="meta", **sizes)  # fmt: skip
        return self._filled(layer, weight, bias, x, apart=True)

    def _filled(self, layer: nn.Module, weight: str, bias: str | None, x: str, *, apart: bool = False) -> _Layer:
        """The layer with its parameters, on x; or the one that is like it, if there was one."""
        for own, name in (("weight", weight), ("bias", bias)):
            if name is not None:
                layer.register_parameter(own, self._own[name])
        # What torch prints of a layer is all that it was made with.
        return _Layer(self._layers.setdefault((repr(layer), weight, bias), layer), x, apart)

    def _stack(self, runs: Mapping[int, Run | _Layer]) -> nn.Module | None:
        """A Sequential of linear layers and activations, whose parameters stand in wire order; or None."""
        modules, before = list[nn.Module](), "x"
        for place, run in runs.items():
            node = self._graph.nodes[place]
            if len(self._shapes[before]) != 2:
                return None
            if isinstance(run, _Layer) and isinstance(run.module, nn.Linear) and run.given == before:
                modules.append(run.module)
            elif node.operator in _ACTIVATIONS and tensors_of(node) == (before,):
                modules.append(_ACTIVATIONS[node.operator](plain_arguments(node)))
            else:
                return None
            before = f"n{place}"
        stack = nn.Sequential(*modules)
        same = [id(p) for p in stack.parameters()] == [id(p) for p in self._own.values()]
        return stack if same and before == self._graph.output else None

    def _layered(self, runs: Mapping[int, Run | _Layer], unused: Mapping[str, nn.Parameter]) -> LayeredGraph:
        modules = list(dict.fromkeys(run.module for run in runs.values() if isinstance(run, _Layer)))
        if unused:
            modules.append(_Unused(unused))
        last = {name: place for place in runs for name in tensors_of(self._graph.nodes[place])}
        steps = []
        for place, run in runs.items():
            done = tuple(name for name, end in last.items() if end == place and name not in self._made_of)
            steps.append(_Step(run.run if isinstance(run, _Layer) else run, f"n{place}", done))
        order = {id(parameter): place for place, parameter in enumerate(self._own.values())}
        return LayeredGraph(steps, self._graph.output, modules, order)


_CONVOLUTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "conv1d.default": nn.Conv1d,
    "conv2d.default": nn.Conv2d,
    "conv3d.default": nn.Conv3d,
}
_INSTANCES: Mapping[int, Callable[..., nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _names(node: Node) -> dict[str, str]:
    return {argument.name: argument.value for argument in node.arguments if argument.kind == "tensor"}


def _each(values: Sequence[int], axes: int) -> tuple[int, ...]:
    return tuple(values) * axes if len(values) == 1 else tuple(values)


def _needed(graph: Graph) -> dict[int, Node]:
    """The nodes that the output depends on, by place, in order."""
    wanted = {graph.output}
    found: dict[int, Node] = {}
    for place in range(len(graph.nodes) - 1, -1, -1):
        if f"n{place}" in wanted:
            found[place] = graph.nodes[place]
            wanted.update(tensors_of(graph.nodes[place]))
    return dict(sorted(found.items()))
