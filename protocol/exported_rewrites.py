"""Operators of a torch.export file that a graph does not have, said with those that it has. Pure.

A graph holds no whole numbers and no operator with several values. Whole numbers 0, 1 ... that look up rows of a table,
as for the places of a series, become the table's first rows; parts of a tensor become a slice or a selection each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.graph import GraphArgument, GraphNode, forbidden

_SPLIT = ("chunk.default", "split.Tensor", "split_with_sizes.default")
REWRITTEN = ("arange.default", "embedding.default", "unbind.int", *_SPLIT)
"""Operators that `Rewrites` takes, or refuses."""


def target(node: Any) -> str:
    """The operator of a file's node."""
    operator = str(node["target"]).removeprefix("torch.ops.aten.")
    # A view that torch makes of a fresh copy; the numbers are the same.
    return "view.default" if operator == "_unsafe_view.default" else operator


class Rewrites:
    """The nodes of one graph as they are found. names: the file's names -> the graph's, which grow with them."""

    def __init__(self, metas: Mapping[str, Any], names: dict[str, str]) -> None:
        """metas: what the file says of each tensor; whoever measures the graph finds the shapes anew."""
        self.nodes: list[GraphNode] = []
        self._metas, self._names = metas, names
        self._places: dict[str, tuple[int, int]] = {}
        """Name of whole numbers -> how many, and how many axes of 1 before them."""

    def add(self, node: GraphNode, name: str) -> None:
        """The node whose value the file calls `name`."""
        self.nodes.append(node)
        self._names[name] = f"n{len(self.nodes) - 1}"

    def takes(self, node: Any) -> bool:
        """Whether the file's node was one to say otherwise, and has been. Raises ExportRefused for a look-up by other
        numbers than places."""
        given = {item["name"]: item["arg"] for item in node["inputs"]}
        (output,) = node["outputs"]
        match target(node):
            case "arange.default":
                self._places[output["as_tensor"]["name"]] = (int(given["end"]["as_int"]), 0)
            case "unsqueeze.default" | "expand.default" if given["self"]["as_tensor"]["name"] in self._places:
                self._reshape(target(node), given, output["as_tensor"]["name"])
            case "embedding.default":
                self._look_up(given, output["as_tensor"]["name"])
            case "unbind.int":
                for index, part in enumerate(output["as_tensors"]):
                    self._part("select.int", given, part["name"], index=index)
            case operator if operator in _SPLIT:
                start, dim = 0, _whole(given, "dim", 0)
                for part in output["as_tensors"]:
                    length = int(self._metas[part["name"]]["sizes"][dim]["as_int"])
                    self._part("slice.Tensor", given, part["name"], start=start, end=start + length)
                    start += length
            case _:
                return False
        return True

    def _part(self, operator: str, given: Mapping[str, Any], name: str, **more: int) -> None:
        source = self._names[given["self"]["as_tensor"]["name"]]
        self.add(_node(operator, self=source, dim=_whole(given, "dim", 0), **more), name)

    def _reshape(self, operator: str, given: Mapping[str, Any], name: str) -> None:
        count, axes = self._places[given["self"]["as_tensor"]["name"]]
        if operator == "unsqueeze.default" and given["dim"]["as_int"] == 0:
            self._places[name] = (count, axes + 1)
            return
        *before, last = given["size"]["as_ints"] if operator == "expand.default" else (0, 0)
        if last not in (count, -1) or not set(before) <= {1, -1}:
            raise forbidden("arange.default")
        self._places[name] = (count, len(before))

    def _look_up(self, given: Mapping[str, Any], name: str) -> None:
        found = self._places.get(given["indices"]["as_tensor"]["name"])
        flags = [given.get(flag, {"as_bool": False})["as_bool"] for flag in ("scale_grad_by_freq", "sparse")]
        # A padding index would leave a row untrained.
        if found is None or any(flags) or _whole(given, "padding_idx", -1) != -1:
            raise forbidden("embedding.default")
        count, axes = found
        self.add(_node("slice.Tensor", self=self._names[given["weight"]["as_tensor"]["name"]], dim=0, end=count), name)
        for _ in range(axes):
            self.add(_node("unsqueeze.default", self=self._names[name], dim=0), name)


def _whole(given: Mapping[str, Any], name: str, default: int) -> int:
    return int(given.get(name, {"as_int": default})["as_int"])


def _node(operator: str, **arguments: str | int) -> GraphNode:
    given = [
        GraphArgument(name=name, kind="tensor" if isinstance(value, str) else "int", value=value)
        for name, value in arguments.items()
    ]
    return GraphNode(operator=operator, arguments=tuple(given))
