"""One operator's call in a graph: its arguments and the shapes of its tensors. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.graph import GraphNode

Shape = tuple[int, ...]


class Unfit(Exception):
    """Why an operator can't take its arguments, in words that hold no value of anybody's."""


@dataclass(frozen=True)
class Call:
    """One node's arguments with the shapes of its tensors."""

    arguments: Mapping[str, object]
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, node: GraphNode, shapes: Mapping[str, Shape]) -> Call:
        """The call that a node makes."""
        return cls({argument.name: argument.value for argument in node.arguments}, shapes)

    def shape(self, name: str) -> Shape:
        """Of the tensor that the argument names. Raises Unfit where there is none."""
        value = self.arguments.get(name)
        if not isinstance(value, str):
            raise Unfit(f"{name} is missing")
        return self.shapes[value]

    def optional(self, name: str) -> Shape | None:
        """The same, or None where no tensor is given."""
        return self.shape(name) if isinstance(self.arguments.get(name), str) else None

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number. Raises Unfit where it is missing."""
        value = self.arguments.get(name, default)
        if not isinstance(value, int):
            raise Unfit(f"{name} is missing")
        return int(value)

    def wholes(self, name: str, default: Shape | None = None) -> Shape:
        """Several whole numbers. Raises Unfit where they are missing."""
        value = self.arguments.get(name, default)
        if not isinstance(value, tuple):
            raise Unfit(f"{name} is missing")
        return tuple(int(item) for item in value)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        return bool(self.arguments.get(name, default))


def axis(place: int, axes: int) -> int:
    """A possibly negative axis as 0 .. axes - 1. Raises Unfit."""
    if not -axes <= place < axes:
        raise Unfit(f"there is no axis {place}")
    return place % axes
